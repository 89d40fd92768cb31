"""What every Git host can do: open a pull request."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

from mlops_build.errors import Refused, Unreachable


class HostUnreachable(Unreachable):
    """The Git host does not answer, or is temporarily unavailable."""


class HostRefused(Refused):
    """The Git host refuses access, or does not have the repository."""


@dataclass(frozen=True)
class Repository:
    """A repository on a Git host. project: on Bitbucket its key (~USER for a personal one). name: the one in addresses."""

    project: str
    name: str

    def __str__(self) -> str:
        return f"{self.project}/{self.name}"


@dataclass(frozen=True)
class PullRequest:
    """A pull request. new: it was opened by this call."""

    number: int
    url: str
    new: bool

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class GitHost(Protocol):
    """A module with these functions. api: the host's address, `git.api` in service.yaml."""

    def repository_of(self, url: str, /) -> Repository:
        """The repository of a clone address. Raises UsageError for an address of another host."""

    def check(self, api: str, repository: Repository, /) -> None:
        """Check that the token can read the repository; nothing is changed. Raises HostUnreachable, HostRefused, UsageError."""

    def open_pull_request(
        self, api: str, repository: Repository, /, *, source: str, target: str, title: str, description: str
    ) -> PullRequest | None:
        """Open a pull request from `source` to `target`, or return the open one. None: everything is already merged.

        Raises HostUnreachable, HostRefused, UsageError. No message contains the token.
        """
