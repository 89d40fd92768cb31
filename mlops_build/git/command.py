"""Run git: bounded in time, never a prompt, only the transports we mean, and no password in a message."""

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from mlops_build.errors import Failed, Refused, Unreachable, UsageError

SECONDS = 120
# `ext::` and friends would run a command that an address names.
ENVIRONMENT = {
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh",
    "GIT_SSH_COMMAND": "ssh -o BatchMode=yes",
    "LC_ALL": "C",
}
REF = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,200}[A-Za-z0-9])?")
URL = re.compile(r"(?:(?:file|git|https?|ssh)://[^\s'\"\\-][^\s'\"\\]*|[A-Za-z0-9_][A-Za-z0-9_.@-]*:[^\s:'\"\\-][^\s'\"\\]*|/[^\s'\"\\]+)")


class GitFailed(Failed):
    """A git command ended with an error that is none of the others."""


class RemoteUnreachable(Unreachable):
    """The remote repository does not answer, does not exist, or does not let us in."""


class PushRejected(Refused):
    """The branch has moved on, or the Git host has a rule against this push."""


def run(
    where: Path, *arguments: str, stdin: bytes | None = None, environment: Mapping[str, str] | None = None, seconds: int = SECONDS
) -> bytes:
    """What `git -C WHERE ARGUMENTS` prints. Raises RemoteUnreachable, PushRejected or GitFailed."""
    variables = {**os.environ, **ENVIRONMENT, **(environment or {})}
    command = ["git", "-C", str(where), *arguments]
    try:
        done = subprocess.run(command, input=stdin, env=variables, capture_output=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise RemoteUnreachable(f"git {arguments[0]} did not end within {seconds} s", remedy="check the network and the Git host") from None
    except FileNotFoundError:
        raise Failed("git is not installed", remedy="install git ≥ 2.30") from None
    if done.returncode:
        raise _error(arguments[0], masked(done.stderr.decode(errors="replace").strip()))
    return done.stdout


def text(where: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """The same as stripped text."""
    return run(where, *arguments, environment=environment).decode(errors="replace").strip()


def masked(said: str) -> str:
    """Without the user and password of an address."""
    return re.sub(r"://[^/@\s]*@", "://", said)


def checked_url(url: str) -> str:
    """The address, if it can only be an address. Raises UsageError."""
    if not URL.fullmatch(url):
        raise UsageError(f"{masked(url)[:200]!r} is no repository's address", remedy="write https://…, ssh://…, git@host:path or file:///…")
    return url


def checked_ref(name: str) -> str:
    """The branch name, if it can only be one. Raises UsageError."""
    if not REF.fullmatch(name) or ".." in name or "//" in name or "@{" in name:
        raise UsageError(f"{name[:100]!r} is no branch name", remedy="letters, digits and ._/- are allowed")
    return name


REJECTED = re.compile(r"\[(?:remote )?rejected\]|stale info|non-fast-forward|fetch first|pre-receive hook declined")
UNREACHABLE = re.compile(
    r"Could not read from remote|does not appear to be a git|unable to access|not found|Authentication failed|could not read Username"
    r"|Connection|resolve host|not allowed"
)


def _error(verb: str, said: str) -> Exception:
    lines = [line.strip() for line in said.splitlines()]
    first = next((line for line in lines if line.startswith(("fatal:", "error:", "! ", "remote:"))), said[:300])
    if REJECTED.search(said):
        reason = next((line for line in lines if line.startswith(("! ", "remote: ")) and len(line) > len("remote: ")), first)
        remedy = "somebody pushed in between (git pull --rebase, then run this again), or the host has a rule against it"
        return PushRejected(f"the push was rejected: {reason}", remedy=remedy)
    if UNREACHABLE.search(said):
        return RemoteUnreachable(f"the Git remote cannot be used: {first}", remedy="check its address, and that you may read and write it")
    return GitFailed(f"git {verb}: {first}", remedy="run the same git command by hand to see more")
