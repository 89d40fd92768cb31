"""A remote repository, without a copy of it."""

from pathlib import Path

from mlops_build.adapters.git import command

# A branch's head is asked for often, and of many repositories: a host that needs longer is busy.
SECONDS = 30


def head(url: str, branch: str) -> str:
    """The commit of a branch. Raises RemoteUnreachable, or UsageError for a bad address."""
    if commit := find_head(Path("/"), command.checked_url(url), branch):
        return commit
    raise command.RemoteUnreachable(
        f"{command.masked(url)} has no branch {branch!r}", remedy="push a first commit there, or give another branch with --branch"
    )


def find_head(where: Path, remote: str, branch: str) -> str | None:
    """The commit of a branch; None if there is no such branch. remote: as git knows it in the folder `where`. Raises RemoteUnreachable."""
    ref = f"refs/heads/{command.checked_ref(branch)}"
    listed = command.run(where, "ls-remote", "--end-of-options", remote, ref, seconds=SECONDS).decode(errors="replace")
    return next((line.removesuffix(f"\t{ref}") for line in listed.splitlines() if line.endswith(f"\t{ref}")), None)


def host(url: str) -> str:
    """The host in an address that `command.checked_url` accepts; empty for a path."""
    if "://" not in url:
        return "" if url.startswith("/") else url.partition(":")[0].rpartition("@")[2].lower()
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2].lower()
