"""Pull requests on the Git host.

Another kind of host is a module beside bitbucket.py, an entry in HOSTS, and a value of `git.pull_requests` in service.yaml.
"""

from collections.abc import Mapping

from mlops_build.adapters.githost import bitbucket
from mlops_build.adapters.githost.host import GitHost, HostRefused, HostUnreachable, PullRequest, Repository
from mlops_build.errors import UsageError

__all__ = ["HOSTS", "GitHost", "HostRefused", "HostUnreachable", "PullRequest", "Repository", "repository_of"]

# By `git.pull_requests` of service.yaml; `none` has no host.
HOSTS: Mapping[str, GitHost] = {"bitbucket": bitbucket}


def repository_of(url: str) -> Repository | None:
    """The repository of a clone address of any host; None for another address."""
    for host in HOSTS.values():
        try:
            return host.repository_of(url)
        except UsageError:
            continue
    return None
