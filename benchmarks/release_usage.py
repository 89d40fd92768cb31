"""What a command needs: seconds, memory and disk, sampled from outside while it runs (Linux)."""

import contextlib
import os
import resource
import select
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MEMORY_SECONDS, DISK_SECONDS = 0.05, 0.2
DAEMONS = ("dockerd", "containerd")


@dataclass(frozen=True)
class Usage:
    """seconds: start to end. cpu: seconds, of the command and its children. The others are in bytes.

    memory: the highest sum of the resident memory of the command and its children, and how much more than before the engine's daemons have.
    daemons: the part of the daemons. disk: the most that lay in the folders of the command, and what its engine's storage has in the end,
    without what was there before. output: stderr.
    """

    seconds: float
    cpu: float
    memory: int
    daemons: int
    disk: int
    output: str


def measure(
    command: Sequence[str],
    where: Path,
    environment: Mapping[str, str],
    folders: Sequence[Path],
    limit: float,
    *,
    storage: Path | None,
    daemon: bool,
) -> Usage:
    """Run a command, which must succeed within `limit` seconds.

    folders: where it writes. storage: of the container engine, if there is one. daemon: whether the engine is a daemon.
    """
    stored, before, resting = occupied([storage] if storage else []), occupied(folders), resident(daemons())
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    memory = extra = disk = 0
    log = where.parent / "output.txt"
    with log.open("w") as output:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=where, env=environment, stdout=subprocess.DEVNULL, stderr=output, start_new_session=True)
        next_disk = start
        try:
            ended = os.pidfd_open(process.pid)
            while not select.select([ended], [], [], MEMORY_SECONDS)[0]:
                if time.perf_counter() - start > limit:
                    raise SystemExit(f"{command} did not end within {limit} s")
                more = max(0, resident(daemons()) - resting) if daemon else 0
                extra, memory = max(extra, more), max(memory, resident(tree(process.pid)) + more)
                if time.perf_counter() >= next_disk:
                    disk, next_disk = max(disk, occupied(folders) - before), time.perf_counter() + DISK_SECONDS
            seconds = time.perf_counter() - start
            os.close(ended)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = end.ru_utime + end.ru_stime - used.ru_utime - used.ru_stime
    text = log.read_text()
    if process.returncode:
        raise SystemExit(f"{command} exited with {process.returncode}:\n{text[-3000:]}")
    return Usage(seconds, cpu, memory, extra, disk + occupied([storage] if storage else []) - stored, text)


def tree(pid: int) -> set[int]:
    """A process and its descendants; not one that has not become another program yet, and shares the memory of its parent (vfork)."""
    pids = {pid}
    with contextlib.suppress(OSError):  # it has ended meanwhile
        program = Path(f"/proc/{pid}/cmdline").read_bytes()
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                if Path(f"/proc/{child}/cmdline").read_bytes() != program:
                    pids |= tree(int(child))
    return pids


def daemons() -> set[int]:
    """The engine's daemons with their descendants: BuildKit's steps run in them."""
    pids: set[int] = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (process / "comm").read_text().strip() in DAEMONS:
                pids |= tree(int(process.name))
    return pids


def resident(pids: Iterable[int]) -> int:
    """Resident memory in bytes."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


def occupied(folders: Iterable[Path]) -> int:
    """The blocks of the files below folders, in bytes, without what is mounted there. Files may come and go meanwhile."""
    total = 0
    for folder in folders:
        device, pending = folder.stat().st_dev if folder.exists() else 0, [os.fspath(folder)]
        while pending:
            with contextlib.suppress(OSError), os.scandir(pending.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(OSError):
                        status = os.lstat(entry.path)  # not that of the entry: it does not say what is mounted
                        if entry.is_dir(follow_symlinks=False) and status.st_dev == device:
                            pending.append(entry.path)
                        elif entry.is_file(follow_symlinks=False):
                            total += status.st_blocks * 512
    return total
