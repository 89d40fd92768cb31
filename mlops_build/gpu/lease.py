"""Reserve memory on a card for the lifetime of a process, before anything is loaded.

    with gpu.lease("4GiB", wait=120) as lease:
        lease.limit_torch()                   # a service that exceeds its budget fails alone
        model.to(lease.device)                # cuda:0 under the mask

Only `device`, `devices` and `limit_torch` import torch, and only `limit_torch` starts CUDA.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal, Self

from mlops_build.errors import Refused, UsageError
from mlops_build.gpu import log
from mlops_build.gpu.cards import Card
from mlops_build.gpu.choice import Request, Strategy, named
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.nvml import NoDriver, Nvml, read
from mlops_build.gpu.promise import boot_time, pid_namespace, printable
from mlops_build.gpu.report import Reporter, shown
from mlops_build.gpu.search import LEASE_VARIABLE, Grant, Search
from mlops_build.gpu.visible import ORDER, VARIABLE, cuda_started
from mlops_build.quantity import parse_bytes, show_bytes
from mlops_build.setting import memory_amount

# The default budget: of 40 services of 1-6 GiB, 0.1-0.3 failed to start with a default of 3-4 GiB, and 1.6 with 1 GiB.
ASSUMED = 4 << 30
LEAST = 1 << 20  # less than that is a forgotten unit
SERVICE_VARIABLE, MEMORY_VARIABLE = "MLOPS_SERVICE", "MLOPS_GPU_MEMORY"

# At most one, since the process has one CUDA_VISIBLE_DEVICES. A weak reference, so that `del lease` releases it.
_own: Callable[[], Lease | None] = lambda: None  # noqa: E731
_granting = threading.Lock()


def _after_fork() -> None:
    global _granting
    _granting = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)


class CudaStarted(Refused):
    """CUDA is already started in this process, so a mask has no effect and the model would load onto another card."""


class Released(Refused):
    """The lease is released, so it has no device."""


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
    report: bool = True,
) -> Lease:
    """Choose one or more cards, reserve memory on them for this process, and set CUDA_VISIBLE_DEVICES to them.

    Call it before anything starts CUDA. Use it as a context manager, or keep it in a variable and call `release()`. The lease belongs to
    the process and its descendants: if one of these calls gpu.lease, it shares the lease. The kernel ends it when the last process that has
    its descriptor ends, in any way. Fork and exec pass the descriptor on, Python's subprocess only with close_fds=False. A second call in
    the same process releases the first lease (a cell of a notebook that runs again).

    memory: the budget on each card, such as "4GiB", or bytes. It includes the CUDA context (300-500 MiB). None uses
        MLOPS_GPU_MEMORY, else 4 GiB, with a warning.
    count: the number of cards, with `memory` on each. Several MIG instances are not possible: CUDA gives a process only one.
    wait: the longest time to wait for room, in seconds. Tries about once a second and reports progress. A request that waits keeps later
        ones off a card (with `count`, off as many): the one with most memory left, and another one if nothing becomes free there.
    otherwise: if there is no room or no driver, "fail" raises NoRoom or NoDriver; "cpu" returns a lease of the CPU, with a warning.
    exclusive: no other lease on the card, and next to no use without a lease.
    strategy: "spread" (the largest share of the card left, the default), "pack" (the fewest bytes left), "random" (weighted by the memory
        left), or your own function: (cards, request, rng) -> cards in order of preference.
    names, uuids: only cards whose name matches a pattern ("*A100*"), or whose UUID starts with a prefix. If CUDA_VISIBLE_DEVICES is
        already set, only its cards are considered.
    max_utilisation: only cards with at most this utilisation, in percent.  min_compute_capability: for example (8, 0).
    service: the name shown to others; None uses MLOPS_SERVICE, else the program's name.
    progress: called with a line of text while it waits; None logs a warning to the logger "mlops_build.gpu".
    report: write the memory that the process uses into the lease every few seconds, from a thread. False: another process does (`gpu run`).

    Raises NoRoom (with the reason for each card), NoDriver, CudaStarted, Nested (the inherited lease is too small) and UsageError.

    If the lease directory (MLOPS_GPU_LEASE_DIR, else /run/mlops-gpu) is missing or not writable, a card is chosen at random, weighted by
    free memory. A warning says that other services' leases are not known.
    """
    named(strategy)
    if not isinstance(count, int) or count < 1:
        raise UsageError(f"{count!r} is not a valid number of cards", remedy="use a count of 1 or more")
    patterns = _several("names", names), _several("uuids", uuids)
    request = Request(_budget(memory), count, exclusive, strategy, *patterns, max_utilisation, min_compute_capability)
    if otherwise not in ("fail", "cpu"):
        raise UsageError(f"{otherwise!r} is not a valid value of `otherwise`", remedy='use otherwise="fail" or otherwise="cpu"')
    if not (isinstance(wait, int | float) and 0 <= wait < math.inf):
        raise UsageError(f"cannot wait {wait!r} seconds", remedy="use a finite number of seconds, 0 or more")
    name = printable(service or os.environ.get(SERVICE_VARIABLE) or _program())
    global _own
    with _granting:
        _check_not_started()
        _release_earlier()
        granted = Lease(Search(request, name, progress).run(float(wait), otherwise), report=report)
        _own = weakref.ref(granted)
    return granted


def _check_not_started() -> None:
    started = cuda_started()
    if started is not None:
        raise CudaStarted(
            f"{started}: it would not see the chosen card",
            remedy="call gpu.lease before anything asks torch for a device, or start the program with `mlops-build gpu run`; in a "
            "notebook, restart the kernel",
        )


def _release_earlier() -> None:
    earlier = _own()
    if earlier is not None and earlier.held_here():
        if earlier.descriptor is not None:  # a shared one stays
            log.warning("the earlier lease of this process is released (%s): a process has one lease (several cards: count=2)", earlier)
        earlier.release()


class Lease:
    """Reserved memory on one or more cards. A context manager; `release()` ends it, and so does the end of the last reference to it.

    uuids, cards: the chosen cards (empty: the CPU). memory_bytes: the budget on each. Owns the lease file and the mask in the environment.
    """

    def __init__(self, grant: Grant, *, report: bool) -> None:
        self.cards: tuple[Card, ...] = tuple(grant.cards)
        self.uuids: tuple[str, ...] = grant.promise.uuids
        self.memory_bytes: int = grant.promise.bytes
        self._promise, self._ledger, self._held = grant.promise, grant.ledger, grant.held
        self._released = False
        self.before: Mapping[str, int] = grant.before  # for a Reporter in another process
        self._process = os.getpid()
        mask = {VARIABLE: ",".join(self.uuids), ORDER: "PCI_BUS_ID"}
        if self.id:
            mask[LEASE_VARIABLE] = self.id
        self._before = {variable: os.environ.get(variable) for variable in mask}
        os.environ.update(mask)
        self._reporter: Reporter | None = None
        if report and self._held is not None and self._ledger is not None:
            self._reporter = Reporter(self._ledger, self._promise, grant.before)
            self._reporter.start()

    def __str__(self) -> str:
        if self.cpu:
            return "the CPU"
        return f"{show_bytes(self.memory_bytes)} on " + " and ".join(f"{card.name} ({card.uuid})" for card in self.cards)

    def __repr__(self) -> str:
        return f"<Lease of {self}>"

    @property
    def cpu(self) -> bool:
        """Whether this is a lease of the CPU, which `otherwise="cpu"` allowed."""
        return not self.uuids

    @property
    def id(self) -> str | None:
        """The lease's id in the lease directory; None if it was not written there."""
        return None if self._ledger is None else self._promise.id

    def held_here(self) -> bool:
        """Whether this process took the lease, and has not released it."""
        return not self._released and self._process == os.getpid()

    @property
    def descriptor(self) -> int | None:
        """The descriptor that keeps the lease alive; None if the process shares the lease of an ancestor, or has none in the directory."""
        return None if self._held is None else self._held.descriptor

    @property
    def device(self) -> Any:
        """The first of `devices`: torch.device("cuda:0") or torch.device("cpu"). Imports torch."""
        return self.devices[0]

    @property
    def devices(self) -> tuple[Any, ...]:
        """A torch.device for each card of the lease. Imports torch. Raises Released: without the mask, cuda:0 is any card."""
        import torch

        if self._released:
            raise Released(f"the lease of {self} is released", remedy="call gpu.lease again")

        if self.cpu:
            return (torch.device("cpu"),)
        return tuple(torch.device(f"cuda:{ordinal}") for ordinal in range(len(self.uuids)))

    @contextlib.contextmanager
    def loading(self) -> Iterator[None]:
        """Load the model inside this block, if it uses more than the budget while it loads. Other services do not need it.

        `loading` in /etc/mlops-gpu.toml says how many services may load onto a card at once (1). Waits at most two minutes for a load slot,
        with a warning, and then continues without one.
        """
        if self.cpu or self._ledger is None:
            yield
            return
        from mlops_build.gpu import loading

        slots = loading.enter(self._ledger, self.uuids)
        try:
            yield
            self.report(loaded=True)
        finally:
            for descriptor in slots:
                os.close(descriptor)

    def limit_torch(self) -> None:
        """Limit torch in this process to the budget on each card, so that a service that exceeds it fails alone.

        The CUDA context, which torch does not count, is measured and subtracted. Starts CUDA. Raises BudgetTooSmall. Does nothing on the
        CPU. The limit is per process: each worker of a prefork server that calls it gets the whole budget.
        """
        if self.cpu:
            return
        from mlops_build.gpu import budget

        this_process = replace(self._promise, pid=os.getpid(), pid_namespace=pid_namespace(), boot=boot_time())

        def used() -> dict[int, int]:
            by_uuid, _ = shown(read(), [this_process], this_process)
            return {ordinal: by_uuid[uuid] for ordinal, uuid in enumerate(self.uuids) if uuid in by_uuid}

        budget.limit(self.memory_bytes, len(self.uuids), used)

    def report(self, *, loaded: bool = False) -> None:
        """Write the service's observed memory into the lease now. A thread does so every few seconds. loaded: it has loaded its model."""
        if self._reporter is None or self._process != os.getpid():
            return
        try:
            with Nvml() as nvml:
                self._reporter.report(nvml, loaded=loaded)
        except (NoDriver, NoLedger) as error:
            log.warning("the lease's memory is not reported: %s", error)

    def release(self) -> None:
        """End the lease, also for forked processes, and restore the environment. A second call does nothing.

        In a forked child it only closes the child's copy.
        """
        if self._released:
            return
        self._released = True
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
        if self._ledger is not None:
            if self._held is not None:
                self._ledger.withdraw(self._held)
            self._ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()

    def __del__(self) -> None:
        # Without a reference, `gpu.lease("4GiB")` alone on a line must not end a lease whose memory is in use.
        if hasattr(self, "_reporter") and self.held_here() and not sys.is_finalizing() and cuda_started() is None:
            if self._held is not None or self.cpu:
                log.warning("the lease of %s is released, since no variable refers to it", self)
            self.release()


def _budget(memory: str | int | None) -> int:
    if memory is None:
        if text := os.environ.get(MEMORY_VARIABLE):
            return memory_amount((text, MEMORY_VARIABLE), "1MiB", "4GiB")
        log.warning(
            "no budget is given: %s are assumed; say what the service needs (memory=, --memory, MLOPS_GPU_MEMORY)", show_bytes(ASSUMED)
        )
        return ASSUMED
    size = parse_bytes(memory) if isinstance(memory, str) else memory
    if not isinstance(size, int) or size < LEAST:
        raise UsageError(f"{memory!r} is not a valid budget", remedy='state what the service needs, with a unit, such as "4GiB"')
    return size


def _several(name: str, patterns: Sequence[str]) -> tuple[str, ...]:
    if isinstance(patterns, str):
        raise UsageError(f"{name} is a string, {patterns!r}", remedy=f"use a list: {name}=[{patterns!r}]")
    return tuple(patterns)


def _program() -> str:
    """The program's name, without its path."""
    path = sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-c", "-m") else sys.executable
    return path.removesuffix("/__main__.py").rpartition("/")[2]
