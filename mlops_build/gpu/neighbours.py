"""Who uses a card's memory without a lease: old services, notebooks, other teams.

NVML names processes by the host's pids. What /proc says about them gives a neighbour its name, and tells a lease's own processes from the
others. Inside a container those pids mean nothing, or, worse, another process: they are matched only where that cannot be.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType

from mlops_build.gpu.declared import Declared
from mlops_build.gpu.frozen import dataclass, replace

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from typing import Literal

# The first pid namespace's inode: PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h.
FIRST_NAMESPACE = 0xEFFFFFFC
MOST_ANCESTORS = 64
MOST_READ = 4096
# The slack is for the clock, which says when a lease was made, and may have been set since.
CLOCK_SECONDS = 2.0

Place = tuple[int, int]  # a pid namespace's inode, and a pid there


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One service or notebook on one card, without a lease. used_bytes: now. counted_bytes: what a decision counts, and why that much.

    pid: its largest process. command, cgroup, largest_bytes: of that. processes: how many it has. key: what is the same after it has been
    started again (peaks.py). pid, uid, command and cgroup are None where processes cannot be seen.
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


@dataclass(frozen=True, slots=True)
class Known:
    """What /proc says about one process. namespace: its pid namespace's inode, None where this user may not know; inner_pid: its pid there.
    started: unix s, 0 of one that has no lease. command, cgroup: empty of one that has, or is only somebody's parent."""

    pid: int
    parent: int
    uid: int
    namespace: int | None
    inner_pid: int
    started: float
    command: str = ""
    cgroup: str = ""


def pid_namespace() -> int | None:
    """The inode of this process' pid namespace; None where /proc does not say."""
    return _namespace("self")


def known(pids: Iterable[int], made: Mapping[Place, float] = MappingProxyType({})) -> dict[int, Known] | None:
    """What /proc says about the processes that NVML names, and about their ancestors. None where NVML's pids are not /proc's.

    They are in the first pid namespace. In any other one (a container) they are taken for its own only if every one of them is there, since
    a number of the host's may be somebody else here. made: when each lease was made, by its owner's place; only processes without one get
    a command and a cgroup, which take longer to read than all the rest.
    """
    wanted = set(pids)
    own, depth = _namespace("self"), _read("/proc/self/status").partition("\nNSpid:\t")[2].partition("\n")[0].count("\t") + 1
    single = own if depth == 1 else None  # the namespace of those that have one pid only
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    found: dict[int, Known] = {}
    for pid in wanted:
        process = _process(pid, single, boot, made)
        if process is not None:
            found[pid] = process
    if not (own == FIRST_NAMESPACE and depth == 1) and (not wanted or found.keys() != wanted):
        return None
    for process in list(found.values()):
        for _ in range(MOST_ANCESTORS):
            if process.parent in found or process.parent <= 1:
                break
            parent = _process(process.parent, single, boot, made)
            if parent is None:
                break
            found[parent.pid] = process = parent
    for pid in wanted & found.keys():
        if owner(pid, found, made) is None:
            command = _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip()
            found[pid] = replace(found[pid], command=command, cgroup=_cgroup(_read(f"/proc/{pid}/cgroup")))
    return found


def owner(pid: int, processes: Mapping[int, Known], made: Mapping[Place, float]) -> Place | None:
    """The place of the lease's owner that this process is or descends from, the nearest if there are several; None if it has no lease.

    A process that is younger than the lease only has the number of an owner that is gone.
    """
    for _ in range(MOST_ANCESTORS):
        process = processes.get(pid)
        if process is None:
            break
        if process.namespace is not None:
            place = (process.namespace, process.inner_pid)
            if place in made and process.started <= made[place] + CLOCK_SECONDS:
                return place
        pid = process.parent
    return None


def declaration(process: Known, declared: Sequence[Declared]) -> Declared | None:
    """The first declaration that fits a process."""
    for one in declared:
        if one.uid is not None and one.uid != process.uid:
            continue
        if one.cgroup is not None and not fnmatchcase(process.cgroup, one.cgroup):
            continue
        if one.command is not None and not fnmatchcase(process.command, one.command):
            continue
        return one
    return None


def name_of(process: Known) -> str:
    """What people call it: its systemd unit, or its program, with its pod or container."""
    cgroup = process.cgroup.rpartition("/")[2]
    if cgroup.endswith(".service") and not cgroup.startswith("user@"):
        return _printable(cgroup)[:80]
    program = _program(process.command)
    pod = re.search(r"pod([0-9a-f]{8})[-_0-9a-f]{20,}", process.cgroup)
    if pod:
        return f"{program} (pod {pod[1]})"
    container = re.search(r"([0-9a-f]{12})[0-9a-f]{52}(?:\.scope)?$", process.cgroup)
    return f"{program} (container {container[1]})" if container else program


def key_of(process: Known) -> str:
    """The same after a restart: its user with its systemd unit or program. No pod, and no argument, which may be a secret."""
    unit = process.cgroup.rpartition("/")[2]
    return f"{process.uid}:{unit if unit.endswith('.service') and not unit.startswith('user@') else _program(process.command)}"[:60]


def _program(command: str) -> str:
    """The script or module that an interpreter runs, else the program."""
    words = command.split()
    if not words:
        return "process"
    program = words[0].rpartition("/")[2]
    if re.fullmatch(r"python[0-9.]*", program):
        for place, word in enumerate(words[1:], 1):
            if word == "-m" and place + 1 < len(words):
                program = words[place + 1]
                break
            if word == "-c":
                break
            if not word.startswith("-"):
                program = word.rpartition("/")[2]
                break
    return _printable(program)[:50] or "process"


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)


def _process(pid: int, single: int | None, boot: float, made: Mapping[Place, float]) -> Known | None:
    """None: it is gone, or hidden (a /proc mounted with hidepid). Command and cgroup come later; `started` only if it may have a lease."""
    status = _read(f"/proc/{pid}/status")
    # The program's name comes first, its line breaks written as \\n: it cannot look like another line.
    parent, uids, inner = (status.partition(f"\n{field}:\t")[2].partition("\n")[0].split("\t") for field in ("PPid", "Uid", "NSpid"))
    if not parent[0].isdecimal() or len(uids) < 4:
        return None
    inner_pid = int(inner[-1]) if inner[-1].isdecimal() else pid
    namespace = single if single is not None and len(inner) == 1 else _namespace(str(pid))
    started = 0.0
    if (namespace, inner_pid) in made:
        # After the program's name, which may have any letter in it: proc(5), field 22.
        numbers = _read(f"/proc/{pid}/stat").rpartition(")")[2].split()
        started = boot + int(numbers[19]) / os.sysconf("SC_CLK_TCK") if len(numbers) > 19 else time.time()
    return Known(pid, int(parent[0]), int(uids[1]), namespace, inner_pid, started)


def _cgroup(text: str) -> str:
    """The path in version 2's one hierarchy, else (version 1) the longest."""
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
