"""What a place with files can do, and the errors that it raises."""

import contextlib
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from mlops_build.errors import Failed, Unreachable, UsageError

FILE = re.compile(r"file:(?://[^/?#]*)?(/[^?#]*)")
WRITE = "use a folder or s3://BUCKET/PREFIX; a user of Swift on Ceph can have S3 keys, too"


class NoPlace(Unreachable):
    """The place does not exist or does not answer, or a file in it cannot be read or written."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """One file. path: below the place, with `/`. size: bytes. modified_ms: Unix time in ms. md5: in hex, if the store's list has it."""

    path: str
    size: int
    modified_ms: int
    md5: str | None = None


class Place(ABC):
    """A folder, or a prefix of a bucket or container. Every method raises NoPlace.

    lists_all: whether `objects` lists everything below `uri`; not if the place is a single file. left_out: what it did not list, as paths.
    """

    uri: str
    lists_all = True
    left_out: Sequence[str] = ()

    @abstractmethod
    def objects(self, below: str = "") -> Iterator[StoredObject]:
        """Every file, or those below a folder of the place. Sorted by path in stores; by folder in folders. Only one page is in memory."""

    @abstractmethod
    def read(self, path: str, most: int) -> bytes:
        """The content of a small file. Raises Failed if it has more than `most` bytes."""

    @abstractmethod
    def save(self, path: str, destination: Path) -> None:
        """Copy a file to `destination`, whose folder exists."""

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[Path]:
        """A file with this content: in a folder itself, which must not be changed; else a copy, which is deleted at the end."""
        with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
            self.save(path, Path(scratch) / "file")
            yield Path(scratch) / "file"

    def put(self, path: str, file: Path) -> None:
        """Copy `file` to `path`, over a file of this name. Another reader sees the old or the new file, never a part."""
        raise UsageError(f"{file} cannot be copied to {self.shown(path)}: this kind of store is only read", remedy=WRITE)

    def delete(self, path: str) -> None:
        """Delete a file; a file that does not exist is not an error."""
        raise UsageError(f"{self.shown(path)} cannot be deleted: this kind of store is only read", remedy=WRITE)

    def shown(self, path: str) -> str:
        return f"{self.uri}/{path}"

    def too_large(self, path: str, most: int) -> Failed:
        return Failed(f"{self.shown(path)} has more than {most} bytes", remedy="check that this is the right place")


def checked(path: str) -> str:
    """A path below the place that it is joined to. Raises Failed: a store does not choose which files are read or written."""
    parts = PurePosixPath(path).parts
    if not path or path.startswith("/") or ".." in parts or "\0" in path:
        raise Failed(f"{path[:200]!r} is not a path below a folder", remedy="rename this file in the store")
    return path


def file_path(uri: str) -> str | None:
    """The path of a file: URI; None for anything else. Unlike urllib's, it has no error for a host that is not valid."""
    match = FILE.match(uri)
    return unquote(match[1]) if match else None
