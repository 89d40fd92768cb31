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
from typing import TYPE_CHECKING

from mlops_build.gpu.declared import Declared
from mlops_build.gpu.promise import printable

if TYPE_CHECKING:
    from typing import Literal

# The first pid namespace's inode: PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h.
FIRST_NAMESPACE = 0xEFFFFFFC
MOST_ANCESTORS = 64
MOST_READ = 4096
TICK_SECONDS = 0.02  # the resolution of a process's start time in /proc

Place = tuple[int, int]  # a pid namespace's inode, and a pid there


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A service or notebook on a card, without a lease.

    used_bytes: now. counted_bytes: what a decision counts. why: the reason for that amount. pid, command, cgroup, largest_bytes: of its
    largest process. processes: their number. key: identifies it after a restart (peaks.py). pid, uid, command and cgroup are None if the
    processes are not visible.
    """

    name: str
    uid: int | None
    pid: int | None
    command: str | None
    cgroup: str | None
    used_bytes: int
    counted_bytes: int
    why: Literal["used", "peak", "declared"]
    key: str = ""
    processes: int = 0
    largest_bytes: int = 0

    @property
    def stable_name(self) -> str:
        """The name without pod or container, which change with a restart, for the labels of metrics."""
        return re.sub(r" \((pod|container) [0-9a-f]+\)$", "", self.name)


@dataclass(frozen=True, slots=True)
class Known:
    """A process as /proc shows it.

    namespace: the inode of its pid namespace, None if this user may not read it. inner_pid: its pid there. started: seconds since the
    machine was started; 0 if no lease has its place. command, cgroup: only of a process without a lease that NVML reports, else empty.
    """

    pid: int
    parent: int
    uid: int
    namespace: int | None
    inner_pid: int
    started: float
    command: str = ""
    cgroup: str = ""


def known(pids: Iterable[int], created: Mapping[Place, float]) -> dict[int, Known] | None:
    """Read the processes that NVML reports, and their ancestors, from /proc. None if NVML's pids are not valid here.

    They are pids of the first pid namespace. In another one (a container) they count as its own only if all of them exist there, since a
    pid of the host may be another process here. created: when each lease was created (seconds since the machine was started), by its
    owner's place. Only processes without a lease get a command and a cgroup, because reading those takes longer than the rest.
    """
    reported = set(pids)
    own, depth = _namespace("self"), _read("/proc/self/status").partition("\nNSpid:\t")[2].partition("\n")[0].count("\t") + 1
    single = own if depth == 1 else None  # the namespace of processes with only one pid
    processes: dict[int, Known] = {}
    for pid in reported:
        process = _process(pid, single, created)
        if process is not None:
            processes[pid] = process
    if not (own == FIRST_NAMESPACE and depth == 1) and (not reported or processes.keys() != reported):
        return None
    for process in list(processes.values()):
        for _ in range(MOST_ANCESTORS):
            if process.parent in processes or process.parent <= 1:
                break
            parent = _process(process.parent, single, created)
            if parent is None:
                break
            processes[parent.pid] = process = parent
    for pid in reported & processes.keys():
        if owner(pid, processes, created) is None:
            command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            processes[pid] = replace(processes[pid], command=command, cgroup=_cgroup(_read(f"/proc/{pid}/cgroup")))
    return processes


def owner(pid: int, processes: Mapping[int, Known], created: Mapping[Place, float]) -> Place | None:
    """The place of the nearest lease owner among this process and its ancestors; None if it has no lease.

    A process that started after the lease was created is not its owner: it has the pid of an owner that ended.
    """
    for _ in range(MOST_ANCESTORS):
        process = processes.get(pid)
        if process is None:
            break
        if process.namespace is not None:
            place = (process.namespace, process.inner_pid)
            if place in created and process.started <= created[place] + TICK_SECONDS:
                return place
        pid = process.parent
    return None


def declaration(process: Known, declared: Sequence[Declared]) -> Declared | None:
    """The first declaration that matches a process."""
    for entry in declared:
        if entry.uid is not None and entry.uid != process.uid:
            continue
        if entry.cgroup is not None and not fnmatchcase(process.cgroup, entry.cgroup):
            continue
        if entry.command is not None and not fnmatchcase(process.command, entry.command):
            continue
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
        argument = next((word for word in arguments if not word.startswith("-") or word in ("-c", "-m")), "-c")
        if argument == "-m":
            program = next(arguments, program)
        elif argument != "-c":
            program = argument.rpartition("/")[2]
    return printable(program, 50) if program else "process"


def _process(pid: int, single: int | None, created: Mapping[Place, float]) -> Known | None:
    """A process without command and cgroup, with `started` only if it may have a lease. None if it has ended or is hidden (hidepid)."""
    status = _read(f"/proc/{pid}/status")
    # The program's name comes first, with escaped line breaks: it cannot look like another field.
    parent, uids, inner = (status.partition(f"\n{field}:\t")[2].partition("\n")[0].split("\t") for field in ("PPid", "Uid", "NSpid"))
    if not parent[0].isdecimal() or len(uids) < 4:
        return None
    inner_pid = int(inner[-1]) if inner[-1].isdecimal() else pid
    namespace = single if single is not None and len(inner) == 1 else _namespace(str(pid))
    started = 0.0
    if (namespace, inner_pid) in created:
        # Field 22 of proc(5), counted after the program's name, which may contain any character.
        numbers = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        started = int(numbers[19]) / os.sysconf("SC_CLK_TCK") if len(numbers) > 19 else math.inf
    return Known(pid, int(parent[0]), int(uids[1]), namespace, inner_pid, started)


def _cgroup(text: str) -> str:
    """The path in the only hierarchy of cgroup v2, or the longest of v1."""
    paths = [line.split(":", 2)[2] for line in text.splitlines() if line.count(":") >= 2]
    return max(paths, key=len, default="")


def _namespace(pid: str) -> int | None:
    try:
        link = os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - pathlib costs its import
    except OSError:
        return None
    number = link.removeprefix("pid:[").removesuffix("]")
    return int(number) if number.isdecimal() else None


def _read(path: str) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, MOST_READ).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
