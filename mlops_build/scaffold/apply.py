"""Put a tree into a checkout's index and files, such that it can be killed.

Git writes many files one after the other. What is being done is noted first; who finds the note at the next update puts the old files
back. A lock, held by us and by the git that writes, tells a dead update from one that is still at it.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mlops_build.errors import Refused
from mlops_build.git import command
from mlops_build.git.command import GitFailed
from mlops_build.git.repository import Checkout
from mlops_build.scaffold import tree
from mlops_build.scaffold.merge import Stage

UNFINISHED = {
    "MERGE_HEAD": "a merge",
    "CHERRY_PICK_HEAD": "a cherry-pick",
    "REVERT_HEAD": "a revert",
    "rebase-merge": "a rebase",
    "rebase-apply": "a rebase",
}
NOTE, LOCK = "mlops-build-update.json", "mlops-build-update.lock"


class Dirty(Refused):
    """The service has changes that are not committed, or files where the update would write."""


@dataclass(frozen=True)
class Place:
    """Where a service is. top: of the checkout. prefix: the service's folder below it, `` or `services/points/`. folder: Git's own."""

    top: Path
    prefix: str
    folder: Path

    @property
    def service(self) -> Path:
        """The service's folder."""
        return self.top / self.prefix


def find(service: Path) -> Place:
    """The checkout around a service. Raises Refused where there is none, or no commit."""
    remedy = 'in the service: git init -b main && git add --all && git commit -m "Start from the template"'
    try:
        said = command.text(service, "rev-parse", "--show-toplevel", "--absolute-git-dir", "--show-prefix").splitlines()
    except GitFailed as error:
        if "dubious ownership" in error.message:
            remedy = f"git config --global --add safe.directory {service}"
            raise Refused(f"git does not trust {service}: another user owns it", remedy=remedy) from None
        raise Refused(f"{service} is not under Git, so an update could not be taken back", remedy=remedy) from None
    place = Place(Path(said[0]), said[2] if len(said) > 2 else "", Path(said[1]))
    if Checkout(place.top).head() is None:
        raise Refused(f"{service} has no commit yet, so an update could not be taken back", remedy=remedy)
    return place


@contextmanager
def alone(place: Place) -> Iterator[int]:
    """Hold the checkout's lock; what a killed update left half written is put back first. Raises Refused."""
    descriptor = os.open(place.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"another update of {place.service} is at work", remedy="wait for it") from None
        _recover(place)
        yield descriptor
    finally:
        os.close(descriptor)


def check_clean(place: Place) -> None:
    """Raises Dirty for tracked files that differ from HEAD, in the service's folder, and where a merge or rebase is not finished."""
    for name, what in UNFINISHED.items():
        if (place.folder / name).exists():
            raise Dirty(f"{what} is not finished in {place.top}", remedy="finish it, or give it up; then run this again")
    arguments = ["--porcelain=v1", "-z", "--no-renames", "--untracked-files=no", "--ignore-submodules=dirty"]
    listed = command.run(place.top, "status", *arguments, "--", place.prefix or ".").split(b"\0")
    changed = [os.fsdecode(entry[3:]) for entry in listed if entry]
    if changed:
        raise Dirty(f"not committed: {_some(changed)}", remedy="git commit or git stash, then run this again")


def check_room(place: Place, before: str, after: str) -> None:
    """Raises Dirty for files that the update would write over and Git does not know; ignored ones too, which Git would not spare."""
    known, wanted = tree.read(place.top, before), tree.read(place.top, after)
    there = []
    for path in sorted(wanted.keys() - known.keys()):
        for part in [*reversed([str(parent) for parent in Path(path).parents][:-1]), path]:
            if part in known or not os.path.lexists(place.top / part):
                continue
            real = place.top / part
            if part != path and real.is_dir() and not real.is_symlink():
                continue
            if part == path and real.is_dir() and not real.is_symlink():
                there += [found for found in _files_below(place.top, part) if found not in known]
            else:
                there.append(part)
            break
    if there:
        raise Dirty(f"the update would write over files that Git does not have: {_some(sorted(set(there)))}", remedy="move them away")


def write(place: Place, lock: int, after: str, stages: Sequence[Stage] = ()) -> None:
    """Make index and files of the service's paths what the tree `after` of the whole checkout says; other changes stay.

    stages: both sides of conflicts, for the index.
    """
    head = str(Checkout(place.top).head())
    _note(place, {"head": head, "to": after})
    try:
        _git(place, "read-tree", "-m", "-u", f"{head}^{{tree}}", after, held=[lock])
        if stages:
            zero = [f"0 {'0' * 40}\t".encode() + os.fsencode(place.prefix + path) for path in sorted({stage.path for stage in stages})]
            sides = [
                f"{stage.entry.mode} {stage.entry.blob} {stage.number}\t".encode() + os.fsencode(place.prefix + stage.path)
                for stage in stages
            ]
            _git(place, "update-index", "-z", "--index-info", stdin=b"".join(line + b"\0" for line in (*zero, *sides)), held=[lock])
    except BaseException:
        _recover(place)
        raise
    (place.folder / NOTE).unlink()


def _recover(place: Place) -> None:
    """Put the files back that a killed update was writing, if there was one."""
    try:
        note = json.loads((place.folder / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    if Checkout(place.top).head() == note["head"]:
        # We hold the lock that the git which wrote would hold, so it is gone, and its own lock is only in the way.
        (place.folder / "index.lock").unlink(missing_ok=True)
        changed = [path for change in tree.changes(place.top, note["head"], note["to"]) for path in (change.path, change.old) if path]
        _refuse_edited(place, note, changed)
        _put_back(place, note["head"], changed)
    (place.folder / NOTE).unlink()


def _refuse_edited(place: Place, note: dict[str, str], paths: Iterable[str]) -> None:
    """Raises Dirty where somebody edited what was half written: a file that is neither the old nor (the start of) the new one."""
    old, new = tree.read(place.top, note["head"]), tree.read(place.top, note["to"])
    edited = []
    for path in paths:
        file = place.top / path
        if file.is_symlink() or not file.is_file():
            continue
        blob = command.text(place.top, "hash-object", "--", path)
        sides = {side[path].blob for side in (old, new) if path in side}
        if blob not in sides and not (
            path in new and tree.blobs(place.top, [new[path].blob])[new[path].blob].startswith(file.read_bytes())
        ):
            edited.append(path)
    if edited:
        raise Dirty(
            f"an update was interrupted, and {_some(edited)} was changed since",
            remedy=f"keep a copy of what you need, then: git reset --hard && rm {place.folder / NOTE}",
        )


def _put_back(place: Place, head: str, paths: Sequence[str]) -> None:
    listed = b"".join(os.fsencode(path) + b"\0" for path in paths)
    if not listed:
        return
    _git(place, "reset", "--quiet", "--pathspec-from-file=-", "--pathspec-file-nul", head, stdin=listed, good=(0, 1))
    old = tree.read(place.top, head)
    for path in paths:
        if path not in old and not (place.top / path).is_dir():
            (place.top / path).unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # a folder that holds something else stays
                os.removedirs((place.top / path).parent)
    kept = b"".join(os.fsencode(path) + b"\0" for path in paths if path in old)
    if kept:
        _git(place, "checkout", "--quiet", "--force", "--pathspec-from-file=-", "--pathspec-file-nul", head, stdin=kept)


def _git(place: Place, *arguments: str, stdin: bytes | None = None, held: Sequence[int] = (), good: Sequence[int] = (0,)) -> None:
    # Without hooks: DVC's post-checkout would move data about.
    command.run(place.top, "-c", f"core.hooksPath={os.devnull}", *arguments, stdin=stdin, held=held, good=good)


def _note(place: Place, what: dict[str, str]) -> None:
    fresh = place.folder / f"{NOTE}.new"
    with fresh.open("w", encoding="utf-8") as file:
        json.dump(what, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(place.folder / NOTE)


def _files_below(top: Path, folder: str) -> list[str]:
    return [os.path.relpath(Path(where) / name, top) for where, _, names in os.walk(top / folder) for name in names]


def _some(paths: Sequence[str], most: int = 10) -> str:
    shown = ", ".join(paths[:most])
    return shown if len(paths) <= most else f"{shown} and {len(paths) - most} more"
