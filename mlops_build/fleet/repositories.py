"""The repositories of the services that fleet.yaml names: a list, and those of a project or group on the Git host."""

from mlops_build.adapters.githost import HOSTS
from mlops_build.fleet import Fleet


def urls(fleet: Fleet) -> list[str]:
    """The addresses, without repetitions. Raises HostUnreachable, HostRefused, UsageError."""
    listed = list(fleet.repositories.urls)
    if there := fleet.repositories.bitbucket:
        listed += HOSTS["bitbucket"].repositories(there.api, there.project)
    if group := fleet.repositories.gitlab:
        listed += HOSTS["gitlab"].repositories(group.api, group.group)
    return list(dict.fromkeys(listed))
