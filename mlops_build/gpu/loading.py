"""Load slots, which limit how many services load onto a card at the same time, and reports, which confirm a lease.

A lease is confirmed by memory that appeared, never by a timer. The service itself reports every few seconds, from a thread. For a program
that does not use leases (`gpu run`), a small process (this module, run as a program) reports until the program has loaded.

Observed memory is, in order of preference: what NVML shows for the lease's processes, if their pids are valid here; what torch has
reserved, plus a context; the growth of the card's use while the load slots were held, at most the budget.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlops_build.gpu import log
from mlops_build.gpu.budget import LEAST_CONTEXT_BYTES
from mlops_build.gpu.cards import account
from mlops_build.gpu.declared import BadConfig, settings
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.neighbours import known
from mlops_build.gpu.nvml import NoDriver, Nvml, Reading
from mlops_build.gpu.promise import Promise, pid_namespace

if TYPE_CHECKING:
    from typing import Any

# A model loads in seconds to minutes. After this time a service loads without a slot: a service that hangs must not block the others.
GATE_SECONDS = 120.0
POLL_SECONDS = 0.1
# How often a service measures its own memory: often while it changes, since unreported memory counts in addition to the budget.
REPORT_SECONDS, REPORT_SECONDS_QUIET = 0.5, 5.0
REPORT_BYTES = 1 << 20  # smaller changes are not reported
# A program under `gpu run` counts as loaded when its memory has appeared and has not changed for this time.
QUIET_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Slots:
    """Held load slots. descriptors: a slot is free once every process has closed its descriptor. alone: no other service with load slots
    loads onto these cards, so growth of their use belongs to this service."""

    descriptors: tuple[int, ...]
    alone: bool

    def release(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def enter(ledger: Ledger, uuids: Sequence[str], seconds: float = GATE_SECONDS) -> Slots:
    """Take a load slot of each card. Waits at most `seconds` in total, and then continues without, with a warning."""
    deadline, descriptors = time.monotonic() + seconds, []
    try:
        count = settings().loading
    except BadConfig as error:
        log.warning("%s; one service loads at a time", error)
        count = 1
    for uuid in sorted(uuids):  # the same order everywhere, so that two services with two cards do not deadlock
        try:
            descriptor = _enter(ledger, [f"load-{uuid.replace('/', '_')}-{number}" for number in range(count)], uuid, deadline)
        except NoLedger as error:
            log.warning("loading without a load slot: %s", error)
            continue
        if descriptor is not None:
            descriptors.append(descriptor)
    return Slots(tuple(descriptors), alone=count == 1 and len(descriptors) == len(uuids))


def _enter(ledger: Ledger, names: Sequence[str], uuid: str, deadline: float) -> int | None:
    warned = False
    while True:
        for name in names:
            descriptor = ledger.slot(name)
            if descriptor is not None:
                return descriptor
        if time.monotonic() > deadline:
            log.warning("loading onto %s without a load slot: other services are still loading", uuid)
            return None
        if not warned:
            warned = True
            log.warning("waiting to load onto %s: another service is loading (at most %.0f s)", uuid, deadline - time.monotonic())
        time.sleep(POLL_SECONDS * (0.5 + os.urandom(1)[0] / 512))  # random, so that waiting processes do not retry at the same time


def used(readings: Sequence[Reading], uuids: Sequence[str]) -> dict[str, int]:
    """The memory in use on these cards by all processes, in bytes by UUID."""
    return {reading.uuid: reading.used_bytes for reading in readings if reading.uuid in uuids and reading.used_bytes is not None}


def shown(readings: Sequence[Reading], promise: Promise) -> dict[str, int] | None:
    """The memory that NVML shows for the lease's processes, in bytes by UUID; None if it cannot be attributed (containers hide pids)."""
    cards = account(
        readings,
        [replace(promise, seen={})],
        peaks={},
        declared=(),
        now=0.0,
        processes=known(process.pid for reading in readings for process in reading.processes or ()),
        namespace=pid_namespace(),
    )
    sizes = {}
    for card in cards:
        if card.uuid in promise.uuids:
            if not card.leases or card.uuid not in card.leases[0].seen:
                return None
            sizes[card.uuid] = card.leases[0].seen[card.uuid]
    return sizes


def of_torch(uuids: Sequence[str]) -> dict[str, int] | None:
    """The memory that torch has reserved in this process, plus a context, in bytes by UUID; None if torch has not started CUDA."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    reserved = [int(torch.cuda.memory_reserved(ordinal)) for ordinal in range(min(len(uuids), torch.cuda.device_count()))]
    return {uuid: size + LEAST_CONTEXT_BYTES if size else 0 for uuid, size in zip(uuids, reserved, strict=False)}


def seen(readings: Sequence[Reading], promise: Promise, before: Mapping[str, int] | None) -> dict[str, int] | None:
    """The best estimate of the lease's memory, in bytes by UUID; None without one. before: the use of the cards before it began to load,
    if it loaded alone."""
    best = shown(readings, promise)
    if best is None:
        best = of_torch(promise.uuids)
    if best is None and before is not None:
        now = used(readings, promise.uuids)
        # Growth beyond the budget may be a neighbour's.
        best = {uuid: min(promise.bytes, max(0, now[uuid] - before[uuid])) for uuid in before if uuid in now}
    return best


class Reporter(threading.Thread):
    """A thread of the service that keeps the lease's report current."""

    def __init__(self, ledger: Ledger, promise: Promise, sizes: Mapping[str, int], *, loaded: bool) -> None:
        super().__init__(name="gpu-lease-report", daemon=True)
        self._ledger, self._promise, self._reported, self._loaded = ledger, promise, dict(sizes), loaded
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Stop, and wait at most 5 s for a report that is being written."""
        self._stopping.set()
        if self.is_alive():
            self.join(5.0)

    def reported(self, sizes: Mapping[str, int], *, loaded: bool) -> None:
        """Take note of a report that the service wrote itself."""
        self._reported, self._loaded = dict(sizes), loaded

    def run(self) -> None:
        pause = REPORT_SECONDS
        try:
            with Nvml() as nvml:
                while not self._stopping.wait(pause):
                    sizes = seen(nvml.read(), self._promise, None)
                    changed = sizes is not None and _changed(sizes, self._reported)
                    pause = REPORT_SECONDS if changed else min(REPORT_SECONDS_QUIET, pause * 1.5)
                    if changed and sizes is not None and not self._stopping.is_set():
                        self._reported = sizes
                        self._ledger.report(self._promise.id, sizes, loaded=self._loaded)
        except (NoDriver, NoLedger) as error:
            log.warning("the lease's memory is no longer reported: %s", error)


def _changed(sizes: Mapping[str, int], reported: Mapping[str, int]) -> bool:
    return any(abs(size - reported.get(uuid, 0)) >= REPORT_BYTES for uuid, size in sizes.items())


def watch(ledger: Ledger, promise: Promise, slots: Slots, before: Mapping[str, int]) -> None:
    """Start the process that reports for a program that does not use leases, right before the exec of that program.

    The process inherits the load slots, which are held until it ends, but not the lease. It is orphaned and in its own session, so that the
    program neither waits for it nor shares its signals.
    """
    import subprocess

    before_alone = dict(before) if slots.alone else None
    command = [sys.executable, "-m", "mlops_build.gpu.loading", str(ledger.path), promise.id, json.dumps(before_alone)]
    child = os.fork()
    if child == 0:
        # Only exec from here on: in this copy of the process, other threads' locks may be held.
        try:
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=slots.descriptors,
            )
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    slots.release()


def main(directory: str, lease_id: str, before: Mapping[str, int] | None) -> int:
    """The watching process. Ends when the lease's memory has appeared and is stable, the program has ended, or GATE_SECONDS are over."""
    with Ledger.open(directory) as ledger, Nvml() as nvml:
        promise = next((promise for promise in ledger.promises() if promise.id == lease_id), None)
        if promise is None:
            return 0
        reported: dict[str, int] = {}
        began = changed = time.monotonic()
        while ledger.is_alive(lease_id) and (now := time.monotonic()) - began < GATE_SECONDS:
            sizes = seen(nvml.read(), promise, before) or {}
            if _changed(sizes, reported):
                reported, changed = sizes, now
                ledger.report(lease_id, reported, loaded=False)
            elif any(reported.values()) and now - changed > QUIET_SECONDS:
                break
            time.sleep(POLL_SECONDS * 2)
        if ledger.is_alive(lease_id):
            ledger.report(lease_id, reported, loaded=any(reported.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
