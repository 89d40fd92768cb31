"""Access to the API of any Git host: the token, the address, and the errors.

The token is MLOPS_GIT_TOKEN, which is also used for git push. It is sent only to the host in service.yaml: redirects are not followed,
and plain http is allowed only to this machine.
"""

import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar
from urllib.parse import urlsplit

from mlops_build.adapters.git.command import masked
from mlops_build.adapters.githost.host import HostRefused, HostUnreachable, Repository
from mlops_build.errors import UsageError

# For an answer, and for a list of many pages.
SECONDS, LIST_SECONDS = 30, 60
Value = TypeVar("Value")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
REDIRECTED = "the address redirects: use the new address in `git.api`"
REMEDIES = {
    401: "MLOPS_GIT_TOKEN is not valid or has expired: create a new access token",
    403: "MLOPS_GIT_TOKEN needs permission to write to this repository",
    404: "the repository does not exist, or the token cannot read it: check `git.api`, origin's address and the token",
}


def token() -> str:
    """MLOPS_GIT_TOKEN. Raises HostRefused if it is not set, or is not valid in a header."""
    value = os.environ.get("MLOPS_GIT_TOKEN", "")
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise HostRefused(
            "MLOPS_GIT_TOKEN is not set"
            if not value
            else "MLOPS_GIT_TOKEN contains a space or another character that is not valid in a token",
            remedy="set it to an access token of the bot with permission to write to the repository (repository settings)",
        )
    return value


def checked_api(api: str) -> str:
    """The host's address without the final slash. Raises UsageError, or HostRefused if the token would be sent unencrypted."""
    parts = urlsplit(api)
    if parts.scheme not in ("https", "http") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise UsageError(
            f"{masked(api)[:200]!r} is not a valid address of a Git host", remedy="write https://HOST[/PATH], without user and query"
        )
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        raise HostRefused(f"{api} is not https: the token would be sent unencrypted", remedy="write https:// in service.yaml's git.api")
    return api.rstrip("/")


def unreachable(message: str, remedy: str | None) -> HostUnreachable:
    """The error for a host that does not answer."""
    return HostUnreachable(message, remedy=f"{remedy}; the address is `git.api` in service.yaml, or `api` in fleet.yaml")


def in_time(values: Iterable[Value]) -> Iterator[Value]:
    """The values of a list in pages. Raises HostUnreachable if the host needs more than LIST_SECONDS for them."""
    deadline = time.monotonic() + LIST_SECONDS
    for value in values:
        if time.monotonic() > deadline:
            raise unreachable(f"the list of repositories was not complete after {LIST_SECONDS} s", "ask an administrator of the Git host")
        yield value


def refusal(api: str, repository: Repository, status: int, reason: str) -> HostUnreachable | HostRefused:
    """The error for an answer that is not a success. status: HTTP's, 0 for an answer of a wrong form. reason: the host's."""
    message = f"{api} answered {status or 'something unexpected'} for {repository}: {masked(reason)[:900] or 'no reason given'}"
    if status >= 500 or status == 429:
        return HostUnreachable(message, remedy="run this again later; the results so far are kept")
    return HostRefused(message, remedy=REMEDIES.get(status, REDIRECTED if 300 <= status < 400 else "see the message"))


def commit_in(value: object) -> str:
    """A commit's id in an answer; "" if it is something else, which must not reach git."""
    return value if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40}(?:[0-9a-f]{24})?", value) else ""


def number_in(value: object) -> int | None:
    """A pull request's number in an answer; None if it is something else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None
