"""Write a tree into a checkout's index and files, safely even if the process is killed.

Git writes many files one after another. A note is written first; the next update that finds the note restores the old files. A lock,
held by this process and by the git process that writes, shows whether an update is still running.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
NOTE, LOCK = "mlops-build-update.json", "mlops-build-update.lock"


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


@contextmanager
def alone(place: Place) -> Iterator[int]:
    """Hold the checkout's lock, after restoring files that a killed update left incomplete. Raises Refused."""
    descriptor = os.open(place.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"another update of {place.service} is running", remedy="wait until it has finished") from None
        _recover(place)
        yield descriptor
    finally:
        os.close(descriptor)


def check_clean(place: Place) -> None:
    """Raises Dirty if tracked files in the service's folder differ from HEAD, or if a merge or rebase is not finished."""
    for name, what in UNFINISHED.items():
        if (place.folder / name).exists():
            raise Dirty(f"{what} is not finished in {place.top}", remedy="finish or abort it, then run this again")
    arguments = ["--porcelain=v1", "-z", "--no-renames", "--untracked-files=no", "--ignore-submodules=dirty"]
    listed = command.run(place.top, "status", *arguments, "--", place.prefix or ".").split(b"\0")
    changed = [os.fsdecode(entry[3:]) for entry in listed if entry]
    if changed:
        raise Dirty(f"uncommitted changes: {_some(changed)}", remedy="run git commit or git stash, then run this again")


def check_room(place: Place, before: str, after: str) -> None:
    """Raises Dirty for untracked files that the update would overwrite, including ignored files."""
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
                there += [file for file in _files_below(place.top, part) if file not in known]
            else:
                there.append(part)
            break
    if there:
        raise Dirty(f"the update would overwrite untracked files: {_some(sorted(set(there)))}", remedy="move them away")


def write(place: Place, lock: int, after: str, stages: Sequence[Stage] = ()) -> None:
    """Update index and files of the service's paths to the tree `after` of the whole checkout; other changes stay.

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
    """Restore the files that a killed update was writing, if there was one."""
    try:
        note = json.loads((place.folder / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    if Checkout(place.top).head() == note["head"]:
        # This process holds the lock, so the git process that wrote has ended, and its own lock is stale.
        (place.folder / "index.lock").unlink(missing_ok=True)
        changed = [path for change in tree.changes(place.top, note["head"], note["to"]) for path in (change.path, change.old) if path]
        _refuse_edited(place, note, changed)
        _put_back(place, note["head"], changed)
    (place.folder / NOTE).unlink()


def _refuse_edited(place: Place, note: dict[str, str], paths: Iterable[str]) -> None:
    """Raises Dirty if an incomplete file was edited: it is neither the old file nor the new one or its beginning."""
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
            f"an update was interrupted, and {_some(edited)} was changed afterwards",
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
    # Without hooks: DVC's post-checkout hook would change data files.
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
