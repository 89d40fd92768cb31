"""The metrics of a node, and their samples for a snapshot. Prometheus and Graphite get all of them. Zabbix gets some, under other names
and partly in other units, beside values of its own (zabbix.py).

Names and units follow https://prometheus.io/docs/practices/naming/: base units (bytes, seconds, ratios of 0 to 1), `_total` for counters.
An unknown value has no sample; it is never 0.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlops_build.gpu.cards import Card
from mlops_build.watch.balance import movable_leases, movable_processes
from mlops_build.watch.node import Snapshot

CARD = ("index", "uuid", "name")
SERVICE = ("index", "uuid", "service")


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of samples. labels: their names, in order."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value. labels: those of its metric."""

    metric: Metric
    value: float
    labels: dict[str, str] = field(default_factory=dict)


DRIVER_UP = Metric("mlops_gpu_driver_up", "1 if the NVIDIA driver answers, else 0.")
DRIVER_TROUBLE = Metric("mlops_gpu_driver_trouble", "1 with the reason why the NVIDIA driver does not answer.", ("reason",))
LEASE_DIRECTORY = Metric("mlops_gpu_lease_directory_up", "1 if the lease directory exists, else 0.")
LOOK_SECONDS = Metric("mlops_gpu_look_seconds", "Duration of the last reading of the cards.")
CARDS = Metric("mlops_gpu_cards", "Number of cards and MIG instances that the driver reports.")
CARDS_READY = Metric("mlops_gpu_cards_ready", "Number of cards and MIG instances that services can use.")
IMBALANCE = Metric(
    "mlops_gpu_imbalance_ratio",
    "Highest used share of a card's memory, divided by the mean of all cards. Needs at least two cards.",
)
USED_MOST = Metric("mlops_gpu_memory_used_most_ratio", "Highest used share of a card's memory, 0 to 1.")
TOTAL = Metric("mlops_gpu_memory_total_bytes", "Usable memory, without the memory that the driver reserves.", CARD)
USED = Metric("mlops_gpu_memory_used_bytes", "Memory in use.", CARD)
EXTERNAL = Metric("mlops_gpu_memory_external_bytes", "Memory in use without a lease.", CARD)
EXTERNAL_COUNTED = Metric(
    "mlops_gpu_memory_external_counted_bytes",
    "External memory that decisions assume: its recent peak or the declared amount.",
    CARD,
)
COMMITTED = Metric(
    "mlops_gpu_memory_committed_bytes",
    "External memory that decisions assume, plus for each lease its budget or its use.",
    CARD,
)
LEFT = Metric("mlops_gpu_memory_left_bytes", "Memory that can still be leased.", CARD)
MOVABLE_LEASE = Metric(
    "mlops_gpu_movable_lease_bytes", "Largest lease that another card has room for if the card is near its limit, else 0.", CARD
)
MOVABLE_EXTERNAL = Metric(
    "mlops_gpu_movable_external_bytes",
    "Largest process without a lease that another card has room for if such processes fill the card, else 0.",
    CARD,
)
UTILISATION = Metric("mlops_gpu_utilisation_ratio", "Share of the last sample period in which the card was busy, 0 to 1.", CARD)
TEMPERATURE = Metric("mlops_gpu_temperature_celsius", "Temperature of the card.", CARD)
POWER = Metric("mlops_gpu_power_watts", "Power draw of the card.", CARD)
ECC = Metric("mlops_gpu_ecc_uncorrected_errors_total", "Uncorrected memory errors since the driver was loaded.", CARD, "counter")
TROUBLE = Metric("mlops_gpu_trouble", "1 with the reason why services cannot use the card; no sample if they can.", (*CARD, "reason"))
LEASES = Metric("mlops_gpu_service_leases", "Number of leases that a service holds on a card.", SERVICE)
PROMISED = Metric("mlops_gpu_service_promised_bytes", "Memory budget of a service's leases on a card.", SERVICE)
SERVICE_SEEN = Metric("mlops_gpu_service_seen_bytes", "Memory that a service's leases on a card use, as measured.", SERVICE)
SERVICE_MOVABLE = Metric(
    "mlops_gpu_service_movable_bytes",
    "Largest lease of a service that another card has room for if the card is near its limit, else 0.",
    SERVICE,
)
NEIGHBOUR = Metric(
    "mlops_gpu_neighbour_used_bytes", "Memory used by processes without a lease, by unit or program.", ("index", "uuid", "neighbour")
)
DECISIONS = Metric("mlops_gpu_decisions_total", "Lease decisions since the exporter started, by outcome.", ("outcome",), "counter")
REFUSALS = Metric(
    "mlops_gpu_refusals_total", "Lease requests without enough free memory that failed or fell back to the CPU.", kind="counter"
)
WAITS = Metric("mlops_gpu_waits_total", "Lease requests that had to wait for memory.", kind="counter")
WAITED = Metric("mlops_gpu_wait_seconds_total", "Time that lease requests waited for memory.", kind="counter")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


def samples(snapshot: Snapshot) -> Iterator[Sample]:
    """The samples of a snapshot: the node, then each card with its services and neighbours."""
    cards, counts, shares = snapshot.cards, snapshot.counts, used_shares(snapshot)
    node: list[tuple[Metric, float | None]] = [
        (DRIVER_UP, int(not snapshot.driver)),
        (LEASE_DIRECTORY, int(snapshot.ledger)),
        (LOOK_SECONDS, snapshot.seconds),
        (CARDS, None if snapshot.driver else len(cards)),
        (CARDS_READY, None if snapshot.driver else sum(card.trouble is None for card in cards)),
        (USED_MOST, max(shares, default=None)),
        (IMBALANCE, imbalance_of(shares)),
        (REFUSALS, counts.refused + counts.cpu),
        (WAITS, counts.waiting),
        (WAITED, counts.waited_seconds),
    ]
    yield from _known(node, {})
    if snapshot.driver:
        yield Sample(DRIVER_TROUBLE, 1, {"reason": snapshot.driver.value})
    for outcome in ("granted", "refused", "cpu"):
        yield Sample(DECISIONS, getattr(counts, outcome), {"outcome": outcome})
    for card in cards:
        yield from _card(card, cards)
        yield from _neighbours(card)


def used_share(card: Card) -> float | None:
    """Used share of the memory of a card that services can use, 0 to 1; None for other cards."""
    if card.trouble is not None or not card.total_bytes or card.used_bytes is None:
        return None
    return card.used_bytes / card.total_bytes


def used_shares(snapshot: Snapshot) -> list[float]:
    """`used_share` of each card that services can use."""
    return [share for card in snapshot.cards if (share := used_share(card)) is not None]


def imbalance_of(shares: Sequence[float]) -> float | None:
    """max / mean; 1 for an empty node, None for fewer than two cards."""
    if len(shares) < 2:
        return None
    mean = sum(shares) / len(shares)
    return max(shares) / mean if mean else 1.0


def _known(values: Iterable[tuple[Metric, float | None]], labels: dict[str, str]) -> Iterator[Sample]:
    return (Sample(metric, value, labels) for metric, value in values if value is not None)


def _card(card: Card, cards: Sequence[Card]) -> Iterator[Sample]:
    labels = {"index": str(card.index), "uuid": card.uuid, "name": card.name}
    if card.trouble is not None:
        yield Sample(TROUBLE, 1, {**labels, "reason": card.trouble.value})
    values: list[tuple[Metric, float | None]] = [
        (TOTAL, card.total_bytes),
        (USED, card.used_bytes),
        (UTILISATION, None if card.utilisation is None else card.utilisation / 100),
        (TEMPERATURE, card.temperature),
        (POWER, card.power_watts),
        (ECC, card.ecc_errors),
    ]
    movable = movable_leases(card, cards)
    if card.total_bytes is not None and card.used_bytes is not None and card.trouble is None:
        values += [
            (EXTERNAL, card.external_bytes),
            (EXTERNAL_COUNTED, card.external_counted_bytes),
            (COMMITTED, card.committed_bytes),
            (LEFT, card.left_bytes),
            (MOVABLE_LEASE, max(movable.values(), default=0)),
            (MOVABLE_EXTERNAL, max(movable_processes(card, cards).values(), default=0)),
        ]
    yield from _known(values, labels)
    yield from _services(card, movable)


def _services(card: Card, movable: dict[str, int]) -> Iterator[Sample]:
    """Sums of the leases of a service on a card, so that the labels do not change with each lease."""
    for service in dict.fromkeys(lease.service for lease in card.leases):
        leases = [lease for lease in card.leases if lease.service == service]
        seen = [lease.seen[card.uuid] for lease in leases if card.uuid in lease.seen]
        values: list[tuple[Metric, float | None]] = [
            (LEASES, len(leases)),
            (PROMISED, sum(lease.bytes for lease in leases)),
            (SERVICE_SEEN, sum(seen) if seen else None),
            (SERVICE_MOVABLE, movable.get(service, 0)),
        ]
        yield from _known(values, {"index": str(card.index), "uuid": card.uuid, "service": service})


def _neighbours(card: Card) -> Iterator[Sample]:
    """Sums of the processes of a name, which has no container, pod or pid: each restart would begin another time series."""
    for name in dict.fromkeys(neighbour.stable_name for neighbour in card.neighbours):
        used = sum(neighbour.used_bytes for neighbour in card.neighbours if neighbour.stable_name == name)
        yield Sample(NEIGHBOUR, used, {"index": str(card.index), "uuid": card.uuid, "neighbour": name})
