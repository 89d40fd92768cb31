"""Search for cards with room for a request, and promise the memory on them.

No process is granted memory while it sees a conflicting promise in a read that it began after its own promise was visible. Of two promises
that do not fit together, at least one process sees the other's, so memory is never granted twice. This does not depend on the directory's
lock, nor on clocks. The lock and the order of the promises only let processes decide quickly: the later promise is withdrawn.
tests/gpu/test_protocol.py explores this exhaustively.

Without a directory, a card is chosen at random, weighted by free memory.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mlops_build.errors import NoRoom, Refused
from mlops_build.gpu import decisions, log
from mlops_build.gpu.cards import Card, Snapshot, remember, snapshot
from mlops_build.gpu.choice import Choice, Request, choose, could_ever, why_not
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import LOCK_SECONDS, Held, Ledger
from mlops_build.gpu.neighbours import inherited
from mlops_build.gpu.nvml import NoDriver, Nvml
from mlops_build.gpu.promise import Promise, boot_time, new, printable
from mlops_build.gpu.report import hidden
from mlops_build.gpu.verdict import Verdict, verdict
from mlops_build.gpu.visible import visible
from mlops_build.quantity import show_bytes

# The id of the lease that this process and its descendants share.
LEASE_VARIABLE = "MLOPS_GPU_LEASE"
# Processes that choose the same memory choose again, at most this often and this long.
TRIES, TRY_SECONDS = 20, 15.0
# The maximum age of a snapshot at a grant: a process may be stopped, or wait for the lock, and the card is used meanwhile.
FRESH_SECONDS, REFRESHES = 1.0, 3
# How long an earlier promise waits until the later one is withdrawn. The later one may be granted already, and then stays.
CONFLICT_SECONDS, CONFLICT_POLL_SECONDS = 0.5, 0.01
CONTENDED = "others took it at the same time"
POLL_SECONDS = 1.0
PROGRESS_SECONDS = 10.0
# A waiting request keeps later ones off a card. If no memory of it has become free after this time, then after twice that time, and so on,
# it does so with another card. Its ticket is written again as often.
TICKET_SECONDS = 10.0


class Nested(Refused):
    """The lease that this process has from its parent is smaller than what it requests."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The result of a search: the cards (none: the CPU), and the promise on them.

    ledger: the open lease directory, if the promise is in it. held: None if the promise is inherited. before: see report.Reporter.
    """

    cards: Sequence[Card]
    promise: Promise
    ledger: Ledger | None = None
    held: Held | None = None
    before: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A snapshot, its cards with the promises of that moment, the choice among them, and the promise for it."""

    snapshot: Snapshot
    cards: Sequence[Card]
    choice: Choice
    request: Request
    held: Held | None = None

    @property
    def chosen(self) -> list[Card]:
        by_uuid = {card.uuid: card for card in self.cards}
        return [by_uuid[uuid] for uuid in self.choice.uuids]


class Search:
    """A search for room, which ends with a grant or an error. Owns the ledger until then."""

    def __init__(self, request: Request, service: str, progress: Callable[[str], None] | None) -> None:
        self._request, self._service = request, service
        self._progress = progress or log.warning
        self._began, self._boot = time.monotonic(), boot_time()
        self._ledger: Ledger | None = None
        self._writable = False
        self._held: list[Held] = []  # what to undo after an error: the promise, the ticket
        self._ticket: Held | None = None
        self._ticket_ends, self._moves, self._patience = 0.0, 0.0, TICKET_SECONDS / 2
        self._left: dict[str, int] = {}  # when the ticket was written, by UUID
        self._ledger_error: NoLedger | None = None  # reported only if there are cards to choose from
        self._warned = ""

    def run(self, wait: float, otherwise: str) -> Grant:
        """Search for at most `wait` seconds. otherwise: without room or driver, "cpu" grants the CPU, "fail" raises NoRoom or NoDriver.

        Raises also Nested, AmbiguousMask and UsageError.
        """
        self._open_ledger()
        try:
            with Nvml() as nvml:
                return self._inherited(nvml) or self._run(nvml, wait, otherwise)
        except BaseException as error:  # an interrupt, too
            self._undo()
            self._close()
            if not isinstance(error, NoDriver) or otherwise != "cpu":
                raise
            return self._cpu(error)

    def _run(self, nvml: Nvml, wait: float, otherwise: str) -> Grant:
        if self._ledger_error is not None:
            self._warn(self._ledger_error)
        # Before the lock, since the first calls to the driver are slow, and a card may hang. Raises AmbiguousMask.
        visible(nvml.read())
        attempt = self._reserve(nvml)
        last_progress = -math.inf
        while not attempt.choice.uuids:
            left = wait - (time.monotonic() - self._began)
            could = could_ever(attempt.cards, self._request)
            if left <= 0 or not could:
                break
            if last_progress < 0:
                self._record("waiting", attempt)
            if time.monotonic() - last_progress >= PROGRESS_SECONDS:
                last_progress = time.monotonic()
                self._progress(f"waiting for {self._wanted()}, at most {left:.0f} s more:{_why(attempt)}")
            self._queue(attempt, could)
            time.sleep(min(left, _jittered(0.5, 1.0) * POLL_SECONDS))
            # Without the lock, so that waiting processes do not delay the decisions of others.
            attempt = self._choose(nvml, self._request)
            if attempt.choice.uuids:
                attempt = self._reserve(nvml)
        return self._end(attempt, otherwise)

    def _end(self, attempt: _Attempt, otherwise: str) -> Grant:
        granted = bool(attempt.choice.uuids)
        self._record("granted" if granted else "cpu" if otherwise == "cpu" else "refused", attempt)
        self._undo(attempt.held)
        if granted and attempt.held is not None:
            before = {card.uuid: card.foreign_bytes for card in hidden(attempt.snapshot, attempt.chosen)}
            return Grant(attempt.chosen, attempt.held.promise, self._ledger, attempt.held, before)
        self._close()
        if granted:
            return Grant(attempt.chosen, new(attempt.choice.uuids, attempt.request.bytes, self._service))
        waited = time.monotonic() - self._began
        missing = f"no room for {self._wanted()}{f' after {waited:.0f} s' if waited >= 1 else ''}:{_why(attempt)}"
        if otherwise == "cpu":
            return self._cpu(missing)
        raise NoRoom(
            missing,
            remedy=f"wait {'longer' if waited >= 1 else 'for room'} (wait={max(120, 2 * waited):.0f}, --wait {max(120, 2 * waited):.0f}), "
            'request less, or allow the CPU (otherwise="cpu", --otherwise cpu)'
            if could_ever(attempt.cards, self._request)
            else "waiting does not help: request less, or check the filters and CUDA_VISIBLE_DEVICES",
            details={"refused": dict(attempt.choice.refused)},
        )

    def _cpu(self, why: object) -> Grant:
        log.warning("using the CPU (otherwise: cpu): %s", why)
        return Grant((), new((), 0, self._service))

    def _inherited(self, nvml: Nvml) -> Grant | None:
        """The lease of a process that started this one, directly or through others (a shell, `gpu run`); None without one."""
        promise = inherited(self._ledger.promises(reports=False), os.environ.get(LEASE_VARIABLE)) if self._ledger is not None else None
        if promise is None:
            return None
        request = self._request
        cards = {card.uuid: card for card in self._snapshot(nvml).cards() if card.uuid in promise.uuids}
        uuids = [uuid for uuid in promise.uuids if uuid in could_ever(list(cards.values()), replace(request, bytes=0))][: request.count]
        if not uuids or request.bytes > promise.bytes or (request.exclusive and not promise.exclusive):
            raise Nested(
                f"this program was started with a lease of {show_bytes(promise.bytes)} on {', '.join(promise.uuids)}, and requests "
                f"{self._wanted()}{'' if uuids else ' on a card that the lease does not have'}",
                remedy="request the same from `gpu run`, or start the program without `gpu run`",
            )
        shared = replace(promise, uuids=tuple(uuids), bytes=request.bytes)
        return Grant([cards[uuid] for uuid in uuids], shared, self._ledger)

    # -- reading --

    def _open_ledger(self) -> None:
        try:
            self._ledger, self._writable = Ledger.open(), True
        except NoLedger as error:
            self._ledger_error = error
            with contextlib.suppress(NoLedger):
                self._ledger = Ledger.open(reading=True)

    def _snapshot(self, nvml: Nvml) -> Snapshot:
        return snapshot(nvml, self._ledger, full=self._request.max_utilisation is not None)

    def _choose(self, nvml: Nvml, request: Request) -> _Attempt:
        """Choose among the cards as they are now, beside the requests that have waited longer."""
        now = self._snapshot(nvml)
        cards = now.cards([*now.promises, *(self._earlier(self._ledger) if self._ledger else ())])
        return _Attempt(now, cards, choose(cards, request), request)

    def _earlier(self, ledger: Ledger) -> list[Promise]:
        """The tickets of requests that have waited longer."""
        return [ticket for ticket in ledger.tickets() if self._ticket is None or ticket.order < self._ticket.promise.order]

    # -- reserving --

    def _reserve(self, nvml: Nvml) -> _Attempt:
        """Choose and promise."""
        if self._ledger is not None and self._writable:
            try:
                return self._reserve_in(self._ledger, nvml)
            except NoLedger as error:
                self._warn(error)
                self._undo(self._ticket)
        return self._reserve_alone(nvml)

    def _reserve_in(self, ledger: Ledger, nvml: Nvml) -> _Attempt:
        began = time.monotonic()
        with contextlib.ExitStack() as turn:
            locked = turn.enter_context(ledger.turn())
            if not locked:
                log.warning("the lock of %s was not free for %g s: choosing without it, which takes longer", ledger.path, LOCK_SECONDS)
            # At random without the lock, so that not all processes choose the same card.
            request = self._request if locked else replace(self._request, strategy="random")
            for _ in range(TRIES):
                attempt = self._choose(nvml, request)
                if not attempt.choice.uuids:
                    return attempt
                held = ledger.hold(new(attempt.choice.uuids, request.bytes, self._service, exclusive=request.exclusive))
                self._held.append(held)
                # A release before 0.7 reads no promise again after its own. If one is deciding, its lease is on disk when the lock is free.
                locked = locked or turn.enter_context(ledger.turn(LOCK_SECONDS))
                if self._settled(ledger, nvml, attempt, held.promise):
                    return replace(attempt, held=held)
                self._undo(self._ticket)
                if time.monotonic() - began > TRY_SECONDS:
                    break
                time.sleep(_jittered(0.01, 0.1))
        return replace(attempt, choice=Choice((), dict.fromkeys(attempt.choice.uuids, CONTENDED)))

    def _settled(self, ledger: Ledger, nvml: Nvml, attempt: _Attempt, mine: Promise) -> bool:
        """Whether the promise is granted; otherwise it must be withdrawn."""
        now = attempt.snapshot

        def fits(promises: Sequence[Promise]) -> bool:
            return all(why_not(card, attempt.request) is None for card in now.cards(promises, mine.uuids))

        for _ in range(1 + REFRESHES):
            if time.monotonic() - now.taken > FRESH_SECONDS:
                now = self._snapshot(nvml)
            deadline = time.monotonic() + CONFLICT_SECONDS
            while (state := verdict(mine, ledger.promises(reports=False), fits)) is Verdict.WAIT and time.monotonic() < deadline:
                time.sleep(CONFLICT_POLL_SECONDS)
            if state is not Verdict.GRANTED or time.monotonic() - now.taken <= FRESH_SECONDS:
                break
        return state is Verdict.GRANTED

    def _reserve_alone(self, nvml: Nvml) -> _Attempt:
        """Without a directory: choose at random, weighted by free memory, wait until others that chose at the same time may have begun to
        load, and look again."""
        request = replace(self._request, strategy="random")
        for _ in range(TRIES):
            attempt = self._choose(nvml, request)
            if attempt.choice.uuids:
                time.sleep(_jittered(0.1, 0.5))
                again = self._snapshot(nvml)
                if any(why_not(card, request) for card in again.cards(only=attempt.choice.uuids)):
                    continue
            return attempt
        return replace(attempt, choice=Choice((), dict.fromkeys(attempt.choice.uuids, CONTENDED)))

    def _queue(self, attempt: _Attempt, could: Sequence[str]) -> None:
        """Keep later requests off as many cards as this one needs. could: UUIDs of cards that may have room, the likeliest first."""
        left = {card.uuid: card.left_bytes for card in attempt.cards}
        now = time.monotonic()
        if self._ledger is None or not self._writable or now < self._ticket_ends:
            return
        old, request = self._ticket, self._request
        chosen = old.promise.uuids if old is not None else ()
        gained = any(left[uuid] > self._left.get(uuid, 0) for uuid in chosen)
        if gained or now >= self._moves:
            if not gained:
                taken = {uuid for ticket in self._earlier(self._ledger) for uuid in ticket.uuids}
                chosen = tuple(sorted(could, key=lambda uuid: (uuid in chosen, uuid in taken))[: request.count])
                self._patience *= 2  # so that it waits long enough on one of them, however long the leases there last
            self._left, self._moves = left, now + self._patience
        self._ticket_ends = now + TICKET_SECONDS
        until = boot_time() + 2 * TICKET_SECONDS
        try:
            self._ticket = self._ledger.hold(
                new(chosen, request.bytes, self._service, exclusive=request.exclusive, boot=self._boot, until=until)
            )
        except NoLedger as error:
            log.warning("waiting without a ticket, so later requests may be first: %s", error.message)
            return
        self._held.append(self._ticket)
        if old is not None:
            self._withdraw(old)

    def _undo(self, *kept: Held | None) -> None:
        """Withdraw the promise and the ticket, except those that are kept."""
        for held in [held for held in self._held if held not in kept]:
            self._withdraw(held)

    def _withdraw(self, held: Held) -> None:
        self._held.remove(held)
        if held is self._ticket:
            self._ticket = None
        if self._ledger is not None:
            self._ledger.withdraw(held)

    # -- reporting --

    def _warn(self, error: NoLedger) -> None:
        """Warn, once for each reason, that the directory is missing."""
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
            attempt.cards,
            attempt.choice,
            service=self._service,
            lease=lease_id,
            waited=time.monotonic() - self._began,
        )
        try:
            decisions.record(self._ledger, text, os.geteuid())
            remember(self._ledger, attempt.snapshot, attempt.cards)
        except NoLedger as error:
            log.warning("the decision is not recorded: %s", error.message)

    def _wanted(self) -> str:
        request = self._request
        exclusively = ", exclusively" if request.exclusive else ""
        return f"{show_bytes(request.bytes)}{f' on each of {request.count} cards' if request.count > 1 else ''}{exclusively}"

    def _close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


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
    return "".join(lines) or " there is no card"
