"""Loading, and what is seen of it: a gate, so that few services at a time load onto a card; and reports, which confirm a lease.

A lease is confirmed by memory that appeared, never by a timer. Who reports: the service itself, from a thread, every few seconds; for a
program that knows nothing of leases (`gpu run`), a small process beside it (this module, run as a program), until the program has loaded.

What is seen is, the best first: what NVML shows of the lease's processes, where their pids mean the same here; what torch has reserved,
plus a context; how much the card's use grew while the gate was held, at most the budget.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from mlops_build.gpu import log
from mlops_build.gpu.budget import LEAST_CONTEXT_BYTES
from mlops_build.gpu.cards import account
from mlops_build.gpu.declared import BadConfig, settings
from mlops_build.gpu.frozen import dataclass, replace
from mlops_build.gpu.ledger import Ledger, NoLedger, Promise, pid_namespace
from mlops_build.gpu.neighbours import known
from mlops_build.gpu.nvml import NoDriver, Nvml, Reading

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from typing import Any

# A model loads in seconds to minutes. Who waits longer than this for its turn goes on: a stuck service must not stop the others.
GATE_SECONDS = 120.0
POLL_SECONDS = 0.1
# How often a service looks at its own memory: soon while it changes, since until then it counts beside the budget; seldom when it stays.
REPORT_SECONDS, REPORT_SECONDS_QUIET = 0.5, 5.0
# Changes below this are not worth a file.
REPORT_BYTES = 1 << 20
# A program under `gpu run` has loaded when its memory has appeared and stayed the same so long.
QUIET_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Turn:
    """Load slots that are held. descriptors: closing them (in every process that has them) leaves the gate. alone: nobody else who keeps to
    the gate loads onto these cards meanwhile, so that what grows there is ours."""

    descriptors: tuple[int, ...]
    alone: bool

    def end(self) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)


def enter(ledger: Ledger, uuids: Sequence[str], seconds: float = GATE_SECONDS) -> Turn:
    """Take one of the load slots of each card, waiting for at most `seconds` in all; then go on without, aloud."""
    deadline, slots = time.monotonic() + seconds, []
    try:
        count = settings().loading
    except BadConfig as error:
        log.warning("%s; one service at a time loads", error)
        count = 1
    for uuid in sorted(uuids):  # in the same order everywhere: two services with two cards must not wait for each other
        try:
            slot = _enter(ledger, [f"load-{uuid.replace('/', '_')}-{number}" for number in range(count)], uuid, deadline)
        except NoLedger as error:
            log.warning("loading without a turn: %s", error)
            continue
        if slot is not None:
            slots.append(slot)
    return Turn(tuple(slots), alone=count == 1 and len(slots) == len(uuids))


def _enter(ledger: Ledger, names: Sequence[str], uuid: str, deadline: float) -> int | None:
    said = False
    while True:
        for name in names:
            descriptor = ledger.slot(name)
            if descriptor is not None:
                return descriptor
        if time.monotonic() > deadline:
            log.warning("loading onto %s without waiting any longer: others have been loading all the time", uuid)
            return None
        if not said:
            said = True
            log.warning("waiting to load onto %s: another service is loading (at most %.0f s)", uuid, deadline - time.monotonic())
        time.sleep(POLL_SECONDS * (0.5 + os.urandom(1)[0] / 512))  # at random, so that those who wait do not march in step


def used(readings: Sequence[Reading], uuids: Sequence[str]) -> dict[str, int]:
    """What is in use on these cards, by anybody."""
    return {reading.uuid: reading.used_bytes for reading in readings if reading.uuid in uuids and reading.used_bytes is not None}


def shown(readings: Sequence[Reading], promise: Promise) -> dict[str, int] | None:
    """What NVML shows of the lease's processes on its cards; None where it cannot tell whose memory is whose (a container hides pids)."""
    cards = account(
        readings,
        [replace(promise, seen={})],
        peaks={},
        declared=(),
        now=0.0,
        processes=known(process.pid for reading in readings for process in reading.processes or ()),
        namespace=pid_namespace(),
    )
    found = {}
    for card in cards:
        if card.uuid in promise.uuids:
            if not card.leases or card.uuid not in card.leases[0].seen:
                return None
            found[card.uuid] = card.leases[0].seen[card.uuid]
    return found


def of_torch(uuids: Sequence[str]) -> dict[str, int] | None:
    """What torch has reserved in this process, and a context on each card where it has; None if it has not started CUDA here."""
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda") or not torch.cuda.is_initialized():
        return None
    reserved = [int(torch.cuda.memory_reserved(ordinal)) for ordinal in range(min(len(uuids), torch.cuda.device_count()))]
    return {uuid: size + LEAST_CONTEXT_BYTES if size else 0 for uuid, size in zip(uuids, reserved, strict=False)}


def seen(readings: Sequence[Reading], promise: Promise, before: Mapping[str, int] | None) -> dict[str, int] | None:
    """The best that is known of the lease's memory; None if nothing is. before: what was in use when it began to load behind the gate."""
    best = shown(readings, promise)
    if best is None:
        best = of_torch(promise.uuids)
    if best is None and before is not None:
        now = used(readings, promise.uuids)
        # What grew beyond the budget was perhaps a neighbour.
        best = {uuid: min(promise.bytes, max(0, now[uuid] - before[uuid])) for uuid in before if uuid in now}
    return best


class Reporter(threading.Thread):
    """Keeps the lease's report current from inside the service. Guards its NVML, and when to stop."""

    def __init__(self, ledger: Ledger, promise: Promise, told: Mapping[str, int], *, loaded: bool) -> None:
        super().__init__(name="gpu-lease-report", daemon=True)
        self._ledger, self._promise, self._told, self._loaded = ledger, promise, dict(told), loaded
        self._ends = threading.Event()

    def stop(self) -> None:
        """When this returns, it reports no more."""
        self._ends.set()
        if self.is_alive():
            self.join(5.0)

    def loaded(self, told: Mapping[str, int], *, loaded: bool) -> None:
        """What the service has reported itself."""
        self._told, self._loaded = dict(told), loaded

    def run(self) -> None:
        pause = REPORT_SECONDS
        try:
            with Nvml() as nvml:
                while not self._ends.wait(pause):
                    found = seen(nvml.read(), self._promise, None)
                    changed = found is not None and any(abs(size - self._told.get(uuid, 0)) >= REPORT_BYTES for uuid, size in found.items())
                    pause = REPORT_SECONDS if changed else min(REPORT_SECONDS_QUIET, pause * 1.5)
                    if changed and found is not None and not self._ends.is_set():
                        self._told = found
                        self._ledger.report(self._promise.id, found, loaded=self._loaded)
        except (NoDriver, NoLedger) as error:
            log.warning("the lease's memory is not reported any more: %s", error)


def watch(ledger: Ledger, promise: Promise, turn: Turn, before: Mapping[str, int]) -> None:
    """Start the process that reports for a program which knows nothing of leases, right before the exec of that program.

    It inherits the load slots, which are thereby held until it goes, and not the lease. It is nobody's child and in no terminal's group, so
    that the program neither waits for it nor shares its signals.
    """
    import subprocess

    grows_alone = dict(before) if turn.alone else None
    command = [sys.executable, "-m", "mlops_build.gpu.loading", str(ledger.path), promise.id, json.dumps(grows_alone)]
    child = os.fork()
    if child == 0:
        # Only exec from here on: other threads' locks may be held in this copy of the process.
        try:
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=turn.descriptors,
            )
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    turn.end()


def main(directory: str, lease_id: str, before: Mapping[str, int] | None) -> int:
    """The watching process: until the lease's memory has appeared and stays the same, its program has ended, or it took too long."""
    with Ledger.open(directory) as ledger, Nvml() as nvml:
        promise = next((promise for promise in ledger.promises() if promise.id == lease_id), None)
        if promise is None:
            return 0
        told: dict[str, int] = {}
        began = changed = time.monotonic()
        while ledger.lives(lease_id) and (now := time.monotonic()) - began < GATE_SECONDS:
            found = seen(nvml.read(), promise, before) or {}
            if any(abs(size - told.get(uuid, 0)) >= REPORT_BYTES for uuid, size in found.items()):
                told, changed = found, now
                ledger.report(lease_id, told, loaded=False)
            elif any(told.values()) and now - changed > QUIET_SECONDS:
                break
            time.sleep(POLL_SECONDS * 2)
        if ledger.lives(lease_id):
            ledger.report(lease_id, told, loaded=any(told.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
