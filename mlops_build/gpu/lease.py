"""A lease: memory of a card, chosen and promised before anything is loaded, for as long as a process lives.

    with gpu.lease("4GiB", wait=120) as lease:
        with lease.loading():                 # one service at a time loads onto a card
            lease.limit_torch()               # who outgrows the budget fails itself, not its neighbours
            model.to(lease.device)            # cuda:0 under the mask

Nothing here starts CUDA or imports torch until `device` or `limit_torch` is asked for.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from mlops_build.errors import NoRoom, Refused, UsageError
from mlops_build.gpu import decisions, log
from mlops_build.gpu.cards import Card, Snapshot, remember, remembered, snapshot
from mlops_build.gpu.choice import STRATEGIES, Choice, Request, Strategy, choose, could_ever, why_not
from mlops_build.gpu.frozen import dataclass, replace
from mlops_build.gpu.ledger import LOCK_SECONDS, Held, Ledger, LockHeld, NoLedger, Promise, pid_namespace, printable
from mlops_build.gpu.nvml import NoDriver, Nvml, Trouble, read
from mlops_build.gpu.peaks import Peaks
from mlops_build.gpu.visible import ORDER, VARIABLE, cuda_started, visible
from mlops_build.quantity import parse_bytes, show_bytes

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any, Literal, Self

    from mlops_build.gpu.loading import Reporter

# What is assumed of a service that does not say: of 40 services of 1-6 GiB, 0.1-0.3 failed to start with 3-4 GiB assumed, 1.6 with 1 GiB.
ASSUMED = 4 << 30
SERVICE_VARIABLE = "MLOPS_SERVICE"
# The lease that this process holds, for a program that `gpu run` has started and that asks for a lease itself.
LEASE_VARIABLE = "MLOPS_GPU_LEASE"
# Without the lock or a directory, a choice can turn out to have been made by two at once: so often it is made anew.
TRIES = 8
# How old a look at NVML may be when the lock is got. A neighbour that grows meanwhile could as well have grown right after the decision.
FRESH_SECONDS = 0.5
POLL_SECONDS = 1.0
PROGRESS_SECONDS = 10.0

_mine: list[Lease] = []  # what this process holds: at most one, since it has one CUDA_VISIBLE_DEVICES
_beginning = threading.Lock()


class CudaStarted(Refused):
    """CUDA is already started in this process: a mask would come too late, and the model would load onto a card that was not chosen."""


class Nested(Refused):
    """This process holds a lease already."""


def lease(
    memory: str | int | None = None,
    *,
    count: int = 1,
    wait: float = 0,
    otherwise: Literal["fail", "cpu"] = "fail",
    exclusive: bool = False,
    strategy: str | Strategy = "spread",
    names: Sequence[str] = (),
    uuids: Sequence[str] = (),
    max_utilisation: int | None = None,
    min_compute_capability: tuple[int, int] | None = None,
    service: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> Lease:
    """Choose a card (or `count` of them), promise its memory to this process, and set CUDA_VISIBLE_DEVICES to it.

    Call it before CUDA is started: before anything asks torch for a device. Use it as a context manager, or call `release()`. The lease is
    held by the process, and by what it forks or execs: the kernel ends it with the last of them, however they end.

    memory: the budget on each card, such as "4GiB", or bytes; all that the process will use there, the CUDA context (300-500 MiB) included.
        None: 4 GiB are assumed, and a warning says so.
    count: so many cards, `memory` on each. Never several MIG instances: CUDA gives a process only one.
    wait: seconds to wait for room; 0 does not wait. It asks about once a second, and whoever asks first when there is room gets it: there
        is no queue, and small requests can overtake a large one again and again. It never waits silently, nor longer than this.
    otherwise: what to do where there is no room (after waiting) or no driver: "fail" raises NoRoom or NoDriver, "cpu" gives a lease whose
        device is the CPU, with a warning. The CPU is never used without being asked for.
    exclusive: the whole card: no other lease on it, before or after, and next to nothing used without a lease.
    strategy: "spread" (the most room left as a share of the card, the default), "pack" (the least), "random" (by chance, weighted by what
        is left), or a function of your own: (cards, request, rng) -> cards in order of preference.
    names, uuids: only cards whose name matches one of these patterns ("*A100*"), whose UUID begins so. A CUDA_VISIBLE_DEVICES that is
        already set is honoured: only its cards are chosen from.
    max_utilisation: only cards that are at most so busy, in percent.  min_compute_capability: such as (8, 0).
    service: the name that others see; None takes MLOPS_SERVICE, else the program's name.
    progress: called with a line of text while it waits; None logs it as a warning of the logger "mlops_build.gpu".

    Raises NoRoom (it says of every card why not), NoDriver, CudaStarted, Nested (this process holds a lease already), and UsageError.

    Without a lease directory that it can write to (MLOPS_GPU_LEASE_DIR, else /run/mlops-gpu), a card is chosen by chance, weighted by what
    is free; its memory is held by a child process until loading begins, and a warning says what is lost: others' promises are not seen.
    """
    request = _request(memory, count, exclusive, strategy, names, uuids, max_utilisation, min_compute_capability)
    if otherwise not in ("fail", "cpu"):
        raise UsageError(f"{otherwise!r} is no policy", remedy='otherwise="fail" or otherwise="cpu"')
    if not (isinstance(wait, int | float) and 0 <= wait < math.inf):
        raise UsageError(f"cannot wait {wait!r} seconds", remedy="a number of seconds, 0 or more; waiting is bounded")
    name = printable(service or os.environ.get(SERVICE_VARIABLE) or _program())
    with _beginning:
        if _mine:
            raise Nested(
                f"this process holds a lease already ({_mine[0]})",
                remedy="release it first, ask once for all that is needed, or for several cards with count=2",
            )
        started = cuda_started()
        if started is not None:
            raise CudaStarted(
                f"{started}: it would not see the card that is chosen now",
                remedy="call gpu.lease before anything asks torch for a device, or start the program with `mlops-build gpu run`",
            )
        granted = _Search(request, name, progress).run(float(wait), otherwise)
        _mine.append(granted)
    return granted


class Lease:
    """Memory of a card, held for this process. A context manager; `release()` ends it.

    uuids, cards: what was chosen (none: the CPU). memory_bytes: the budget on each. Guards the lease's file, the environment's mask, and
    the process that holds memory where there is no directory.
    """

    def __init__(
        self, chosen: Sequence[Card], promise: Promise, *, ledger: Ledger | None = None, held: Held | None = None, placeholder: Any = None
    ) -> None:
        self.cards: tuple[Card, ...] = tuple(chosen)
        self.uuids: tuple[str, ...] = promise.uuids
        self.memory_bytes: int = promise.bytes
        self._promise, self._ledger, self._held, self._placeholder = promise, ledger, held, placeholder  # held: unless it is inherited
        self._reporter: Reporter | None = None
        self._told: dict[str, int] = {}
        self._loaded = self._released = False
        self._process = os.getpid()
        mask = {VARIABLE: ",".join(self.uuids), ORDER: "PCI_BUS_ID"}
        if promise.id:
            mask[LEASE_VARIABLE] = promise.id
        self._before = {variable: os.environ.get(variable) for variable in mask}
        os.environ.update(mask)

    def __str__(self) -> str:
        if self.cpu:
            return "the CPU"
        return f"{show_bytes(self.memory_bytes)} on " + " and ".join(f"{card.name} ({card.uuid})" for card in self.cards)

    @property
    def cpu(self) -> bool:
        """Whether it is the CPU, because there was no room or no driver and `otherwise="cpu"` allowed it."""
        return not self.uuids

    @property
    def id(self) -> str | None:
        """The lease's name in the lease directory; None where it could not be written there."""
        return self._promise.id or None

    @property
    def device(self) -> Any:
        """torch.device("cuda:0"), the first card under the mask, or torch.device("cpu"). Imports torch."""
        return self.devices[0]

    @property
    def devices(self) -> tuple[Any, ...]:
        """One torch.device for each card of the lease. Imports torch.

        Where a child process holds the memory (no lease directory), it lets go now: load at once.
        """
        import torch

        if self.cpu:
            return (torch.device("cpu"),)
        self.let_go()
        self._report_from_now_on()
        return tuple(torch.device(f"cuda:{ordinal}") for ordinal in range(len(self.uuids)))

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Load the model inside: at most N services at a time load onto one card (`loading` in /etc/mlops-gpu.toml, default 1).

        Waits for its turn, at most two minutes, and says so; then goes on all the same. On leaving, what is seen of the memory is written
        into the lease, which is thereby confirmed: others no longer count it beside the budget.
        """
        if self.cpu:
            yield
            return
        from mlops_build.gpu import loading

        # Under `gpu run` the process that watches holds the gate for this one already.
        gated = self._ledger is not None and self._held is not None
        turn = loading.enter(self._ledger, self.uuids) if gated and self._ledger else loading.Turn((), alone=False)
        try:
            before = self._used() if turn.alone else None
            self.let_go()
            yield
            # A report that is on its way would say that it is still loading, and come last.
            if self._reporter is not None:
                self._reporter.stop()
                self._reporter = None
            self._tell(loaded=True, before=before)
        finally:
            turn.end()
        self._report_from_now_on()

    def limit_torch(self) -> None:
        """Let this process's torch use no more than the budget on each card: who outgrows it fails, not its neighbours.

        The CUDA context, which torch does not count, is measured and subtracted. Starts CUDA. Raises BudgetTooSmall, which says what to
        raise. Does nothing on the CPU. A limit of the process: of a prefork server, each worker that calls it gets the whole budget.
        """
        if self.cpu:
            return
        from mlops_build.gpu import budget, loading

        self.let_go()
        this = replace(self._promise, pid=os.getpid(), pid_namespace=pid_namespace(), created=time.time())

        def used() -> dict[int, int]:
            own = loading.shown(read(), this) or {}
            return {ordinal: own[uuid] for ordinal, uuid in enumerate(self.uuids) if uuid in own}

        budget.limit(self.memory_bytes, len(self.uuids), used)
        self._report_from_now_on()

    def report(self) -> None:
        """Write what is seen of the service's memory into the lease, now. Once `device` was asked for, it is done every few seconds."""
        self._tell(loaded=self._loaded, before=None)

    def let_go(self) -> None:
        """Let the child process that holds the memory go, if there is one. From here on until it is loaded, others may take the memory."""
        if self._placeholder is not None and self._process == os.getpid():
            self._placeholder.let_go()
            self._placeholder = None

    def before_exec(self) -> None:
        """Call it right before exec of a program that knows nothing of leases (`gpu run`). The program inherits lease and mask.

        Takes the card's load gate, waiting for it, and starts a small process that holds the gate until the program's memory has appeared
        and stopped growing, writes that into the lease, and goes.
        """
        if self.cpu:
            return
        from mlops_build.gpu import loading

        if self._reporter is not None:
            self._reporter.stop()
        if self._ledger is not None and self._promise.id:
            turn = loading.enter(self._ledger, self.uuids)
            loading.watch(self._ledger, self._promise, turn, self._used() or {})
        self.let_go()

    def release(self) -> None:
        """End the lease, for what this process has forked too, and put the environment back. Again: nothing.

        In a forked child it only gives up the child's share.
        """
        if self._released:
            return
        self._released = True
        if self in _mine:
            _mine.remove(self)
        for variable, value in self._before.items():
            if value is None:
                os.environ.pop(variable, None)
            else:
                os.environ[variable] = value
        if self._process != os.getpid():
            if self._held is not None:
                os.close(self._held.descriptor)
            return
        if self._reporter is not None:
            self._reporter.stop()
        self.let_go()
        if self._ledger is not None:
            if self._held is not None:
                self._ledger.withdraw(self._held)
            self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()

    def _used(self) -> dict[str, int] | None:
        from mlops_build.gpu import loading

        try:
            return loading.used(read(), self.uuids)
        except NoDriver as error:  # a service that has its card can load all the same
            log.warning("the lease's memory is not reported: %s", error)
            return None

    def _tell(self, *, loaded: bool, before: Mapping[str, int] | None) -> None:
        if self._ledger is None or not self._promise.id:
            return
        from mlops_build.gpu import loading

        try:
            found = loading.seen(read(), self._promise, before)
            if found is None and self._held is None:
                return  # the process that watches (`gpu run`) may know more
            self._told, self._loaded = found or self._told, loaded
            self._ledger.report(self._promise.id, self._told, loaded=loaded)
        except (NoDriver, NoLedger) as error:
            log.warning("the lease's memory is not reported: %s", error)
        if self._reporter is not None:
            self._reporter.loaded(self._told, loaded=loaded)

    def _report_from_now_on(self) -> None:
        if self._reporter is None and self._ledger is not None and self._promise.id and self._process == os.getpid():
            from mlops_build.gpu import loading

            self._reporter = loading.Reporter(self._ledger, self._promise, self._told, loaded=self._loaded)
            self._reporter.start()


@dataclass(frozen=True, slots=True)
class _Attempt:
    """One try: what was seen, what was chosen, and what was promised or is held of it."""

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


class _Search:
    """The search for room, from asking to a lease or a refusal. Guards what it opened."""

    def __init__(self, request: Request, service: str, progress: Callable[[str], None] | None) -> None:
        self._request, self._service = request, service
        self._progress = progress or log.warning
        self._began = time.monotonic()
        self._decided: float | None = None
        self._ledger: Ledger | None = None
        self._writable = False
        self._peaks: Peaks = {}
        self._taken: _Attempt | None = None  # what would have to be given back if something fails from here on
        self._lost: NoLedger | None = None  # said only where there are cards to choose from
        self._said = ""

    def run(self, wait: float, otherwise: str) -> Lease:
        self._open_ledger()
        try:
            inherited = self._inherited()
            if inherited is not None:
                return inherited
            with Nvml() as nvml:
                return self._run(nvml, wait, otherwise)
        except NoDriver as error:
            self._close()
            if otherwise != "cpu":
                raise
            log.warning("%s: the CPU instead, as was allowed", error)
            return self._lease(None)
        except BaseException:  # an interrupt, too
            self._give_back()
            self._close()
            raise

    def _run(self, nvml: Nvml, wait: float, otherwise: str) -> Lease:
        if self._lost is not None:
            self._say_lost(self._lost)
        # The first look is made before the lock is taken: it starts what is slow, and finds out which card hangs.
        self._look_at_peaks()
        first = self._snapshot(nvml, self._promises())
        visible(first.cards(tuple(first.promises.values())))  # raises AmbiguousMask
        attempt = self._reserve(nvml, first)
        told = -math.inf
        while not attempt.choice.uuids:
            left = wait - (time.monotonic() - self._began)
            if left <= 0 or not could_ever(attempt.cards, self._request):
                break
            if told < 0:
                self._record("waiting", attempt)
            if time.monotonic() - told >= PROGRESS_SECONDS:
                told = time.monotonic()
                self._progress(f"waiting for {self._wanted()}, at most {left:.0f} s more: {_why(attempt)}")
            time.sleep(min(left, _jittered(0.5, 1.0) * POLL_SECONDS))
            self._look_at_peaks()
            attempt = self._choose(nvml)  # without the lock: those who wait do not keep others from deciding
            if attempt.choice.uuids:
                attempt = self._reserve(nvml)
        if attempt.choice.uuids:
            self._record("granted", attempt)
            return self._lease(attempt)
        self._record("cpu" if otherwise == "cpu" else "refused", attempt)
        missing = f"no room for {self._wanted()}{f' after waiting {wait:g} s' if wait else ''}: {_why(attempt)}"
        if otherwise == "cpu":
            log.warning("%s. The CPU instead, as was allowed", missing)
            self._close()
            return self._lease(None)
        ever = could_ever(attempt.cards, self._request)
        raise NoRoom(
            missing,
            remedy='wait for room (wait=120, --wait 120), ask for less, or allow the CPU (otherwise="cpu", --otherwise cpu)'
            if ever
            else "no waiting helps here: ask for less, or look at the filters and CUDA_VISIBLE_DEVICES",
        )

    def _inherited(self) -> Lease | None:
        """The lease that this very process has from `gpu run`, which became it by exec: a service that asks itself shares it."""
        lease_id = os.environ.get(LEASE_VARIABLE)
        if not lease_id or self._ledger is None:
            return None
        for promise in self._ledger.promises():
            if (promise.id, promise.pid, promise.pid_namespace) == (lease_id, os.getpid(), pid_namespace()):
                break
        else:
            return None
        asked = self._request
        if asked.bytes > promise.bytes or asked.count > len(promise.uuids) or (asked.exclusive and not promise.exclusive):
            raise Nested(
                f"this program was started with a lease of {show_bytes(promise.bytes)} on {len(promise.uuids)} card(s), "
                f"and asks for {self._wanted()}",
                remedy="have `gpu run` lease what the program asks for, or start it without `gpu run`",
            )
        uuids = promise.uuids[: asked.count]
        with Nvml() as nvml:
            cards = {card.uuid: card for card in self._look(nvml)}
        return Lease(
            [cards[uuid] for uuid in uuids if uuid in cards], replace(promise, uuids=uuids, bytes=asked.bytes), ledger=self._ledger
        )

    # -- looking --

    def _open_ledger(self) -> None:
        try:
            self._ledger, self._writable = Ledger.open(), True
        except NoLedger as error:
            self._lost = error
            with contextlib.suppress(NoLedger):
                self._ledger = Ledger.open(reading=True)

    def _look(self, nvml: Nvml, but: str = "") -> list[Card]:
        """The cards now, without the promise `but`. Promises are read before NVML: memory that appears between the two counts twice, which
        hurts nobody."""
        promises = [promise for promise in self._promises() if promise.id != but]
        return self._snapshot(nvml, promises).cards(promises)

    def _promises(self) -> list[Promise]:
        return self._ledger.promises() if self._ledger is not None else []

    def _snapshot(self, nvml: Nvml, promises: Sequence[Promise]) -> Snapshot:
        return snapshot(nvml, promises, self._peaks, utilisation=self._request.max_utilisation is not None)

    def _look_at_peaks(self) -> None:
        """Outside the lock: they change in hours."""
        if self._ledger is not None:
            self._peaks = remembered(self._ledger, time.time())

    def _choose(self, nvml: Nvml, request: Request | None = None, full: Collection[str] = ()) -> _Attempt:
        """Choose among the cards as they are now. full: those that were found to have less memory than NVML says."""
        why = "the memory could not be allocated, though NVML says that it is free"
        cards = [replace(card, trouble=Trouble.FAULT, why=why) if card.uuid in full else card for card in self._look(nvml)]
        return self._choose_of(cards, request or self._request)

    def _choose_of(self, cards: Sequence[Card], request: Request) -> _Attempt:
        seed = int.from_bytes(os.urandom(4), "big")
        return _Attempt(cards, choose(cards, request, seed), request, seed)

    # -- promising --

    def _reserve(self, nvml: Nvml, before: Snapshot | None = None) -> _Attempt:
        """Choose and promise. before: a look that was just taken."""
        if self._ledger is not None and self._writable:
            try:
                return self._reserve_locked(nvml, self._ledger, before or self._snapshot(nvml, self._promises()))
            except LockHeld as error:
                self._say_lost(error)
                try:
                    return self._reserve_unlocked(nvml, self._ledger)
                except NoLedger as full:
                    self._say_lost(full)
            except NoLedger as error:
                self._say_lost(error)
        return self._reserve_alone(nvml)

    def _reserve_locked(self, nvml: Nvml, ledger: Ledger, before: Snapshot) -> _Attempt:
        # NVML is looked at before the lock is asked for, in which every millisecond is everybody's. The promises are read inside.
        asked = time.monotonic()
        locked = 0.0

        def decide() -> _Attempt:
            nonlocal locked
            locked = time.monotonic()
            attempt = None
            if locked - before.taken < FRESH_SECONDS:
                attempt = self._choose_of(before.cards(ledger.promises()), self._request)
            if attempt is None or not attempt.choice.uuids:  # an old look counts what has changed since twice
                attempt = self._choose(nvml)
            return self._promised(attempt, ledger)

        attempt = ledger.decide(decide)
        self._decided = time.monotonic() - asked
        # Who was stopped while it held the lock comes back to a node where others, tired of waiting, have decided without it.
        if attempt.held is not None and time.monotonic() - locked > LOCK_SECONDS / 2 and not self._holds(nvml, attempt):
            self._give_back()
            return self._reserve_unlocked(nvml, ledger)
        return attempt

    def _reserve_unlocked(self, nvml: Nvml, ledger: Ledger) -> _Attempt:
        """Promise first, then look whether it fits beside what others promised meanwhile: of two that do not fit, at least one sees the
        other, and withdraws. By chance, so that not all go for the same card."""
        request = replace(self._request, strategy="random")
        for _ in range(TRIES):
            attempt = self._promised(self._choose(nvml, request), ledger)
            if attempt.held is None or self._holds(nvml, attempt):
                return attempt
            self._give_back()
            time.sleep(_jittered(0.01, 0.2))
        return replace(attempt, held=None, choice=Choice((), dict.fromkeys(attempt.choice.uuids, "others took it at the same moment")))

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
            taken.placeholder.let_go()

    def _holds(self, nvml: Nvml, attempt: _Attempt) -> bool:
        """Does the promise fit beside everybody else's, as they are now?"""
        cards = self._look(nvml, but=attempt.held.promise.id if attempt.held else "")
        return all(why_not(card, attempt.request) is None for card in cards if card.uuid in attempt.choice.uuids)

    def _reserve_alone(self, nvml: Nvml) -> _Attempt:
        """Without a directory: by chance, weighted by what is free; hold the memory; look again."""
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
            if holder is None:  # no libcuda: others who chose at the same moment may have begun to load by now
                time.sleep(_jittered(0.1, 0.5))
                if all(why_not(card, request) is None for card in self._look(nvml) if card.uuid in attempt.choice.uuids):
                    return attempt
                continue
            attempt = self._taken = replace(attempt, placeholder=holder)
            after = [card for card in self._look(nvml) if card.uuid in attempt.choice.uuids]
            if all(card.trouble is None and (card.used_bytes or 0) <= (card.total_bytes or 0) for card in after):
                return attempt
            self._give_back()
        return replace(
            attempt, placeholder=None, choice=Choice((), dict.fromkeys(attempt.choice.uuids, "others took it at the same moment"))
        )

    # -- saying --

    def _say_lost(self, error: NoLedger) -> None:
        """Once for each reason: what is lost without the directory, or without its lock."""
        if error.message != self._said:
            self._said = error.message
            log.warning(
                "%s. A card is chosen by chance, weighted by what is free, and what others choose at this moment is not seen: two services "
                "may take the same memory%s",
                error.message,
                f". To mend it: {error.remedy}" if error.remedy else "",
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
        alone = " for itself" if request.exclusive else ""
        return f"{show_bytes(request.bytes)}{f' on each of {request.count} cards' if request.count > 1 else ''}{alone}"

    def _lease(self, attempt: _Attempt | None) -> Lease:
        self._taken = None
        if attempt is not None and attempt.held is not None:
            return Lease(attempt.chosen, attempt.held.promise, ledger=self._ledger, held=attempt.held)
        if attempt is None:
            return Lease((), _unwritten((), 0, self._service))
        self._close()
        return Lease(
            attempt.chosen, _unwritten(attempt.choice.uuids, attempt.request.bytes, self._service), placeholder=attempt.placeholder
        )

    def _close(self) -> None:
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None


def _unwritten(uuids: tuple[str, ...], size: int, service: str) -> Promise:
    """A promise that stands in no directory."""
    return Promise("", uuids, size, False, service, os.getpid(), pid_namespace(), os.geteuid(), time.time())


def _jittered(least: float, most: float) -> float:
    """At random between the two, so that those who wait do not march in step."""
    return least + (most - least) * os.urandom(1)[0] / 255


def _why(attempt: _Attempt) -> str:
    """Every card, and why not."""
    lines = []
    for card in attempt.cards:
        why = attempt.choice.refused.get(card.uuid)
        if why:
            lines.append(f"\n  {card.index} {printable(card.name)} {card.uuid}: {why}")
    return "".join(lines) or "there is no card"


def _request(
    memory: str | int | None,
    count: int,
    exclusive: bool,
    strategy: str | Strategy,
    names: Sequence[str],
    uuids: Sequence[str],
    max_utilisation: int | None,
    min_compute_capability: tuple[int, int] | None,
) -> Request:
    if memory is None:
        log.warning("no memory was asked for: %s are assumed; say what the service needs", show_bytes(ASSUMED))
    size = ASSUMED if memory is None else parse_bytes(memory) if isinstance(memory, str) else memory
    if not isinstance(size, int) or size <= 0:
        raise UsageError(f"a budget of {memory!r} makes no sense", remedy='say what the service needs, such as memory="4GiB"')
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"{count!r} cards make no sense", remedy="count is 1 or more")
    for name, patterns in (("names", names), ("uuids", uuids)):
        if isinstance(patterns, str):
            raise UsageError(f"{name} is one text, {patterns!r}", remedy=f"a list of them: {name}=[{patterns!r}]")
    if isinstance(strategy, str) and strategy not in STRATEGIES:
        raise UsageError(f"{strategy!r} is no strategy", remedy=f"one of {', '.join(STRATEGIES)}, or a function of your own")
    return Request(size, count, exclusive, strategy, tuple(names), tuple(uuids), max_utilisation, min_compute_capability)


def _program() -> str:
    """This program's name, as a person would call it."""
    path = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else sys.executable
    return path.removesuffix("/__main__.py").rpartition("/")[2]
