"""The digest of a folder of model files."""

import hashlib
import shutil
from pathlib import Path

from mlops_build.errors import Refused


class DigestMismatch(Refused):
    """The files are not the ones that were registered."""


def digest(folder: Path) -> str:
    """SHA-256 over every file's path, size and SHA-256, in sorted order: "sha256:<64 hex>".

    Does not depend on the order of directory listings, on modification times or on modes. Raises Refused for a symbolic link or a special
    file: its target is not part of the folder.
    """
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise Refused(
                f"{path} is not a plain file", remedy="a model version contains plain files only; replace it with a copy of its target"
            )
        if path.is_file():
            total.update(f"{path.relative_to(folder).as_posix()}\0{path.stat().st_size}\0{file_digest(path)}\n".encode())
    return f"sha256:{total.hexdigest()}"


def remove_bytecode(folder: Path) -> None:
    """Remove the bytecode that Python writes beside a model's code on import: it differs each time, and DVC does not track it."""
    for bytecode in list(folder.rglob("__pycache__")):
        shutil.rmtree(bytecode, ignore_errors=True)


def file_digest(path: Path) -> str:
    """SHA-256 of one file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(folder: Path, expected: str) -> None:
    """Check the digest of a folder. Raises DigestMismatch if it is not `expected`."""
    actual = digest(folder)
    if actual != expected:
        raise DigestMismatch(
            f"{folder}: the files have digest {actual}, the version was registered with {expected}",
            remedy="the files were changed after registration: do not serve them; package the version again; if its files in the registry"
            " have changed too, restore them from a backup, or train again",
        )
