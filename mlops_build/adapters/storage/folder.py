"""A folder on this machine, or on a disk of the network."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from mlops_build.adapters.storage.place import NoPlace, Place, StoredObject, checked
from mlops_build.errors import Failed

# How temporary files are named, which a killed process leaves.
PART = ".mlops-build-"
FULL = (errno.ENOSPC, errno.EDQUOT)
MOST_LEFT_OUT = 100


class Folder(Place):
    """The files of a folder; a file is a place with one file.

    left_out: paths of symbolic links, which are not followed since what they name is elsewhere, and of special files, once listed.
    """

    left_out: list[str]

    def __init__(self, path: Path) -> None:
        self.left_out = []
        self._root = self._path = path.absolute()
        with self._translated(""):
            if self._path.is_file():
                self._root = self._path.parent
        self.lists_all = self._root == self._path
        self.uri = str(self._root)

    def objects(self, below: str = "") -> Iterator[StoredObject]:
        with self._translated(below):
            if self._path.is_file() and not below:
                yield self._object(self._path, self._path.stat())
                return
            if below and not (self._root / checked(below)).is_dir():
                return
            yield from self._walk(self._root / below)

    def read(self, path: str, most: int) -> bytes:
        with self._translated(path), self._plain(path).open("rb") as file:
            content = file.read(most + 1)
        if len(content) > most:
            raise self.too_large(path, most)
        return content

    def save(self, path: str, destination: Path) -> None:
        with self._translated(path, destination):
            shutil.copyfile(self._plain(path), destination)

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[Path]:
        with self._translated(path):
            file = self._plain(path)
            file.open("rb").close()
        yield file

    def put(self, path: str, file: Path) -> None:
        target = self._root / checked(path)
        with self._translated(path):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f"{PART}{secrets.token_hex(8)}")  # not of tempfile, whose files only the owner may read
            try:
                with file.open("rb") as source, part.open("xb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
                    copy.flush()
                    os.fsync(copy.fileno())
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)

    def delete(self, path: str) -> None:
        with self._translated(path):
            (self._root / checked(path)).unlink(missing_ok=True)

    def _plain(self, path: str) -> Path:
        """The file, which is none of those that the list leaves out. A pipe could be waited for without end."""
        file = self._root / checked(path)
        if stat.S_ISREG(file.lstat().st_mode):
            return file
        raise OSError(errno.EINVAL, "it is not a plain file")

    def _walk(self, folder: Path) -> Iterator[StoredObject]:
        """What is deleted while it is listed is left out."""
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except FileNotFoundError:
            if folder == self._root:
                raise
            return
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):
                    yield self._object(Path(entry.path), entry.stat())
            elif len(self.left_out) < MOST_LEFT_OUT:
                self.left_out.append(entry.path)

    def _object(self, path: Path, status: os.stat_result) -> StoredObject:
        return StoredObject(path.relative_to(self._root).as_posix(), status.st_size, status.st_mtime_ns // 1_000_000)

    @contextlib.contextmanager
    def _translated(self, path: str, written: Path | None = None) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in FULL:
                where = written or self._root / path
                raise Failed(f"{where}: {error.strerror}", remedy="free space there; TMPDIR is the folder of temporary files") from error
            where = self._root / path if path else error.filename or self._path
            raise NoPlace(f"{where}: {error.strerror or error}", remedy="check the path, and who may read and write it") from error
