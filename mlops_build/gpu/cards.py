"""The cards of this machine with their committed memory.

    committed = sum over leases of max(budget, use) + what is counted for use without a lease + reserve
    left      = total - committed

A new lease fits if its budget is at most `left`, so the budgets on a card never exceed its memory. Memory that cannot be attributed is
counted twice rather than not at all: a lease whose memory has not been observed yet may already be part of the used memory.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mlops_build.gpu.declared import Declared, Settings, settings
from mlops_build.gpu.directory import NoLedger
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.neighbours import Known, Neighbour, Place, declaration, key_of, known, name_of, owner
from mlops_build.gpu.nvml import NoDriver, Nvml, Process, Reading
from mlops_build.gpu.peaks import ALL, EACH, REST, Peaks, as_document, counted, counted_group, from_document, merge, observe
from mlops_build.gpu.promise import Promise, pid_namespace
from mlops_build.gpu.visible import AmbiguousMask, visible

__all__ = ["Card", "NoDriver", "Snapshot", "account", "cards", "look", "remember", "remembered", "snapshot", "unleased"]

# Names of neighbours without a visible process. They are part of Graphite's metric names: do not change them.
ALL_NAME, REST_NAME = "others (their processes cannot be seen from here)", "nobody that can be seen"


@dataclass(frozen=True, slots=True)
class Card(Reading):
    """A reading with its leases and neighbours. Memory in bytes.

    leases: from the ledger; `seen` is replaced by the memory that NVML shows for their processes, if it shows them.
    external_bytes: in use without a lease. external_counted_bytes: what is counted for that.
    foreign_bytes: the part of external_bytes that cannot belong to a lease.
    visible: whether CUDA_VISIBLE_DEVICES lets this process use the card; None if that is ambiguous.
    """

    leases: tuple[Promise, ...] = ()
    neighbours: tuple[Neighbour, ...] = ()
    external_bytes: int = 0
    external_counted_bytes: int = 0
    committed_bytes: int = 0
    foreign_bytes: int = 0
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

    Writes the observed peaks of processes without a lease to the directory, if it is writable. Without a directory there are no leases.
    Raises NoDriver, BadConfig.
    """
    with Nvml() as nvml:
        now = time.time()
        try:
            ledger = Ledger.open(reading=True)
        except NoLedger:
            return look(nvml, (), {}, now=now, full=True)
        with ledger:
            peaks = remembered(ledger, now)
            observed = look(nvml, ledger.promises(), peaks, now=now, full=True)
            with contextlib.suppress(NoLedger):  # a read-only directory
                remember(ledger, peaks, observed, now)
            return observed


def remembered(ledger: Ledger, now: float) -> Peaks:
    """The peaks in the lease directory, merged from every trusted observer. now: unix s."""
    return merge((from_document(document, now) for document in ledger.peaks()), now)


def remember(ledger: Ledger, peaks: Peaks, cards: Iterable[Card], now: float) -> None:
    """Update the stored peaks from the use without a lease on these cards. peaks: the stored ones. Raises NoLedger."""
    after = observe(peaks, unleased(cards), now)
    if after is not peaks:
        ledger.write_peaks(as_document(after))


def look(
    nvml: Nvml, promises: Sequence[Promise], peaks: Peaks, *, now: float, full: bool = False, node: Settings | None = None
) -> list[Card]:
    """Read the cards through an open NVML, with the promises and peaks of the lease directory.

    now: unix s. full: as in `Nvml.read`. node: None: the settings of the administrator's file. Raises NoDriver, BadConfig.
    """
    return snapshot(nvml, promises, peaks, now=now, full=full, node=node).cards(promises)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Readings, processes and settings of one moment: the slow part of `look`. taken: time.monotonic, s."""

    readings: Sequence[Reading]
    promises: Mapping[str, Promise]
    processes: Mapping[int, Known] | None
    peaks: Peaks
    settings: Settings
    now: float
    taken: float

    def cards(self, promises: Sequence[Promise]) -> list[Card]:
        """The cards with these promises, which may be newer than the readings.

        A lease's use is taken from the time of the readings: later use is not in them, and subtracting it would hide a neighbour's use. A
        lease that started since counts with its whole budget, and the use of one that ended since counts as a neighbour's: too much rather
        than too little.
        """
        accounted = account(
            self.readings,
            [self.promises.get(promise.id) or replace(promise, seen={}) for promise in promises],
            peaks=self.peaks,
            declared=self.settings.neighbours,
            now=self.now,
            reserve=self.settings.reserve_bytes,
            processes=self.processes,
            namespace=pid_namespace(),
        )
        try:
            visible_uuids = {card.uuid for card in visible(accounted)}
        except AmbiguousMask:
            return [replace(card, visible=None) for card in accounted]
        return [card if card.uuid in visible_uuids else replace(card, visible=False) for card in accounted]


def snapshot(
    nvml: Nvml,
    promises: Sequence[Promise],
    peaks: Peaks,
    *,
    now: float,
    full: bool = False,
    node: Settings | None = None,
) -> Snapshot:
    """The inputs of `look`. Read the promises before you call it. Raises NoDriver, BadConfig."""
    taken = time.monotonic()
    readings = nvml.read(full)
    return Snapshot(
        readings,
        {promise.id: promise for promise in promises},
        processes_of(readings, promises),
        peaks,
        node or settings(),
        now,
        taken,
    )


def processes_of(readings: Iterable[Reading], promises: Iterable[Promise]) -> Mapping[int, Known] | None:
    """Data from /proc for the processes on these cards; None if their pids are not valid in this pid namespace."""
    return known((process.pid for reading in readings for process in reading.processes or ()), _created_by_place(promises))


def account(
    readings: Sequence[Reading],
    promises: Sequence[Promise],
    *,
    peaks: Peaks,
    declared: Sequence[Declared],
    now: float,
    reserve: int = 0,
    processes: Mapping[int, Known] | None = None,
    namespace: int | None = None,
) -> list[Card]:
    """Combine readings, promises, peaks and declarations into cards. A pure function.

    now: unix s. reserve: bytes kept free on each card. processes: data from /proc for the pids that NVML reports; None if those pids are
    of another namespace. namespace: the pid namespace of this process.
    """
    services = {(promise.pid_namespace, promise.pid): promise.service for promise in promises}
    return [_card(reading, readings, promises, services, peaks, declared, now, reserve, processes, namespace) for reading in readings]


def unleased(cards: Iterable[Card]) -> dict[str, dict[str, int]]:
    """Memory that cannot belong to a lease, by UUID and neighbour key, for `peaks.observe`.

    A lease's memory that cannot be attributed (it is loading, or its processes are in another container) must not be stored as a
    neighbour's peak for a week.
    """
    observed: dict[str, dict[str, int]] = {}
    for card in cards:
        if card.trouble is not None or card.used_bytes is None:
            continue
        by_key = observed[card.uuid] = {ALL: card.foreign_bytes}
        if all(neighbour.key != ALL for neighbour in card.neighbours):
            seen = [neighbour for neighbour in card.neighbours if neighbour.key != REST]
            by_key |= {neighbour.key: neighbour.used_bytes for neighbour in seen if neighbour.why != "declared"}
            by_key |= {neighbour.key + EACH: neighbour.largest_bytes for neighbour in seen if neighbour.why != "declared"}
            by_key[REST] = max(0, card.foreign_bytes - sum(neighbour.used_bytes for neighbour in seen))
    return observed


def _card(
    reading: Reading,
    readings: Sequence[Reading],
    promises: Sequence[Promise],
    services: Mapping[Place, str],
    peaks: Peaks,
    declared: Sequence[Declared],
    now: float,
    reserve: int,
    processes: Mapping[int, Known] | None,
    namespace: int | None,
) -> Card:
    pool = _pool(reading, readings)
    uuids = {card.uuid for card in pool}
    leases = [promise for promise in promises if uuids & set(promise.uuids)]
    used = reading.used_bytes or 0
    users = _users(pool) if processes is not None else None
    created = _created_by_place(leases)
    owners = {user.pid: place for user in users or () if (place := owner(user.pid, processes or {}, created)) is not None}
    shown = _shown(users or (), owners, leases, reading.total_bytes)

    held: dict[str, int] = {}  # by lease: its part of `used`
    charged: dict[str, int] = {}  # by lease: what it counts for
    foreign = used
    rest = max(0, used - sum(user.used_bytes or 0 for user in users or ()))  # in use by no process that NVML shows
    for number, lease in enumerate(leases):
        reported = sum(lease.seen.get(uuid, 0) for uuid in uuids)
        exact = lease.id in shown and all(user.used_bytes is not None for user in users or () if _owns(owners.get(user.pid), lease))
        if exact:
            held[lease.id] = shown[lease.id]
            leases[number] = replace(lease, seen={**lease.seen, reading.uuid: held[lease.id]})
        elif users is not None and lease.id not in shown and lease.pid_namespace == namespace:
            # NVML would show its processes if they used the card, unless the driver hides them; then their memory is in `rest`.
            held[lease.id] = min(reported, rest)
            rest -= held[lease.id]
        else:
            held[lease.id] = max(shown.get(lease.id, 0), min(reported, used))
        charged[lease.id] = max(_budget(lease, uuids, reading.total_bytes), held[lease.id])
        foreign -= held[lease.id] if exact else charged[lease.id]

    external = max(0, used - sum(held.values()))
    without_lease = None if users is None else [user for user in users if user.pid not in owners]
    neighbours = _neighbours(reading.uuid, external, without_lease, processes or {}, services, declared, peaks, now)
    external_counted = external + sum(neighbour.counted_bytes - neighbour.used_bytes for neighbour in neighbours)
    return Card(
        **{name: getattr(reading, name) for name in Reading.__slots__},
        leases=tuple(leases),
        neighbours=tuple(neighbours),
        external_bytes=external,
        external_counted_bytes=external_counted,
        committed_bytes=external_counted + reserve + sum(charged.values()),
        foreign_bytes=max(0, foreign),
    )


def _pool(reading: Reading, readings: Sequence[Reading]) -> list[Reading]:
    """The readings that share this one's memory: each compute instance of a GPU instance reports all of its memory."""
    if reading.mig_parent is None or reading.mig_instance is None:
        return [reading]
    place = (reading.mig_parent, reading.mig_instance[0])
    return [other for other in readings if other.mig_instance and (other.mig_parent, other.mig_instance[0]) == place]


def _users(pool: Sequence[Reading]) -> list[Process] | None:
    if any(reading.processes is None for reading in pool):
        return None
    return [process for reading in pool for process in reading.processes or ()]


def _created_by_place(leases: Iterable[Promise]) -> dict[Place, float]:
    """When the newest lease was created, by its owner's place: seconds since the machine was started; infinite if that is not known."""
    created: dict[Place, float] = {}
    for lease in leases:
        place = (lease.pid_namespace, lease.pid)
        created[place] = max(created.get(place, 0.0), math.inf if lease.boot is None else lease.boot)
    return created


def _owns(place: Place | None, lease: Promise) -> bool:
    return place == (lease.pid_namespace, lease.pid)


def _shown(users: Iterable[Process], owners: Mapping[int, Place], leases: Sequence[Promise], total: int | None) -> dict[str, int]:
    """Memory that NVML shows for each lease's processes, by lease id. Several leases of one process are filled one after the other."""
    sums: dict[Place, int] = {}
    for user in users:
        if user.pid in owners:
            sums[owners[user.pid]] = sums.get(owners[user.pid], 0) + (user.used_bytes or 0)
    shown: dict[str, int] = {}
    for place, left in sums.items():
        same = [lease for lease in leases if _owns(place, lease)]
        for lease in same:
            shown[lease.id] = min(left, _budget(lease, set(lease.uuids), total))
            left -= shown[lease.id]
        shown[same[0].id] += left
    return shown


def _budget(lease: Promise, uuids: set[str], total: int | None) -> int:
    """The lease's budget on this card; 0 if it exceeds the card, since such a promise must not block the card for all others."""
    return lease.bytes * len(uuids & set(lease.uuids)) if total is None or lease.bytes <= total else 0


def _neighbours(
    uuid: str,
    external: int,
    without_lease: Sequence[Process] | None,
    processes: Mapping[int, Known],
    services: Mapping[Place, str],
    declared: Sequence[Declared],
    peaks: Peaks,
    now: float,
) -> list[Neighbour]:
    if without_lease is None:
        return _unnamed(ALL_NAME, ALL, uuid, external, peaks, now)
    groups: dict[str, list[tuple[Process, Known | None, Declared | None]]] = {}
    for user in without_lease:
        process = processes.get(user.pid)
        match = declaration(process, declared) if process else None
        key = f"declared:{declared.index(match)}" if match else key_of(process) if process else "hidden"
        groups.setdefault(key, []).append((user, process, match))
    neighbours = []
    for key, group in groups.items():
        used = sum(user.used_bytes or 0 for user, _, _ in group)
        user, process, match = max(group, key=lambda member: member[0].used_bytes or 0)
        count = max(used, match.memory_bytes) if match else counted_group(peaks, uuid, key, used, len(group), now)
        neighbours.append(
            Neighbour(
                match.name if match else _name(process, services) if process else "hidden processes",
                process.uid if process else None,
                user.pid,
                process.command if process else None,
                process.cgroup if process else None,
                used,
                count,
                "declared" if match else "peak" if count > used else "used",
                key,
                len(group),
                user.used_bytes or 0,
            )
        )
    rest = max(0, external - sum(neighbour.used_bytes for neighbour in neighbours))
    neighbours += _unnamed(REST_NAME, REST, uuid, rest, peaks, now)
    return sorted(neighbours, key=lambda neighbour: -neighbour.counted_bytes)


def _name(process: Known, services: Mapping[Place, str]) -> str:
    service = None if process.namespace is None else services.get((process.namespace, process.inner_pid))
    return name_of(process) if service is None else f"{service} (its lease is for another card)"


def _unnamed(name: str, key: str, uuid: str, used: int, peaks: Peaks, now: float) -> list[Neighbour]:
    """A neighbour without a visible process; an empty list if nothing is counted."""
    count = counted(peaks, uuid, key, used, now)
    return [Neighbour(name, None, None, None, None, used, count, "peak" if count > used else "used", key)] if count else []
