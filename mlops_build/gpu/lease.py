"""Reserve memory on a card for the lifetime of a process, before anything is loaded.

    with gpu.lease("4GiB", wait=120) as lease:
        with lease.loading():                 # one service at a time loads onto a card
            lease.limit_torch()               # a service that exceeds its budget fails alone
            model.to(lease.device)            # cuda:0 under the mask

Only `device`, `devices` and `limit_torch` import torch, and only `limit_torch` starts CUDA.
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
from mlops_build.gpu.choice import Choice, Request, Strategy, choose, could_ever, named, why_not
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

# The default budget: of 40 services of 1-6 GiB, 0.1-0.3 failed to start with a default of 3-4 GiB, and 1.6 with 1 GiB.
ASSUMED = 4 << 30
SERVICE_VARIABLE = "MLOPS_SERVICE"
# The id of the lease that this process holds, for a program under `gpu run` that calls gpu.lease itself.
LEASE_VARIABLE = "MLOPS_GPU_LEASE"
# Without the lock or a directory, two processes can choose the same memory. Each then chooses again, at most this often.
TRIES = 8
# The maximum age of a snapshot once the lock is taken. A neighbour that grew since could as well have grown after the decision.
FRESH_SECONDS = 0.5
CONTENDED = "others took it at the same time"
POLL_SECONDS = 1.0
PROGRESS_SECONDS = 10.0

_own: list[Lease] = []  # at most one, since the process has one CUDA_VISIBLE_DEVICES
_granting = threading.Lock()


class CudaStarted(Refused):
    """CUDA is already started in this process, so a mask has no effect and the model would load onto another card."""


class Nested(Refused):
    """This process already holds a lease."""


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
    """Choose one or more cards, reserve memory on them for this process, and set CUDA_VISIBLE_DEVICES to them.

    Call it before anything starts CUDA. Use it as a context manager, or call `release()`. The lease belongs to the process and to those
    that it forks or execs. The kernel ends it when the last of them ends, in any way.

    memory: the budget on each card, such as "4GiB", or bytes. It includes the CUDA context (300-500 MiB). None: 4 GiB, with a warning.
    count: the number of cards, with `memory` on each. Several MIG instances are not possible: CUDA gives a process only one.
    wait: the longest time to wait for room, in seconds. Tries about once a second and reports progress. There is no queue: small requests
        can overtake a large one repeatedly.
    otherwise: if there is no room or no driver, "fail" raises NoRoom or NoDriver; "cpu" returns a lease of the CPU, with a warning.
    exclusive: no other lease on the card, and next to no use without a lease.
    strategy: "spread" (the largest share of the card left, the default), "pack" (the fewest bytes left), "random" (weighted by the memory
        left), or your own function: (cards, request, rng) -> cards in order of preference.
    names, uuids: only cards whose name matches a pattern ("*A100*"), or whose UUID starts with a prefix. If CUDA_VISIBLE_DEVICES is
        already set, only its cards are considered.
    max_utilisation: only cards with at most this utilisation, in percent.  min_compute_capability: for example (8, 0).
    service: the name shown to others; None uses MLOPS_SERVICE, else the program's name.
    progress: called with a line of text while it waits; None logs a warning to the logger "mlops_build.gpu".

    Raises NoRoom (with the reason for each card), NoDriver, CudaStarted, Nested (this process already holds a lease) and UsageError.

    If the lease directory (MLOPS_GPU_LEASE_DIR, else /run/mlops-gpu) is missing or not writable, a card is chosen at random, weighted by
    free memory, and a child process holds the memory until loading begins. A warning says that other services' leases are not known.
    """
    request = _request(memory, count, exclusive, strategy, names, uuids, max_utilisation, min_compute_capability)
    if otherwise not in ("fail", "cpu"):
        raise UsageError(f"{otherwise!r} is not a valid value of `otherwise`", remedy='use otherwise="fail" or otherwise="cpu"')
    if not (isinstance(wait, int | float) and 0 <= wait < math.inf):
        raise UsageError(f"cannot wait {wait!r} seconds", remedy="use a finite number of seconds, 0 or more")
    name = printable(service or os.environ.get(SERVICE_VARIABLE) or _program())
    with _granting:
        if _own:
            raise Nested(
                f"this process already holds a lease ({_own[0]})",
                remedy="release it first, or request all memory at once (several cards: count=2)",
            )
        started = cuda_started()
        if started is not None:
            raise CudaStarted(
                f"{started}: it would not see the chosen card",
                remedy="call gpu.lease before anything asks torch for a device, or start the program with `mlops-build gpu run`",
            )
        granted = _Search(request, name, progress).run(float(wait), otherwise)
        _own.append(granted)
    return granted


class Lease:
    """Reserved memory on one or more cards. A context manager; `release()` ends it.

    uuids, cards: the chosen cards (empty: the CPU). memory_bytes: the budget on each. Owns the lease file, the mask in the environment and,
    without a lease directory, the child process that holds the memory.
    """

    def __init__(
        self, chosen: Sequence[Card], promise: Promise, *, ledger: Ledger | None = None, held: Held | None = None, placeholder: Any = None
    ) -> None:
        self.cards: tuple[Card, ...] = tuple(chosen)
        self.uuids: tuple[str, ...] = promise.uuids
        self.memory_bytes: int = promise.bytes
        self._promise, self._ledger, self._held, self._placeholder = promise, ledger, held, placeholder  # held: None if inherited
        self._reporter: Reporter | None = None
        self._reported: dict[str, int] = {}  # bytes, by UUID
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
        """Whether this is a lease of the CPU, which `otherwise="cpu"` allowed."""
        return not self.uuids

    @property
    def id(self) -> str | None:
        """The lease's id in the lease directory; None if it was not written there."""
        return self._promise.id or None

    @property
    def device(self) -> Any:
        """The first of `devices`: torch.device("cuda:0") or torch.device("cpu"). Imports torch."""
        return self.devices[0]

    @property
    def devices(self) -> tuple[Any, ...]:
        """A torch.device for each card of the lease. Imports torch.

        If a child process holds the memory (no lease directory), it frees the memory now: load at once.
        """
        import torch

        if self.cpu:
            return (torch.device("cpu"),)
        self.let_go()
        self._start_reporter()
        return tuple(torch.device(f"cuda:{ordinal}") for ordinal in range(len(self.uuids)))

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Load the model inside this block. `loading` in /etc/mlops-gpu.toml says how many services may load onto a card at once (1).

        Waits at most two minutes for a load slot, with a warning, and then continues without one. On exit the observed memory is written
        into the lease, which confirms it: others no longer count that memory in addition to the budget.
        """
        if self.cpu:
            yield
            return
        from mlops_build.gpu import loading

        # Under `gpu run` the watching process already holds the load slots for this process.
        gated = self._ledger is not None and self._held is not None
        slots = loading.enter(self._ledger, self.uuids) if gated and self._ledger else loading.Slots((), alone=False)
        try:
            before = self._used() if slots.alone else None
            self.let_go()
            yield
            # A pending report could overwrite this one and say that the service is still loading.
            if self._reporter is not None:
                self._reporter.stop()
                self._reporter = None
            self._report(loaded=True, before=before)
        finally:
            slots.release()
        self._start_reporter()

    def limit_torch(self) -> None:
        """Limit torch in this process to the budget on each card, so that a service that exceeds it fails alone.

        The CUDA context, which torch does not count, is measured and subtracted. Starts CUDA. Raises BudgetTooSmall. Does nothing on the
        CPU. The limit is per process: each worker of a prefork server that calls it gets the whole budget.
        """
        if self.cpu:
            return
        from mlops_build.gpu import budget, loading

        self.let_go()
        this_process = replace(self._promise, pid=os.getpid(), pid_namespace=pid_namespace(), created=time.time())

        def used() -> dict[int, int]:
            by_uuid = loading.shown(read(), this_process) or {}
            return {ordinal: by_uuid[uuid] for ordinal, uuid in enumerate(self.uuids) if uuid in by_uuid}

        budget.limit(self.memory_bytes, len(self.uuids), used)
        self._start_reporter()

    def report(self) -> None:
        """Write the service's observed memory into the lease now. After `device` was read, a thread does so every few seconds."""
        self._report(loaded=self._loaded, before=None)

    def let_go(self) -> None:
        """End the child process that holds the memory, if there is one. Until the model is loaded, others may take the memory."""
        if self._placeholder is not None and self._process == os.getpid():
            self._placeholder.release()
            self._placeholder = None

    def before_exec(self) -> None:
        """Call it right before the exec of a program that does not use leases (`gpu run`). The program inherits lease and mask.

        Waits for the cards' load slots, and starts a small process that holds them until the program's memory has appeared and stopped
        growing, writes it into the lease, and exits.
        """
        if self.cpu:
            return
        from mlops_build.gpu import loading

        if self._reporter is not None:
            self._reporter.stop()
        if self._ledger is not None and self._promise.id:
            slots = loading.enter(self._ledger, self.uuids)
            loading.watch(self._ledger, self._promise, slots, self._used() or {})
        self.let_go()

    def release(self) -> None:
        """End the lease, also for forked processes, and restore the environment. A second call does nothing.

        In a forked child it only closes the child's copy.
        """
        if self._released:
            return
        self._released = True
        if self in _own:
            _own.remove(self)
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
        except NoDriver as error:  # a service that has its card can still load
            log.warning("the lease's memory is not reported: %s", error)
            return None

    def _report(self, *, loaded: bool, before: Mapping[str, int] | None) -> None:
        if self._ledger is None or not self._promise.id:
            return
        from mlops_build.gpu import loading

        try:
            observed = loading.seen(read(), self._promise, before)
            if observed is None and self._held is None:
                return  # the watching process (`gpu run`) may know more
            self._reported, self._loaded = observed or self._reported, loaded
            self._ledger.report(self._promise.id, self._reported, loaded=loaded)
        except (NoDriver, NoLedger) as error:
            log.warning("the lease's memory is not reported: %s", error)
        if self._reporter is not None:
            self._reporter.reported(self._reported, loaded=loaded)

    def _start_reporter(self) -> None:
        if self._reporter is None and self._ledger is not None and self._promise.id and self._process == os.getpid():
            from mlops_build.gpu import loading

            self._reporter = loading.Reporter(self._ledger, self._promise, self._reported, loaded=self._loaded)
            self._reporter.start()


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


class _Search:
    """A search for room, which ends with a lease or an error. Owns the ledger until then."""

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
            log.warning("%s: the CPU is used instead, as requested", error)
            return self._lease(None)
        except BaseException:  # an interrupt, too
            self._give_back()
            self._close()
            raise

    def _run(self, nvml: Nvml, wait: float, otherwise: str) -> Lease:
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
            return self._lease(attempt)
        self._record("cpu" if otherwise == "cpu" else "refused", attempt)
        missing = f"no room for {self._wanted()}{f' after waiting {wait:g} s' if wait else ''}: {_why(attempt)}"
        if otherwise == "cpu":
            log.warning("%s. The CPU is used instead, as requested", missing)
            self._close()
            return self._lease(None)
        ever = could_ever(attempt.cards, self._request)
        raise NoRoom(
            missing,
            remedy='wait for room (wait=120, --wait 120), request less, or allow the CPU (otherwise="cpu", --otherwise cpu)'
            if ever
            else "waiting does not help: request less, or check the filters and CUDA_VISIBLE_DEVICES",
        )

    def _inherited(self) -> Lease | None:
        """The lease from `gpu run`, which became this process by exec; None if there is none. The program shares that lease."""
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
        return Lease(
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
        log.warning("no budget is given: %s are assumed; state what the service needs (memory=, --memory)", show_bytes(ASSUMED))
    size = ASSUMED if memory is None else parse_bytes(memory) if isinstance(memory, str) else memory
    if not isinstance(size, int) or size <= 0:
        raise UsageError(f"{memory!r} is not a valid budget", remedy='state what the service needs, such as memory="4GiB"')
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"{count!r} is not a valid number of cards", remedy="use a count of 1 or more")
    for name, patterns in (("names", names), ("uuids", uuids)):
        if isinstance(patterns, str):
            raise UsageError(f"{name} is a string, {patterns!r}", remedy=f"use a list: {name}=[{patterns!r}]")
    named(strategy)
    return Request(size, count, exclusive, strategy, tuple(names), tuple(uuids), max_utilisation, min_compute_capability)


def _program() -> str:
    """The program's name, without its path."""
    path = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else sys.executable
    return path.removesuffix("/__main__.py").rpartition("/")[2]
