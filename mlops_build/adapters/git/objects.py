"""A repository's objects: read trees, and commit through plumbing, without a checkout and without hooks."""

import os
import re
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from random import SystemRandom

from mlops_build.adapters.git import command
from mlops_build.adapters.git.archive import unpack
from mlops_build.adapters.git.command import GitFailed, PushRejected
from mlops_build.errors import Refused, UsageError

# The committer if git's configuration has none; MLOPS_GIT_NAME and MLOPS_GIT_EMAIL override it.
NAME, EMAIL = "mlops-build", "mlops-build@localhost"
# Attempts of a push that lost a race; the waits between them add up to about 3 s.
TRIES = 6
# The modes of files in a tree; 120000 is a symbolic link.
FILES = ("100644", "100755")


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

    lost_races = 0  # pushes of this process that were tried again

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, commit: str, path: str) -> bytes | None:
        """A file's content at a commit; None if it does not exist."""
        try:
            return command.run(self.path, "cat-file", "blob", f"{commit}:{checked_path(path)}")
        except GitFailed:
            return None

    def snapshot(self, commit: str, *paths: str) -> dict[str, bytes]:
        """The contents of all files at or below `paths`, in two git processes; of a symbolic link, its target."""
        blobs = self.blobs(commit, *paths)
        contents = self.contents(blobs.values())
        return {path: contents[blob] for path, blob in blobs.items()}

    def blobs(self, commit: str, *paths: str) -> dict[str, str]:
        """Path → blob of all files, or of those at or below `paths`."""
        listed = command.run(self.path, "ls-tree", "-r", "-z", "--full-tree", commit, "--", *map(checked_path, paths)).decode()
        return {path: entry.split()[2] for entry, _, path in (line.partition("\t") for line in listed.split("\0")) if " blob " in entry}

    def reachable(self) -> set[str]:
        """The commits that a branch or a tag has in its history."""
        return set(command.text(self.path, "rev-list", "--all").split())

    def heads(self) -> dict[str, str]:
        """Branch → commit of the branches in this store."""
        listed = command.text(self.path, "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads").splitlines()
        return {ref.removeprefix("refs/heads/"): commit for commit, _, ref in (line.partition(" ") for line in listed)}

    def tags(self) -> set[str]:
        """The commits of all tags."""
        pattern = "%(if)%(*objectname)%(then)%(*objecttype) %(*objectname)%(else)%(objecttype) %(objectname)%(end)"
        listed = command.text(self.path, "for-each-ref", f"--format={pattern}", "refs/tags").splitlines()
        return {name for kind, _, name in (line.partition(" ") for line in listed) if kind == "commit"}

    def past(self, commit: str, folder: str, pattern: "re.Pattern[str]") -> list[bytes]:
        """Every content that files below `folder` whose path matches `pattern` had in the history up to a commit, without repetitions."""
        # -m and --full-history: also what only a merge, or a branch whose changes were dropped, has.
        options = ["-z", "--format=", "--raw", "--no-abbrev", "--no-renames", "-m", "--full-history"]
        listed = command.run(self.path, "log", *options, commit, "--", checked_path(folder)).decode(errors="replace")
        changes = re.findall(r":[0-9]+ ([0-9]+) [0-9a-f]+ ([0-9a-f]+) [A-Z]\0([^\0]*)\0", listed)
        return list(self.contents(blob for mode, blob, path in changes if mode in FILES and pattern.fullmatch(path)).values())

    def contents(self, blobs: Iterable[str]) -> dict[str, bytes]:
        """Blob → content, in one git process."""
        wanted = list(dict.fromkeys(blobs))
        answers = command.run(self.path, "cat-file", "--batch", stdin="".join(f"{blob}\n" for blob in wanted).encode())
        contents: dict[str, bytes] = {}
        start = 0
        for blob in wanted:
            end = answers.index(b"\n", start)
            size = int(answers[start:end].split()[2])
            contents[blob] = answers[end + 1 : end + 1 + size]
            start = end + size + 2
        return contents

    def deepen(self) -> None:
        """Make the history complete, as far as a remote is there to be asked."""

    def messages(self, commit: str, path: str, most: int = 1000) -> list[tuple[str, int, str, str]]:
        """The newest commits that changed `path`, newest first: id, time (Unix time in seconds), author's name and whole message."""
        arguments = ["-z", f"--max-count={most}", "--format=%H %ct %an%n%B", commit, "--", checked_path(path)]
        entries = command.run(self.path, "log", *arguments).decode(errors="replace").split("\0")
        heads = [(*entry.partition("\n")[0].split(" ", 2), entry.partition("\n")[2]) for entry in entries if entry.strip()]
        return [(commit, int(at), author, message) for commit, at, author, message in heads]

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

    def parents(self, commit: str) -> list[str]:
        """The parents as recorded in the commit; a shallow clone may not have them."""
        header = command.run(self.path, "cat-file", "commit", commit).decode(errors="replace").partition("\n\n")[0]
        return [line.removeprefix("parent ") for line in header.splitlines() if line.startswith("parent ")]

    def is_shallow(self) -> bool:
        """Whether the history is incomplete: a CI agent's clone often has a single commit."""
        return command.text(self.path, "rev-parse", "--is-shallow-repository") == "true"

    def log(self, commit: str, path: str) -> list[str]:
        """The commits that changed `path`, newest first, along first parents."""
        return command.text(self.path, "rev-list", "--first-parent", commit, "--", checked_path(path)).split()

    def is_ancestor(self, commit: str, other: str) -> bool:
        """Whether `other` is `commit` or has it in its history."""
        try:
            command.run(self.path, "merge-base", "--is-ancestor", commit, other)
        except GitFailed:
            return False
        return True

    def push_branch(self, remote: str, commit: str, branch: str, *, expected: str | None = None) -> None:
        """Create or replace a branch; without a commit (""), remove it.

        expected: only if this is its head ("": if there is no such branch); None: in any case.

        Raises PushRejected or RemoteUnreachable.
        """
        target = f"refs/heads/{command.checked_ref(branch)}"
        force = "--force" if expected is None else f"--force-with-lease={target}:{expected}"
        # Without hooks: those of a person check that person's work.
        command.run(self.path, "push", "--quiet", "--no-verify", force, "--end-of-options", remote, f"{commit}:{target}")

    def publish_to(self, remote: str, branch: str, fetch: Callable[[], str], make: Callable[[str], str | None]) -> str | None:
        """Fetch, create a commit with `make(head)`, push it; repeat with the new head if another push came first.

        fetch: returns the branch's head at the remote.

        Returns the commit, None if `make` returned None. Raises PushRejected if the host has a rule against the push, or after TRIES
        lost races.
        """
        for attempt in range(TRIES):
            head = fetch()
            made = make(head)
            if made is None:
                return None
            try:
                self.push_branch(remote, made, branch, expected=head)
                return made
            except PushRejected as error:
                # It is a rule if the branch has not moved. A lock of another push is soon released.
                rule = "lock" not in error.message and fetch() == head
                if rule or attempt == TRIES - 1:
                    raise
                Objects.lost_races += 1
                time.sleep(SystemRandom().uniform(0.05, 0.15) * 2**attempt)
        raise AssertionError("unreachable: the last try returns or raises")

    def differing(self, commit: str, other: str) -> list[str]:
        """The paths of the files that differ between two commits."""
        return command.run(self.path, "diff-tree", "-r", "-z", "--name-only", "--no-renames", commit, other).decode().split("\0")[:-1]

    def matches(self, commit: str, pattern: str) -> list[tuple[str, str]]:
        """The path and the text of every match of an extended regular expression in the text files of a commit."""
        output = command.run(self.path, "grep", "-z", "-I", "-o", "-E", "--no-color", "--full-name", "-e", pattern, commit, good=(0, 1))
        pairs = (line.partition("\0") for line in output.decode(errors="replace").splitlines())
        return [(path.partition(":")[2], text) for path, _, text in pairs]

    def archive(self, commit: str, *paths: str) -> bytes:
        """The files of a commit as a tar file; if `paths` are given, only the files at or below them, which must exist."""
        return command.run(self.path, "archive", "--format=tar", commit, *(["--", *map(checked_path, paths)] if paths else []))

    def export(self, commit: str, folder: Path, *paths: str) -> None:
        """Write the same files into a new `folder`. Raises UnsafeArchive for a link out of it, and Refused for files that are left out."""
        folder.mkdir(parents=True)
        try:
            unpack(self.archive(commit, *paths), folder)
        except tarfile.ReadError:
            raise Refused(
                f"{', '.join(paths) or 'the commit'} cannot be exported", remedy="remove its `export-ignore` from .gitattributes"
            ) from None

    def commit(self, parent: str, changes: Mapping[str, bytes | None], message: str, identity: Identity | None = None) -> str | None:
        """Create a commit on top of `parent` with these files changed (None: removed); returns its id, or None if nothing differs.

        No ref is moved. Without `identity`, the configured one (or the fallback) and the current time are used.
        """
        with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
            environment = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
            command.run(self.path, "read-tree", parent, environment=environment)
            executable = self._executable(parent, changes)
            lines = []
            null = "0" * len(command.text(self.path, "rev-parse", parent)) if None in changes.values() else ""
            for path, content in sorted(changes.items()):
                if content is None:
                    lines.append(f"0 {null}\t{path}\n")
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

    def signs_as(self) -> Identity:
        """The configured committer (or the fallback), now."""
        line = command.text(self.path, "var", "GIT_COMMITTER_IDENT", environment=self._own_identity())
        name, _, rest = line.partition(" <")
        email, _, date = rest.partition("> ")
        return Identity(name, email, int(date.split()[0]))

    def _setting(self, name: str) -> str | None:
        try:
            return command.text(self.path, "config", "--get", name)
        except GitFailed:
            return None


def checked_path(path: str) -> str:
    """The path, if it is a relative path inside the repository. Raises UsageError."""
    parts = PurePosixPath(path).parts
    if not path or path.startswith(("/", "-", ":")) or ".." in parts or ".git" in parts or any(character in path for character in "\0\n\t"):
        raise UsageError(f"{path[:100]!r} is not a path inside a repository")
    return path
