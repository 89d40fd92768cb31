"""Pull requests on the Git host.

Another kind of host is a module beside bitbucket.py, an entry in HOSTS, and a value of `git.pull_requests` in service.yaml.
"""

from collections.abc import Mapping

from mlops_build.adapters.githost import bitbucket, gitlab
from mlops_build.adapters.githost.host import Checks, GitHost, HostRefused, HostUnreachable, PullRequest, Repository, State
from mlops_build.errors import UsageError

__all__ = ["HOSTS", "Checks", "GitHost", "HostRefused", "HostUnreachable", "PullRequest", "Repository", "State", "repository_of"]

# By `git.pull_requests` of service.yaml; `none` has no host.
HOSTS: Mapping[str, GitHost] = {"bitbucket": bitbucket, "gitlab": gitlab}


def repository_of(url: str, kind: str = "none") -> Repository | None:
    """The repository of a clone address; None for an address that does not fit.

    kind: `git.pull_requests` of service.yaml. An address can fit several hosts; without a host there, the first that fits is used.
    """
    for host in [HOSTS[kind]] if kind in HOSTS else HOSTS.values():
        try:
            return host.repository_of(url)
        except UsageError:
            continue
    return None
