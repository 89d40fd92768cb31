"""Snapshots of a node: its cards, leases, neighbours and recent decisions, in bounded time.

Each snapshot also updates the peaks of processes without a lease in the lease directory, which every decision uses (gpu/peaks.py).
"""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from mlops_build.gpu.cards import Card, remember
from mlops_build.gpu.cards import Snapshot as Readings
from mlops_build.gpu.cards import snapshot as read_node
from mlops_build.gpu.decisions import PICK, read
from mlops_build.gpu.declared import BadConfig, Settings
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.nvml import DriverTrouble, NoDriver, Nvml

log = logging.getLogger("mlops_build.watch")

NVML_SECONDS = 1.0  # for starting NVML, and for reading all cards: a hanging card delays one snapshot this long
SNAPSHOT_SECONDS = 4.0  # well below the 10 s that Prometheus waits for a scrape by default
# A hanging NVML call occupies a thread. At this number NVML is not started again until some have ended.
MAX_THREADS = 48
RECENT_SECONDS = 600.0  # the period of `recent`, for processes that take one snapshot (Zabbix)


@dataclass(frozen=True, slots=True)
class Counts:
    """Numbers of lease decisions by outcome, without those of `gpu pick`, and the seconds that requests waited."""

    granted: int = 0
    refused: int = 0
    waiting: int = 0
    cpu: int = 0
    waited_seconds: float = 0.0

    def plus(self, decisions: Sequence[dict[str, Any]]) -> "Counts":
        """These counts and the decisions."""
        numbers = {outcome: getattr(self, outcome) for outcome in ("granted", "refused", "waiting", "cpu")}
        waited = self.waited_seconds
        for decision in decisions:
            if decision.get("service") == PICK:
                continue
            if decision.get("outcome") in numbers:
                numbers[decision["outcome"]] += 1
            seconds = decision.get("waited")
            if decision.get("outcome") != "waiting" and isinstance(seconds, int | float) and 0 <= seconds < 1e9:
                waited += seconds
        return Counts(**numbers, waited_seconds=waited)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of a node. at: unix s. driver, why: the reason if no card could be read; then `cards` is empty.

    ledger: whether the lease directory exists. counts: decisions since the watcher started. recent: decisions of the last ten minutes.
    seconds: how long the snapshot took.
    """

    at: float
    cards: tuple[Card, ...] = ()
    driver: DriverTrouble | None = None
    why: str = ""
    ledger: bool = False
    counts: Counts = field(default_factory=Counts)
    recent: Counts = field(default_factory=Counts)
    seconds: float = 0.0


class Watcher:
    """Takes snapshots, at most one per `fresh` seconds, and returns within `patience` seconds even if NVML hangs. Thread-safe.

    Keeps NVML started, and knows which decisions it has counted, between snapshots. A hanging snapshot continues in its thread; no second
    one is started meanwhile.
    """

    def __init__(self, *, fresh: float = 1.0, patience: float = SNAPSHOT_SECONDS, nvml_seconds: float = NVML_SECONDS) -> None:
        self._fresh, self._patience, self._nvml_seconds = fresh, patience, nvml_seconds
        self._changed = threading.Condition()
        self._running_since: float | None = None
        self._last: Snapshot | None = None
        self._last_end = 0.0
        self._nvml: Nvml | None = None
        self._ledger: Ledger | None = None
        self._counts = Counts()
        self._counted: set[str] | None = None  # the decisions that are in _counts, or were made before; None: not read yet
        self._warned = ""

    def snapshot(self) -> Snapshot:
        """The current state; a Snapshot without cards and with the reason if it cannot be read in time."""
        with self._changed:
            if self._last is not None and time.monotonic() - self._last_end < self._fresh:
                return self._last
            if self._running_since is None:
                self._running_since = time.monotonic()
                threading.Thread(target=self._run, daemon=True).start()
            began = self._running_since
            deadline = began + self._patience  # counted from the start of the running snapshot, also for later callers
            while self._running_since == began:
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    why = f"reading the cards has not ended after {time.monotonic() - began:.0f} s"
                    return Snapshot(time.time(), driver=DriverTrouble.SLOW, why=why, counts=self._counts)
            assert self._last is not None  # noqa: S101 -- set when a snapshot ends
            return self._last

    def _run(self) -> None:
        began = time.monotonic()
        try:
            snapshot = self._take(time.time())
        except Exception as error:  # a bug must not leave the callers waiting forever
            log.exception("reading the node failed")
            snapshot = Snapshot(time.time(), driver=DriverTrouble.FAULT, why=f"{type(error).__name__}: {error}")
        with self._changed:
            self._last, self._last_end = replace(snapshot, seconds=time.monotonic() - began), time.monotonic()
            self._running_since = None
            self._changed.notify_all()

    def _take(self, now: float) -> Snapshot:
        ledger = self._open_ledger()
        recent = Counts()
        if ledger:
            decisions = read(ledger)
            self._count(decisions)
            recent = Counts().plus([decision for decision in decisions if now - RECENT_SECONDS < decision["time"] < now + 60])
        snapshot = Snapshot(now, ledger=ledger is not None, counts=self._counts, recent=recent)
        try:
            if self._nvml is None:
                if threading.active_count() > MAX_THREADS:
                    raise NoDriver("the NVIDIA driver has not answered for a long time", reason=DriverTrouble.SLOW)
                self._nvml = Nvml(self._nvml_seconds).__enter__()
            taken = self._read(self._nvml, ledger)
        except NoDriver as error:
            if self._nvml is not None and error.reason is not DriverTrouble.SLOW:
                self._nvml.__exit__(None, None, None)
            self._nvml = None  # started again for the next snapshot: the driver may have been reloaded
            return replace(snapshot, driver=error.reason, why=error.message)
        observed = taken.cards()
        if ledger:
            self._remember(ledger, taken, observed)
        return replace(snapshot, cards=tuple(observed))

    def _read(self, nvml: Nvml, ledger: Ledger | None) -> Readings:
        """Read the node. If /etc/mlops-gpu.toml is not valid, a warning is logged and its declarations are not counted."""
        try:
            return read_node(nvml, ledger, full=True)
        except BadConfig as error:
            self._warn(f"{error.message}: its declarations are not counted")
            return read_node(nvml, ledger, full=True, node=Settings())

    def _count(self, decisions: Sequence[dict[str, Any]]) -> None:
        """Count the decisions that were not in the last snapshot. In the first one, none is counted."""
        # Neither times nor positions in the files are enough: clocks can be set back, and the files are shortened. The seed (before 0.7)
        # and the lease's id are random. `str`, because other users write the records.
        keys = [str([made.get(key) for key in ("uid", "time", "seed", "lease", "waited")]) for made in decisions]
        if self._counted is not None:
            self._counts = self._counts.plus([decision for key, decision in zip(keys, decisions, strict=True) if key not in self._counted])
        self._counted = set(keys)

    def _open_ledger(self) -> Ledger | None:
        """The lease directory, opened again for each snapshot, because it may have been created or replaced."""
        if self._ledger is not None:
            self._ledger.close()
        try:
            opened = Ledger.open(reading=True)
        except NoLedger as error:
            self._warn(f"{error.message}: leases are not shown, and peaks of other processes are not recorded")
            self._ledger = self._counted = None
            return None
        self._ledger = opened
        return opened

    def _remember(self, ledger: Ledger, taken: Readings, observed: Sequence[Card]) -> None:
        try:
            remember(ledger, taken, observed)
        except NoLedger as error:
            self._warn(f"{error.message}: peaks of other processes are not recorded")

    def _warn(self, text: str) -> None:
        """Log a warning, unless it is the same as the last one."""
        if text != self._warned:
            self._warned = text
            log.warning("%s", text)

    def close(self) -> None:
        """Close NVML and the lease directory."""
        with ExitStack() as stack:
            if self._ledger is not None:
                stack.callback(self._ledger.close)
            if self._nvml is not None and self._running_since is None:
                stack.push(self._nvml)
