"""A private bare copy of one branch of a remote: fetch, and push with compare-and-swap."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from mlops_build.adapters.git import command
from mlops_build.adapters.git.command import GitFailed
from mlops_build.adapters.git.objects import Objects

# Of the whole history, larger files are fetched when they are read.
SMALL = "64k"


class Mirror(Objects):
    """A private bare copy of one branch of a remote, in `folder`. Raises RemoteUnreachable, or UsageError for a bad address."""

    def __init__(self, url: str, branch: str, folder: Path) -> None:
        self.url, self.branch = command.checked_url(url), command.checked_ref(branch)
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder)
        command.run(folder, "init", "--quiet", "--bare", "--template=")

    def fetch(self, *, depth: int | None = 1) -> str:
        """Fetch the branch and return its head (with the whole history if `depth` is None)."""
        how_deep = [f"--depth={depth}"] if depth else []
        wanted = f"+refs/heads/{self.branch}:refs/heads/fetched"
        try:
            command.run(self.path, "fetch", "--quiet", "--no-tags", *how_deep, "--end-of-options", self.url, wanted)
        except GitFailed as error:
            raise command.RemoteUnreachable(
                f"{command.masked(self.url)} has no readable branch {self.branch!r}: {error.message}",
                remedy="push a first commit there, or give another branch",
            ) from None
        return command.text(self.path, "rev-parse", "refs/heads/fetched")

    def fetch_all(self) -> str:
        """Fetch all branches and tags with their history and small files, and return the head of the branch."""
        command.run(self.path, "config", "remote.origin.url", self.url)
        wanted = ["+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*"]
        command.run(self.path, "fetch", "--quiet", "--no-tags", f"--filter=blob:limit={SMALL}", "origin", *wanted)
        try:
            return command.text(self.path, "rev-parse", "--verify", "--quiet", f"refs/heads/{self.branch}^{{commit}}")
        except GitFailed:
            raise command.RemoteUnreachable(
                f"{command.masked(self.url)} has no branch {self.branch!r}", remedy="push a first commit there, or give another branch"
            ) from None

    def deepen(self) -> None:
        """Fetch the history without files, which git fetches when they are read. Raises RemoteUnreachable."""
        if not self.is_shallow():
            return
        command.run(self.path, "config", "remote.origin.url", self.url)
        wanted = f"+refs/heads/{self.branch}:refs/heads/deepened"
        command.run(self.path, "fetch", "--quiet", "--no-tags", "--unshallow", "--filter=blob:none", "origin", wanted)

    def bring(self, commit: str) -> bool:
        """Whether the store or the remote has a commit; it is fetched from the remote without its history."""
        if not self.has(commit):
            try:
                command.run(self.path, "fetch", "--quiet", "--no-tags", "--depth=1", "--end-of-options", self.url, commit)
            except (GitFailed, command.RemoteUnreachable):
                return False
        return self.has(commit)

    def push(self, commit: str, expected: str) -> None:
        """Move the remote branch from `expected` to `commit`. Raises PushRejected if it is at another commit."""
        self.push_branch(self.url, commit, self.branch, expected=expected)

    def publish(self, make: Callable[[str], str | None], *, depth: int | None = 1) -> str | None:
        """`publish_to` for this branch."""
        return self.publish_to(self.url, self.branch, partial(self.fetch, depth=depth), make)


@contextlib.contextmanager
def mirrored(url: str, branch: str) -> Iterator[Mirror]:
    """A mirror in a temporary folder, which is removed at the end. Nothing is fetched yet."""
    with tempfile.TemporaryDirectory(prefix="mlops-build-mirror-") as scratch:
        yield Mirror(url, branch, Path(scratch))
