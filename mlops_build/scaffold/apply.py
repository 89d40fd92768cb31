"""Write an update into a checkout's index and files, in an order from which Git itself can recover.

A process can be killed at any time. First the index gets the new entries, in one step. Then the files are written. So all changes are
staged before a file changes, and a Git command, which the next update names, restores the old files (UNDO). The entries of conflicts are
written last: before that, their files and entries are the old ones.
"""

import contextlib
import fcntl
import os
import re
import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlops_build.adapters.git import command
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.command import GitFailed
from mlops_build.errors import Refused
from mlops_build.scaffold import tree
from mlops_build.scaffold.merge import Stage

UNFINISHED = {
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
}
# Restores the staged files alone: edits that Git does not see (assume-unchanged) stay, which `git reset --hard` would overwrite.
UNDO = (
    "git diff --cached --relative --no-renames --name-only -z |"
    " git restore --source=HEAD --staged --worktree --pathspec-from-file=- --pathspec-file-nul"
)
ABORT = "git reset --merge"


class Dirty(Refused):
    """The service has uncommitted changes, or files that the update would overwrite."""


@dataclass(frozen=True)
class Place:
    """Where a service is. top: of the checkout. prefix: the service's folder below it, `` or `services/points/`. folder: Git's folder."""

    top: Path
    prefix: str
    folder: Path

    @property
    def service(self) -> Path:
        """The service's folder."""
        return self.top / self.prefix


def find(service: Path) -> Place:
    """The checkout that contains a service. Raises Refused without a checkout or a commit."""
    remedy = 'in the service: git init -b main && git add --all && git commit -m "Start from the template"'
    try:
        lines = command.text(service, "rev-parse", "--show-toplevel", "--absolute-git-dir", "--show-prefix").splitlines()
    except GitFailed as error:
        if "dubious ownership" in error.message:
            remedy = f"git config --global --add safe.directory {service}"
            raise Refused(f"git does not trust {service}: another user owns it", remedy=remedy) from None
        raise Refused(f"{service} is not under Git, so an update could not be undone", remedy=remedy) from None
    place = Place(Path(lines[0]), lines[2] if len(lines) > 2 else "", Path(lines[1]))
    if Checkout(place.top).head() is None:
        raise Refused(f"{service} has no commit yet, so an update could not be undone", remedy=remedy)
    return place


@contextlib.contextmanager
def alone(place: Place) -> Iterator[None]:
    """Wait until no other update works in this checkout: two would write the same index and files. Raises Refused."""
    path = place.folder / "mlops-build-update.lock"
    try:
        file = path.open("a")
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}", remedy="check who may write in the checkout") from None
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel when the process ends
        yield


def check_clean(place: Place) -> None:
    """Raises Dirty if tracked files in the service's folder differ from HEAD, or if a merge or rebase is not finished."""
    for name, what in UNFINISHED.items():
        if (place.folder / name).exists():
            raise Dirty(f"{what} is not finished in {place.top}", remedy="finish or abort it, then run this again")
    arguments = ["--porcelain=v1", "-z", "--no-renames", "--untracked-files=no", "--ignore-submodules=dirty"]
    listed = command.run(place.top, "status", *arguments, "--", place.prefix or ".").decode(errors="surrogateescape").split("\0")
    states = {entry[3:]: entry[:2] for entry in listed if entry}
    unmerged = [path for path, state in states.items() if "U" in state or state in ("AA", "DD")]
    if unmerged:
        raise Dirty(
            f"unresolved conflicts: {_some(unmerged)}",
            remedy=f"resolve them, git add, git commit; or return to the last commit: {ABORT}",
        )
    if states:
        remedy = "run git commit or git stash, then run this again"
        if any(state[0] != " " for state in states.values()):
            remedy += f"\n    if an update was interrupted, this undoes it (run it in {shlex.quote(str(place.service))}):\n    {UNDO}"
        raise Dirty(f"uncommitted changes: {_some([*states])}", remedy=remedy)


def check_room(place: Place, before: str, after: str) -> None:
    """Raises Dirty for untracked files that the update would overwrite, including ignored files."""
    known, wanted = tree.read(place.top, before), tree.read(place.top, after)
    in_the_way = {file for path in wanted.keys() - known.keys() for file in _in_the_way(place.top, path, known)}
    if in_the_way:
        raise Dirty(f"the update would overwrite untracked files: {_some(sorted(in_the_way))}", remedy="move them away")


def check_nothing_staged(place: Place) -> None:
    """Raises Dirty for staged changes anywhere in the checkout: `git reset --merge`, which aborts an update, would remove them."""
    staged = command.run(place.top, "diff", "--cached", "--name-only", "-z").decode(errors="surrogateescape").split("\0")[:-1]
    if staged:
        raise Dirty(f"staged changes: {_some(staged)}", remedy="run git commit or git stash, then run this again")


def write(place: Place, head: str, after: str, stages: Sequence[Stage] = ()) -> None:
    """Change index and files of the service from `head` to the tree `after` of the whole checkout; other changes stay.

    stages: both sides of conflicts, for the index. Raises Dirty, before anything is written, if a file to be changed is not as at `head`.
    """
    before, wanted = tree.read(place.top, head), tree.read(place.top, after)
    changed = [path for path in sorted(before.keys() | wanted.keys()) if before.get(path) != wanted.get(path)]
    conflicts = sorted({place.prefix + stage.path for stage in stages})
    clean = {path: entry for path, entry in wanted.items() if path not in conflicts}
    names = {*clean, *(str(parent) for path in clean for parent in PurePosixPath(path).parents)}
    clean |= {path: before[path] for path in conflicts if path in before and path not in names}
    with tree.private_index() as index:
        _git(place, "read-tree", after, environment=index)
        _change_index(place, head, tree.write(place.top, clean) if conflicts else after)
        _write_files(place.top, [path for path in changed if path not in conflicts], wanted, index)
        if conflicts:
            null = "0" * len(after)
            entries = [f"0 {null} 0\t{path}" for path in conflicts]
            entries += [f"{stage.entry.mode} {stage.entry.blob} {stage.number}\t{place.prefix}{stage.path}" for stage in stages]
            _git(place, "update-index", "-z", "--index-info", stdin=_listed(entries))
            _write_files(place.top, conflicts, wanted, index)
    # Git does not know the times of the new files yet.
    _git(place, "update-index", "-q", "--refresh", good=(0, 1))


def _change_index(place: Place, head: str, after: str) -> None:
    """Change the index from `head` to `after`, with Git's check that index and files are as at `head`. Raises Dirty."""
    try:
        _git(place, "read-tree", "-m", head, after)
    except GitFailed as error:
        if match := re.search(r"Entry '(.*)' not uptodate", error.message):
            path = shlex.quote(match[1])
            raise Dirty(
                f"{match[1]} was edited, and is marked so that git status does not show it",
                remedy=f"git update-index --no-assume-unchanged {path} && git update-index --no-skip-worktree {path},"
                " then run git commit or git stash",
            ) from None
        raise Dirty(f"the checkout was changed in the meantime: {error.message}", remedy="run this again") from None


def _write_files(top: Path, paths: Sequence[str], wanted: Collection[str], index: dict[str, str]) -> None:
    """Write these files from the private index, which has `wanted`; remove the others."""
    for path in paths:
        if path not in wanted and ((top / path).is_symlink() or not (top / path).is_dir()):
            (top / path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a folder that holds something else stays
                os.removedirs((top / path).parent)
    # Attributes first, because git reads them from the files when it writes other files.
    attributes = [path for path in paths if path in wanted and PurePosixPath(path).name == ".gitattributes"]
    others = [path for path in paths if path in wanted and path not in attributes]
    for group in filter(None, (attributes, others)):
        command.run(top, "checkout-index", "-z", "--stdin", "--force", "--quiet", stdin=_listed(group), environment=index)


def _in_the_way(top: Path, path: str, known: Collection[str]) -> list[str]:
    """The files outside `known` that a new file at `path` would replace."""
    for parent in reversed(PurePosixPath(path).parents[:-1]):
        if str(parent) not in known and os.path.lexists(top / parent) and ((top / parent).is_symlink() or not (top / parent).is_dir()):
            return [str(parent)]
    if (top / path).is_dir() and not (top / path).is_symlink():
        files = [os.path.relpath(Path(where) / name, top) for where, _, names in os.walk(top / path) for name in names]
        return [file for file in files if file not in known]
    return [path] if os.path.lexists(top / path) else []


def _git(
    place: Place,
    *arguments: str,
    stdin: bytes | None = None,
    environment: dict[str, str] | None = None,
    good: Sequence[int] = (0,),
) -> None:
    # Without hooks: DVC's post-index-change hook would change data files.
    command.run(place.top, "-c", f"core.hooksPath={os.devnull}", *arguments, stdin=stdin, environment=environment, good=good)


def _listed(lines: Sequence[str]) -> bytes:
    return b"".join(os.fsencode(line) + b"\0" for line in lines)


def _some(paths: Sequence[str], most: int = 10) -> str:
    head = ", ".join(map(tree.shown, paths[:most]))
    return head if len(paths) <= most else f"{head} and {len(paths) - most} more"
