"""A repository: read trees, commit through plumbing (no checkout, no hook), push with compare-and-swap.

`Checkout` is a working tree on this machine; `Mirror` is a private bare copy of one branch of a remote.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from random import SystemRandom

from mlops_build.errors import Refused, UsageError
from mlops_build.git import command
from mlops_build.git.archive import unpack
from mlops_build.git.command import GitFailed, PushRejected

# The committer if git's configuration has none; MLOPS_GIT_NAME and MLOPS_GIT_EMAIL override it.
NAME, EMAIL = "mlops-build", "mlops-build@localhost"
# The address of origin after Bamboo's checkout through its own proxy.
NO_ADDRESS = ("file:///nothing", "/nothing")
# The null object name: "this ref must not exist".
ABSENT = "0" * 40
# Attempts of a push that lost a race; the waits between them add up to about 3 s.
TRIES = 6


@dataclass(frozen=True)
class Identity:
    """The committer and the time (Unix time in seconds). The same identity, tree, parent and message always give the same commit."""

    name: str
    email: str
    seconds: int

    def environment(self) -> dict[str, str]:
        date = f"{self.seconds} +0000"
        return {
            **{f"GIT_{role}_NAME": self.name for role in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{role}_EMAIL": self.email for role in ("AUTHOR", "COMMITTER")},
            **{f"GIT_{role}_DATE": date for role in ("AUTHOR", "COMMITTER")},
        }


class Objects:
    """The object store at `path`: reads and writes objects without a working tree."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, commit: str, path: str) -> bytes | None:
        """A file's content at a commit; None if it does not exist."""
        try:
            return command.run(self.path, "cat-file", "blob", f"{commit}:{checked_path(path)}")
        except GitFailed:
            return None

    def has(self, commit: str) -> bool:
        """Whether the store has a commit."""
        try:
            command.run(self.path, "cat-file", "-e", f"{commit}^{{commit}}")
        except GitFailed:
            return False
        return True

    def bring(self, commit: str) -> bool:
        """Whether the store has a commit, after fetching it if possible."""
        return self.has(commit)

    def files(self, commit: str, folder: str = "") -> list[str]:
        """The paths of all files at a commit, below `folder` if given."""
        scope = ["--", checked_path(folder)] if folder else []
        return command.run(self.path, "ls-tree", "-r", "-z", "--name-only", "--full-tree", commit, *scope).decode().split("\0")[:-1]

    def tree(self, commit: str, path: str = "") -> str | None:
        """The object id of a folder at a commit: equal ids are equal contents. None if there is no such folder."""
        try:
            return command.text(self.path, "rev-parse", "--verify", "--quiet", f"{commit}:{checked_path(path) if path else ''}")
        except GitFailed:
            return None

    def committed_at(self, commit: str) -> int:
        """The commit's time, Unix time in seconds."""
        return int(command.text(self.path, "show", "--no-patch", "--format=%ct", commit))

    def message(self, commit: str) -> str:
        """A commit's whole message."""
        return command.text(self.path, "show", "--no-patch", "--format=%B", commit)

    def is_shallow(self) -> bool:
        """Whether the history is incomplete: a CI agent's clone often has a single commit."""
        return command.text(self.path, "rev-parse", "--is-shallow-repository") == "true"

    def log(self, commit: str, path: str) -> list[str]:
        """The commits that changed `path`, newest first, along first parents."""
        return command.text(self.path, "rev-list", "--first-parent", commit, "--", checked_path(path)).split()

    def differing(self, commit: str, other: str) -> list[str]:
        """The paths of the files that differ between two commits."""
        return command.run(self.path, "diff-tree", "-r", "-z", "--name-only", "--no-renames", commit, other).decode().split("\0")[:-1]

    def archive(self, commit: str, *paths: str) -> bytes:
        """The files of a commit as a tar file; if `paths` are given, only the files at or below them, which must exist."""
        return command.run(self.path, "archive", "--format=tar", commit, *(["--", *map(checked_path, paths)] if paths else []))

    def export(self, commit: str, folder: Path, *paths: str) -> None:
        """Write the same files into a new `folder`. Raises UnsafeArchive for a link out of it."""
        folder.mkdir(parents=True)
        unpack(self.archive(commit, *paths), folder)

    def commit(self, parent: str, changes: Mapping[str, bytes | None], message: str, identity: Identity | None = None) -> str | None:
        """Create a commit on top of `parent` with these files changed (None: removed); returns its id, or None if nothing differs.

        No ref is moved. Without `identity`, the configured one (or the fallback) and the current time are used.
        """
        with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
            environment = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
            command.run(self.path, "read-tree", parent, environment=environment)
            executable = self._executable(parent, changes)
            lines = []
            for path, content in sorted(changes.items()):
                if content is None:
                    lines.append(f"0 {ABSENT}\t{path}\n")
                else:
                    blob = command.run(self.path, "hash-object", "-w", "--stdin", stdin=content).decode().strip()
                    lines.append(f"{'100755' if path in executable else '100644'} {blob}\t{path}\n")
            command.run(self.path, "update-index", "--index-info", stdin="".join(lines).encode(), environment=environment)
            return self._commit_index(parent, message, identity, environment)

    def _commit_index(self, parent: str, message: str, identity: Identity | None, environment: Mapping[str, str]) -> str | None:
        tree = command.text(self.path, "write-tree", environment=environment)
        return None if tree == self.tree(parent) else self.commit_tree(tree, [parent], message, identity)

    def commit_tree(self, tree: str, parents: Iterable[str], message: str, identity: Identity | None = None) -> str:
        """Create a commit of a tree in the store; returns its id. No ref is moved. identity: default as in `commit`."""
        author = identity.environment() if identity else self._own_identity()
        before = [argument for parent in parents for argument in ("-p", parent)]
        return command.run(self.path, "commit-tree", tree, *before, stdin=message.encode(), environment=author).decode().strip()

    def _executable(self, commit: str, paths: Iterable[str]) -> set[str]:
        """The paths that are executable files at a commit. A symbolic link is not included: it is replaced by a regular file."""
        listed = command.run(self.path, "ls-tree", "-r", "-z", "--full-tree", commit, "--", *map(checked_path, paths)).decode()
        return {entry.partition("\t")[2] for entry in listed.split("\0") if entry.startswith("100755")}

    def _own_identity(self) -> dict[str, str]:
        """Variables for commit-tree if git's configuration has no identity (a bare CI agent)."""
        variables = {}
        for role in ("AUTHOR", "COMMITTER"):
            for key, setting, fallback in (("NAME", "user.name", NAME), ("EMAIL", "user.email", EMAIL)):
                variable = f"GIT_{role}_{key}"
                if chosen := os.environ.get(f"MLOPS_GIT_{key}"):
                    variables[variable] = chosen
                elif variable not in os.environ and not self._setting(setting):
                    variables[variable] = fallback
        return variables

    def _setting(self, name: str) -> str | None:
        try:
            return command.text(self.path, "config", "--get", name)
        except GitFailed:
            return None


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
        lease = f"--force-with-lease=refs/heads/{self.branch}:{expected}"
        command.run(self.path, "push", "--quiet", lease, "--end-of-options", self.url, f"{commit}:refs/heads/{self.branch}")

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
                time.sleep(SystemRandom().uniform(0.05, 0.15) * 2**attempt)
        raise AssertionError("unreachable: the last try returns or raises")


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
        """The current branch; for a detached HEAD (on a CI agent) the one in MLOPS_GIT_BRANCH or Bamboo's variable. Raises Refused."""
        try:
            return command.text(self.path, "symbolic-ref", "--short", "--quiet", "HEAD")
        except GitFailed:
            named = os.environ.get("MLOPS_GIT_BRANCH") or os.environ.get("bamboo_planRepository_branchName")  # noqa: SIM112
            if named:
                return command.checked_ref(named)
            raise Refused(
                "HEAD is detached, so there is no branch to commit to", remedy="git switch BRANCH, or set MLOPS_GIT_BRANCH"
            ) from None

    def origin_url(self) -> str | None:
        """The push address without user and password: MLOPS_GIT_URL, else origin's, else (on an agent) the plan's."""
        address = self._origin()
        url = self._setting("remote.origin.url") if address == "origin" else address
        return command.masked(url) if url else None

    def _origin(self) -> str | None:
        """The push target for git: "origin", or an address if origin is not usable."""
        if named := os.environ.get("MLOPS_GIT_URL"):
            return command.checked_url(named)
        if self._setting("remote.origin.url") not in (None, *NO_ADDRESS):
            return "origin"
        named = os.environ.get("bamboo_planRepository_repositoryUrl")  # noqa: SIM112
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

    def parents(self, commit: str) -> list[str]:
        """The parents as recorded in the commit; a shallow clone may not have them."""
        header = command.run(self.path, "cat-file", "commit", commit).decode(errors="replace").partition("\n\n")[0]
        return [line.removeprefix("parent ") for line in header.splitlines() if line.startswith("parent ")]

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
        command.run(self.path, "fetch", "--quiet", "--no-tags", "--depth=1", "--end-of-options", origin, f"refs/heads/{branch}")
        return command.text(self.path, "rev-parse", "FETCH_HEAD")

    def switch(self, branch: str, commit: str) -> None:
        """Switch to `branch`, which must be at `commit` or not exist yet. Files and index are unchanged. Raises Refused."""
        ref = f"refs/heads/{command.checked_ref(branch)}"
        try:
            if command.text(self.path, "for-each-ref", "--format=%(objectname)", ref) != commit:
                command.run(self.path, "update-ref", ref, commit, ABSENT)
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
        try:
            command.run(self.path, "update-ref", "-m", "mlops-build", "HEAD", commit, expected)
        except GitFailed as error:
            raise Refused(f"the branch moved in the meantime: {error.message}", remedy="run this again") from None
        command.run(self.path, "reset", "--quiet", commit, "--", *paths)

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
        command.run(self.path, "push", "--quiet", "--end-of-options", self._origin() or "origin", f"{commit}:{target}")

    def try_push(self, branch: str) -> None:
        """Check that HEAD can be pushed to a branch of origin, without pushing. Raises PushRejected or RemoteUnreachable."""
        target = f"refs/heads/{command.checked_ref(branch)}"
        command.run(self.path, "push", "--quiet", "--dry-run", "--end-of-options", self._origin() or "origin", f"HEAD:{target}")

    def signs_as(self) -> tuple[str, str]:
        """Name and email address of the committer."""
        identity = command.text(self.path, "var", "GIT_COMMITTER_IDENT", environment=self._own_identity())
        name, _, rest = identity.partition(" <")
        return name, rest.partition(">")[0]

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


def checked_path(path: str) -> str:
    """The path, if it is a relative path inside the repository. Raises UsageError."""
    parts = PurePosixPath(path).parts
    if not path or path.startswith(("/", "-", ":")) or ".." in parts or ".git" in parts or any(character in path for character in "\0\n\t"):
        raise UsageError(f"{path[:100]!r} is not a path inside a repository")
    return path
