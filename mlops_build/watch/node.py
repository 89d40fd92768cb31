"""One look at the node: its cards, leases, neighbours and latest decisions, in a bounded time.

Whoever looks here also looks for everybody: what neighbours without leases use is kept as their peak in the lease directory, where every
decision counts it (gpu/peaks.py).
"""

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from mlops_build.gpu import neighbours
from mlops_build.gpu.cards import Card, account, look, remember, remembered
from mlops_build.gpu.decisions import Follower, follow, read
from mlops_build.gpu.declared import BadConfig
from mlops_build.gpu.ledger import Ledger, NoLedger, Promise
from mlops_build.gpu.nvml import DriverTrouble, NoDriver, Nvml
from mlops_build.gpu.peaks import Peaks

log = logging.getLogger("mlops_build.watch")

NVML_SECONDS = 1.0  # for starting NVML, and for all cards together: a card that hangs costs a look this long, once
LOOK_SECONDS = 4.0  # Prometheus waits 10 s for a scrape by default, and this must not be what it waits for
# A question that hangs keeps its thread. When so many do, the driver is not asked again until some have come back.
MOST_THREADS = 48
RECENT_SECONDS = 600.0  # what counts as lately, for those who look once and go (Zabbix)


@dataclass(frozen=True, slots=True)
class Counts:
    """Decisions: how many were refused, waited and were granted, and the seconds waited by those that ended."""

    granted: int = 0
    refused: int = 0
    waiting: int = 0
    cpu: int = 0
    waited_seconds: float = 0.0

    def and_also(self, decisions: Sequence[dict[str, Any]]) -> "Counts":
        numbers = {outcome: getattr(self, outcome) for outcome in ("granted", "refused", "waiting", "cpu")}
        waited = self.waited_seconds
        for decision in decisions:
            if decision.get("outcome") in numbers:
                numbers[decision["outcome"]] += 1
            seconds = decision.get("waited")
            if decision.get("outcome") != "waiting" and isinstance(seconds, int | float) and 0 <= seconds < 1e9:
                waited += seconds
        return Counts(**numbers, waited_seconds=waited)


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look saw. at: unix s. driver: why no card could be looked at; then there are no cards. ledger: whether there is a lease
    directory. counts: decisions since this watcher began. recent: those of the last ten minutes. seconds: how long the look took."""

    at: float
    cards: tuple[Card, ...] = ()
    driver: DriverTrouble | None = None
    why: str = ""
    ledger: bool = False
    counts: Counts = field(default_factory=Counts)
    recent: Counts = field(default_factory=Counts)
    seconds: float = 0.0


class Watcher:
    """Looks when asked, at most once in `fresh` seconds, and answers within `patience`, whatever hangs. May be asked by several threads.

    Keeps NVML started and its place in the decisions' logs between looks; a look that hangs goes on in its thread, and no second one is
    begun beside it.
    """

    def __init__(self, *, fresh: float = 1.0, patience: float = LOOK_SECONDS, nvml_seconds: float = NVML_SECONDS) -> None:
        self._fresh, self._patience, self._nvml_seconds = fresh, patience, nvml_seconds
        self._changed = threading.Condition()
        self._looking_since: float | None = None
        self._last: Seen | None = None
        self._last_end = 0.0
        self._nvml: Nvml | None = None
        self._ledger: Ledger | None = None
        self._follower: Follower | None = None
        self._counts = Counts()
        self._warned = ""

    def look(self) -> Seen:
        """What the node looks like now. If it does not show itself in time: a Seen without cards that says so."""
        with self._changed:
            if self._last is not None and time.monotonic() - self._last_end < self._fresh:
                return self._last
            if self._looking_since is None:
                self._looking_since = time.monotonic()
                threading.Thread(target=self._run, daemon=True).start()
            began = self._looking_since
            deadline = began + self._patience  # who comes while a look hangs waits no longer than who began it
            while self._looking_since == began:
                if not self._changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                    why = f"the look begun {time.monotonic() - began:.0f} s ago has not come back"
                    return Seen(time.time(), driver=DriverTrouble.SLOW, why=why, counts=self._counts)
            assert self._last is not None  # noqa: S101 -- a look that ended left one
            return self._last

    def _run(self) -> None:
        began = time.monotonic()
        try:
            seen = self._look(time.time())
        except Exception as error:  # for who waits: a bug must not leave them waiting for ever
            log.exception("looking at the node failed")
            seen = Seen(time.time(), driver=DriverTrouble.FAULT, why=f"{type(error).__name__}: {error}")
        with self._changed:
            self._last, self._last_end = replace(seen, seconds=time.monotonic() - began), time.monotonic()
            self._looking_since = None
            self._changed.notify_all()

    def _look(self, now: float) -> Seen:
        ledger = self._open_ledger()
        promises = ledger.promises() if ledger else []
        peaks = remembered(ledger, now) if ledger else {}
        recent = Counts()
        if ledger:
            if self._follower is None:
                self._follower = follow(ledger)
            self._counts = self._counts.and_also(self._follower.new())
            recent = Counts().and_also([one for one in read(ledger) if now - RECENT_SECONDS < one["time"] < now + 60])
        seen = Seen(now, ledger=ledger is not None, counts=self._counts, recent=recent)
        try:
            if self._nvml is None:
                if threading.active_count() > MOST_THREADS:
                    raise NoDriver("the NVIDIA driver has not answered for a long time", reason=DriverTrouble.SLOW)
                self._nvml = Nvml(self._nvml_seconds).__enter__()
            found = self._cards(self._nvml, promises, peaks, now)
        except NoDriver as error:
            if self._nvml is not None and error.reason is not DriverTrouble.SLOW:
                self._nvml.__exit__(None, None, None)
            self._nvml = None  # started anew at the next look: the driver may have been loaded again
            return replace(seen, driver=error.reason, why=error.message)
        if ledger:
            self._remember(ledger, peaks, found, now)
        return replace(seen, cards=tuple(found))

    def _cards(self, nvml: Nvml, promises: Sequence[Promise], peaks: Peaks, now: float) -> list[Card]:
        """The cards. A typing error in /etc/mlops-gpu.toml is told of, and blinds nobody: then what it declares is not counted."""
        try:
            return look(nvml, promises, peaks, now=now, full=True)
        except BadConfig as error:
            self._warn(f"{error.message}: what it declares is not counted")
            readings = nvml.read(True)
            known = neighbours.known(process.pid for reading in readings for process in reading.processes or ())
            return account(readings, promises, peaks=peaks, declared=(), now=now, processes=known, namespace=neighbours.pid_namespace())

    def _open_ledger(self) -> Ledger | None:
        """The lease directory, opened anew at each look: it may have been made, or replaced, since."""
        if self._ledger is not None:
            self._ledger.close()
        try:
            opened = Ledger.open(reading=True)
        except NoLedger as error:
            self._warn(f"{error.message}: leases are not seen, and neighbours' peaks not kept")
            self._ledger = self._follower = None
            return None
        if self._follower is not None:
            self._follower.ledger = opened
        self._ledger = opened
        return opened

    def _remember(self, ledger: Ledger, peaks: Peaks, found: Sequence[Card], now: float) -> None:
        try:
            remember(ledger, peaks, found, now)
        except NoLedger as error:
            self._warn(f"{error.message}: neighbours' peaks are not kept")

    def _warn(self, text: str) -> None:
        """Once, until something else is the matter."""
        if text != self._warned:
            self._warned = text
            log.warning("%s", text)

    def close(self) -> None:
        """Let NVML and the lease directory go."""
        with ExitStack() as stack:
            if self._ledger is not None:
                stack.callback(self._ledger.close)
            if self._nvml is not None and self._looking_since is None:
                stack.push(self._nvml)
