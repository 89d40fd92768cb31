"""A working tree on this machine, with its branch and its remote."""

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from mlops_build.adapters.git import command
from mlops_build.adapters.git.command import GitFailed
from mlops_build.adapters.git.objects import Objects, checked_path
from mlops_build.errors import Refused

# The address of origin after a CI system's checkout through its own proxy.
NO_ADDRESS = ("file:///nothing", "/nothing")


class Checkout(Objects):
    """A working tree on this machine."""

    @classmethod
    def find(cls, folder: Path) -> "Checkout | None":
        """The checkout whose top is `folder`; None if `folder` is not the top of a checkout."""
        try:
            top = command.text(folder, "rev-parse", "--show-toplevel")
        except GitFailed as error:
            if "dubious ownership" in error.message:
                raise Refused(
                    f"git does not trust {folder}: it belongs to another user",
                    remedy=f"git config --global --add safe.directory {folder}",
                ) from None
            return None
        return cls(folder) if Path(top).resolve() == folder.resolve() else None

    def head(self) -> str | None:
        """The current commit; None before the first one."""
        try:
            return command.text(self.path, "rev-parse", "--verify", "--quiet", "HEAD")
        except GitFailed:
            return None

    def branch(self) -> str:
        """The current branch; for a detached HEAD (on a CI agent) the one in MLOPS_GIT_BRANCH. Raises Refused."""
        try:
            return command.text(self.path, "symbolic-ref", "--short", "--quiet", "HEAD")
        except GitFailed:
            if named := os.environ.get("MLOPS_GIT_BRANCH"):
                return command.checked_ref(named)
            raise Refused(
                "HEAD is detached, so there is no branch to commit to", remedy="git switch BRANCH, or set MLOPS_GIT_BRANCH"
            ) from None

    def origin_url(self) -> str | None:
        """The push address without user and password: MLOPS_GIT_URL, else origin's, else MLOPS_CI_REPOSITORY (on an agent)."""
        address = self._origin()
        url = self._setting("remote.origin.url") if address == "origin" else address
        return command.masked(url) if url else None

    def remote(self) -> str:
        """The push target for git: "origin", or an address if origin is not usable."""
        return self._origin() or "origin"

    def _origin(self) -> str | None:
        if named := os.environ.get("MLOPS_GIT_URL"):
            return command.checked_url(named)
        if self._setting("remote.origin.url") not in (None, *NO_ADDRESS):
            return "origin"
        named = os.environ.get("MLOPS_CI_REPOSITORY")
        return command.checked_url(named) if named else None

    def changes(self, *, ignoring: Iterable[str] = ()) -> list[str]:
        """Paths with uncommitted changes, including untracked files, but not ignored ones and not those at or below `ignoring`."""
        left_out = [PurePosixPath(path) for path in ignoring]
        listed = command.run(self.path, "status", "--porcelain=v1", "-z", "--no-renames", "--untracked-files=all").decode(errors="replace")
        paths = [entry[3:] for entry in listed.split("\0") if entry]
        return sorted(path for path in paths if not any(PurePosixPath(path).is_relative_to(ignored) for ignored in left_out))

    def not_ignored(self, paths: Iterable[str]) -> list[str]:
        """The paths that Git neither ignores nor tracks."""
        wanted = sorted(paths)
        sent = "".join(f"{path}\0" for path in wanted).encode()
        # The command refuses literal pathspecs, and always reads plain paths from stdin.
        plain = {"GIT_LITERAL_PATHSPECS": "0"}
        ignored = command.run(self.path, "check-ignore", "-z", "--stdin", stdin=sent, environment=plain, good=(0, 1)).decode().split("\0")
        tracked = command.run(self.path, "ls-files", "-z", "--", *wanted).decode().split("\0") if wanted else []
        return [path for path in wanted if path not in ignored and not any(PurePosixPath(file).is_relative_to(path) for file in tracked)]

    def branches(self, prefix: str) -> dict[str, str]:
        """Branch → commit of the branches with this prefix, locally and at origin, which has precedence. Raises RemoteUnreachable."""
        commits: dict[str, str] = {}
        pattern = f"refs/heads/{command.checked_ref(prefix.rstrip('/'))}"
        listed = command.text(self.path, "for-each-ref", "--format=%(objectname)\t%(refname)", pattern)
        if origin := self._origin():
            listed += "\n" + command.text(self.path, "ls-remote", "--heads", "--end-of-options", origin, f"{pattern}*")
        for line in listed.splitlines():
            commit, _, ref = line.partition("\t")
            if ref.startswith(f"refs/heads/{prefix}"):
                commits[ref.removeprefix("refs/heads/")] = commit
        return commits

    def fetch(self, branch: str) -> str:
        """Fetch a branch from origin and return its head; no ref is moved. Raises RemoteUnreachable."""
        origin = self._origin()
        if origin is None:
            raise Refused("there is no Git remote called origin", remedy="git remote add origin URL")
        # A depth would cut off the history of a clone that has all of it.
        depth = ["--depth=1"] if self.is_shallow() else []
        command.run(self.path, "fetch", "--quiet", "--no-tags", *depth, "--end-of-options", origin, f"refs/heads/{branch}")
        return command.text(self.path, "rev-parse", "FETCH_HEAD")

    def switch(self, branch: str, commit: str) -> None:
        """Switch to `branch`, which must be at `commit` or not exist yet. Files and index are unchanged. Raises Refused."""
        ref = f"refs/heads/{command.checked_ref(branch)}"
        try:
            if command.text(self.path, "for-each-ref", "--format=%(objectname)", ref) != commit:
                command.run(self.path, "update-ref", ref, commit, "")  # the ref must not exist
        except GitFailed as error:
            raise Refused(f"the branch {branch} exists at another commit: {error.message}", remedy=f"git branch -D {branch}") from None
        command.run(self.path, "symbolic-ref", "-m", f"mlops-build: on {branch}", "HEAD", ref)

    def take(self, branch: str, commit: str, paths: Iterable[str]) -> None:
        """Switch to `branch` at `commit`, which differs from HEAD only in `paths`; these files are updated. Raises Refused."""
        wanted = list(paths)
        self.restore(commit, wanted)
        self.switch(branch, commit)
        command.run(self.path, "reset", "--quiet", commit, "--", *wanted)

    def commit_paths(self, paths: Iterable[str], message: str, *, branch: str | None = None) -> str | None:
        """Commit exactly these working tree files and folders on top of HEAD; None if they do not differ from it.

        branch: create it at HEAD if it is not the current one, and switch to it. Other changes, staged or not, stay, and no hook runs.
        Raises Refused if HEAD moved in the meantime.
        """
        parent = self.head()
        if parent is None:
            raise Refused(f"{self.path} has no commit yet", remedy="git add --all && git commit, then run this again")
        wanted = [checked_path(path) for path in paths]
        with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
            environment = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
            command.run(self.path, "read-tree", parent, environment=environment)
            # --force: DVC may have added the pipeline's outputs to a .gitignore.
            command.run(self.path, "add", "--all", "--force", "--", *wanted, environment=environment)
            made = self._commit_index(parent, message, None, environment)
        if made:
            if branch:
                self.switch(branch, parent)
            self.advance(made, parent, wanted)
        return made

    def advance(self, commit: str, expected: str, paths: Iterable[str]) -> None:
        """Move the current branch from `expected` to `commit`, and the index of `paths` with it. Raises Refused if the branch moved."""
        self.move(commit, expected)
        command.run(self.path, "reset", "--quiet", commit, "--", *paths)

    def move(self, commit: str, expected: str) -> None:
        """Move the current branch from `expected` to `commit`, without index and files. Raises Refused if the branch moved."""
        try:
            command.run(self.path, "update-ref", "-m", "mlops-build", "HEAD", commit, expected)
        except GitFailed as error:
            raise Refused(f"the branch moved in the meantime: {error.message}", remedy="run this again") from None

    def restore(self, commit: str, paths: Iterable[str]) -> None:
        """Restore these working tree files from `commit` (remove those that it does not have). Nothing else changes."""
        wanted = list(map(checked_path, paths))
        listed = command.run(self.path, "ls-tree", "-r", "-z", "--name-only", "--full-tree", commit, "--", *wanted)
        present = set(listed.decode().split("\0")) & set(wanted)
        for path in set(wanted) - present:
            (self.path / path).unlink(missing_ok=True)
        if present:
            # Without hooks: DVC's post-checkout hook would change data files.
            no_hooks = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "core.hooksPath", "GIT_CONFIG_VALUE_0": os.devnull}
            command.run(self.path, "checkout", "--quiet", commit, "--", *sorted(present), environment=no_hooks)

    def push(self, commit: str = "HEAD") -> None:
        """Push HEAD, or a commit on top of it, to the same branch of origin. Raises PushRejected or RemoteUnreachable."""
        target = f"refs/heads/{command.checked_ref(self.branch())}"
        command.run(self.path, "push", "--quiet", "--end-of-options", self.remote(), f"{commit}:{target}")

    def push_tag(self, tag: str, commit: str) -> None:
        """Push a tag to origin; one at another commit is not moved. Raises PushRejected or RemoteUnreachable."""
        target = f"refs/tags/{command.checked_ref(tag)}"
        command.run(self.path, "push", "--quiet", "--end-of-options", self.remote(), f"{commit}:{target}")

    def try_push(self, branch: str) -> None:
        """Check that HEAD can be pushed to a branch of origin, without pushing. Raises PushRejected or RemoteUnreachable."""
        target = f"refs/heads/{command.checked_ref(branch)}"
        command.run(self.path, "push", "--quiet", "--dry-run", "--end-of-options", self.remote(), f"HEAD:{target}")

    def export_dirty(self, folder: Path) -> bytes:
        """Export the working tree's files, except ignored ones, into `folder`; returns the patch from HEAD."""
        with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
            environment = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
            command.run(self.path, "read-tree", "HEAD", environment=environment)
            command.run(self.path, "add", "--all", environment=environment)
            tree = command.text(self.path, "write-tree", environment=environment)
            patch = command.run(self.path, "diff", "--binary", "--no-ext-diff", "--full-index", "HEAD", tree)
        self.export(tree, folder)
        return patch
