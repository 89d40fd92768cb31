"""The repositories of the services: those of the options, those that fleet.yaml lists, and those of a project or group on the Git host."""

from collections.abc import Sequence
from dataclasses import dataclass

from mlops_build.adapters.githost import HOSTS
from mlops_build.errors import MlopsBuildError
from mlops_build.fleet.rules import Rules


@dataclass(frozen=True)
class Repositories:
    """named: addresses that must have a service. discovered: those of a project or group, which may have other repositories, too.

    error: why there may be more: fleet.yaml cannot be read, or a Git host does not answer.
    """

    named: tuple[str, ...] = ()
    discovered: tuple[str, ...] = ()
    error: MlopsBuildError | None = None

    @property
    def urls(self) -> list[str]:
        return list(dict.fromkeys([*self.named, *self.discovered]))


def named(options: Sequence[str], rules: Rules) -> tuple[str, ...]:
    """Those of the options, and those that fleet.yaml lists itself."""
    return (*options, *(rules.fleet.repositories.urls if rules.fleet else ()))


def find(options: Sequence[str], rules: Rules) -> Repositories:
    """Those of the options and of fleet.yaml, after asking the Git hosts. Raises nothing: see `error`."""
    error, discovered, all_named = rules.error, list[str](), named(options, rules)
    places: list[tuple[str, str, str]] = []
    if rules.fleet and (bitbucket := rules.fleet.repositories.bitbucket):
        places.append(("bitbucket", bitbucket.api, bitbucket.project))
    if rules.fleet and (gitlab := rules.fleet.repositories.gitlab):
        places.append(("gitlab", gitlab.api, gitlab.group))
    for kind, api, place in places:
        try:
            discovered += HOSTS[kind].repositories(api, place)
        except MlopsBuildError as failed:
            error = failed
    return Repositories(all_named, tuple(url for url in discovered if url not in all_named), error)
