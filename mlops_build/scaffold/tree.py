"""A tree of files as Git stores it: path → mode and blob. Trees are read from a commit or a folder and written to the store, without a
checkout.

Paths are text with undecodable bytes kept (os.fsdecode), so that every file name survives.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from mlops_build.adapters.git import command

# Rendered files are stored unchanged, whatever the settings of the machine or the repository are.
AS_RENDERED = (
    "core.fileMode=true",
    "core.symlinks=true",
    "core.ignoreCase=false",
    "core.safecrlf=false",
    "core.autocrlf=false",
    "core.sparseCheckout=false",
    "core.fsmonitor=false",
    f"core.hooksPath={os.devnull}",
)


class Entry(NamedTuple):
    """A file: Git's mode (100644, 100755 executable, 120000 symbolic link, 160000 submodule), and the id of its blob."""

    mode: str
    blob: str


Tree = dict[str, Entry]


@dataclass(frozen=True)
class Change:
    """A changed file. what: added, changed, deleted or renamed. old: the former path of a renamed file."""

    path: str
    what: str
    old: str | None = None


def shown(path: str) -> str:
    """A path for output: undecodable bytes become backslash escapes."""
    return path.encode(errors="surrogateescape").decode(errors="backslashreplace")


def read(repository: Path, treeish: str) -> Tree:
    """All files of a commit or tree."""
    files: Tree = {}
    for line in command.run(repository, "ls-tree", "-r", "-z", "--full-tree", treeish).split(b"\0")[:-1]:
        about, _, path = line.partition(b"\t")
        mode, _, blob = about.decode().split()
        files[os.fsdecode(path)] = Entry(mode, blob)
    return files


def write(repository: Path, files: Mapping[str, Entry]) -> str:
    """Write a tree with these files; returns its id."""
    lines = [f"{entry.mode} {entry.blob}\t".encode() + os.fsencode(path) + b"\0" for path, entry in sorted(files.items())]
    with private_index() as index:
        command.run(repository, "update-index", "-z", "--index-info", stdin=b"".join(lines), environment=index)
        return command.text(repository, "write-tree", environment=index)


def store(repository: Path, worktree: Path, prefix: str, attributes: Mapping[str, bytes]) -> Tree:
    """Store the files below `prefix` in a folder in the repository, as its own `git add` would; the result's paths start below the prefix.

    attributes: path → the repository's .gitattributes; they apply where the folder has no such file of its own.
    """
    borrowed = []
    for path, content in attributes.items():
        if (worktree / path).parent.is_dir() and not os.path.lexists(worktree / path):
            (worktree / path).write_bytes(content)
            borrowed.append(path)
    where = command.text(repository, "rev-parse", "--absolute-git-dir")
    settings = [argument for setting in AS_RENDERED for argument in ("-c", setting)]
    with private_index() as index:
        environment = {**index, "GIT_DIR": where, "GIT_WORK_TREE": str(worktree)}
        # --force: files that the template's own .gitignore excludes belong to the template, too.
        command.run(worktree, *settings, "add", "--all", "--force", prefix or ".", environment=environment)
        files = read(repository, command.text(repository, "write-tree", environment=index))
    return {path.removeprefix(prefix): entry for path, entry in files.items() if path not in borrowed}


def graft(repository: Path, whole: str, prefix: str, part: str) -> str:
    """The tree `whole` with the part below `prefix` replaced by the tree `part`."""
    if not prefix:
        return part
    others = {path: entry for path, entry in read(repository, whole).items() if not path.startswith(prefix)}
    return write(repository, others | {prefix + path: entry for path, entry in read(repository, part).items()})


def blobs(repository: Path, names: Iterable[str]) -> dict[str, bytes]:
    """The contents of these blobs, by id."""
    wanted = sorted(set(names))
    if not wanted:
        return {}
    printed = command.run(repository, "cat-file", "--batch", stdin="".join(f"{name}\n" for name in wanted).encode())
    contents, at = {}, 0
    for name in wanted:
        end = printed.index(b"\n", at)
        size = int(printed[at:end].split()[2])
        contents[name] = printed[end + 1 : end + 1 + size]
        at = end + 1 + size + 1
    return contents


def add_blob(repository: Path, content: bytes) -> str:
    """Write content into the store; returns its id."""
    return command.run(repository, "hash-object", "-w", "--stdin", stdin=content).decode().strip()


def changes(repository: Path, before: str, after: str) -> list[Change]:
    """The differences between two trees, in path order, with the same rename detection as a merge."""
    listed = command.run(repository, "diff-tree", "-r", "-z", "--name-status", "-M", "-l0", "--no-rename-empty", before, after)
    fields = iter(listed.decode(errors="surrogateescape").split("\0")[:-1])
    changes = []
    for status in fields:
        if status.startswith("R"):
            old, path = next(fields), next(fields)
            changes.append(Change(path, "renamed", old))
        else:
            changes.append(Change(next(fields), {"A": "added", "D": "deleted"}.get(status, "changed")))
    return changes


@contextmanager
def private_index() -> Iterator[dict[str, str]]:
    """Variables for git with an index of its own, which is removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        yield {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
