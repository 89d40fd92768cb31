"""The cards of this machine with their committed memory.

    committed = sum over leases of max(budget, use) + what is counted for use without a lease + reserve
    left      = total - committed

A new lease fits if its budget is at most `left`, so the budgets on a card never exceed its memory. Memory that cannot be attributed is
counted twice rather than not at all: a lease whose memory has not been observed yet may already be part of the used memory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from mlops_build.gpu.declared import Declared, Settings, settings
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.neighbours import Known, Neighbour, by_owner, declaration, key_of, known, name_of, owner
from mlops_build.gpu.nvml import Nvml, Reading
from mlops_build.gpu.peaks import ALL, EACH, REST, Peaks, as_document, counted, from_documents, observe
from mlops_build.gpu.promise import MAX_BYTES, Promise, pid_namespace
from mlops_build.gpu.visible import AmbiguousMask, visible

# Names of neighbours without a visible process. They are part of Graphite's metric names: do not change them.
ALL_NAME, REST_NAME = "others (their processes cannot be seen from here)", "nobody that can be seen"


@dataclass(frozen=True, slots=True)
class Card(Reading):
    """A reading with its leases and neighbours. Memory in bytes.

    leases: from the ledger; `seen` is replaced by the memory that NVML shows for their processes, if it shows them.
    external_bytes: in use without a lease. external_counted_bytes: what is counted for that.
    foreign_bytes: the part of external_bytes that cannot belong to a lease.  reserve_bytes: kept free, and part of committed_bytes.
    visible: whether CUDA_VISIBLE_DEVICES lets this process use the card; None if that is ambiguous.
    """

    leases: tuple[Promise, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    external_bytes: int = 0
    external_counted_bytes: int = 0
    committed_bytes: int = 0
    foreign_bytes: int = 0
    reserve_bytes: int = 0
    visible: bool | None = True

    @property
    def left_bytes(self) -> int:
        """Memory that a new lease can have; 0 on a card that cannot be used."""
        return 0 if self.trouble or self.total_bytes is None else max(0, self.total_bytes - self.committed_bytes)

    @property
    def headroom(self) -> float:
        """`left_bytes` as a fraction of the total: 0 to 1."""
        return self.left_bytes / self.total_bytes if self.total_bytes else 0.0


def cards() -> list[Card]:
    """Read every card, in NVML's order, with the leases of the lease directory. A MIG parent is followed by its instances.

    A request that waits for room counts as a lease, since it keeps later ones off a card.

    Writes the observed peaks of processes without a lease to the directory, if it is writable. Without a directory there are no leases.
    Raises NoDriver, BadConfig.
    """
    with Nvml() as nvml:
        try:
            ledger = Ledger.open(reading=True)
        except NoLedger:
            return snapshot(nvml, None, full=True).cards()
        with ledger:
            taken = snapshot(nvml, ledger, full=True)
            with contextlib.suppress(NoLedger):  # a read-only directory
                remember(ledger, taken, taken.cards())
            return taken.cards([*taken.promises, *ledger.tickets()])


def snapshot(nvml: Nvml, ledger: Ledger | None, *, full: bool = False, node: Settings | None = None) -> Snapshot:
    """Read the promises and peaks of the lease directory, then the cards through an open NVML, and their processes.

    full: as in `Nvml.read`. node: None: the settings of the administrator's file. Raises NoDriver, BadConfig.
    """
    now, taken = time.time(), time.monotonic()
    # Promises are read before NVML: memory that appears in between counts twice, which is harmless.
    promises = ledger.promises() if ledger else []
    peaks = from_documents(ledger.peaks() if ledger else (), now)
    readings = nvml.read(full)
    return Snapshot(readings, promises, processes_of(readings, promises), pid_namespace(), peaks, node or settings(), now, taken)


def processes_of(readings: Iterable[Reading], promises: Iterable[Promise]) -> Mapping[int, Known] | None:
    """Data from /proc for the processes on these cards; None if their pids are not valid in this pid namespace."""
    return known((process.pid for reading in readings for process in reading.processes or ()), by_owner(promises))


def remember(ledger: Ledger, taken: Snapshot, cards: Iterable[Card]) -> None:
    """Update the stored peaks from the use without a lease. cards: those of the snapshot. Raises NoLedger."""
    after = observe(taken.peaks, unleased(cards, visible=taken.processes is not None), taken.now)
    if after is not taken.peaks:
        ledger.write_peaks(as_document(after))


def unleased(cards: Iterable[Card], *, visible: bool = True) -> dict[str, dict[str, int]]:
    """Memory that cannot belong to a lease, by UUID and neighbour key, for `peaks.observe`.

    A lease's memory that cannot be attributed (it is loading, or its processes are in another container) must not be stored as a
    neighbour's peak for a week. visible: whether processes are. If not, a lease may hide all of a neighbour's memory, and nothing is no
    observation: others may see more.
    """
    observed: dict[str, dict[str, int]] = {}
    for card in cards:
        if card.trouble is not None or card.used_bytes is None:
            continue
        by_key = observed[card.uuid] = {ALL: card.foreign_bytes} if visible or card.foreign_bytes else {}
        if all(neighbour.key != ALL for neighbour in card.neighbours):
            seen = [neighbour for neighbour in card.neighbours if neighbour.key != REST]
            by_key[REST] = max(0, card.foreign_bytes - sum(neighbour.used_bytes for neighbour in seen))
            for neighbour in seen:
                if neighbour.why != "declared":
                    by_key |= {neighbour.key: neighbour.used_bytes, neighbour.key + EACH: neighbour.largest_bytes}
    return observed


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Readings, promises, processes, peaks and settings of one moment. `cards` combines them, and reads nothing else.

    processes: data from /proc for the pids that NVML reports; None if those pids are of another namespace. namespace: the pid namespace of
    this process. now: unix s. taken: time.monotonic, s.
    """

    readings: Sequence[Reading]
    promises: Sequence[Promise] = ()
    processes: Mapping[int, Known] | None = None
    namespace: int | None = None
    peaks: Peaks = field(default_factory=dict)
    settings: Settings = field(default_factory=Settings)
    now: float = 0.0
    taken: float = 0.0

    def cards(self, promises: Sequence[Promise] | None = None, only: Collection[str] | None = None) -> list[Card]:
        """The cards with these promises, which may be newer than the readings. None: those of the snapshot. only: only these UUIDs.

        A lease's use is taken from the time of the readings: later use is not in them, and subtracting it would hide a neighbour's use. A
        lease that started since counts with its whole budget, and the use of one that ended since counts as a neighbour's: too much rather
        than too little.
        """
        before = {promise.id: promise for promise in self.promises}
        leases = [before.get(promise.id) or replace(promise, seen={}) for promise in (self.promises if promises is None else promises)]
        readings = [reading for reading in self.readings if only is None or reading.uuid in only]
        try:
            usable = {reading.uuid for reading in visible(self.readings)}
        except AmbiguousMask:
            return [self._card(reading, leases, None) for reading in readings]
        return [self._card(reading, leases, reading.uuid in usable) for reading in readings]

    def _card(self, reading: Reading, promises: Sequence[Promise], usable: bool | None) -> Card:
        pool = [part for part in self.readings if memory_of(part) == memory_of(reading)]
        uuids = {part.uuid for part in pool}
        leases = [promise for promise in promises if uuids & set(promise.uuids)]
        used, total = reading.used_bytes or 0, reading.total_bytes or MAX_BYTES
        processes_visible = self.processes is not None and all(part.processes is not None for part in pool)
        processes = self.processes or {}
        users = [user for part in pool for user in part.processes or ()] if processes_visible else []
        owners = by_owner(leases)
        strangers: list[tuple[int, Known]] = []  # with the memory of each
        shown: dict[str, list[int | None]] = {}  # by lease: the memory of its processes
        for user in users:
            lease = owner(user.pid, processes, owners)
            if lease is not None:
                shown.setdefault(lease.id, []).append(user.used_bytes)
            elif user.pid in processes:
                strangers.append((user.used_bytes or 0, processes[user.pid]))

        external = foreign = used
        committed = self.settings.reserve_bytes
        rest = max(0, used - sum(user.used_bytes or 0 for user in users if user.pid in processes))  # in use by no process that is visible
        # Whatever a lease's owner reports. If the namespace of a process is not readable, the process may belong to a lease.
        certain = sum(size for size, process in strangers if process.place[0] is not None)
        for number, lease in enumerate(leases):
            reported = sum(lease.seen.get(uuid, 0) for uuid in uuids)
            sizes = shown.get(lease.id, [])
            held = sum(size or 0 for size in sizes)
            exact = bool(sizes) and None not in sizes
            if exact:
                leases[number] = replace(lease, seen={**lease.seen, reading.uuid: held})
            elif not sizes and processes_visible and lease.pid_namespace == self.namespace:
                # NVML would show its processes if they used the card, unless the driver hides them; then their memory is in `rest`.
                held = min(reported, rest)
                rest -= held
            else:
                held = max(held, min(reported, used))
            # A promise that exceeds the card must not block it for all others.
            budget = lease.bytes if lease.bytes <= total else 0
            charged = max(budget, held, min(total, sum(lease.peak.get(uuid, 0) for uuid in uuids)))
            external -= held
            foreign -= held if exact else charged
            committed += charged

        external, foreign = max(certain, external), max(certain, foreign)
        if processes_visible:
            neighbours = self._neighbours(reading.uuid, strangers, external, promises)
        else:
            neighbours = self._unnamed(ALL_NAME, ALL, reading.uuid, external)
        external_counted = external + sum(neighbour.counted_bytes - neighbour.used_bytes for neighbour in neighbours)
        return Card(
            **{name: getattr(reading, name) for name in Reading.__slots__},
            leases=tuple(leases),
            neighbours=tuple(neighbours),
            external_bytes=external,
            external_counted_bytes=external_counted,
            committed_bytes=committed + external_counted,
            foreign_bytes=foreign,
            reserve_bytes=self.settings.reserve_bytes,
            visible=usable,
        )

    def _neighbours(self, uuid: str, strangers: Sequence[tuple[int, Known]], external: int, promises: Sequence[Promise]) -> list[Neighbour]:
        groups: dict[tuple[str, Declared | None], list[tuple[int, Known]]] = {}
        for size, process in strangers:
            match = declaration(process, self.settings.neighbours)
            groups.setdefault(("" if match else key_of(process), match), []).append((size, process))
        owners = by_owner(promises)
        neighbours = []
        for (key, match), group in groups.items():
            used = sum(size for size, _ in group)
            largest, process = max(group, key=lambda member: member[0])
            if match:
                name, count = match.name, max(used, match.memory_bytes)
            else:
                lease = owners.get(process.place)
                name = f"{lease.service} (its lease is for another card)" if lease else name_of(process)
                count = counted(self.peaks, uuid, key, used, self.now, len(group))
            neighbours.append(
                Neighbour(
                    name=name,
                    used_bytes=used,
                    counted_bytes=count,
                    why="declared" if match else "peak" if count > used else "used",
                    key=key,
                    largest_bytes=largest,
                    uid=process.uid,
                    pid=process.pid,
                    command=process.command,
                    cgroup=process.cgroup,
                )
            )
        rest = max(0, external - sum(neighbour.used_bytes for neighbour in neighbours))
        neighbours += self._unnamed(REST_NAME, REST, uuid, rest)
        return sorted(neighbours, key=lambda neighbour: -neighbour.counted_bytes)

    def _unnamed(self, name: str, key: str, uuid: str, used: int) -> list[Neighbour]:
        """A neighbour without a visible process; an empty list if nothing is counted."""
        count = counted(self.peaks, uuid, key, used, self.now)
        why: Literal["peak", "used"] = "peak" if count > used else "used"
        return [Neighbour(name=name, used_bytes=used, counted_bytes=count, why=why, key=key)] if count else []


def memory_of(reading: Reading) -> object:
    """Equal for readings of the same memory: each compute instance of a GPU instance reports all of its memory."""
    return reading.uuid if reading.mig_instance is None else (reading.mig_parent, reading.mig_instance[0])
