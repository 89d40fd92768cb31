"""Neighbours: processes that use a card's memory without a lease, such as old services and notebooks.

NVML reports pids of the host. /proc gives a neighbour its name, and shows which processes belong to a lease. Inside a container the same
pid can be another process, so pids are looked up only if that is impossible.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

from mlops_build.gpu.declared import Declared
from mlops_build.gpu.promise import Promise, printable

# The first pid namespace's inode: PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h.
FIRST_NAMESPACE = 0xEFFFFFFC
MOST_ANCESTORS = 64
MOST_READ = 65536  # a user in hundreds of groups has a long /proc/PID/status
MOST_COMMAND = 4096
TICK_SECONDS = 0.02  # the resolution of a process's start time in /proc

# The order of the fields is fixed. The program's name comes first, with escaped line breaks.
# The variable is search.LEASE_VARIABLE. /proc shows the environment with which a process was started.
_INHERITED = re.compile(r"(?:^|\0)MLOPS_GPU_LEASE=([0-9a-f]{16})(?:\0|$)")
_STATUS = re.compile(r"\nPPid:\t(\d+)\n.*?\nUid:\t\d+\t(\d+)\t.*\nNSpid:\t([\d\t]+)\n", re.DOTALL)

Place = tuple[int | None, int]  # a pid namespace's inode, and a pid there


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A service or notebook on a card, without a lease.

    used_bytes: now. counted_bytes: what a decision counts. why: the reason for that amount. pid, command, cgroup, largest_bytes: of its
    largest process. key: identifies it after a restart (peaks.py); empty if it is declared. pid, uid, command and cgroup are None if the
    processes are not visible.
    """

    name: str
    uid: int | None = None
    pid: int | None = None
    command: str | None = None
    cgroup: str | None = None
    used_bytes: int
    counted_bytes: int
    why: Literal["used", "peak", "declared"]
    key: str = ""
    largest_bytes: int = 0

    @property
    def stable_name(self) -> str:
        """The name without pod or container, which change with a restart, for the labels of metrics."""
        return re.sub(r" \((pod|container) [0-9a-f]+\)$", "", self.name)


@dataclass(frozen=True, slots=True)
class Known:
    """A process as /proc shows it.

    place: its pid namespace (None if this user may not read it), and its pid there. started: seconds since the machine was started; 0 if
    no lease has its place. command, cgroup, lease: only of a process that NVML reports and none of whose ancestors has a lease, else empty.
    lease: the id of the lease with which it was started.
    """

    pid: int
    parent: int
    uid: int
    place: Place
    started: float = 0.0
    command: str = ""
    cgroup: str = ""
    lease: str = ""


def by_owner(leases: Iterable[Promise]) -> dict[Place, Promise]:
    """Leases (oldest first) by their owner's place. Of several with the same place, the newest: the owner of the others has ended."""
    return {(lease.pid_namespace, lease.pid): lease for lease in leases}


def known(pids: Iterable[int], leases: Mapping[Place, Promise]) -> dict[int, Known] | None:
    """Read the processes that NVML reports, and their ancestors, from /proc. None if NVML's pids are not valid here.

    They are pids of the first pid namespace. In another one (a container) they count as its own only if all of them exist there, since a
    pid of the host may be another process here. leases: see `by_owner`. Only processes without a lease get a command and a cgroup, because
    reading those takes longer than the rest.
    """
    reported = set(pids)
    status, own = _STATUS.search(_read("/proc/self/status")), _namespace("self")
    outermost = own if status and "\t" not in status[3] else None  # the namespace of processes with only one pid
    processes: dict[int, Known] = {}
    for pid in reported:
        for _ in range(MOST_ANCESTORS):
            process = None if pid in processes else _process(pid, outermost, leases)
            if process is None:
                break
            processes[pid] = process
            if _lease_of(process, leases):
                break
            pid = process.parent
    if outermost != FIRST_NAMESPACE and not (reported and reported <= processes.keys()):
        return None
    for pid in reported & processes.keys():
        if owner(pid, processes, leases) is None:
            command = _read(f"/proc/{pid}/cmdline")[:MOST_COMMAND].replace("\0", " ").strip()
            inherited = _INHERITED.search(_read(f"/proc/{pid}/environ"))
            processes[pid] = replace(
                processes[pid],
                command=command,
                cgroup=_cgroup(_read(f"/proc/{pid}/cgroup")),
                lease=inherited[1] if inherited else "",
            )
    return processes


def owner(pid: int, processes: Mapping[int, Known], leases: Mapping[Place, Promise]) -> Promise | None:
    """The lease of the nearest owner among this process and its ancestors, or the one with which it was started (its ancestors may have
    ended); None if it has no lease."""
    started_with, inherited = pid, processes[pid].lease if pid in processes else ""
    for _ in range(MOST_ANCESTORS):
        process = processes.get(pid)
        if process is None:
            break
        lease = _lease_of(process, leases)
        if lease is not None:
            return lease
        pid = process.parent
    return _named(leases.values(), inherited, processes[started_with].uid) if inherited else None


def inherited(leases: Sequence[Promise], named: str | None) -> Promise | None:
    """The lease of an ancestor of this process, or of this user the one with the id `named`; None without one."""
    pid, owners = os.getpid(), by_owner(leases)
    return owner(pid, known([pid], owners) or {}, owners) or _named(leases, named, os.geteuid())


def _named(leases: Iterable[Promise], lease_id: str | None, uid: int) -> Promise | None:
    """The lease with an id that a process of this uid has in its environment. The ids are public, so other users' leases do not count."""
    return next((lease for lease in leases if lease.id == lease_id and lease.uid == uid), None)


def _lease_of(process: Known, leases: Mapping[Place, Promise]) -> Promise | None:
    """The lease that this process owns: of its user, or of root, which may have changed to another user since. A process that started after
    the lease was created is not its owner: it has the pid of one that ended."""
    lease = leases.get(process.place)
    if lease is None or lease.uid not in (0, process.uid) or (lease.boot is not None and process.started > lease.boot + TICK_SECONDS):
        return None
    return lease


def declaration(process: Known, declared: Sequence[Declared]) -> Declared | None:
    """The first declaration that matches a process."""
    for entry in declared:
        same_user = entry.uid is None or entry.uid == process.uid
        if same_user and fnmatchcase(process.cgroup, entry.cgroup or "*") and fnmatchcase(process.command, entry.command or "*"):
            return entry
    return None


def name_of(process: Known) -> str:
    """A name for people: the systemd unit, or the program with its pod or container."""
    name = _unit_or_program(process)
    if pod := re.search(r"pod([0-9a-f]{8})[-_0-9a-f]{20,}", process.cgroup):
        return f"{name} (pod {pod[1]})"
    container = re.search(r"([0-9a-f]{12})[0-9a-f]{52}(?:\.scope)?$", process.cgroup)
    return f"{name} (container {container[1]})" if container else name


def key_of(process: Known) -> str:
    """A key that is the same after a restart: uid and systemd unit or program. Without arguments, which may be secret."""
    return f"{process.uid}:{_unit_or_program(process)}"[:60]


def _unit_or_program(process: Known) -> str:
    """Without user@1000.service, which is all of a user's processes, and units of systemd-run, which have another name each time."""
    unit = process.cgroup.rpartition("/")[2]
    if unit.endswith(".service") and not re.match(r"user@|run-(u[0-9]|r[0-9a-f]{32}|p[0-9]+-i)", unit):
        return printable(unit, 80)
    return program_of(process.command.split())


def program_of(words: Sequence[str]) -> str:
    """The name of a command's program: spam.service for `python -m spam.service`, train.py for `python train.py`."""
    program = words[0].rpartition("/")[2] if words else ""
    if re.fullmatch(r"python[0-9.]*", program):
        arguments = iter(words[1:])
        argument = next(arguments, "-c")
        while argument.startswith("-") and argument not in ("-c", "-m"):
            if argument in ("-W", "-X"):
                next(arguments, None)
            argument = next(arguments, "-c")
        if argument == "-m":
            program = next(arguments, program)
        elif argument != "-c":
            program = argument.rpartition("/")[2]
    return printable(program, 50) if program else "process"


def _process(pid: int, outermost: int | None, leases: Mapping[Place, Promise]) -> Known | None:
    """A process without command and cgroup, with `started` only if it may have a lease. None if it has ended or is hidden (hidepid)."""
    status = _STATUS.search(_read(f"/proc/{pid}/status"))
    if status is None:
        return None
    inner = status[3].split("\t")
    namespace = outermost if outermost is not None and len(inner) == 1 else _namespace(str(pid))
    place = (namespace, int(inner[-1]))
    started = 0.0
    if place in leases:
        # Field 22 of proc(5), counted after the program's name, which may contain any character.
        numbers = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        started = int(numbers[19]) / os.sysconf("SC_CLK_TCK") if len(numbers) > 19 else math.inf
    return Known(pid, int(status[1]), int(status[2]), place, started)


def _cgroup(text: str) -> str:
    """The path in the only hierarchy of cgroup v2, or the longest of v1."""
    return max((line.split(":", 2)[-1] for line in text.splitlines()), key=len, default="")


def _namespace(pid: str) -> int | None:
    """The inode of a process's pid namespace; None if this user may not read it. A stat(2) of the link gives the same inode."""
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino  # noqa: PTH116 - pathlib costs its import
    except OSError:
        return None


def _read(path: str) -> str:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - pathlib costs its import
            return file.read(MOST_READ).decode(errors="replace")
    except OSError:
        return ""
