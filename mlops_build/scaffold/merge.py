"""Merge the template's changes into a service, with Git's own merge and without a checkout.

There are three trees: `old`, the rendering of the template version that the service has; `ours`, the service; `new`, the rendering of the
new version. Git merges them and follows renames. Before that, the trees are adapted to four rules that Git does not know:

* Files of the team or of a machine stay unchanged (mlops_build/scaffold/ownership.py).
* Files that the team deleted stay deleted, even if the template has renamed them.
* A file that the team keeps with other line ends is compared with those line ends.
* Of two versions of mlops-build in one line the newer one is kept.
"""

import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mlops_build.adapters.git import command
from mlops_build.adapters.git.objects import Identity, Objects
from mlops_build.errors import Failed
from mlops_build.scaffold import pin, tree
from mlops_build.scaffold.ownership import Owners
from mlops_build.scaffold.tree import Change, Entry, Tree

NEEDED = (2, 38)
# The user's settings must not change the result. Files follow a rename; a new file does not follow the rename of its folder, because its
# author, the team or the template, chose its folder.
SETTINGS = ("merge.renames=true", "merge.directoryRenames=false", "merge.renameLimit=0", "merge.renormalize=false", "diff.renames=true")
REGULAR = ("100644", "100755")
NOBODY = Identity("mlops-build", "mlops-build@localhost", 1_000_000_000)  # git does not read a small number as a time

# Git's kind of conflict → its meaning and the remedy.
WHY = {
    "content": ("you and the template changed the same lines", "choose or combine the lines"),
    "binary": ("you and the template changed this binary file", "choose one of the two"),
    "add/add": ("you and the template added it with different content", "combine them, or rename yours"),
    "modify/delete": ("one side changed it, the other deleted it", "keep it or delete it"),
    "rename/delete": ("one side renamed it, the other deleted it", "keep it or delete it"),
    "rename/rename": ("you and the template renamed it differently", "keep one of the names"),
    "file/directory": ("it is a file on one side and a folder on the other", "rename yours"),
    "distinct types": ("it is a file on one side and a link on the other", "choose one of the two"),
    "distinct modes": ("one side made it executable, the other did not", "choose one of the two"),
    "submodule": ("both sides changed this submodule", "choose one of the two commits"),
}
UNKNOWN = ("Git cannot merge it", "look at both sides")


@dataclass(frozen=True)
class Conflict:
    """A path that could not be merged. kind: Git's name of the reason; why: the reason as a text."""

    path: str
    kind: str
    why: str
    remedy: str


@dataclass(frozen=True)
class Stage:
    """One side of a path in conflict, as an index stores it. number: 1 base, 2 the team's, 3 the template's."""

    path: str
    number: int
    entry: Entry


@dataclass(frozen=True)
class Merged:
    """The result of a merge.

    tree: the merged tree, with conflict markers if there are conflicts. changes: from the service's tree to the merged one. stages: both
    sides of each conflict. kept: the template's files that the team has edited, by their new names. deleted: files that the team deleted
    and the template has changed. outdated: the team's own files of which the template has a new initial version.
    """

    tree: str
    changes: tuple[Change, ...] = ()
    conflicts: tuple[Conflict, ...] = ()
    stages: tuple[Stage, ...] = ()
    kept: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    outdated: tuple[str, ...] = ()


def check_git() -> None:
    """Raises Failed if Git is too old to merge without a checkout."""
    version = command.version()
    if version < NEEDED:
        raise Failed("git {}.{} cannot merge without a checkout".format(*version), remedy="install git ≥ {}.{}".format(*NEEDED))


def merge(
    repository: Path,
    old: Tree,
    ours: str,
    new: Tree,
    *,
    owners: Owners,
    answers: str = ".copier-answers.yml",
    labels: tuple[str, str] = ("yours", "template"),
    is_newer: pin.IsNewer = pin.unknown,
) -> Merged:
    """Merge the changes from `old` to `new` into the tree `ours`; all objects are in the repository's store.

    answers: the path of copier's answers file, which is always taken from the new rendering. labels: the names of the two sides in
    conflicts; valid names of branches. is_newer: compares two commits of the template's repository.
    """
    service = tree.read(repository, ours)
    base, theirs = dict(old), dict(new)
    in_the_way = _leave_owned(base, theirs, service, owners)
    if answers in service:
        base[answers] = service[answers]
    write = _Writer(repository, {ours: service})
    by_team = tree.changes(repository, write(base), ours)
    by_template = tree.changes(repository, write(base), write(theirs))
    moved_by_team = {change.old: change.path for change in by_team if change.old}
    moved = {change.old: change.path for change in by_template if change.old}
    deleted = [change.path for change in by_team if change.what == "deleted"]
    changed_since = _leave_deleted(base, theirs, service, deleted, moved)
    _compare_in_our_line_ends(repository, base, theirs, service, moved_by_team, moved)
    chosen = _newer_pins(repository, base, service, theirs, is_newer)
    result, stages, conflicts = _three_way(repository, write(base), write({**service, **chosen}), write(theirs), labels)
    edited = {path for path, entry in old.items() if service.get(path, entry) != entry} | set(moved_by_team)
    edited -= {conflict.path for conflict in conflicts} | {answers}
    after = {path: moved_by_team.get(path) or moved.get(path, path) for path in edited if owners.of(path) == "template"}
    return Merged(
        result,
        tuple(tree.changes(repository, ours, result)),
        (*in_the_way, *conflicts),
        stages,
        tuple(sorted(after.values())),
        tuple(changed_since),
        tuple(
            path
            for path in sorted(new)
            if owners.of(path) == "team" and path in service and new[path] not in (old.get(path), service[path])
        ),
    )


class _Writer:
    """Write each tree into the store only once."""

    def __init__(self, repository: Path, known: Mapping[str, Tree]) -> None:
        self.repository = repository
        self.known = {frozenset(files.items()): name for name, files in known.items()}

    def __call__(self, files: Tree) -> str:
        content = frozenset(files.items())
        if content not in self.known:
            self.known[content] = tree.write(self.repository, files)
        return self.known[content]


def _leave_owned(base: Tree, theirs: Tree, service: Tree, owners: Owners) -> list[Conflict]:
    """Remove all differences in files of the team or of a machine. New files of the template are added, as copier does.

    A machine's folder is a unit: its files are added only if neither the service nor the old rendering has any of them.
    """
    started = {owners.together(path) for path in (*base, *service) if owners.of(path) == "machine"}
    for path in {*base, *theirs, *service}:
        if (owner := owners.of(path)) == "template":
            continue
        if path in service:
            base[path] = theirs[path] = service[path]
        elif path in base or (owner == "machine" and owners.together(path) in started):
            base.pop(path, None)
            theirs.pop(path, None)
    kept = {path for path in service if owners.of(path) != "template"}
    for path in _clashes(base, kept):
        base.pop(path)
    clashes = sorted(_clashes(theirs, kept))
    for path in clashes:
        theirs.pop(path)
        base.pop(path, None)
    return [Conflict(path, "file/directory", *WHY["file/directory"]) for path in clashes]


def _clashes(files: Tree, kept: Collection[str]) -> set[str]:
    """The paths outside `kept` for which a file and a folder have the same name."""
    pairs = [(path, str(parent)) for path in files for parent in PurePosixPath(path).parents if str(parent) in files]
    return {path for pair in pairs for path in pair} - set(kept)


def _leave_deleted(base: Tree, theirs: Tree, service: Tree, deleted: Collection[str], moved: Mapping[str, str]) -> list[str]:
    """Remove files that the team deleted from both renderings; returns those that the template has changed since then."""
    changed_since = []
    for path in deleted:
        now = moved.get(path, path)
        if now in theirs and now not in service and theirs.pop(now) != base[path]:
            changed_since.append(now)
        base.pop(path)
    return changed_since


def _compare_in_our_line_ends(
    repository: Path, base: Tree, theirs: Tree, service: Tree, moved_by_team: Mapping[str, str], moved: Mapping[str, str]
) -> None:
    """Convert both renderings of a file to the line ends of the team's file, if that has one kind and the template's the other."""
    pairs = {
        path: service[now] for path in base if (now := moved_by_team.get(path, path)) in service and service[now].blob != base[path].blob
    }
    pairs = {path: entry for path, entry in pairs.items() if {entry.mode, base[path].mode} <= set(REGULAR)}
    contents = tree.blobs(repository, [name for path, entry in pairs.items() for name in (entry.blob, base[path].blob)])
    for path, entry in pairs.items():
        wanted = _line_end(contents[entry.blob])
        if not wanted or _line_end(contents[base[path].blob]) in (wanted, None):
            continue
        for files, name in ((base, path), (theirs, moved.get(path, path))):
            if name in files and files[name].mode in REGULAR:
                content = tree.blobs(repository, [files[name].blob])[files[name].blob].replace(b"\r\n", b"\n").replace(b"\n", wanted)
                files[name] = Entry(files[name].mode, tree.add_blob(repository, content))


def _line_end(content: bytes) -> bytes | None:
    """The line end of a text; None if it has none or both kinds, or if the content is binary."""
    both, newlines = content.count(b"\r\n"), content.count(b"\n")
    if not newlines or b"\0" in content or 0 < both < newlines:
        return None
    return b"\r\n" if both else b"\n"


def _newer_pins(repository: Path, base: Tree, service: Tree, theirs: Tree, is_newer: pin.IsNewer) -> Tree:
    """Write the newer of two versions into all three trees; the renderings are changed, the service's new files are returned."""
    chosen: Tree = {}
    for path in pin.PINS:
        if path not in base or path not in service or path not in theirs:
            continue
        contents = tree.blobs(repository, [files[path].blob for files in (base, service, theirs)])
        three = pin.Three(*(contents[files[path].blob] for files in (base, service, theirs)))
        if newer := pin.with_the_newer(path, three, is_newer):
            base[path] = Entry(base[path].mode, tree.add_blob(repository, newer.base))
            chosen[path] = Entry(service[path].mode, tree.add_blob(repository, newer.ours))
            theirs[path] = Entry(theirs[path].mode, tree.add_blob(repository, newer.theirs))
    return chosen


def _three_way(
    repository: Path, base: str, ours: str, theirs: str, labels: tuple[str, str]
) -> tuple[str, tuple[Stage, ...], tuple[Conflict, ...]]:
    """Git's merge of three trees, through commits that are on no branch of the repository."""
    if theirs == base:
        return ours, (), ()
    store = Objects(repository)
    root = store.commit_tree(base, [], "before", NOBODY)
    objects, kind = command.text(
        repository, "rev-parse", "--path-format=absolute", "--git-path", "objects", "--show-object-format"
    ).splitlines()
    settings = [argument for setting in SETTINGS for argument in ("-c", setting)]
    # Git names the two sides in conflicts as they are named here, so they are branches of another repository with the same objects.
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as folder:
        scratch, environment = Path(folder), {"GIT_OBJECT_DIRECTORY": objects}
        command.run(scratch, "init", "--quiet", "--bare", "--template=", f"--object-format={kind}")
        (scratch / "info").mkdir()
        (scratch / "info/attributes").write_bytes(store.read(ours, ".gitattributes") or b"")
        for label, side in zip(labels, (ours, theirs), strict=True):
            commit = store.commit_tree(side, [root], label, NOBODY)
            command.run(scratch, "update-ref", f"refs/heads/{label}", commit, environment=environment)
        arguments = ["merge-tree", "--write-tree", "-z", "--messages", *labels]
        merged = command.run(scratch, *settings, *arguments, environment=environment, good=(0, 1))
    result, *fields = merged.decode(errors="surrogateescape").split("\0")
    end = fields.index("")
    stages = []
    for line in fields[:end]:
        about, _, path = line.partition("\t")
        mode, blob, number = about.split()
        stages.append(Stage(path, int(number), Entry(mode, blob)))
    return result, tuple(stages), _conflicts(fields[end + 1 :], {stage.path for stage in stages})


def _conflicts(fields: list[str], unmerged: set[str]) -> tuple[Conflict, ...]:
    """Parse Git's messages: number of paths, paths, type, sentence, repeated. Each path has one conflict of the most specific kind."""
    kinds: dict[str, str] = dict.fromkeys(unmerged, "")
    at = 0
    while at < len(fields) - 1:
        count = int(fields[at])
        paths, kind, sentence = fields[at + 1 : at + 1 + count], fields[at + 1 + count], fields[at + 2 + count]
        at += count + 3
        # The type of two added files is "contents", and the sentence for a binary file is only a warning.
        if match := re.match(r"CONFLICT \((binary)\)", kind) or re.match(r"CONFLICT ?\(([^)]+)\)", sentence):
            # The first path of a rename is the old one; it is in conflict only if Git has stages for it.
            for path in [path for path in paths if path in unmerged] or paths:
                if kinds.get(path, "") in ("", "content"):
                    kinds[path] = match[1]
    return tuple(Conflict(path, kind, *WHY.get(kind, UNKNOWN)) for path, kind in sorted(kinds.items()))
