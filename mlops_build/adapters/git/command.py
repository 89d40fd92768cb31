"""Run git with a time limit, without prompts, with allowed transports only, and without passwords in arguments or messages.

A password for http(s) comes from MLOPS_GIT_TOKEN (with MLOPS_GIT_USER if the host requires a name), or from git's own credential
helpers, never from an address.
"""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from mlops_build.adapters import program
from mlops_build.errors import Failed, Refused, Unreachable, UsageError

SECONDS = 120
# Transports such as `ext::` would run a command from an address. Paths are literal: `*` has no special meaning.
ENVIRONMENT = {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "file:git:http:https:ssh", "GIT_LITERAL_PATHSPECS": "1", "LC_ALL": "C"}
SILENT_SECONDS = 20  # a host that sends nothing for this time does not answer
SSH = f"ssh -o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval={SILENT_SECONDS // 2} -o ServerAliveCountMax=2"
# Set while git runs a hook; they would select another repository.
OF_A_HOOK = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX"}
# git's protocol for credentials: the helper reads the variables itself, so that no argument contains them.
CREDENTIAL_HELPER = (
    '!f() { [ "$1" != get ] || printf "username=%s\\npassword=%s\\n" "${MLOPS_GIT_USER:-x-token-auth}" "$MLOPS_GIT_TOKEN"; }; f'
)
REF = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,200}[A-Za-z0-9])?")
# A scheme and a host, or git's short HOST:PATH for ssh, or an absolute path. None of its parts may look like an option.
URL = re.compile(
    r"(?:(?:file|git|https?|ssh)://[^\s'\"\\-][^\s'\"\\]*"
    r"|(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9][A-Za-z0-9_.-]*:(?!//)[^\s:'\"\\-][^\s'\"\\]*"
    r"|/[^\s'\"\\]+)"
)


class GitFailed(Failed):
    """A git command failed with another error."""


class RemoteUnreachable(Unreachable):
    """The remote repository does not answer, does not exist, or refuses access."""


class Locked(Refused):
    """Another git process is using the index."""


class PushRejected(Refused):
    """The branch has new commits, or the Git host has a rule against this push."""


def run(
    where: Path,
    *arguments: str,
    stdin: bytes | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: int = SECONDS,
    good: Sequence[int] = (0,),
) -> bytes:
    """The output of `git -C WHERE ARGUMENTS`. Raises RemoteUnreachable, PushRejected, Locked or GitFailed.

    good: exit codes of success.
    """
    try:
        done = program.run(
            ["git", "-C", str(where), *arguments],
            seconds=seconds,
            environment={**_environment(), **(environment or {})},
            stdin=stdin,
        )
    except program.NotInstalled:
        raise Failed("git is not installed", remedy="install git ≥ 2.30") from None
    except program.DoesNotEnd:
        remedy = "check the network and the Git host"
        raise RemoteUnreachable(f"git {arguments[0]} did not finish within {seconds} s", remedy=remedy) from None
    if done.code not in good:
        raise _error(arguments[0], masked(done.message))
    return done.output


def _environment() -> dict[str, str]:
    variables = {name: value for name, value in os.environ.items() if name not in OF_A_HOOK} | ENVIRONMENT
    variables.setdefault("GIT_SSH_COMMAND", SSH)
    # A commit must not depend on the user's settings, and no background process may continue in a folder that is about to be removed.
    settings = [("i18n.commitEncoding", "UTF-8"), ("maintenance.auto", "false"), ("log.showSignature", "false")]
    settings += [("http.lowSpeedLimit", "1"), ("http.lowSpeedTime", str(SILENT_SECONDS))]
    if "MLOPS_GIT_TOKEN" in variables:
        # No redirects: the token is only for the given host.
        settings += [("credential.helper", CREDENTIAL_HELPER), ("http.followRedirects", "false")]
    first = int(variables.get("GIT_CONFIG_COUNT") or 0)
    for number, (key, value) in enumerate(settings, start=first):
        variables |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return variables | {"GIT_CONFIG_COUNT": str(first + len(settings))}


def text(where: Path, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """The output of `run` as stripped text."""
    return run(where, *arguments, environment=environment).decode(errors="replace").strip()


def version() -> tuple[int, int]:
    """The major and minor version of the installed git."""
    match = re.search(r"(\d+)\.(\d+)", text(Path("/"), "--version"))
    return (int(match[1]), int(match[2])) if match else (0, 0)


def masked(message: str) -> str:
    """Remove user and password from addresses in a text."""
    return re.sub(r"://[^/@\s]*@", "://", message)


def checked_url(url: str) -> str:
    """The address, if it is valid and contains no password. Raises UsageError."""
    if not URL.fullmatch(url):
        raise UsageError(
            f"{masked(url)[:200]!r} is not a valid repository address", remedy="write https://…, ssh://…, git@host:path or file:///…"
        )
    if re.match(r"[a-z]+://[^/@]*:[^/@]*@", url):
        raise UsageError(
            f"{masked(url)[:200]}: an address must not contain a password, which every user of this machine could read",
            remedy="set MLOPS_GIT_TOKEN (and MLOPS_GIT_USER), or use a git credential helper",
        )
    return url


def checked_ref(name: str) -> str:
    """The branch name, if it is valid. Raises UsageError."""
    if not REF.fullmatch(name) or ".." in name or "//" in name or "@{" in name:
        raise UsageError(f"{name[:100]!r} is not a valid branch name", remedy="letters, digits and ._/- are allowed")
    return name


LOCKED = re.compile(r"Unable to create '(.*/index\.lock)': File exists")
REJECTED = re.compile(r"\[(?:remote )?rejected\]|stale info|non-fast-forward|fetch first|pre-receive hook declined")
UNREACHABLE = re.compile(
    r"Could not read from remote|does not appear to be a git|unable to access|not found|Authentication failed|could not read Username"
    r"|Connection|resolve host|not allowed"
)


DENIED = re.compile(r"Authentication failed|could not read (?:Username|Password)|returned error: 40[13]|Access denied", re.IGNORECASE)


def _error(verb: str, stderr: str) -> Exception:
    lines = [line.strip() for line in stderr.splitlines()]
    first = next((line for line in lines if line.startswith(("fatal:", "error:", "! ", "remote:"))), stderr[:300])
    if match := LOCKED.search(stderr):
        remedy = f"wait until it has finished; if no git process is running, one was killed: rm -f {shlex.quote(match[1])}"
        return Locked(f"another git process is using the repository: {match[1]} exists", remedy=remedy)
    if REJECTED.search(stderr):
        reason = next((line for line in lines if line.startswith(("! ", "remote: ")) and len(line) > len("remote: ")), first)
        branch = re.search(rf"-> ({REF.pattern}) ", stderr)
        pull = f"git pull --rebase origin {branch[1] if branch else 'BRANCH'}"  # a branch may have no upstream
        remedy = f"if the branch has new commits: {pull}, then run this again; else the host has a rule against this push"
        return PushRejected(f"the push was rejected: {reason}", remedy=remedy)
    if UNREACHABLE.search(stderr):
        remedy = "check its address and your permission to read and write it"
        if DENIED.search(stderr):
            remedy = "set MLOPS_GIT_TOKEN to a valid token with access to this repository (and MLOPS_GIT_USER if the host requires a name)"
        return RemoteUnreachable(f"the Git remote cannot be used: {first}", remedy=remedy)
    return GitFailed(f"git {verb}: {first}", remedy="run the same git command to see all of its output")
