"""A promise of memory: the content of a lease's file, which another user may have written."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

MAX_BYTES = 1 << 50  # no card has a pebibyte
MAX_CARDS = 64
MAX_SECONDS = 1e11

_UUID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class Promise:
    """A lease as other processes see it: `bytes` on each card of `uuids`.

    uid: the owner of the lease's file. pid, pid_namespace, service: what the owner wrote. created: unix s. boot: the same time as seconds
    since the machine was started, which a change of the clock does not move; None in leases of releases before 0.7. until: the end of a
    ticket, likewise. seen: the owner's last
    report of its own memory, in bytes by UUID ({}: no report yet). peak: the most that it has reported. loaded: whether the owner has
    finished loading.
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
    boot: float | None = None
    until: float | None = None
    seen: Mapping[str, int] = field(default_factory=dict)
    peak: Mapping[str, int] = field(default_factory=dict)
    loaded: bool = False

    @property
    def order(self) -> tuple[bool, float, str]:
        """Sorts promises alike in all processes: leases of older releases first, since these do not withdraw, then the earlier."""
        return self.boot is not None, self.boot or 0.0, self.id

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.id}.{'lease' if self.until is None else 'ticket'}"


def new(
    uuids: Sequence[str], size: int, service: str, *, exclusive: bool = False, boot: float | None = None, until: float | None = None
) -> Promise:
    """A promise of this process. boot: when the request began; None: now. until: only for a ticket."""
    pid, uid, now = os.getpid(), os.geteuid(), boot_time() if boot is None else boot
    return Promise(
        os.urandom(8).hex(), tuple(uuids), size, exclusive, printable(service), pid, pid_namespace(), uid, time.time(), now, until
    )


def boot_time() -> float:
    """Seconds since the machine was started. The same in all its containers, except those with a time namespace."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def pid_namespace() -> int:
    """The inode of this process's pid namespace, in which its pid is valid; 0 without /proc."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116 -- pathlib costs its import
    except OSError:
        return 0


def printable(text: object, limit: int = 100) -> str:
    """Text from another user's file, safe for a terminal and a log: shortened, without control characters and line breaks."""
    if not isinstance(text, str):
        return "?"
    text = text[:limit]
    return (text if text.isprintable() else "".join(letter if letter.isprintable() else "?" for letter in text)) or "?"


def parse(lease_id: str, uid: int, document: Mapping[str, Any] | None) -> Promise:
    """The promise in a file's JSON object. uid: the owner of the file. Raises ValueError with the reason if it is invalid."""
    if document is None:
        raise ValueError("it is not a JSON object")
    uuids, created, boot, until = (document.get(name) for name in ("uuids", "created", "boot", "until"))
    if not isinstance(uuids, list) or not 0 < len(uuids) <= MAX_CARDS or not all(_is_uuid(uuid) for uuid in uuids):
        raise ValueError("`uuids` is not a valid list of cards")
    if not _is_time(created) or not (boot is None or _is_time(boot)) or not (until is None or _is_time(until)):
        raise ValueError("`created`, `boot` or `until` is not a valid time")
    return Promise(
        id=lease_id,
        uuids=tuple(dict.fromkeys(uuids)),
        bytes=_whole(document, "bytes"),
        exclusive=document.get("exclusive") is True,
        service=printable(document.get("service")),
        pid=_whole(document, "pid"),
        pid_namespace=_whole(document, "pid_namespace"),
        uid=uid,
        created=float(created),
        boot=None if boot is None else float(boot),
        until=None if until is None else float(until),
    )


def _is_time(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS


def _is_uuid(value: object) -> bool:
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def _whole(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if type(value) is not int or not 0 <= value <= MAX_BYTES:
        raise ValueError(f"`{name}` is not a valid number")
    return value
