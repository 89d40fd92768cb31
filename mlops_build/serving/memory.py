"""The memory of this process: its limit, what it uses, and how to return free memory to the system."""

import contextlib
import ctypes
import gc
import os
import resource
from pathlib import Path

# The share of the free memory for requests. The rest is for the model's predictions, and for the fragments of freed memory.
SHARE = 0.5
# Without a limit for the process: the budget as a multiple of the limit for one body.
BODIES = 64
LEAST = 8 << 20
M_MMAP_THRESHOLD, MAPPED_BYTES = -3, 4 << 20
# Each thread would keep the memory that it has freed, for itself.
M_ARENA_MAX, ARENAS = -8, 2
CGROUPS = Path("/sys/fs/cgroup")


def budget(body_limit: int) -> int:
    """The memory for all requests, in bytes, once the models are loaded. body_limit: for one body, in bytes."""
    limit = cgroup_limit()
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit is None or limit >= machine:
        return max(LEAST, min(BODIES * body_limit, int((machine - resident()) * SHARE)))
    return max(LEAST, int((limit - resident()) * SHARE))


def resident() -> int:
    """The resident memory of this process, in bytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def cgroup_limit(root: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int | None:
    """The smallest limit of the process's cgroup and its ancestors, in bytes; None without a limit. Reads versions 1 and 2."""
    limits: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0":
                base, name = root, "memory.max"
            elif "memory" in controllers.split(","):
                base, name = root / "memory", "memory.limit_in_bytes"
            else:
                continue
            group = base / path.lstrip("/")
            # In a container the path may be that of the host; then only the mounted root exists.
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):
                    limits.append(int((folder / name).read_text()))  # "max"
                if folder == base:
                    break
    return min(limits, default=None)


def prepare() -> None:
    """Let the C library return the memory of large objects when they are freed. Otherwise it keeps up to 32 MiB for each thread."""
    with contextlib.suppress(OSError, AttributeError):  # only glibc has it
        for option, value in ((M_MMAP_THRESHOLD, MAPPED_BYTES), (M_ARENA_MAX, ARENAS)):
            ctypes.CDLL(None).mallopt(option, value)


def trim() -> None:
    """Return free memory to the system."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
