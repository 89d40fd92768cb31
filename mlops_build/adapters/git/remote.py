"""A remote repository, without a copy of it."""

from pathlib import Path

from mlops_build.adapters.git import command

# A branch's head is asked for often, and of many repositories: a host that needs longer is busy.
SECONDS = 30


def head(url: str, branch: str) -> str:
    """The commit of a branch. Raises RemoteUnreachable, or UsageError for a bad address."""
    if commit := heads(Path("/"), command.checked_url(url), branch).get(branch):
        return commit
    raise command.RemoteUnreachable(
        f"{command.masked(url)} has no branch {branch!r}", remedy="push a first commit there, or give another branch with --branch"
    )


def heads(where: Path, remote: str, *branches: str) -> dict[str, str]:
    """Branch → commit of those of the branches that exist. remote: as git knows it in the folder `where`. Raises RemoteUnreachable."""
    refs = {f"refs/heads/{command.checked_ref(branch)}": branch for branch in branches}
    listed = command.run(where, "ls-remote", "--end-of-options", remote, *refs, seconds=SECONDS).decode(errors="replace")
    lines = [line.partition("\t") for line in listed.splitlines()]
    return {refs[ref]: commit for commit, _, ref in lines if ref in refs}


def host(url: str) -> str:
    """The host in an address that `command.checked_url` accepts; empty for a path."""
    if "://" not in url:
        return "" if url.startswith("/") else url.partition(":")[0].rpartition("@")[2].lower()
    return url.partition("://")[2].partition("/")[0].rpartition("@")[2].lower()
