"""A directory in which all users can write (mode 1777), so its content is not trusted.

Only regular files are opened, never through a link, without waiting and up to a size limit. Invalid files are ignored with a warning. The
descriptor of the directory stays open, so a renamed directory is still the same one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from mlops_build.errors import Failed
from mlops_build.gpu import log
from mlops_build.gpu.promise import printable

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Self

FILE_LIMIT = 64 * 1024  # a lease is about 300 bytes
# A limit for the leases of one uid: many files of one user must not delay other users.
FILES_PER_UID = 1024
LONGEST_PAUSE = 0.1  # s, between two tries to take a lock


def locks(descriptor: int, kind: int) -> bool:
    """Try to take the file's lock (LOCK_SH or LOCK_EX) without waiting; whether it was taken."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


class NoLedger(Failed):
    """The lease directory is missing, not writable, or its disk is full."""


class SharedDirectory:
    """An open directory. Each file belongs to one uid, except those of `slot` and `_open_or_create`, which all uids share."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._directory = descriptor
        self._warned: set[str] = set()

    @property
    def path(self) -> Path:
        """The directory."""
        from pathlib import Path

        return Path(self._path)

    def close(self) -> None:
        """Close the directory."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, name: str, limit: int = FILE_LIMIT) -> tuple[bytes, int] | None:
        """A regular file's content and its owner's uid; None if it is missing, not regular, or larger than `limit` bytes."""
        descriptor = self._open(name)
        if descriptor is None:
            return None
        try:
            content = os.read(descriptor, limit + 1)
            return (content, os.fstat(descriptor).st_uid) if len(content) <= limit else None
        except OSError:
            return None
        finally:
            os.close(descriptor)

    def slot(self, names: Sequence[str], seconds: float = 0.0) -> int | None:
        """Lock one of these files, which all uids share. Returns its descriptor; None if none is free within `seconds`. Raises NoLedger."""
        deadline, pause = time.monotonic() + seconds, 0.001
        while True:
            for name in names:
                descriptor = self._open_or_create(name)
                if locks(descriptor, fcntl.LOCK_EX) and self._is(name, descriptor):  # not removed in the meantime
                    return descriptor
                os.close(descriptor)
            if time.monotonic() > deadline:
                return None
            time.sleep(pause * (0.5 + os.urandom(1)[0] / 255))  # random, so that waiting processes do not try at the same time
            pause = min(LONGEST_PAUSE, pause * 1.5)

    def append(self, name: str, line: bytes, limit: int) -> None:
        """Append a line to one of this uid's own files. A file larger than `limit` bytes keeps its newest half. Raises NoLedger."""
        with self._writing(name):
            descriptor = self._open(name, os.O_RDWR | os.O_APPEND)
            if descriptor is None:
                with contextlib.suppress(FileExistsError):
                    os.close(self._create(name))
                descriptor = self._open(name, os.O_RDWR | os.O_APPEND)
            if descriptor is None:
                raise NoLedger(f"{self._path}/{name} is not a regular file of this uid", remedy="remove it")
            try:
                size = os.fstat(descriptor).st_size
                # Only one process at a time shortens the file, and none waits for it: others append, and their lines are shortened later.
                if size + len(line) > limit and locks(descriptor, fcntl.LOCK_EX) and self._is(name, descriptor):
                    newest = os.pread(descriptor, limit // 2, max(0, size - limit // 2)).partition(b"\n")[2]
                    self._replace_bytes(name, newest + line)
                elif size < 2 * limit:
                    write_all(descriptor, line)
            finally:
                os.close(descriptor)

    def files(self, pattern: re.Pattern[str]) -> list[str]:
        """Sorted names of the directory that match. All of it is read: other files must not hide a lease."""
        # By a descriptor of its own, since reading moves the position, which threads would share.
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return sorted(name for name in os.listdir(descriptor) if pattern.fullmatch(name))  # noqa: PTH208 - pathlib costs its import
        finally:
            os.close(descriptor)

    def write(self, name: str, document: Mapping[str, Any]) -> None:
        """Replace one of this uid's own files by a JSON document. Raises NoLedger."""
        self._replace_bytes(name, json.dumps(document).encode())

    def _open(self, name: str, flags: int = os.O_RDONLY) -> int | None:
        """The descriptor of a regular file; None if there is none. Without O_CREAT, with which fs.protected_regular refuses to open another
        user's file in a sticky directory."""
        try:
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):  # a lease that is not read must not count as absent
                raise NoLedger(f"cannot read {self._path}/{name}: {reason(error)}", remedy="raise the limit (ulimit -n)") from None
            self._warn(name, -1, reason(error))
            return None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        self._warn(name, os.fstat(descriptor).st_uid, "it is not a regular file")
        os.close(descriptor)
        return None

    def _create(self, name: str, mode: int = 0o644) -> int:
        """Create a file that is readable for other uids, independent of the umask. Raises OSError, for example FileExistsError."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
        os.fchmod(descriptor, mode)
        return descriptor

    def _open_or_create(self, name: str) -> int:
        """The descriptor of a file that all uids share. Raises NoLedger."""
        for _ in range(10):
            descriptor = self._open(name)
            if descriptor is not None:
                return descriptor
            with self._writing(name), contextlib.suppress(FileExistsError):
                return self._create(name, 0o666)
        raise NoLedger(f"{self._path}/{name} is not a regular file that this uid may open", remedy="remove it; it is created again")

    def _replace_bytes(self, name: str, content: bytes) -> None:
        temporary = f".{os.urandom(8).hex()}.{name.rpartition('.')[2]}.new"
        with self._writing(temporary):
            descriptor = self._create(temporary)
            try:
                write_all(descriptor, content)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """Turn an OSError into NoLedger, and remove a temporary file."""
        try:
            yield
        except OSError as error:
            if name.endswith(".new"):
                self._remove(name)
            raise NoLedger(
                f"cannot write to the lease directory {self._path}: {reason(error)}", remedy="free disk space, or fix its mode (1777)"
            ) from None

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):  # removed already, or another user's file in a sticky directory
            os.unlink(name, dir_fd=self._directory)

    def _is(self, name: str, descriptor: int) -> bool:
        """Whether this descriptor's file still has this name."""
        try:
            status = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(status, os.fstat(descriptor))

    def _warn(self, name: str, uid: int, why: str) -> None:
        """Warn once for each file, so that a waiting process does not repeat it."""
        if name not in self._warned:
            self._warned.add(name)
            owner = f" of uid {uid}" if uid >= 0 else ""
            log.warning("ignored in the lease directory: %s%s: %s", printable(f"{self._path}/{name}", 300), owner, why)


def write_all(descriptor: int, content: bytes) -> None:
    """Write everything. Raises OSError."""
    while content:
        content = content[os.write(descriptor, content) :]


def json_object(content: bytes) -> dict[str, Any] | None:
    """A file's content as a JSON object; None if it is not one."""
    try:
        document = json.loads(content.decode())  # explicit UTF-8: guessing the encoding takes as long as parsing
    except (ValueError, RecursionError):  # UnicodeDecodeError and numbers of too many digits are ValueErrors
        return None
    return document if isinstance(document, dict) else None


def reason(error: OSError) -> str:
    """The text of an error, without the file's name."""
    return os.strerror(error.errno) if error.errno else str(error)
