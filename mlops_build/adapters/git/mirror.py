"""A private bare copy of one branch of a remote: fetch, and push with compare-and-swap."""

import time
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom

from mlops_build.adapters.git import command
from mlops_build.adapters.git.command import GitFailed, PushRejected
from mlops_build.adapters.git.objects import Objects

# Attempts of a push that lost a race; the waits between them add up to about 3 s.
TRIES = 6


class Mirror(Objects):
    """A private bare copy of one branch of a remote, in `folder`. Raises RemoteUnreachable, or UsageError for a bad address."""

    lost_races = 0  # pushes of this process that were tried again

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
        """Fetch, create a commit with `make(head)`, push it; repeat with the new head if another push came first.

        Returns the commit, None if `make` returned None. Raises PushRejected if the host has a rule against the push, or after TRIES
        lost races.
        """
        for attempt in range(TRIES):
            head = self.fetch(depth=depth)
            made = make(head)
            if made is None:
                return None
            try:
                self.push(made, head)
                return made
            except PushRejected as error:
                # It is a rule if the branch has not moved. A lock of another push is soon released.
                rule = "lock" not in error.message and self.fetch(depth=depth) == head
                if rule or attempt == TRIES - 1:
                    raise
                Mirror.lost_races += 1
                time.sleep(SystemRandom().uniform(0.05, 0.15) * 2**attempt)
        raise AssertionError("unreachable: the last try returns or raises")
