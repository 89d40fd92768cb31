"""What every Git host can do with pull requests. GitLab calls them merge requests."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mlops_build.errors import Refused, Unreachable

State = Literal["open", "merged", "closed"]
Checks = Literal["passed", "failed", "running", "none"]


class HostUnreachable(Unreachable):
    """The Git host does not answer, or is temporarily unavailable."""


class HostRefused(Refused):
    """The Git host refuses access, or does not have the repository."""


@dataclass(frozen=True)
class Repository:
    """A repository on a Git host. project: on Bitbucket its key (~USER for a personal one), on GitLab its groups.

    name: the one in addresses.
    """

    project: str
    name: str

    def __str__(self) -> str:
        return f"{self.project}/{self.name}"


@dataclass(frozen=True)
class PullRequest:
    """A pull request. new: it was opened by this call. commit: the head of its source branch, "" if the host does not say it."""

    number: int
    url: str
    new: bool = False
    state: State = "open"
    commit: str = ""
    title: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"number": self.number, "url": self.url, "new": self.new}


class GitHost(Protocol):
    """A module with these functions. api: the host's address, `git.api` in service.yaml.

    All but `repository_of` raise HostUnreachable, HostRefused, UsageError. No message contains the token.
    """

    def repository_of(self, url: str, /) -> Repository:
        """The repository of a clone address. Raises UsageError for an address of another host."""

    def repositories(self, api: str, project: str, /) -> list[str]:
        """The https clone addresses of all repositories that the token can read in a project or group, sorted."""

    def check(self, api: str, repository: Repository, /) -> None:
        """Check that the token can read the repository; nothing is changed."""

    def find_pull_request(self, api: str, repository: Repository, /, *, source: str, target: str) -> PullRequest | None:
        """The open pull request from `source` to `target`, else the newest one; None if there never was one."""

    def open_pull_request(
        self, api: str, repository: Repository, /, *, source: str, target: str, title: str, description: str
    ) -> PullRequest | None:
        """Open a pull request from `source` to `target`, or return the open one. None: everything is already merged."""

    def update_pull_request(self, api: str, repository: Repository, number: int, /, *, title: str, description: str) -> None:
        """Replace the texts of a pull request, unless it is no longer open."""

    def close_pull_request(self, api: str, repository: Repository, number: int, /) -> None:
        """Close a pull request without a merge, unless it is no longer open."""

    def checks(self, api: str, repository: Repository, commit: str, /) -> Checks:
        """The result of all builds of a commit: failed if one failed, else running if one is not finished. none: there is no build."""
