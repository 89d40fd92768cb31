"""End a lease: signal the process that has it, and wait until the lease has ended (`gpu release`).

A process has a lease if it holds the locks of the lease's file. /proc shows this for processes of all containers.
"""

import contextlib
import os
import signal
import time
from pathlib import Path

from mlops_build.errors import Failed, NotFound, Refused, UsageError
from mlops_build.gpu.ledger import WAITING, Ledger
from mlops_build.gpu.promise import Promise, pid_namespace

LEAST_PREFIX = 4
POLL_SECONDS = 0.2


class NoSuchLease(NotFound):
    """No live lease has this id or name."""


class SeveralLeases(UsageError):
    """Several live leases have this name."""


def find(ledger: Ledger, name: str) -> Promise:
    """The live lease with this id, service name, or first letters of the id. Raises NoSuchLease and SeveralLeases."""
    for promises in (ledger.promises(), ledger.tickets()):
        matching = [promise for promise in promises if name in (promise.id, promise.service, promise.service.removesuffix(WAITING))]
        if not matching and len(name) >= LEAST_PREFIX:
            matching = [promise for promise in promises if promise.id.startswith(name)]
        if matching:
            break
    else:
        raise NoSuchLease(
            f"no lease in {ledger.path} has the id or service {name!r}",
            remedy="`mlops-build gpu list` shows the leases; a process without one is ended with `kill`",
        )
    first = matching[0]
    if first.until is not None:
        remedy = f"end the waiting process: kill {first.pid}{'' if first.pid_namespace == pid_namespace() else ' in its container'}"
        raise NoSuchLease(f"{first.service} has no lease yet", remedy=remedy)
    if len(matching) > 1:
        ids = [promise.id for promise in matching]
        raise SeveralLeases(
            f"{len(ids)} leases match {name!r}: {', '.join(ids)}",
            remedy=f"use an id: mlops-build gpu release {ids[0]}",
            details={"leases": ids},
        )
    return first


def release(ledger: Ledger, promise: Promise, wait: float) -> list[int]:
    """Send SIGTERM to the process that has the lease, and wait at most `wait` seconds until the lease has ended. Returns the pids.

    If that process ends, and descendants keep the lease, they receive the signal, too. Raises Refused (another
    user's lease, or its processes cannot be reached from here) and Failed (it has not ended in time).
    """
    if os.geteuid() not in (0, promise.uid):
        raise Refused(
            f"the lease {promise.id} of {promise.service} belongs to uid {promise.uid}, and this is uid {os.geteuid()}",
            remedy=f"run the command as uid {promise.uid} or root: sudo mlops-build gpu release {promise.id}",
        )
    deadline, signalled = time.monotonic() + wait, list[int]()
    while ledger.lease(promise.id):
        holders = _holders(ledger, promise)
        for pid in [pid for pid, inner_pid in holders.items() if inner_pid == promise.pid] or holders:
            if pid not in signalled and _terminate(pid, ledger, promise):
                signalled.append(pid)
        if not signalled and ledger.lease(promise.id):
            raise Refused(
                f"no process that has the lease {promise.id} of {promise.service} can be reached from here (its own pid is {promise.pid})",
                remedy=f"run the command as root on the host, or in that container: mlops-build gpu release {promise.id}",
            )
        if time.monotonic() >= deadline:
            pids = " ".join(map(str, holders or signalled))
            raise Failed(
                f"{promise.service} received SIGTERM (pid {' and pid '.join(map(str, signalled))}) and still has the lease {promise.id}: "
                "it ignores the signal, as the first process of a container does by default, or needs more time",
                remedy=f"wait longer (--wait {max(60, 2 * wait):g}), or end it at once: kill -KILL {pids}",
                details={"lease": promise.id, "pids": signalled},
            )
        time.sleep(POLL_SECONDS)
    return signalled


def _holders(ledger: Ledger, promise: Promise) -> dict[int, int]:
    """The processes that have the lease, without this one: pid here, and pid in their own namespace."""
    holders = {}
    for pid in [int(folder.name) for folder in Path("/proc").iterdir() if folder.name.isdecimal()]:
        with contextlib.suppress(OSError):  # it has ended, or belongs to another user
            if pid != os.getpid() and _has(pid, ledger, promise):
                pids = Path(f"/proc/{pid}/status").read_text().partition("\nNSpid:")[2].partition("\n")[0].split()
                holders[pid] = int(pids[-1])
    return holders


def _has(pid: int, ledger: Ledger, promise: Promise) -> bool:
    """Whether a process holds a lock of the lease's file. Raises OSError."""
    lease = (ledger.path / f"{promise.id}.lease").stat()
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed in the meantime
            if os.path.samestat(file.stat(), lease) and "\nlock:" in Path(f"/proc/{pid}/fdinfo/{file.name}").read_text():
                return True
    return False


def _terminate(pid: int, ledger: Ledger, promise: Promise) -> bool:
    """Send SIGTERM to a process, if it still has the lease. False if it has ended, or if this user may not."""
    with contextlib.suppress(OSError):
        # If the pid is used again, this descriptor does not stand for the new process.
        process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY)
        try:
            if _has(pid, ledger, promise):
                signal.pidfd_send_signal(process, signal.SIGTERM)
                return True
        finally:
            os.close(process)
    return False
