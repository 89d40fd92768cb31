"""Leases on disk: one directory that all services of a node share (a hostPath for containers), and the kernel's file locks.

    lock                   locked by whoever decides, for a millisecond or two
    <id>.lease             one promise, written once; its owner keeps the file locked. Alive means "I cannot lock it": no pids (containers
                           hide them), no heartbeats, no timers. The kernel lets go when the last process that inherited it is gone
    <id>.seen              what the owner saw of its own memory, replaced at each report
    peaks-<uid>.json       the memory of those who hold no lease, at its peak, by whoever looks
    decisions-<uid>.jsonl  who was given which card, and why (decisions.py)
    load-<card>-<n>        slots of the load gate (loading.py)

Everybody may write here (mode 1777), so nothing here is believed without a look: only plain files are opened, never through a link, never
waiting, and never read beyond a bound; the owner is the file's, not what it says; what does not parse is named in a warning and ignored.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import re
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

from mlops_build.errors import Failed
from mlops_build.gpu import log
from mlops_build.gpu.frozen import dataclass, replace
from mlops_build.gpu.lock import Turn, locks, unlock

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, TypeVar

    T = TypeVar("T")

DIRECTORY = "/run/mlops-gpu"
DIRECTORY_VARIABLE = "MLOPS_GPU_LEASE_DIR"
LOCK = "lock"
# How long a decision waits for the lock before it is made without it: a stopped or hostile holder must not stop the node.
LOCK_SECONDS = 2.0
# A lease is about 300 bytes; what is larger was not written by us.
FILE_LIMIT = 64 * 1024
PEAKS_LIMIT = 1024 * 1024
# Files of one uid, and of all, that a look reads: a flood of one user's files must not hide or delay other users' leases.
FILES_PER_UID, FILES = 1024, 16384
# A temporary file that is older was left by a process that died between creating and renaming it.
TEMPORARY_SECONDS = 60.0
MAX_BYTES = 1 << 50  # no card has a pebibyte
MAX_CARDS = 64

_NAME = re.compile(r"[0-9a-f]{16}\.lease")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}\.(lease|seen|json|jsonl)\.new")
_UUID = re.compile(r"[!-~]{1,128}")


class NoLedger(Failed):
    """There is no lease directory that this process can use: it is absent, not writable, or its disk is full."""


class LockHeld(NoLedger):
    """Somebody has held the directory's lock for longer than a decision may wait."""


@dataclass(frozen=True, slots=True)
class Promise:
    """A lease as others see it: so many bytes on each of these cards.

    uid is the owner of the lease's file, the only one that is believed; pid, pid_namespace and service are what the owner says. seen is
    what the owner last saw of its own memory, in bytes per card ({}: nothing yet); loaded: it says that it will not load more.
    """

    id: str
    uuids: tuple[str, ...]
    bytes: int
    exclusive: bool
    service: str
    pid: int
    pid_namespace: int
    uid: int
    created: float
    seen: Mapping[str, int] = MappingProxyType({})
    loaded: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """A promise of this process, and the descriptor that keeps it. The descriptor is inherited by fork and exec, and so is the lease."""

    promise: Promise
    descriptor: int


class Ledger:
    """An open lease directory. Guards the directory's descriptor, so that a directory renamed under us is still the one we looked at."""

    def __init__(self, path: str, descriptor: int) -> None:
        self._path = path
        self._directory = descriptor
        self._warned: set[str] = set()
        self._known: dict[str, tuple[int, Promise]] = {}  # by file: its inode, and what it said; a lease is written once
        self._tidied = False

    @property
    def path(self) -> Path:
        """Where it is."""
        from pathlib import Path

        return Path(self._path)

    @classmethod
    def open(cls, directory: Path | str | None = None, *, reading: bool = False) -> Ledger:
        """Open the node's lease directory: MLOPS_GPU_LEASE_DIR, else /run/mlops-gpu.

        reading: it need not be writable (a dashboard with a read-only mount). It is never created here: a directory that a container made
        for itself would be shared with nobody. Raises NoLedger.
        """
        path = os.fspath(directory or os.environ.get(DIRECTORY_VARIABLE) or DIRECTORY)
        remedy = f"make it once for the node, mode 1777, mount it into each container, or name another in {DIRECTORY_VARIABLE}"
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise NoLedger(f"no lease directory at {path}: {_reason(error)}", remedy=remedy) from None
        if not reading and not os.access(path, os.W_OK | os.X_OK):
            os.close(descriptor)
            raise NoLedger(f"the lease directory {path} is not writable for uid {os.geteuid()}", remedy=remedy)
        return cls(path, descriptor)

    def close(self) -> None:
        """Let the directory go. Leases stay: they hang on their own descriptors."""
        if self._directory >= 0:
            os.close(self._directory)
            self._directory = -1

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- deciding: one at a time --

    def decide(self, work: Callable[[], T], timeout: float = LOCK_SECONDS) -> T:
        """Do `work` while nobody else decides here; what it returns or raises.

        It may run in another thread. Raises LockHeld if the lock is not to be had within `timeout` seconds, NoLedger.
        """
        deadline = time.monotonic() + timeout
        while True:
            descriptor = self._open_or_create(LOCK)
            if locks(descriptor, fcntl.LOCK_EX):
                try:
                    if self.is_lock(descriptor):
                        return work()
                finally:
                    unlock(descriptor)
            else:
                turn = Turn(self.is_lock, descriptor, work)
                if turn.comes(deadline):
                    result: T = turn.result()
                    return result
            # Otherwise somebody removed the file meanwhile: what was locked is no longer anybody's lock.
            if time.monotonic() > deadline:
                raise LockHeld(
                    f"the lock of {self._path} has been held for more than {timeout:g} s{self._holder()}",
                    remedy="see who holds it (fuser, lslocks): a decision takes milliseconds, so it is stopped or hostile",
                )

    def is_lock(self, descriptor: int) -> bool:
        """Is this descriptor's file still the directory's lock?"""
        return self._is(LOCK, descriptor)

    # -- leases --

    def promises(self) -> list[Promise]:
        """Every lease whose owner lives, oldest first. Removes what dead owners left, where this uid may.

        Needs no lock to read; without the lock another decision may be about to add one.
        """
        names, reports = self._names()
        found = []
        for name in names:
            promise = self._promise(name)
            if promise is not None:
                report = f"{promise.id}.seen"
                found.append(self._reported(promise, report) if report in reports else promise)
        self._known = {name: self._known[name] for name in names if name in self._known}
        return sorted(found, key=lambda promise: (promise.created, promise.id))

    def promise(self, uuids: Sequence[str], size: int, *, exclusive: bool, service: str) -> Held:
        """Promise `size` bytes on each card until the last process that holds the descriptor is gone. Raises NoLedger (a full disk).

        The file is locked before it has its name, so that nobody ever sees it unlocked and takes it for dead.
        """
        promise = Promise(
            id=os.urandom(8).hex(),
            uuids=tuple(uuids),
            bytes=size,
            exclusive=exclusive,
            service=printable(service),
            pid=os.getpid(),
            pid_namespace=pid_namespace(),
            uid=os.geteuid(),
            created=time.time(),
        )
        said = {name: getattr(promise, name) for name in ("uuids", "bytes", "exclusive", "service", "pid", "pid_namespace", "created")}
        temporary = f".{promise.id}.lease.new"
        with self._writing(temporary):
            descriptor = self._create(temporary)
            try:
                _write_all(descriptor, json.dumps({"schema": 1, **said}).encode())
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.rename(temporary, f"{promise.id}.lease", src_dir_fd=self._directory, dst_dir_fd=self._directory)
                os.set_inheritable(descriptor, True)
            except BaseException:
                os.close(descriptor)
                raise
        return Held(promise, descriptor)

    def withdraw(self, held: Held) -> None:
        """End a lease, for everybody who inherited its descriptor too."""
        for name in (f"{held.promise.id}.lease", f"{held.promise.id}.seen"):
            self._remove(name)
        fcntl.flock(held.descriptor, fcntl.LOCK_UN)
        os.close(held.descriptor)

    def lives(self, lease_id: str) -> bool:
        """Does the lease's owner, or whoever inherited it, still live?"""
        return _NAME.fullmatch(f"{lease_id}.lease") is not None and self._promise(f"{lease_id}.lease") is not None

    def report(self, lease_id: str, seen: Mapping[str, int], *, loaded: bool) -> None:
        """Say what a lease's owner sees of its own memory, in bytes per card. Raises NoLedger (a full disk)."""
        self._replace(f"{lease_id}.seen", {"schema": 1, "seen": dict(seen), "loaded": loaded, "time": time.time()})

    # -- the memory of those who hold no lease --

    def peaks(self) -> list[dict[str, Any]]:
        """What lookers wrote with write_peaks, one document each. Believed only from root, the directory's owner and this uid: a peak
        counts against everybody, so a hostile one would close the node."""
        believed = {0, os.geteuid(), os.fstat(self._directory).st_uid}
        documents = []
        for uid in believed:
            read = self.read(f"peaks-{uid}.json", PEAKS_LIMIT)
            if read is not None and read[1] == uid:
                document = _object(read[0])
                if document is None:
                    self._warn(f"peaks-{uid}.json", uid, "it is not a JSON object")
                else:
                    documents.append(document)
        return documents

    def write_peaks(self, document: Mapping[str, Any]) -> None:
        """Replace this uid's peaks. Raises NoLedger."""
        self._replace(f"peaks-{os.geteuid()}.json", document)

    # -- files of the directory, for decisions.py and loading.py too --

    def read(self, name: str, limit: int = FILE_LIMIT) -> tuple[bytes, int] | None:
        """A plain file's content, at most `limit` bytes, and its owner's uid; None where it is not there, not plain, or too large."""
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

    def slot(self, name: str) -> int | None:
        """Lock a file that all uids share, without waiting; its descriptor, or None where somebody holds it. Raises NoLedger."""
        descriptor = self._open_or_create(name)
        if locks(descriptor, fcntl.LOCK_EX) and self._is(name, descriptor):
            return descriptor
        os.close(descriptor)
        return None

    def append(self, name: str, line: bytes, limit: int) -> None:
        """Add a line to one of this uid's own files; one that outgrows `limit` bytes keeps its newest half. Raises NoLedger."""
        with self._writing(name):
            descriptor = self._open(name, os.O_RDWR | os.O_APPEND)
            if descriptor is None:
                with contextlib.suppress(FileExistsError):
                    os.close(self._create(name))
                descriptor = self._open(name, os.O_RDWR | os.O_APPEND)
            if descriptor is None:
                raise NoLedger(f"{self._path}/{name} is no plain file of this uid", remedy="remove it")
            try:
                size = os.fstat(descriptor).st_size
                # Only one process at a time may turn the file over, and none waits for it: others append, to be turned over next time.
                if size + len(line) > limit and locks(descriptor, fcntl.LOCK_EX) and self._is(name, descriptor):
                    newest = os.pread(descriptor, limit // 2, max(0, size - limit // 2)).partition(b"\n")[2]
                    self._replace_bytes(name, newest + line)
                elif size < 2 * limit:
                    _write_all(descriptor, line)
            finally:
                os.close(descriptor)

    def files(self, prefix: str) -> list[str]:
        """Names in the directory that begin so, sorted; at most FILES_PER_UID of them."""
        with self._scan() as entries:
            return sorted(entry.name for entry, _ in zip(entries, range(FILES), strict=False) if entry.name.startswith(prefix))[
                :FILES_PER_UID
            ]

    # -- inside --

    def _scan(self) -> Any:
        # A descriptor of its own: scandir moves the descriptor's position, which threads would share.
        descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._directory)
        try:
            return contextlib.closing(_entries(descriptor))
        except BaseException:
            os.close(descriptor)
            raise

    def _names(self) -> tuple[list[str], set[str]]:
        """The leases' files, at most FILES_PER_UID of each uid; and the reports'."""
        leases, reports, unfinished = [], set(), []
        with self._scan() as entries:
            for number, entry in enumerate(entries):
                if number >= FILES:
                    self._warn("", -1, f"more than {FILES} files; the rest is not looked at")
                    break
                if _NAME.fullmatch(entry.name):
                    leases.append(entry.name)
                elif entry.name.endswith(".seen"):
                    reports.add(entry.name)
                elif entry.name.endswith(".new"):
                    unfinished.append(entry.name)
        if not self._tidied:
            self._tidied = True
            alive = {name.removesuffix(".lease") for name in leases}
            self._tidy([*unfinished, *(name for name in reports if name.removesuffix(".seen") not in alive)])
        return self._fair(leases) if len(leases) > FILES_PER_UID else leases, reports

    def _fair(self, names: Sequence[str]) -> list[str]:
        count: dict[int, int] = {}
        fair = []
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                uid = os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_uid
                count[uid] = count.get(uid, 0) + 1
                if count[uid] <= FILES_PER_UID:
                    fair.append(name)
        for uid, number in count.items():
            if number > FILES_PER_UID:
                self._warn(f"leases of uid {uid}", uid, f"there are {number}; only {FILES_PER_UID} are looked at")
        return fair

    def _tidy(self, names: Sequence[str]) -> None:
        """Remove what processes of this uid left half-made, and reports whose lease is gone."""
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                status = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
                ours = name.endswith(".seen") or _TEMPORARY.fullmatch(name)
                if ours and status.st_uid == os.geteuid() and time.time() - status.st_mtime > TEMPORARY_SECONDS:
                    os.unlink(name, dir_fd=self._directory)

    def _promise(self, name: str) -> Promise | None:
        """The lease in this file; None if its owner is dead, or if it is not to be believed."""
        descriptor = self._open(name)
        if descriptor is None:
            return None
        try:
            if locks(descriptor, fcntl.LOCK_SH):  # shared: two lookers must not take each other for the owner
                self._remove(name)
                self._remove(f"{name.removesuffix('.lease')}.seen")
                return None
            status = os.fstat(descriptor)
            inode, promise = self._known.get(name, (-1, None))
            if inode == status.st_ino:
                return promise
            content = os.read(descriptor, FILE_LIMIT + 1)
        except OSError as error:
            self._warn(name, -1, _reason(error))
            return None
        finally:
            os.close(descriptor)
        try:
            promise = _parse(name.removesuffix(".lease"), status.st_uid, content)
        except ValueError as error:
            self._warn(name, status.st_uid, str(error))
            return None
        self._known[name] = (status.st_ino, promise)
        return promise

    def _reported(self, promise: Promise, name: str) -> Promise:
        """The lease with what its owner saw, if the owner wrote it."""
        read = self.read(name)
        if read is None:
            return promise
        content, writer = read
        said = _object(content)
        seen = said.get("seen") if said is not None else None
        if writer not in (promise.uid, 0) or said is None or not isinstance(seen, dict):
            self._warn(name, writer, "it is no report of the lease's owner")
            return promise
        believed = {uuid: size for uuid, size in seen.items() if uuid in promise.uuids and type(size) is int and 0 <= size <= MAX_BYTES}
        return replace(promise, seen=MappingProxyType(believed), loaded=said.get("loaded") is True)

    def _open(self, name: str, flags: int = os.O_RDONLY) -> int | None:
        """A plain file's descriptor; None where there is none, or it is something else. Without O_CREAT: where fs.protected_regular is on,
        opening another user's file in a sticky directory with it is refused."""
        try:
            descriptor = os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=self._directory)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._warn(name, -1, _reason(error))
            return None
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        self._warn(name, os.fstat(descriptor).st_uid, "it is no plain file")
        os.close(descriptor)
        return None

    def _create(self, name: str, mode: int = 0o644) -> int:
        """A new file, readable for other uids whatever the umask. Raises OSError, FileExistsError among them."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
        os.fchmod(descriptor, mode)
        return descriptor

    def _open_or_create(self, name: str) -> int:
        """A file that all uids share. Raises NoLedger."""
        for _ in range(10):
            descriptor = self._open(name)
            if descriptor is not None:
                return descriptor
            with self._writing(name), contextlib.suppress(FileExistsError):
                return self._create(name, 0o666)
        raise NoLedger(f"{self._path}/{name} is no plain file that this uid may open", remedy="remove it; it is made anew")

    def _replace(self, name: str, document: Mapping[str, Any]) -> None:
        self._replace_bytes(name, json.dumps(document).encode())

    def _replace_bytes(self, name: str, content: bytes) -> None:
        temporary = f".{os.urandom(8).hex()}.{name.rpartition('.')[2]}.new"
        with self._writing(temporary):
            descriptor = self._create(temporary)
            try:
                _write_all(descriptor, content)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    @contextlib.contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        """What the disk refuses, as NoLedger; a temporary file does not outlive it."""
        try:
            yield
        except OSError as error:
            if name.endswith(".new"):
                self._remove(name)
            raise NoLedger(
                f"cannot write to the lease directory {self._path}: {_reason(error)}", remedy="free its disk, or mend its mode"
            ) from None

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):  # not there any more, or another user's in a sticky directory
            os.unlink(name, dir_fd=self._directory)

    def _is(self, name: str, descriptor: int) -> bool:
        """Is this descriptor's file still the one with this name?"""
        try:
            now = os.stat(name, dir_fd=self._directory, follow_symlinks=False)
        except OSError:
            return False
        return os.path.samestat(now, os.fstat(descriptor))

    def _holder(self) -> str:
        """Who holds the directory's lock, as far as /proc/locks says it to this process."""
        try:
            inode = f":{os.stat(LOCK, dir_fd=self._directory, follow_symlinks=False).st_ino}"
            with open("/proc/locks") as file:  # noqa: PTH123 -- pathlib costs its import
                lines = file.read().splitlines()
        except OSError:
            return ""
        pids = [words[4] for words in map(str.split, lines) if len(words) > 5 and words[1] == "FLOCK" and words[5].endswith(inode)]
        return f" (by pid {', '.join(pids)})" if pids else ""

    def _warn(self, name: str, uid: int, why: str) -> None:
        """Once for each file, so that a waiting process does not repeat itself."""
        if name not in self._warned:
            self._warned.add(name)
            owner = f" of uid {uid}" if uid >= 0 else ""
            log.warning("ignored in the lease directory: %s%s: %s", printable(f"{self._path}/{name}", 300), owner, why)


def pid_namespace() -> int:
    """The number of this process's pid namespace: pids of another one mean nothing here. 0 where there is no /proc."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 -- pathlib costs its import
    except OSError:
        return 0


def printable(text: object, limit: int = 100) -> str:
    """Text from somebody else's file, fit for a terminal and a log: no control characters, no line breaks, not endless."""
    if not isinstance(text, str):
        return "?"
    text = text[:limit]
    return (text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)) or "?"


def _entries(descriptor: int) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(descriptor) as entries:
            yield from entries
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, content: bytes) -> None:
    while content:
        content = content[os.write(descriptor, content) :]


def _object(content: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(content.decode())  # UTF-8: to guess the encoding takes as long as to parse
    except (ValueError, RecursionError):  # UnicodeDecodeError and numbers of too many digits are ValueErrors
        return None
    return document if isinstance(document, dict) else None


def _parse(lease_id: str, uid: int, content: bytes) -> Promise:
    """Raises ValueError: what is wrong with it."""
    said = _object(content)
    if said is None:
        raise ValueError("it is not a JSON object")
    uuids, created = said.get("uuids"), said.get("created")
    if not isinstance(uuids, list) or not 0 < len(uuids) <= MAX_CARDS or not all(_is_uuid(uuid) for uuid in uuids):
        raise ValueError("`uuids` is no list of cards")
    if not isinstance(created, int | float) or isinstance(created, bool) or not math.isfinite(created):
        raise ValueError("`created` is no time")
    return Promise(
        id=lease_id,
        uuids=tuple(dict.fromkeys(uuids)),
        bytes=_whole(said, "bytes"),
        exclusive=said.get("exclusive") is True,
        service=printable(said.get("service")),
        pid=_whole(said, "pid"),
        pid_namespace=_whole(said, "pid_namespace"),
        uid=uid,
        created=float(created),
    )


def _is_uuid(value: object) -> bool:
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _whole(said: Mapping[str, Any], name: str) -> int:
    value = said.get(name)
    if type(value) is not int or not 0 <= value <= MAX_BYTES:
        raise ValueError(f"`{name}` is no sensible number")
    return value


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)
