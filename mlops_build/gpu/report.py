"""Reports: what a lease's owner observes of its own memory, and writes for all others.

Other processes cannot always see which memory belongs to a lease (containers hide pids). The owner of a lease reports it: a service from a
thread, and `gpu run` for its program. Observed memory is, in order of preference: what NVML shows for the lease's processes; what torch has
reserved, plus a context; the growth since the lease was granted of the memory that no visible process and no report explains, at most the
budget.
"""

import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mlops_build.gpu import log
from mlops_build.gpu.budget import LEAST_CONTEXT_BYTES
from mlops_build.gpu.cards import Card, Snapshot, processes_of
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.nvml import NoDriver, Nvml, Reading
from mlops_build.gpu.peaks import ALL, REST
from mlops_build.gpu.promise import Promise, pid_namespace

# How often a process measures its own memory: often while it changes, since unreported memory counts in addition to the budget.
SECONDS, QUIET_SECONDS = 1.0, 10.0
BYTES = 1 << 20  # smaller changes are not reported
# A program counts as loaded when its memory has appeared and has not changed for this time.
LOADED_SECONDS = 5.0


def hidden(taken: Snapshot, cards: Iterable[Card]) -> list[Card]:
    """The cards whose processes may be hidden. Only there, growth of the memory is attributed to a lease: NVML reads a card's memory before
    its processes, and what begins in between would count as the lease's."""
    return [card for card in cards if taken.processes is None or not card.processes]


def shown(readings: Sequence[Reading], promises: Sequence[Promise], promise: Promise) -> tuple[dict[str, int], dict[str, int]]:
    """The memory that NVML shows for the lease's processes, of the cards where it shows all, and the memory that no report explains, of
    the cards whose processes may be hidden. Bytes by UUID."""
    promises = [replace(other, seen={}) if other.id == promise.id else other for other in promises]
    taken = Snapshot(readings, promises, processes_of(readings, promises), pid_namespace())
    cards = taken.cards(only=promise.uuids)
    own = {
        card.uuid: lease.seen[card.uuid] for card in cards for lease in card.leases if lease.id == promise.id and card.uuid in lease.seen
    }
    # A lease has no memory on a card that shows the memory of all processes, but none of the lease's.
    complete = [card for card in cards if card.processes and None not in [process.used_bytes for process in card.processes]]
    nothing = {card.uuid: 0 for card in complete if taken.processes is not None}
    unexplained = {card.uuid: sum(user.used_bytes for user in card.neighbours if user.key in (ALL, REST)) for card in hidden(taken, cards)}
    return nothing | own, unexplained


def _of_torch(uuids: Sequence[str]) -> dict[str, int]:
    """The memory that torch has reserved in this process, plus a context, in bytes by UUID; empty if torch has not started CUDA."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return {}
    reserved = [int(torch.cuda.memory_reserved(ordinal)) for ordinal in range(min(len(uuids), torch.cuda.device_count()))]
    return {uuid: size + LEAST_CONTEXT_BYTES if size else 0 for uuid, size in zip(uuids, reserved, strict=False)}


class Reporter(threading.Thread):
    """A thread that keeps a lease's report current, and writes the lease again if somebody has removed it.

    before: the memory that could not belong to a lease when this one was granted, in bytes by UUID, of cards whose processes may be hidden.
    What other leases had allocated, but not reported yet, is not in it.
    """

    def __init__(self, ledger: Ledger, promise: Promise, before: Mapping[str, int]) -> None:
        super().__init__(name="gpu-lease-report", daemon=True)
        self._ledger, self._promise, self._before = ledger, promise, before
        self._reported: dict[str, int] = {}
        self._peak: dict[str, int] = {}
        self._loaded, self._changed = False, time.monotonic()
        self._stopping, self._writing = threading.Event(), threading.RLock()

    def stop(self) -> None:
        """Stop, and wait at most 5 s for a report that is being written."""
        self._stopping.set()
        if self.is_alive() and threading.current_thread() is not self:  # the garbage collector may release a lease in any thread
            self.join(5.0)

    def run(self) -> None:
        """Report until `stop`."""
        pause, measured, warned = SECONDS, time.monotonic(), ""
        try:
            with Nvml() as nvml:
                while not self._stopping.wait(SECONDS):
                    try:
                        self._keep()
                        if time.monotonic() - measured >= pause:
                            measured = time.monotonic()
                            pause = SECONDS if self.report(nvml) else min(QUIET_SECONDS, pause * 2)
                    except NoLedger as error:  # a full disk
                        if warned != error.message:
                            log.warning("the lease's memory is not reported: %s", error)
                        warned = error.message
        except NoDriver as error:
            log.warning("the lease's memory is no longer reported: %s", error)

    def _keep(self) -> None:
        """Write the lease again if somebody has removed it. The new descriptor stays open until this process ends."""
        with self._writing:
            if self._ledger.lease(self._promise.id) is None:
                self._ledger.hold(self._promise)
                log.warning("the lease %s was removed from %s, and is written again", self._promise.id, self._ledger.path)

    def report(self, nvml: Nvml, *, loaded: bool = False) -> bool:
        """Write the report if it has changed; whether it has. loaded: the service says that it has loaded. Raises NoDriver and NoLedger."""
        with self._writing:
            self._keep()
            sizes = self._measure(nvml)
            self._peak = {uuid: max(size, self._peak.get(uuid, 0)) for uuid, size in sizes.items()}
            changed = any(abs(size - self._reported.get(uuid, 0)) >= BYTES for uuid, size in sizes.items())
            if changed:
                self._reported, self._changed = sizes, time.monotonic()
            quiet = any(self._reported.values()) and time.monotonic() - self._changed > LOADED_SECONDS
            if changed or ((loaded or quiet) and not self._loaded):
                self._loaded = self._loaded or loaded or quiet
                self._ledger.report(self._promise.id, self._reported, loaded=self._loaded, peak=self._peak)
                return True
            return False

    def _measure(self, nvml: Nvml) -> dict[str, int]:
        readings = nvml.read(only=self._promise.uuids)
        own, now = shown(readings, [self._promise], self._promise)
        if any(self._growth(now).values()):  # less of it is unexplained with what others report, which takes longer to read
            own, now = shown(readings, self._ledger.promises(), self._promise)
        return dict.fromkeys(self._promise.uuids, 0) | self._growth(now) | _of_torch(self._promise.uuids) | own

    def _growth(self, now: Mapping[str, int]) -> dict[str, int]:
        before, budget = self._before, self._promise.bytes
        return {uuid: min(budget, max(0, size - before[uuid])) for uuid, size in now.items() if uuid in before}
