"""The cards of this machine with what is promised on them, and the arithmetic that every choice of a card rests on.

    committed = what is used without a lease (as much as is counted for it) + reserve + for each lease the greater of its budget and its use
    left      = total - committed

A new lease fits if its budget is at most `left`; then the promises on a card never add up to more than it has. Where something cannot be
known, it is counted twice rather than not at all: a lease whose memory nobody has seen yet may be part of what is used already.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping, Sequence

from mlops_build.gpu.declared import Declared, Settings, settings
from mlops_build.gpu.frozen import dataclass, replace
from mlops_build.gpu.neighbours import Known, Neighbour, Place, declaration, key_of, known, name_of, owner, pid_namespace
from mlops_build.gpu.nvml import NoDriver, Nvml, Process, Reading
from mlops_build.gpu.peaks import ALL, EACH, REST, Peaks, as_document, counted, counted_group, from_document, merge, observe
from mlops_build.gpu.visible import AmbiguousMask, visible

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from mlops_build.gpu.ledger import Ledger, Promise

__all__ = ["Card", "NoDriver", "Snapshot", "account", "cards", "look", "remember", "remembered", "snapshot", "unleased"]


@dataclass(frozen=True, slots=True)
class Card(Reading):
    """A reading with its leases and neighbours. Memory in bytes.

    leases: as the ledger says, `seen` replaced by what NVML shows of their processes where it can. external_bytes: in use without a lease.
    external_counted_bytes: what is counted for that. foreign_bytes: what is certainly no lease's, the least that external can be.
    visible: whether CUDA_VISIBLE_DEVICES lets this process use it; None if that cannot be said.
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
        """What can still be promised; 0 on a card in trouble."""
        return 0 if self.trouble or self.total_bytes is None else max(0, self.total_bytes - self.committed_bytes)

    @property
    def headroom(self) -> float:
        """What can still be promised, of the whole: 0 to 1."""
        return self.left_bytes / self.total_bytes if self.total_bytes else 0.0


def cards() -> list[Card]:
    """One look at every card, each MIG parent followed by its instances, in NVML's order; with the leases of the lease directory.

    Remembers there what it sees of those without a lease, if it may. Without a directory there are no leases. Raises NoDriver, BadConfig.
    """
    from mlops_build.gpu.ledger import Ledger, NoLedger

    with Nvml() as nvml:
        now = time.time()
        try:
            ledger = Ledger.open(reading=True)
        except NoLedger:
            return look(nvml, (), {}, now=now, full=True)
        with ledger:
            peaks = remembered(ledger, now)
            found = look(nvml, ledger.promises(), peaks, now=now, full=True)
            with contextlib.suppress(NoLedger):  # read-only: others remember
                remember(ledger, peaks, found, now)
            return found


def remembered(ledger: Ledger, now: float) -> Peaks:
    """The peaks that the lease directory has, of every looker that is believed. now: unix s."""
    return merge((from_document(document, now) for document in ledger.peaks()), now)


def remember(ledger: Ledger, peaks: Peaks, cards: Iterable[Card], now: float) -> None:
    """Keep what a look saw of those without a lease; `peaks` is what was remembered before. Raises NoLedger."""
    after = observe(peaks, unleased(cards), now)
    if after is not peaks:
        ledger.write_peaks(as_document(after))


def look(
    nvml: Nvml, promises: Sequence[Promise], peaks: Peaks, *, now: float | None = None, full: bool = False, utilisation: bool = False
) -> list[Card]:
    """One look through an open NVML, with the promises and peaks that the lease directory has.

    full, utilisation: as `Nvml.read`. now: unix s, default the clock. Raises NoDriver, BadConfig.
    """
    return snapshot(nvml, promises, peaks, now=now, full=full, utilisation=utilisation).cards(promises)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a look saw, before it is added up: what takes long. taken: time.monotonic, s."""

    readings: Sequence[Reading]
    promises: Mapping[str, Promise]
    processes: Mapping[int, Known] | None
    peaks: Peaks
    settings: Settings
    now: float
    taken: float

    def cards(self, promises: Sequence[Promise]) -> list[Card]:
        """The cards with these promises, which may be newer than the readings.

        What a lease was seen to use is then taken from when the readings were: memory that came later is not in them, and to subtract it
        would hide a neighbour's. A lease that came since counts its whole budget, one that has gone counts what it used as a neighbour's:
        too much rather than too little.
        """
        found = account(
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
            mine = {card.uuid for card in visible(found)}
        except AmbiguousMask:
            return [replace(card, visible=None) for card in found]
        return [card if card.uuid in mine else replace(card, visible=False) for card in found]


def snapshot(
    nvml: Nvml, promises: Sequence[Promise], peaks: Peaks, *, now: float | None = None, full: bool = False, utilisation: bool = False
) -> Snapshot:
    """What `look` sees; the promises are read before it. Raises NoDriver, BadConfig."""
    taken = time.monotonic()
    readings = nvml.read(full, utilisation=utilisation)
    return Snapshot(
        readings,
        {promise.id: promise for promise in promises},
        known((process.pid for reading in readings for process in reading.processes or ()), _made(promises)),
        peaks,
        settings(),
        time.time() if now is None else now,
        taken,
    )


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
    """The cards that these readings, promises, peaks and declarations make. Pure.

    now: unix s. reserve: bytes kept free on each card. processes: what /proc says about the pids that NVML names, None where they are not
    /proc's. namespace: this process' pid namespace.
    """
    services = {(promise.pid_namespace, promise.pid): promise.service for promise in promises}
    return [_card(reading, readings, promises, services, peaks, declared, now, reserve, processes, namespace) for reading in readings]


def unleased(cards: Iterable[Card]) -> dict[str, dict[str, int]]:
    """What is certainly used without a lease, by UUID and the neighbour's key, for `peaks.observe`.

    Certainly: a lease's memory that cannot be told from a neighbour's (it is loading; its processes are in another container) must not be
    remembered as one's for a week.
    """
    found: dict[str, dict[str, int]] = {}
    for card in cards:
        if card.trouble is not None or card.used_bytes is None:
            continue
        found[card.uuid] = {ALL: card.foreign_bytes}
        if all(one.key != ALL for one in card.neighbours):
            seen = [one for one in card.neighbours if one.key != REST]
            found[card.uuid] |= {one.key: one.used_bytes for one in seen if one.why != "declared"}
            found[card.uuid] |= {one.key + EACH: one.largest_bytes for one in seen if one.why != "declared"}
            found[card.uuid][REST] = max(0, card.foreign_bytes - sum(one.used_bytes for one in seen))
    return found


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
    made = _made(leases)
    owners = {user.pid: place for user in users or () if (place := owner(user.pid, processes or {}, made)) is not None}
    shown = _shown(users or (), owners, leases, reading.total_bytes)

    held: dict[str, int] = {}  # what each lease uses, of `used`
    charged: dict[str, int] = {}
    foreign = used
    rest = max(0, used - sum(user.used_bytes or 0 for user in users or ()))  # in use, but by no process that NVML shows
    for number, lease in enumerate(leases):
        said = sum(lease.seen.get(uuid, 0) for uuid in uuids)
        exact = lease.id in shown and all(user.used_bytes is not None for user in users or () if _is(owners.get(user.pid), lease))
        if exact:
            held[lease.id] = shown[lease.id]
            leases[number] = replace(lease, seen={**lease.seen, reading.uuid: held[lease.id]})
        elif users is not None and lease.id not in shown and lease.pid_namespace == namespace:
            # Its processes would be shown if they were on the card; unless the driver hides them, and then their memory is in the rest.
            held[lease.id] = min(said, rest)
            rest -= held[lease.id]
        else:
            held[lease.id] = max(shown.get(lease.id, 0), min(said, used))
        charged[lease.id] = max(_budget(lease, uuids, reading.total_bytes), held[lease.id])
        foreign -= held[lease.id] if exact else charged[lease.id]

    external = max(0, used - sum(held.values()))
    strangers = None if users is None else [user for user in users if user.pid not in owners]
    neighbours = _neighbours(reading.uuid, external, strangers, processes or {}, services, declared, peaks, now)
    external_counted = external + sum(one.counted_bytes - one.used_bytes for one in neighbours)
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
    """The readings that have the same memory: compute instances of one GPU instance share it, and each reports all of it."""
    if reading.mig_parent is None or reading.mig_instance is None:
        return [reading]
    place = (reading.mig_parent, reading.mig_instance[0])
    return [one for one in readings if one.mig_instance and (one.mig_parent, one.mig_instance[0]) == place]


def _users(pool: Sequence[Reading]) -> list[Process] | None:
    if any(reading.processes is None for reading in pool):
        return None
    return [process for reading in pool for process in reading.processes or ()]


def _made(leases: Iterable[Promise]) -> dict[Place, float]:
    """When the leases were made, by their owners' places."""
    made: dict[Place, float] = {}
    for lease in leases:
        place = (lease.pid_namespace, lease.pid)
        made[place] = max(made.get(place, 0.0), lease.created)
    return made


def _is(place: Place | None, lease: Promise) -> bool:
    return place == (lease.pid_namespace, lease.pid)


def _shown(users: Iterable[Process], owners: Mapping[int, Place], leases: Sequence[Promise], total: int | None) -> dict[str, int]:
    """What NVML shows of each lease's processes, by the lease's id. Several leases of one process are filled one after the other."""
    sums: dict[Place, int] = {}
    for user in users:
        if user.pid in owners:
            sums[owners[user.pid]] = sums.get(owners[user.pid], 0) + (user.used_bytes or 0)
    shown: dict[str, int] = {}
    for place, left in sums.items():
        same = [lease for lease in leases if _is(place, lease)]
        for lease in same:
            shown[lease.id] = min(left, _budget(lease, set(lease.uuids), total))
            left -= shown[lease.id]
        shown[same[0].id] += left
    return shown


def _budget(lease: Promise, uuids: set[str], total: int | None) -> int:
    """What it promises to keep to on this card. More than the card has is no promise, and must not close the card for everybody."""
    return lease.bytes * len(uuids & set(lease.uuids)) if total is None or lease.bytes <= total else 0


def _neighbours(
    uuid: str,
    external: int,
    strangers: Sequence[Process] | None,
    processes: Mapping[int, Known],
    services: Mapping[Place, str],
    declared: Sequence[Declared],
    peaks: Peaks,
    now: float,
) -> list[Neighbour]:
    if strangers is None:
        return _one("others (their processes cannot be seen from here)", ALL, uuid, external, peaks, now)
    groups: dict[str, list[tuple[Process, Known | None, Declared | None]]] = {}
    for user in strangers:
        process = processes.get(user.pid)
        fits = declaration(process, declared) if process else None
        key = f"declared:{declared.index(fits)}" if fits else key_of(process) if process else "hidden"
        groups.setdefault(key, []).append((user, process, fits))
    found = []
    for key, group in groups.items():
        used = sum(user.used_bytes or 0 for user, _, _ in group)
        user, process, fits = max(group, key=lambda one: one[0].used_bytes or 0)
        count = max(used, fits.memory_bytes) if fits else counted_group(peaks, uuid, key, used, len(group), now)
        found.append(
            Neighbour(
                fits.name if fits else _name(process, services) if process else "hidden processes",
                process.uid if process else None,
                user.pid,
                process.command if process else None,
                process.cgroup if process else None,
                used,
                count,
                "declared" if fits else "peak" if count > used else "used",
                key,
                len(group),
                user.used_bytes or 0,
            )
        )
    rest = max(0, external - sum(one.used_bytes for one in found))
    found += _one("nobody that can be seen", REST, uuid, rest, peaks, now)
    return sorted(found, key=lambda one: -one.counted_bytes)


def _name(process: Known, services: Mapping[Place, str]) -> str:
    service = None if process.namespace is None else services.get((process.namespace, process.inner_pid))
    return name_of(process) if service is None else f"{service} (its lease is for another card)"


def _one(name: str, key: str, uuid: str, used: int, peaks: Peaks, now: float) -> list[Neighbour]:
    count = counted(peaks, uuid, key, used, now)
    return [Neighbour(name, None, None, None, None, used, count, "peak" if count > used else "used", key)] if count else []
