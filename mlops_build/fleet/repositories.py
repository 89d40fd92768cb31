"""The repositories of the services: those of the options, those that fleet.yaml lists, and those of a project or group on the Git host."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlops_build.adapters.githost import HOSTS
from mlops_build.fleet import Fleet


@dataclass(frozen=True)
class Repositories:
    """named: addresses that must have a service. discovered: those of a project or group, which may have other repositories, too."""

    named: tuple[str, ...] = ()
    discovered: tuple[str, ...] = ()

    @property
    def urls(self) -> list[str]:
        return list(dict.fromkeys([*self.named, *self.discovered]))


def find(named: Sequence[str], fleet: Fleet | None) -> Repositories:
    """Those of the options and of fleet.yaml. Raises HostUnreachable, HostRefused, UsageError."""
    if fleet is None:
        return Repositories(tuple(named))
    listed = fleet.repositories
    discovered: list[str] = []
    if listed.bitbucket:
        discovered += HOSTS["bitbucket"].repositories(listed.bitbucket.api, listed.bitbucket.project)
    if listed.gitlab:
        discovered += HOSTS["gitlab"].repositories(listed.gitlab.api, listed.gitlab.group)
    all_named = (*named, *listed.urls)
    return Repositories(all_named, tuple(url for url in discovered if url not in all_named))
