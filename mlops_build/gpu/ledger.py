"""Leases on disk: a directory that all services of a node share (a hostPath for containers), with file locks.

    lock                   locked during a decision, for some milliseconds
    <id>.lease             a promise, written once. Its owner keeps the file locked, and a lease is alive while the file is locked. Pids
                           (containers hide them), heartbeats and timers are not used: the kernel unlocks it when the last process ends
    <id>.ticket            a request that waits for room, in the same format (search.py)
    <id>.seen              the owner's report of its own memory, replaced by each report
    peaks-<uid>.json       peak memory of processes without a lease, by observer
    decisions-<uid>.jsonl  decisions and their reasons (decisions.py)
    load-<card>-<n>        load slots (loading.py)

A lease has two locks. Releases before 0.7 look for the lock of flock(2), which any user can take who can read the file. Later releases look
for an open file description lock for writing (fcntl(2)), which only the file's owner can take. Fork and exec pass both on.

The owner of a lease is the owner of its file. All users can write here (directory.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import struct
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

from mlops_build.gpu.directory import FILE_LIMIT, FILES_PER_UID, NoLedger, SharedDirectory, json_object, locks, reason, write_all
from mlops_build.gpu.promise import MAX_BYTES, Promise, boot_time, parse

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

DIRECTORY = "/run/mlops-gpu"
DIRECTORY_VARIABLE = "MLOPS_GPU_LEASE_DIR"
LOCK = "lock"
# After this time a decision is made without the lock: a stopped or hostile process must not block the node.
LOCK_SECONDS = 2.0
PEAKS_LIMIT = 1024 * 1024
WAITING = " (waiting)"

_LEASE, _TICKET = re.compile(r"[0-9a-f]{16}\.lease"), re.compile(r"[0-9a-f]{16}\.ticket")
_FLOCK = "hhqqi4x"  # struct flock: type, whence, start, length, pid


@dataclass(frozen=True, slots=True)
class Held:
    """A promise of this process, and the descriptor whose locks keep it alive. Fork and exec pass it on."""

    promise: Promise
    descriptor: int


class Ledger(SharedDirectory):
    """An open lease directory. Leases stay alive through their own descriptors when it is closed."""

    def __init__(self, path: str, descriptor: int) -> None:
        super().__init__(path, descriptor)
        self._parsed: dict[str, tuple[int, Promise]] = {}  # by file name: inode and content, since a lease is written once

    @classmethod
    def open(cls, directory: Path | str | None = None, *, reading: bool = False) -> Ledger:
        """Open the node's lease directory: MLOPS_GPU_LEASE_DIR, else /run/mlops-gpu.

        reading: the directory need not be writable (a dashboard with a read-only mount). It is never created here, since a container would
        create one that no other container sees. Raises NoLedger.
        """
        path = os.fspath(directory or os.environ.get(DIRECTORY_VARIABLE) or DIRECTORY)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if reading or os.access(path, os.W_OK | os.X_OK):
                return cls(path, descriptor)
            os.close(descriptor)
        except PermissionError:
            pass
        except OSError as error:
            raise NoLedger(
                f"no lease directory at {path}: {reason(error)}",
                remedy=f"run as root on the node: `install --directory --mode 1777 {path}` (below /run also add `d {path} 1777 root root "
                "-` to a file in /etc/tmpfiles.d, for reboots), mount it into each container, and restart the services that run, since "
                f"they have no lease; {DIRECTORY_VARIABLE} names another directory",
            ) from None
        raise NoLedger(
            f"uid {os.geteuid()} may not {'read' if reading else 'write to'} the lease directory {path}",
            remedy=f"`ls -ld {path}` shows the group that may: add this user to it; in a container, mount the directory writable; if all "
            f"users may use the cards, run as root on the node: chmod 1777 {path}",
        )

    # -- decisions, one at a time --

    @contextlib.contextmanager
    def turn(self, seconds: float = LOCK_SECONDS) -> Iterator[bool]:
        """Hold the directory's lock, if it is free within `seconds`; whether it is held. It is not if the lock cannot be used at all."""
        descriptor = None
        with contextlib.suppress(NoLedger):
            descriptor = self.slot([LOCK], seconds)
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                # Closing alone is not enough, since a child process may have inherited the descriptor.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                os.close(descriptor)

    # -- leases --

    def promises(self, *, reports: bool = True) -> list[Promise]:
        """Every live lease, oldest first. Removes files of ended processes, if this uid has the permission.

        Does not need the directory's lock, but without it another decision may be about to add a lease. reports: also read what the owners
        report of their memory.
        """
        promises = self._live(_LEASE)
        return [self._with_report(promise) for promise in promises] if reports else promises

    def tickets(self) -> list[Promise]:
        """The requests that wait for room, the longest waiting first. Their names say that they wait."""
        live = [ticket for ticket in self._live(_TICKET) if (ticket.until or 0.0) > boot_time()]
        return [replace(ticket, service=ticket.service + WAITING) for ticket in live]

    def hold(self, promise: Promise) -> Held:
        """Promise the memory until the last process that holds the descriptor ends. Raises NoLedger (a full disk).

        The file is locked before it gets its name, so that no process sees it unlocked and removes it.
        """
        names = ("uuids", "bytes", "exclusive", "service", "pid", "pid_namespace", "created", "boot", "until")
        content = json.dumps({"schema": 1, **{name: getattr(promise, name) for name in names}}).encode()
        temporary = f".{promise.file}.new"
        with self._writing(temporary):
            descriptor = self._create(temporary)
            try:
                write_all(descriptor, content)
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
                os.rename(temporary, promise.file, src_dir_fd=self._directory, dst_dir_fd=self._directory)
                os.set_inheritable(descriptor, promise.until is None)
            except BaseException:
                os.close(descriptor)
                raise
        return Held(promise, descriptor)

    def withdraw(self, held: Held) -> None:
        """End a lease, also for processes that inherited its descriptor."""
        for name in (held.promise.file, f"{held.promise.id}.seen"):
            self._remove(name)
        fcntl.fcntl(held.descriptor, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_UNLCK, os.SEEK_SET, 0, 0, 0))
        fcntl.flock(held.descriptor, fcntl.LOCK_UN)
        os.close(held.descriptor)

    def lease(self, lease_id: str) -> Promise | None:
        """The live lease with this id, without its report; None if all processes that had it have ended."""
        name = f"{lease_id}.lease"
        return self._promise(name) if _LEASE.fullmatch(name) else None

    def report(self, lease_id: str, seen: Mapping[str, int], *, loaded: bool, peak: Mapping[str, int] = MappingProxyType({})) -> None:
        """Write the memory that a lease's owner observes of itself, in bytes by UUID. Raises NoLedger (a full disk)."""
        document = {"schema": 1, "seen": dict(seen), "peak": dict(peak), "loaded": loaded, "time": time.time()}
        self.write(f"{lease_id}.seen", document)

    # -- the memory of processes without a lease --

    def peaks(self) -> list[dict[str, Any]]:
        """The documents of write_peaks, one for each trusted observer: root, the directory's owner and this uid. A peak reduces the memory
        for all users, so a hostile one would block the node."""
        trusted = {0, os.geteuid(), os.fstat(self._directory).st_uid}
        documents = [self._document(f"peaks-{uid}.json", (uid,), PEAKS_LIMIT) for uid in trusted]
        return [document for document in documents if document is not None]

    def write_peaks(self, document: Mapping[str, Any]) -> None:
        """Replace this uid's peaks. Raises NoLedger."""
        self.write(f"peaks-{os.geteuid()}.json", document)

    # -- internal --

    def _live(self, pattern: re.Pattern[str]) -> list[Promise]:
        names = self.files(pattern)
        if len(self._parsed) > 2 * FILES_PER_UID:  # mostly of leases that have ended
            self._parsed.clear()
        promises = map(self._promise, self._fair(names) if len(names) > FILES_PER_UID else names)
        return sorted((promise for promise in promises if promise is not None), key=lambda promise: promise.order)

    def _fair(self, names: Sequence[str]) -> list[str]:
        count: dict[int, int] = {}
        fair = []
        for name in names:
            with contextlib.suppress(OSError):  # removed in the meantime
                uid = os.stat(name, dir_fd=self._directory, follow_symlinks=False).st_uid
                count[uid] = count.get(uid, 0) + 1
                if count[uid] <= FILES_PER_UID:
                    fair.append(name)
        for uid, number in count.items():
            if number > FILES_PER_UID:
                self._warn(f"leases of uid {uid}", uid, f"there are {number}; only {FILES_PER_UID} are read")
        return fair

    def _promise(self, name: str) -> Promise | None:
        """The lease in this file; None if its owner has ended, or if the file is invalid."""
        descriptor = self._open(name)
        if descriptor is None:
            return None
        lease_id, status, wrong = name.partition(".")[0], os.fstat(descriptor), ""
        try:
            inode, promise = self._parsed.get(name, (-1, None))
            if inode != status.st_ino:
                try:
                    promise = parse(lease_id, status.st_uid, json_object(os.read(descriptor, FILE_LIMIT + 1)))
                except ValueError as error:
                    promise, wrong = None, str(error)
            if not _is_held(descriptor, promise):
                self._remove(name)
                self._remove(f"{lease_id}.seen")
                return None
        except OSError as error:
            promise, wrong = None, reason(error)
        finally:
            os.close(descriptor)
        if promise is None:
            self._warn(name, status.st_uid, wrong)
        else:
            self._parsed[name] = (status.st_ino, promise)
        return promise

    def _with_report(self, promise: Promise) -> Promise:
        """The lease with its report, if its owner wrote one."""
        report = self._document(f"{promise.id}.seen", (promise.uid, 0))
        if report is None:
            return promise
        seen, peak = (_sizes(report.get(name), promise) for name in ("seen", "peak"))
        return replace(promise, seen=seen, peak=peak, loaded=report.get("loaded") is True)

    def _document(self, name: str, writers: Collection[int], limit: int = FILE_LIMIT) -> dict[str, Any] | None:
        """The JSON object in a file that one of these uids wrote; None without one."""
        read = self.read(name, limit)
        document = json_object(read[0]) if read is not None else None
        if read is not None and (document is None or read[1] not in writers):
            self._warn(name, read[1], "it is not a JSON object of the right user")
            return None
        return document


def _sizes(document: object, promise: Promise) -> dict[str, int]:
    """The valid sizes for the cards of a lease, in bytes by UUID."""
    sizes = document.items() if isinstance(document, dict) else ()
    return {uuid: size for uuid, size in sizes if uuid in promise.uuids and type(size) is int and 0 <= size <= MAX_BYTES}


def _is_held(descriptor: int, promise: Promise | None) -> bool:
    """Whether a process holds the locks of a lease."""
    if promise is None or promise.boot is None:
        return not locks(descriptor, fcntl.LOCK_SH)  # shared, so that two readers do not take each other for the owner
    # A lock for reading conflicts only with one for writing.
    query = struct.pack(_FLOCK, fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    held: int = struct.unpack(_FLOCK, fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, query))[0]
    return held != fcntl.F_UNLCK
