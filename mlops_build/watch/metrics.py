"""Everything that is exported, one row each, and what one look makes of it. Prometheus, Graphite and Zabbix all read it from here.

Names and units follow https://prometheus.io/docs/practices/naming/: base units (bytes, seconds, ratios of 0 to 1), `_total` for what only
grows. What is not known has no sample; it is never 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from mlops_build.gpu.cards import Card
from mlops_build.watch.node import Seen

CARD = ("index", "uuid", "name")


@dataclass(frozen=True, slots=True)
class Metric:
    """One family of samples. labels: their names, in order."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: Literal["gauge", "counter"] = "gauge"


@dataclass(frozen=True, slots=True)
class Sample:
    """One value now. labels: those of its metric."""

    metric: Metric
    value: float
    labels: dict[str, str] = field(default_factory=dict)


DRIVER_UP = Metric("mlops_gpu_driver_up", "1 if the NVIDIA driver answers, else 0.")
DRIVER_TROUBLE = Metric("mlops_gpu_driver_trouble", "1 for the reason why the NVIDIA driver does not answer.", ("reason",))
LEASE_DIRECTORY = Metric("mlops_gpu_lease_directory_up", "1 if the directory of the leases is there, else 0.")
LOOK_SECONDS = Metric("mlops_gpu_look_seconds", "How long the last look at the cards took.")
CARDS = Metric("mlops_gpu_cards", "How many cards and MIG instances the driver counts.")
CARDS_READY = Metric("mlops_gpu_cards_ready", "How many of them can be chosen for a service.")
IMBALANCE = Metric(
    "mlops_gpu_imbalance_ratio", "Greatest used share of a card's memory, divided by the mean of all cards: 1 is even. From two cards on."
)
USED_MOST = Metric("mlops_gpu_memory_used_most_ratio", "Greatest used share of a card's memory, 0 to 1.")
TOTAL = Metric("mlops_gpu_memory_total_bytes", "Memory that can be used, without what the driver reserves.", CARD)
USED = Metric("mlops_gpu_memory_used_bytes", "Memory in use.", CARD)
EXTERNAL = Metric("mlops_gpu_memory_external_bytes", "Memory in use without a lease.", CARD)
EXTERNAL_COUNTED = Metric(
    "mlops_gpu_memory_external_counted_bytes", "What decisions count for it: at least its peak of the last days, or what is declared.", CARD
)
COMMITTED = Metric(
    "mlops_gpu_memory_committed_bytes", "What is taken: counted for those without a lease, and for each lease its budget or its use.", CARD
)
LEFT = Metric("mlops_gpu_memory_left_bytes", "What can still be promised to a service.", CARD)
UTILISATION = Metric("mlops_gpu_utilisation_ratio", "Share of the last moments in which the card computed, 0 to 1.", CARD)
TEMPERATURE = Metric("mlops_gpu_temperature_celsius", "Temperature of the card.", CARD)
POWER = Metric("mlops_gpu_power_watts", "Power that the card draws.", CARD)
ECC = Metric(
    "mlops_gpu_ecc_uncorrected_errors_total", "Memory errors that could not be corrected, since the driver was loaded.", CARD, "counter"
)
TROUBLE = Metric("mlops_gpu_trouble", "1 for the reason why the card cannot be chosen; no sample if it can.", (*CARD, "reason"))
LEASES = Metric("mlops_gpu_service_leases", "Leases that a service holds on a card.", ("index", "uuid", "service"))
PROMISED = Metric("mlops_gpu_service_promised_bytes", "Memory that a service's leases on a card may use.", ("index", "uuid", "service"))
SERVICE_SEEN = Metric(
    "mlops_gpu_service_seen_bytes", "Memory that a service's leases on a card were seen to use.", ("index", "uuid", "service")
)
NEIGHBOUR = Metric("mlops_gpu_neighbour_used_bytes", "Memory that somebody without a lease uses.", ("index", "uuid", "neighbour"))
DECISIONS = Metric("mlops_gpu_decisions_total", "Decisions since the exporter began, by how they ended.", ("outcome",), "counter")
REFUSALS = Metric("mlops_gpu_refusals_total", "Services that found no room, and failed or went to the CPU.", kind="counter")
WAITS = Metric("mlops_gpu_waits_total", "Services that found no room at first, and waited.", kind="counter")
WAITED = Metric("mlops_gpu_wait_seconds_total", "Time that services waited for room.", kind="counter")

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


def samples(seen: Seen) -> Iterator[Sample]:
    """What one look says, in the order of METRICS' parts: the node, each card, who is on it."""
    yield Sample(DRIVER_UP, 0 if seen.driver else 1)
    if seen.driver:
        yield Sample(DRIVER_TROUBLE, 1, {"reason": seen.driver.value})
    yield Sample(LEASE_DIRECTORY, 1 if seen.ledger else 0)
    yield Sample(LOOK_SECONDS, seen.seconds)
    if not seen.driver:
        yield Sample(CARDS, len(seen.cards))
        yield Sample(CARDS_READY, sum(card.trouble is None for card in seen.cards))
    shares = [share for card in seen.cards if (share := used_share(card)) is not None]
    if shares:
        yield Sample(USED_MOST, max(shares))
    if (imbalance := imbalance_of(shares)) is not None:
        yield Sample(IMBALANCE, imbalance)
    for outcome in ("granted", "refused", "cpu"):
        yield Sample(DECISIONS, getattr(seen.counts, outcome), {"outcome": outcome})
    yield Sample(REFUSALS, seen.counts.refused + seen.counts.cpu)
    yield Sample(WAITS, seen.counts.waiting)
    yield Sample(WAITED, seen.counts.waited_seconds)
    for card in seen.cards:
        yield from _card(card)
        yield from _services(card)
        yield from _neighbours(card)


def used_share(card: Card) -> float | None:
    """Used memory of a card that services can be put on, 0 to 1."""
    if card.trouble is not None or not card.total_bytes or card.used_bytes is None:
        return None
    return card.used_bytes / card.total_bytes


def imbalance_of(shares: Sequence[float]) -> float | None:
    """max / mean. An empty node is even; one card alone cannot be uneven."""
    if len(shares) < 2:
        return None
    mean = sum(shares) / len(shares)
    return max(shares) / mean if mean else 1.0


def _card(card: Card) -> Iterator[Sample]:
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
    if card.total_bytes is not None and card.used_bytes is not None and card.trouble is None:
        values += [
            (EXTERNAL, card.external_bytes),
            (EXTERNAL_COUNTED, card.external_counted_bytes),
            (COMMITTED, card.committed_bytes),
            (LEFT, card.left_bytes),
        ]
    yield from (Sample(metric, value, labels) for metric, value in values if value is not None)


def _services(card: Card) -> Iterator[Sample]:
    """Leases of one service on one card are added up: names stay when leases come and go."""
    for service in dict.fromkeys(lease.service for lease in card.leases):
        mine = [lease for lease in card.leases if lease.service == service]
        labels = {"index": str(card.index), "uuid": card.uuid, "service": service}
        yield Sample(LEASES, len(mine), labels)
        yield Sample(PROMISED, sum(lease.bytes for lease in mine), labels)
        if any(card.uuid in lease.seen for lease in mine):
            yield Sample(SERVICE_SEEN, sum(lease.seen.get(card.uuid, 0) for lease in mine), labels)


def _neighbours(card: Card) -> Iterator[Sample]:
    used: dict[str, int] = {}
    for neighbour in card.neighbours:
        used[neighbour.name] = used.get(neighbour.name, 0) + neighbour.used_bytes
    for name, size in used.items():
        yield Sample(NEIGHBOUR, size, {"index": str(card.index), "uuid": card.uuid, "neighbour": name})
