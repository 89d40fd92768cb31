"""Who uses a card's memory without a lease: old services, notebooks, other teams.

NVML names processes by the host's pids. What /proc says about them gives a neighbour its name, and tells a lease's own processes from the
others. Inside a container those pids mean nothing, or, worse, another process: they are matched only where that cannot be.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from mlops_build.gpu.declared import Declared

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from typing import Literal

# The first pid namespace's inode: PROC_PID_INIT_INO in the kernel's include/linux/proc_ns.h.
FIRST_NAMESPACE = 0xEFFFFFFC
MOST_ANCESTORS = 64
MOST_COMMAND = 4096


@dataclass(frozen=True, slots=True)
class Neighbour:
    """One service or notebook on one card, without a lease. used_bytes: now. counted_bytes: what a decision counts, and why that much.

    pid: its largest process. command, cgroup: of that. key: what is the same after it has been started again (peaks.py). pid, uid, command
    and cgroup are None where processes cannot be seen.
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


@dataclass(frozen=True, slots=True)
class Known:
    """What /proc says about one process. namespace: its pid namespace's inode, None where this user may not know; inner_pid: its pid there.
    started: unix s. command, cgroup: empty for those that only matter as somebody's parent."""

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


def known(pids: Iterable[int]) -> dict[int, Known] | None:
    """What /proc says about the processes that NVML names, and about their ancestors. None where NVML's pids are not /proc's.

    They are in the first pid namespace. In any other one (a container) they are taken for its own only if every one of them is there, since
    a number of the host's may be somebody else here.
    """
    wanted = set(pids)
    own, depth = _namespace("self"), _depth()
    found: dict[int, Known] = {}
    boot = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for pid in wanted:
        process = _process(pid, own if depth == 1 else None, boot, user=True)
        if process is not None:
            found[pid] = process
    if not (own == FIRST_NAMESPACE and depth == 1) and (not wanted or found.keys() != wanted):
        return None
    for process in list(found.values()):
        for _ in range(MOST_ANCESTORS):
            if process.parent in found or process.parent <= 1:
                break
            parent = _process(process.parent, own if depth == 1 else None, boot, user=False)
            if parent is None:
                break
            found[parent.pid] = process = parent
    return found


def ancestors(pid: int, processes: Mapping[int, Known]) -> list[Known]:
    """The process and those above it, as far as they are known."""
    line: list[Known] = []
    while (process := processes.get(pid)) is not None and len(line) < MOST_ANCESTORS:
        line.append(process)
        pid = process.parent
    return line


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


def _process(pid: int, own: int | None, boot: float, *, user: bool) -> Known | None:
    """None: it is gone, or hidden (a /proc mounted with hidepid). own: the namespace of those that have one pid only."""
    status, statistics = _read(f"/proc/{pid}/status"), _read(f"/proc/{pid}/stat")
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    # After the program's name, which may have any letter in it: proc(5), field 22.
    numbers = statistics.rpartition(")")[2].split()
    if "Uid" not in fields or "PPid" not in fields or len(numbers) < 20:
        return None
    inner = fields.get("NSpid", str(pid)).split()
    return Known(
        pid,
        int(fields["PPid"]),
        int(fields["Uid"].split()[1]),
        own if own is not None and len(inner) == 1 else _namespace(str(pid)),
        int(inner[-1]),
        boot + int(numbers[19]) / os.sysconf("SC_CLK_TCK"),
        _read(f"/proc/{pid}/cmdline").replace("\0", " ").strip() if user else "",
        _cgroup(_read(f"/proc/{pid}/cgroup")) if user else "",
    )


def _cgroup(text: str) -> str:
    """The path in version 2's one hierarchy, else (version 1) the longest."""
    paths = [line.split(":", 2)[2] for line in text.splitlines() if line.count(":") >= 2]
    return max(paths, key=len, default="")


def _depth() -> int:
    """How many pid namespaces deep this process is below the one that /proc shows; 1 is that one itself."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("NSpid:"):
            return len(line.split()) - 1
    return 1


def _namespace(pid: str) -> int | None:
    try:
        link = os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - pathlib costs its import
    except OSError:
        return None
    number = re.fullmatch(r"pid:\[([0-9]+)\]", link)
    return int(number[1]) if number else None


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - pathlib costs its import
            return file.read(MOST_COMMAND).decode(errors="replace")
    except OSError:
        return ""
