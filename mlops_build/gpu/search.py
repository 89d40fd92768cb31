"""Search for cards with room for a request, and promise the memory on them.

The choice is made under the lease directory's lock. If another process holds the lock for too long, the memory is promised first and
checked afterwards. Without a directory, a card is chosen at random, and a child process holds the memory (placeholder.py).
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlops_build.errors import NoRoom, Refused
from mlops_build.gpu import decisions, log
from mlops_build.gpu.cards import Card, Snapshot, remember, remembered, snapshot
from mlops_build.gpu.choice import Choice, Request, choose, could_ever, why_not
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import LOCK_SECONDS, Held, Ledger, LockHeld
from mlops_build.gpu.nvml import NoDriver, Nvml, Trouble
from mlops_build.gpu.peaks import Peaks
from mlops_build.gpu.promise import Promise, pid_namespace, printable
from mlops_build.gpu.visible import visible
from mlops_build.quantity import show_bytes

if TYPE_CHECKING:
    from typing import Any

# The id of the lease that this process holds, for a program under `gpu run` that calls gpu.lease itself.
LEASE_VARIABLE = "MLOPS_GPU_LEASE"
# Without the lock or a directory, two processes can choose the same memory. Each then chooses again, at most this often.
TRIES = 8
# The maximum age of a snapshot once the lock is taken. A neighbour that grew since could as well have grown after the decision.
FRESH_SECONDS = 0.5
CONTENDED = "others took it at the same time"
POLL_SECONDS = 1.0
PROGRESS_SECONDS = 10.0


class Nested(Refused):
    """This process already holds a lease."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The result of a search: the cards (none: the CPU), and the promise on them.

    ledger: the open lease directory, if the promise is in it. held: None if the promise is inherited. placeholder: the child process that
    holds the memory, without a directory.
    """

    cards: Sequence[Card]
    promise: Promise
    ledger: Ledger | None = None
    held: Held | None = None
    placeholder: Any = None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The observed cards, the choice among them, and the promise or placeholder for it."""

    cards: Sequence[Card]
    choice: Choice
    request: Request
    seed: int
    held: Held | None = None
    placeholder: Any = None

    @property
    def chosen(self) -> list[Card]:
        by_uuid = {card.uuid: card for card in self.cards}
        return [by_uuid[uuid] for uuid in self.choice.uuids]


class Search:
    """A search for room, which ends with a grant or an error. Owns the ledger until then."""

    def __init__(self, request: Request, service: str, progress: Callable[[str], None] | None) -> None:
        self._request, self._service = request, service
        self._progress = progress or log.warning
        self._began = time.monotonic()
        self._decided: float | None = None
        self._ledger: Ledger | None = None
        self._writable = False
        self._peaks: Peaks = {}
        self._taken: _Attempt | None = None  # what to undo after an error
        self._ledger_error: NoLedger | None = None  # reported only if there are cards to choose from
        self._warned = ""

    def run(self, wait: float, otherwise: str) -> Grant:
        """Search for at most `wait` seconds. otherwise: without room or driver, "cpu" grants the CPU, "fail" raises NoRoom or NoDriver.

        Raises also Nested, AmbiguousMask and UsageError.
        """
        self._open_ledger()
        try:
            inherited = self._inherited()
            if inherited is not None:
                return inherited
            with Nvml() as nvml:
                return self._run(nvml, wait, otherwise)
        except BaseException as error:  # an interrupt, too
            self._give_back()
            self._close()
            if not isinstance(error, NoDriver) or otherwise != "cpu":
                raise
            log.warning("%s; using the CPU (otherwise: cpu)", error)
            return self._grant(None)

    def _run(self, nvml: Nvml, wait: float, otherwise: str) -> Grant:
        if self._ledger_error is not None:
            self._warn(self._ledger_error)
        # The first snapshot is taken before the lock, since the first calls to the driver are slow, and a card may hang.
        self._read_peaks()
        first = self._snapshot(nvml, self._promises())
        visible(first.cards(tuple(first.promises.values())))  # raises AmbiguousMask
        attempt = self._reserve(nvml, first)
        last_progress = -math.inf
        while not attempt.choice.uuids:
            left = wait - (time.monotonic() - self._began)
            if left <= 0 or not could_ever(attempt.cards, self._request):
                break
            if last_progress < 0:
                self._record("waiting", attempt)
            if time.monotonic() - last_progress >= PROGRESS_SECONDS:
                last_progress = time.monotonic()
                self._progress(f"waiting for {self._wanted()}, at most {left:.0f} s more: {_why(attempt)}")
            time.sleep(min(left, _jittered(0.5, 1.0) * POLL_SECONDS))
            self._read_peaks()
            attempt = self._choose(nvml)  # without the lock, so that waiting processes do not delay the decisions of others
            if attempt.choice.uuids:
                attempt = self._reserve(nvml)
        if attempt.choice.uuids:
            self._record("granted", attempt)
            return self._grant(attempt)
        self._record("cpu" if otherwise == "cpu" else "refused", attempt)
        missing = f"no room for {self._wanted()}{f' after waiting {wait:g} s' if wait else ''}: {_why(attempt)}"
        if otherwise == "cpu":
            log.warning("%s; using the CPU (otherwise: cpu)", missing)
            self._close()
            return self._grant(None)
        ever = could_ever(attempt.cards, self._request)
        raise NoRoom(
            missing,
            remedy='wait for room (wait=120, --wait 120), request less, or allow the CPU (otherwise="cpu", --otherwise cpu)'
            if ever
            else "waiting does not help: request less, or check the filters and CUDA_VISIBLE_DEVICES",
            details={"refused": dict(attempt.choice.refused)},
        )

    def _inherited(self) -> Grant | None:
        """What `gpu run` was granted, which became this process by exec; None if there is nothing. The program shares that lease."""
        lease_id = os.environ.get(LEASE_VARIABLE)
        if not lease_id or self._ledger is None:
            return None
        for promise in self._ledger.promises():
            if (promise.id, promise.pid, promise.pid_namespace) == (lease_id, os.getpid(), pid_namespace()):
                break
        else:
            return None
        request = self._request
        if request.bytes > promise.bytes or request.count > len(promise.uuids) or (request.exclusive and not promise.exclusive):
            raise Nested(
                f"this program was started with a lease of {show_bytes(promise.bytes)} on {len(promise.uuids)} card(s), "
                f"and requests {self._wanted()}",
                remedy="request the same from `gpu run`, or start the program without `gpu run`",
            )
        uuids = promise.uuids[: request.count]
        with Nvml() as nvml:
            cards = {card.uuid: card for card in self._look(nvml)}
        return Grant(
            [cards[uuid] for uuid in uuids if uuid in cards], replace(promise, uuids=uuids, bytes=request.bytes), ledger=self._ledger
        )

    # -- reading --

    def _open_ledger(self) -> None:
        try:
            self._ledger, self._writable = Ledger.open(), True
        except NoLedger as error:
            self._ledger_error = error
            with contextlib.suppress(NoLedger):
                self._ledger = Ledger.open(reading=True)

    def _look(self, nvml: Nvml, without: str = "") -> list[Card]:
        """The cards now, without the lease `without` (an id). Promises are read before NVML: memory that appears in between counts twice,
        which is harmless."""
        promises = [promise for promise in self._promises() if promise.id != without]
        return self._snapshot(nvml, promises).cards(promises)

    def _promises(self) -> list[Promise]:
        return self._ledger.promises() if self._ledger is not None else []

    def _snapshot(self, nvml: Nvml, promises: Sequence[Promise]) -> Snapshot:
        return snapshot(nvml, promises, self._peaks, now=time.time(), utilisation=self._request.max_utilisation is not None)

    def _read_peaks(self) -> None:
        """Called outside the lock, since peaks change slowly."""
        if self._ledger is not None:
            self._peaks = remembered(self._ledger, time.time())

    def _choose(self, nvml: Nvml, request: Request | None = None, full: Collection[str] = ()) -> _Attempt:
        """Choose among the cards as they are now. full: UUIDs of cards that have less memory than NVML reports."""
        why = "the memory could not be allocated, although NVML reports it as free"
        cards = [replace(card, trouble=Trouble.FAULT, why=why) if card.uuid in full else card for card in self._look(nvml)]
        return self._choose_of(cards, request or self._request)

    def _choose_of(self, cards: Sequence[Card], request: Request) -> _Attempt:
        seed = int.from_bytes(os.urandom(4), "big")
        return _Attempt(cards, choose(cards, request, seed), request, seed)

    # -- reserving --

    def _reserve(self, nvml: Nvml, before: Snapshot | None = None) -> _Attempt:
        """Choose and promise. before: a recent snapshot."""
        if self._ledger is not None and self._writable:
            try:
                return self._reserve_locked(nvml, self._ledger, before or self._snapshot(nvml, self._promises()))
            except LockHeld as error:
                self._warn(error)
                try:
                    return self._reserve_unlocked(nvml, self._ledger)
                except NoLedger as full:
                    self._warn(full)
            except NoLedger as error:
                self._warn(error)
        return self._reserve_alone(nvml)

    def _reserve_locked(self, nvml: Nvml, ledger: Ledger, before: Snapshot) -> _Attempt:
        # NVML is read before the lock is taken, so that the lock is held briefly. The promises are read under the lock.
        began = time.monotonic()
        locked = 0.0

        def decide() -> _Attempt:
            nonlocal locked
            locked = time.monotonic()
            attempt = None
            if locked - before.taken < FRESH_SECONDS:
                attempt = self._choose_of(before.cards(ledger.promises()), self._request)
            if attempt is None or not attempt.choice.uuids:  # an old snapshot counts later changes twice
                attempt = self._choose(nvml)
            return self._promised(attempt, ledger)

        attempt = ledger.decide(decide)
        self._decided = time.monotonic() - began
        # If this process was stopped while it held the lock, others have stopped waiting and decided without the lock.
        if attempt.held is not None and time.monotonic() - locked > LOCK_SECONDS / 2 and not self._holds(nvml, attempt):
            self._give_back()
            return self._reserve_unlocked(nvml, ledger)
        return attempt

    def _reserve_unlocked(self, nvml: Nvml, ledger: Ledger) -> _Attempt:
        """Promise first, then check whether it fits beside the other promises: of two that do not fit, at least one sees the other and
        withdraws. The card is chosen at random, so that not all processes choose the same one."""
        request = replace(self._request, strategy="random")
        for _ in range(TRIES):
            attempt = self._promised(self._choose(nvml, request), ledger)
            if attempt.held is None or self._holds(nvml, attempt):
                return attempt
            self._give_back()
            time.sleep(_jittered(0.01, 0.2))
        return replace(attempt, held=None, choice=Choice((), dict.fromkeys(attempt.choice.uuids, CONTENDED)))

    def _promised(self, attempt: _Attempt, ledger: Ledger) -> _Attempt:
        if not attempt.choice.uuids:
            return attempt
        request = attempt.request
        held = ledger.promise(attempt.choice.uuids, request.bytes, exclusive=request.exclusive, service=self._service)
        self._taken = replace(attempt, held=held)
        return self._taken

    def _give_back(self) -> None:
        taken, self._taken = self._taken, None
        if taken is not None and taken.held is not None and self._ledger is not None:
            self._ledger.withdraw(taken.held)
        if taken is not None and taken.placeholder is not None:
            taken.placeholder.release()

    def _holds(self, nvml: Nvml, attempt: _Attempt) -> bool:
        """Whether the promise fits beside all other promises as they are now."""
        cards = self._look(nvml, without=attempt.held.promise.id if attempt.held else "")
        return all(why_not(card, attempt.request) is None for card in cards if card.uuid in attempt.choice.uuids)

    def _reserve_alone(self, nvml: Nvml) -> _Attempt:
        """Without a directory: choose at random, weighted by free memory; hold the memory with a child process; check again."""
        from mlops_build.gpu import placeholder

        request = replace(self._request, strategy="random")
        full: set[str] = set()
        for _ in range(TRIES + len(self._look(nvml))):
            attempt = self._choose(nvml, request, full)
            if not attempt.choice.uuids:
                return attempt
            try:
                holder = placeholder.hold(attempt.choice.uuids, request.bytes)
            except placeholder.Full as error:
                full.add(error.uuid)
                continue
            if holder is None:  # no libcuda: wait until others that chose at the same time have begun to load
                time.sleep(_jittered(0.1, 0.5))
                if all(why_not(card, request) is None for card in self._look(nvml) if card.uuid in attempt.choice.uuids):
                    return attempt
                continue
            attempt = self._taken = replace(attempt, placeholder=holder)
            after = [card for card in self._look(nvml) if card.uuid in attempt.choice.uuids]
            if all(card.trouble is None and (card.used_bytes or 0) <= (card.total_bytes or 0) for card in after):
                return attempt
            self._give_back()
        return replace(attempt, placeholder=None, choice=Choice((), dict.fromkeys(attempt.choice.uuids, CONTENDED)))

    # -- reporting --

    def _warn(self, error: NoLedger) -> None:
        """Warn, once for each reason, that the directory or its lock is missing."""
        if error.message != self._warned:
            self._warned = error.message
            log.warning(
                "%s. A card is chosen at random, weighted by free memory. Services that choose at the same time do not see each other, and "
                "may take the same memory%s",
                error.message,
                f". To fix it: {error.remedy}" if error.remedy else "",
            )

    def _record(self, outcome: str, attempt: _Attempt) -> None:
        if self._ledger is None or not self._writable:
            return
        lease_id = attempt.held.promise.id if attempt.held else None
        text = decisions.line(
            outcome,
            attempt.request,
            attempt.seed,
            attempt.cards,
            attempt.choice,
            service=self._service,
            lease=lease_id,
            waited=time.monotonic() - self._began,
            decided=self._decided,
        )
        try:
            decisions.record(self._ledger, text, os.geteuid())
            remember(self._ledger, self._peaks, attempt.cards, time.time())
        except NoLedger as error:
            log.warning("the decision is not recorded: %s", error.message)

    def _wanted(self) -> str:
        request = self._request
        exclusively = ", exclusively" if request.exclusive else ""
        return f"{show_bytes(request.bytes)}{f' on each of {request.count} cards' if request.count > 1 else ''}{exclusively}"

    def _grant(self, attempt: _Attempt | None) -> Grant:
        self._taken = None
        if attempt is not None and attempt.held is not None:
            return Grant(attempt.chosen, attempt.held.promise, ledger=self._ledger, held=attempt.held)
        if attempt is None:
            return Grant((), _unwritten((), 0, self._service))
        self._close()
        return Grant(
            attempt.chosen, _unwritten(attempt.choice.uuids, attempt.request.bytes, self._service), placeholder=attempt.placeholder
        )

    def _close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


def _unwritten(uuids: tuple[str, ...], size: int, service: str) -> Promise:
    """A promise that is not in a lease directory."""
    return Promise("", uuids, size, False, service, os.getpid(), pid_namespace(), os.geteuid(), time.time())


def _jittered(least: float, most: float) -> float:
    """A random number between the two, so that waiting processes do not retry at the same time."""
    return least + (most - least) * os.urandom(1)[0] / 255


def _why(attempt: _Attempt) -> str:
    """The reason for each card, a line each."""
    lines = []
    for card in attempt.cards:
        why = attempt.choice.refused.get(card.uuid)
        if why:
            lines.append(f"\n  {card.index} {printable(card.name)} {card.uuid}: {why}")
    return "".join(lines) or "there is no card"
