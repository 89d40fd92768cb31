"""Opening one file of a model version for reading: on a local disk, on S3, or copied first. Every failure is NoFiles."""

import contextlib
import io
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mlops_build.adapters.registry.records import (
    NoAnswer,
    NoFiles,
    RegisteredVersion,
    Rejected,
    StoredFile,
    UnknownVersion,
    first_line,
    shown,
)

# What one small read costs: a scan reads two bytes of most files.
BUFFER = 1 << 16
# How often the store may end one response early without a byte, and the seconds before the next try.
TRIES, WAIT = 4, 0.5


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Errors of the stores as NoFiles. Other errors are not caught."""
    try:
        yield
    except Exception as error:
        module = type(error).__module__.partition(".")[0]
        known = isinstance(error, (OSError, Rejected, NoAnswer, shutil.Error)) or module in ("mlflow", "botocore", "boto3", "urllib3")
        if not known:
            raise
        raise NoFiles(first_line(error)) from error


class _LocalFile(io.FileIO):
    """A local file, which can be on a disk of the network: its failures are NoFiles too."""

    def readinto(self, buffer: Any) -> int:
        with translated():
            return super().readinto(buffer)

    def readall(self) -> bytes:
        with translated():
            return super().readall()


def local(file: Path) -> io.BufferedReader:
    """A file on this machine, without a copy."""
    with translated():
        return io.BufferedReader(_LocalFile(file))


@contextlib.contextmanager
def copied(save: Callable[[Path], None], size: int) -> Iterator[BinaryIO]:
    """A file of `size` bytes that `save` copies into a temporary file, which is deleted at the end."""
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        file = Path(scratch) / "file"
        with translated():
            save(file)
            if file.stat().st_size != size:
                raise NoFiles(f"the store sent {file.stat().st_size} bytes of a file that it lists with {size} bytes")
        with local(file) as opened:
            yield opened


def on_s3(client: Any, request: Mapping[str, Any], size: int) -> io.BufferedReader:
    """An object of `size` bytes, which is read as it arrives. request: its bucket, its key and, as IfMatch, its ETag."""
    return io.BufferedReader(_S3Object(client, request, size), BUFFER)


class _S3Object(io.RawIOBase):
    """One GET for the whole object. After a seek it is one for BUFFER bytes, since a scan reads no more, and then one for the rest.

    A response that ends early leads to another GET.
    """

    def __init__(self, client: Any, request: Mapping[str, Any], size: int) -> None:
        self._client, self._request, self._size = client, request, size
        self._position = 0
        self._has_moved = False
        self._body: Any = None
        self._stop = 0  # where the body ends

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if position < 0:
            raise ValueError(f"position {position} is before the start of the file")
        if position != self._position:
            self._end()
            self._has_moved = True
        self._position = position
        return position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer)[: max(0, self._size - self._position)]
        why = ""
        for attempt in range(TRIES if wanted else 0):
            time.sleep(WAIT * attempt)
            if self._position == self._stop:
                self._end()
            with translated():
                self._body = self._body or self._get()
            try:
                with translated():
                    count = int(self._body.readinto(wanted[: self._stop - self._position]))
            except NoFiles as error:
                why, count = f": {error}", 0
            if count:
                self._position += count
                return count
            self._end()
        if wanted:
            raise NoFiles(f"{self._request['Key']} ends after {self._position} of {self._size} bytes{why}")
        return 0

    def close(self) -> None:
        self._end()
        super().close()

    def _get(self) -> Any:
        self._stop = min(self._size, self._position + BUFFER) if self._has_moved else self._size
        response = self._client.get_object(**self._request, Range=f"bytes={self._position}-{self._stop - 1}")
        if response["ContentLength"] != self._stop - self._position:  # the store ignores Range or IfMatch
            response["Body"].close()
            raise NoFiles(f"{self._request['Key']} has another size than in the store's list, or the store sends no part of a file")
        self._has_moved = False
        return response["Body"]

    def _end(self) -> None:
        if self._body is not None:
            self._body.close()
        self._body = None


@contextlib.contextmanager
def opened(version: RegisteredVersion, file: StoredFile) -> Iterator[BinaryIO]:
    """One of a version's files. Raises UnknownVersion."""
    try:
        with file.open() as content:
            yield content
    except NoFiles as error:
        raise unreadable(version, f"its file {file.path}", error) from error


def unreadable(version: RegisteredVersion, what: str, error: NoFiles) -> UnknownVersion:
    """The error for a version's files that cannot be read."""
    return UnknownVersion(
        f"{version.uri}: {what} cannot be read from {shown(version.source)}: {error}",
        remedy="check that the artifact store answers and still has them (`mlops-build doctor`)",
    )
