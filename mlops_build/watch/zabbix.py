"""Values for Zabbix's agent: the cards (low-level discovery), and values by key.

    NAME            of the node: cards, ready, movable.lease, refusals …; `node` is everything as one JSON document, for dependent items
    NAME[UUID]      of one card: memory.used[GPU-…], temperature[GPU-…] …

The names are the keys of NODE and CARD below. Each call is a new process, so refusals and waits are numbers of the last ten minutes, not
counters.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mlops_build.errors import NotFound, UsageError
from mlops_build.gpu.cards import Card
from mlops_build.gpu.nvml import Trouble
from mlops_build.quantity import show_bytes
from mlops_build.watch import metrics
from mlops_build.watch.balance import movable_leases, movable_processes
from mlops_build.watch.metrics import Metric, samples, used_share, used_shares
from mlops_build.watch.node import Snapshot

Value = int | float | str | None
# Reasons why services cannot use a card that works.
BY_DESIGN = (Trouble.MIG_PARENT, Trouble.NO_MEMORY)


class NoValue(NotFound):
    """The card does not exist, or does not report this value."""


def failed(card: Card) -> bool:
    """Whether the card has failed."""
    return card.trouble is not None and card.trouble not in BY_DESIGN


def _movable(name: str, find: Callable[[Card, Sequence[Card]], Mapping[str, int]]) -> dict[str, Callable[[Snapshot], Value]]:
    """The largest value of all cards, and a list of all values."""

    def sizes(snapshot: Snapshot) -> dict[str, int]:
        cards = snapshot.cards
        return {f"{holder} on card {card.index}": size for card in cards for holder, size in find(card, cards).items()}

    return {
        name: lambda snapshot: max(sizes(snapshot).values(), default=None if snapshot.driver else 0),
        f"{name}.why": lambda snapshot: ", ".join(f"{holder} ({show_bytes(size)})" for holder, size in sizes(snapshot).items()),
    }


# By key: a metric without labels, or a value that only Zabbix has.
NODE: Mapping[str, Metric | Callable[[Snapshot], Value]] = {
    "driver": metrics.DRIVER_UP,
    "driver.why": lambda snapshot: f"{snapshot.driver.value}: {snapshot.why}" if snapshot.driver else "",
    "leases.directory": metrics.LEASE_DIRECTORY,
    "cards": metrics.CARDS,
    "ready": metrics.CARDS_READY,
    "failed": lambda snapshot: None if snapshot.driver else sum(map(failed, snapshot.cards)),
    "failed.why": lambda snapshot: (
        None if snapshot.driver else "; ".join(f"card {card.index}: {card.trouble}: {card.why}" for card in snapshot.cards if failed(card))
    ),
    "imbalance": metrics.IMBALANCE,
    **_movable("movable.lease", movable_leases),
    **_movable("movable.external", movable_processes),
    "memory.percent.most": lambda snapshot: max((100 * share for share in used_shares(snapshot)), default=None),
    "refusals": lambda snapshot: snapshot.recent.refused + snapshot.recent.cpu if snapshot.ledger else None,
    "waits": lambda snapshot: snapshot.recent.waiting if snapshot.ledger else None,
}
# By key: a metric of each card, or a value that only Zabbix has.
CARD: Mapping[str, Metric | Callable[[Card], Value]] = {
    "memory.total": metrics.TOTAL,
    "memory.used": metrics.USED,
    "memory.percent": lambda card: None if (share := used_share(card)) is None else 100 * share,
    "memory.committed": metrics.COMMITTED,
    "memory.external": metrics.EXTERNAL,
    "memory.left": metrics.LEFT,
    "movable.lease": metrics.MOVABLE_LEASE,
    "movable.external": metrics.MOVABLE_EXTERNAL,
    "utilisation": lambda card: card.utilisation,
    "temperature": metrics.TEMPERATURE,
    "power": metrics.POWER,
    "ecc": metrics.ECC,
    "leases": lambda card: len(card.leases),
    "failed": lambda card: int(failed(card)),
    "trouble": lambda card: f"{card.trouble}: {card.why}" if card.trouble else "",
}

_KEY = re.compile(r"([a-z]+(?:\.[a-z]+)*)(?:\[([A-Za-z0-9/-]{0,100})\])?")


def named(snapshot: Snapshot) -> list[Card]:
    """Cards whose UUID is known. It is not for a card that was lost before the first reading."""
    return [card for card in snapshot.cards if not card.uuid.startswith("unknown-")]


def discovery(snapshot: Snapshot) -> list[dict[str, str]]:
    """Zabbix's low-level discovery: the macros of each card.

    Raises NoValue without a driver: an empty list would mean that all cards were removed.
    """
    if snapshot.driver:
        raise NoValue(f"the cards cannot be read: {snapshot.why}", remedy="run mlops-build doctor")
    return [
        {"{#UUID}": card.uuid, "{#INDEX}": str(card.index), "{#NAME}": card.name, "{#MIG}": card.mig_parent or ""}
        for card in named(snapshot)
    ]


def parse_key(key: str) -> tuple[str, str]:
    """(NAME, UUID); UUID is empty for a value of the node. Raises UsageError."""
    match = _KEY.fullmatch(key)
    if not match:
        raise UsageError(
            f"{key[:150]!r} is not a valid key", remedy="write NAME for the node or NAME[UUID] for a card, such as memory.used[GPU-…]"
        )
    name, uuid = match[1], match[2] or ""
    values = CARD if uuid else {**NODE, "node": None}
    if name not in values:
        about = "a card" if uuid else "the node"
        raise UsageError(f"{about} has no value {name[:100]!r}", remedy=f"its values are {', '.join(values)}")
    return name, uuid


def document(snapshot: Snapshot) -> dict[str, Any]:
    """All values as one document. Unknown values are left out."""
    exported: dict[str, dict[Metric, float]] = {}
    for sample in samples(snapshot):
        exported.setdefault(sample.labels.get("uuid", ""), {})[sample.metric] = sample.value
    cards = {card.uuid: _values(CARD, card, exported.get(card.uuid, {})) for card in named(snapshot)}
    return {**_values(NODE, snapshot, exported[""]), "cards_by_uuid": cards}


def get(snapshot: Snapshot, key: str) -> str:
    """The value of a key, as text. Raises UsageError, and NoValue if there is none."""
    name, uuid = parse_key(key)
    values = document(snapshot)
    if name == "node":
        import json

        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))
    if uuid and uuid not in values["cards_by_uuid"]:
        raise NoValue(f"there is no card {uuid}", remedy="run mlops-build watch zabbix discovery to list the cards")
    value = (values["cards_by_uuid"][uuid] if uuid else values).get(name.replace(".", "_"))
    if value is None:
        raise NoValue(f"{key} has no value at the moment", remedy="run mlops-build gpu list to see the reason")
    return str(value)


def _values(
    table: Mapping[str, Metric | Callable[[Any], Value]], subject: Card | Snapshot, exported: Mapping[Metric, float]
) -> dict[str, Value]:
    values = {name: exported.get(read) if isinstance(read, Metric) else read(subject) for name, read in table.items()}
    return {
        name.replace(".", "_"): round(value, 4) if isinstance(value, float) else value
        for name, value in values.items()
        if value is not None
    }
