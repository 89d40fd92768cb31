"""A layer of an image as a tar stream that depends only on its files: sorted, with a fixed time, owner and modes.

The stream is made while it is read, from any position on, so a layer needs no copy of its files, and an upload can go on where it stopped.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import BinaryIO

from mlops_build.errors import Failed

CHUNK = 1 << 20
TIME = 315532800  # 1980, the first year that every archive format has
BLOCK = tarfile.BLOCKSIZE
END = bytes(2 * BLOCK)


class ChangedFile(Failed):
    """A file has another size than its store said."""


@dataclass(frozen=True)
class File:
    """A file of a layer. path: in the image, without the first slash. size: in bytes. open: for reading, seekable."""

    path: str
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]
    executable: bool = False


@dataclass(frozen=True)
class Hashed:
    """The digest ("sha256:…") of a layer, and the SHA-256 (hex) of each file by its path."""

    digest: str
    files: Mapping[str, str]


@dataclass(frozen=True)
class Layer:
    """A layer: its files, and links (path → target)."""

    files: Sequence[File]
    links: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def _parts(self) -> list[tuple[bytes, File | None]]:
        """In order: what precedes each file, and the file; after the last file, the end."""
        entries: dict[str, File | str | None] = {file.path: file for file in self.files} | dict(self.links)
        folders = {folder.as_posix(): None for path in entries for folder in PurePosixPath(path).parents}
        folders.pop(".", None)
        parts: list[tuple[bytes, File | None]] = []
        before = b""
        for path, entry in sorted({**folders, **entries}.items()):
            before += _header(path, entry)
            if isinstance(entry, File):
                parts.append((before, entry))
                before = bytes(-entry.size % BLOCK)
        return [*parts, (before + END, None)]

    @property
    def size(self) -> int:
        """The size of the stream in bytes."""
        return sum(len(before) + (file.size if file else 0) for before, file in self._parts)

    def content(self, offset: int = 0) -> Iterator[bytes]:
        """The stream from a position on, in chunks. Raises ChangedFile, and the errors of the files' store."""
        return (chunk for _, chunk in self.chunks(offset))

    def chunks(self, offset: int) -> Iterator[tuple[str | None, bytes]]:
        """As `content`; each with the path of the file that it is a part of, or None."""
        for before, file in self._parts:
            if offset < len(before):
                yield None, before[offset:]
            offset = max(0, offset - len(before))
            if file is None:
                return
            if offset < file.size:
                yield from ((file.path, chunk) for chunk in _read(file, offset))
            offset = max(0, offset - file.size)

    def hashed(self) -> Hashed:
        """Read the layer once. Raises ChangedFile, and the errors of the files' store."""
        hashing = Hashing(self)
        for _ in hashing.content(0):
            pass
        return hashing.result


class Hashing:
    """Hashes a layer while it is read: each byte once, also if an upload reads a part of it again."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._total, self._files = hashlib.sha256(), {file.path: hashlib.sha256() for file in layer.files}
        self._done = 0

    def content(self, offset: int) -> Iterator[bytes]:
        """The layer's content from a position that was reached before."""
        # A second thread: hashing is the longest part, and hashlib releases the lock of the interpreter.
        with ThreadPoolExecutor(1) as thread:
            for path, chunk in self._layer.chunks(offset):
                new = memoryview(chunk)[max(0, self._done - offset) :]
                offset += len(chunk)
                self._done = max(self._done, offset)
                total = thread.submit(self._total.update, new) if len(new) == CHUNK else None
                if path:
                    self._files[path].update(new)
                total.result() if total else self._total.update(new)
                yield chunk

    @property
    def result(self) -> Hashed:
        """The hashes, after the whole content was read."""
        return Hashed(f"sha256:{self._total.hexdigest()}", {path: own.hexdigest() for path, own in self._files.items()})


def _read(file: File, offset: int) -> Iterator[bytes]:
    left = file.size - offset
    with file.open() as stream:
        stream.seek(offset)
        while left:
            chunk = stream.read(min(CHUNK, left))
            if not chunk:
                raise ChangedFile(f"/{file.path}: the file is {left} bytes shorter than its store said", remedy="run it again")
            left -= len(chunk)
            yield chunk
        if stream.read(1):
            raise ChangedFile(f"/{file.path}: the file is longer than its store said", remedy="run it again")


def _header(path: str, entry: File | str | None) -> bytes:
    info = tarfile.TarInfo(path)
    info.mtime = TIME
    if isinstance(entry, File):
        info.size, info.mode = entry.size, 0o755 if entry.executable else 0o644
    elif entry is None:
        info.type, info.mode = tarfile.DIRTYPE, 0o755
    else:
        info.type, info.mode, info.linkname = tarfile.SYMTYPE, 0o777, entry
    return info.tobuf(tarfile.PAX_FORMAT)
