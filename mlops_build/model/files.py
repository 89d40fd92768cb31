"""The digest of a folder of model files."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from mlops_build.errors import Refused


class DigestMismatch(Refused):
    """The files are not the ones that were registered."""


def digest(folder: Path) -> str:
    """The digest of the files of a folder: see digest_of. Raises Refused as plain_files."""
    return digest_of((path, file.stat().st_size, file_digest(file)) for path, file in plain_files(folder))


def digest_of(entries: Iterable[tuple[str, int, str]]) -> str:
    """SHA-256 over every file's path, size and SHA-256 (64 hex digits), sorted by path: "sha256:<64 hex>".

    Does not depend on the order of `entries`, on modification times or on modes.
    """
    total = hashlib.sha256()
    for path, size, sha256 in sorted(entries):
        total.update(f"{path}\0{size}\0{sha256}\n".encode())
    return f"sha256:{total.hexdigest()}"


def plain_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """The files of a folder with their POSIX paths in it. Raises Refused for a symbolic link, whose target is not part of the folder, and
    for a special file.
    """
    for path in folder.rglob("*"):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Refused(
                f"{path} is not a plain file", remedy="a model version contains plain files only; replace it with a copy of its target"
            )
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def remove_bytecode(folder: Path) -> None:
    """Remove the bytecode that Python writes beside a model's code on import: it differs each time, and DVC does not track it."""
    for bytecode in list(folder.rglob("__pycache__")):
        shutil.rmtree(bytecode, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-256 of one file, 64 hex digits."""
    with path.open("rb") as file:
        return file_digest_of(file)


def file_digest_of(file: BinaryIO) -> str:
    """SHA-256 of what an open file has, 64 hex digits."""
    total = hashlib.sha256()
    while block := file.read(1 << 20):
        total.update(block)
    return total.hexdigest()


def verify(folder: Path, expected: str) -> None:
    """Check the digest of a folder. Raises DigestMismatch if it is not `expected`."""
    check(digest(folder), expected, str(folder))


def check(actual: str, expected: str, what: str) -> None:
    """Raises DigestMismatch if the digest of the files of `what` is not `expected`."""
    if actual != expected:
        raise DigestMismatch(
            f"{what}: the files have digest {actual}, the version was registered with {expected}",
            remedy="the files were changed after registration: do not serve them; package the version again; if its files in the registry"
            " have changed too, restore them from a backup, or train again",
        )
