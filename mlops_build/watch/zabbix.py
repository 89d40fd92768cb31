"""Values for Zabbix's agent: the cards (low-level discovery), and values by key.

    NAME            of the node: cards, ready, imbalance, refusals …; `node` is everything as one JSON document, for dependent items
    NAME[UUID]      of one card: memory.used[GPU-…], temperature[GPU-…] …

The names are the keys of NODE and CARD below. Each call is a new process, so refusals and waits are numbers of the last ten minutes, not
counters.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from mlops_build.errors import NotFound, UsageError
from mlops_build.gpu.cards import Card
from mlops_build.gpu.nvml import Trouble
from mlops_build.watch.metrics import imbalance_of, used_share, used_shares
from mlops_build.watch.node import Snapshot

Value = int | float | str | None
# Reasons why services cannot use a card that works.
BY_DESIGN = (Trouble.MIG_PARENT, Trouble.NO_MEMORY)


class NoValue(NotFound):
    """The card does not exist, or does not report this value."""


def failed(card: Card) -> bool:
    """Whether the card has failed."""
    return card.trouble is not None and card.trouble not in BY_DESIGN


NODE: Mapping[str, Callable[[Snapshot], Value]] = {
    "driver": lambda snapshot: 0 if snapshot.driver else 1,
    "driver.why": lambda snapshot: f"{snapshot.driver.value}: {snapshot.why}" if snapshot.driver else "",
    "leases.directory": lambda snapshot: int(snapshot.ledger),
    "cards": lambda snapshot: None if snapshot.driver else len(snapshot.cards),
    "ready": lambda snapshot: None if snapshot.driver else sum(card.trouble is None for card in snapshot.cards),
    "failed": lambda snapshot: None if snapshot.driver else sum(map(failed, snapshot.cards)),
    "failed.why": lambda snapshot: (
        None if snapshot.driver else "; ".join(f"card {card.index}: {card.trouble}: {card.why}" for card in snapshot.cards if failed(card))
    ),
    "imbalance": lambda snapshot: imbalance_of(used_shares(snapshot)),
    "memory.percent.most": lambda snapshot: max((100 * share for share in used_shares(snapshot)), default=None),
    "refusals": lambda snapshot: snapshot.recent.refused + snapshot.recent.cpu if snapshot.ledger else None,
    "waits": lambda snapshot: snapshot.recent.waiting if snapshot.ledger else None,
}


def _sum(card: Card, size: int) -> int | None:
    """A value computed from a card's memory; None if its memory is not known."""
    return size if card.trouble is None and card.total_bytes is not None and card.used_bytes is not None else None


CARD: Mapping[str, Callable[[Card], Value]] = {
    "memory.total": lambda card: card.total_bytes,
    "memory.used": lambda card: card.used_bytes,
    "memory.percent": lambda card: None if (share := used_share(card)) is None else 100 * share,
    "memory.committed": lambda card: _sum(card, card.committed_bytes),
    "memory.external": lambda card: _sum(card, card.external_bytes),
    "memory.left": lambda card: _sum(card, card.left_bytes),
    "utilisation": lambda card: card.utilisation,
    "temperature": lambda card: card.temperature,
    "power": lambda card: card.power_watts,
    "ecc": lambda card: card.ecc_errors,
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
    return {
        **{name.replace(".", "_"): _rounded(value) for name, read in NODE.items() if (value := read(snapshot)) is not None},
        "cards_by_uuid": {
            card.uuid: {name.replace(".", "_"): _rounded(value) for name, read in CARD.items() if (value := read(card)) is not None}
            for card in named(snapshot)
        },
    }


def get(snapshot: Snapshot, key: str) -> str:
    """The value of a key, as text. Raises UsageError, and NoValue if there is none."""
    name, uuid = parse_key(key)
    if name == "node" and not uuid:
        import json

        return json.dumps(document(snapshot), ensure_ascii=False, separators=(",", ":"))
    if uuid:
        card = next((card for card in snapshot.cards if card.uuid == uuid), None)
        if card is None:
            raise NoValue(f"there is no card {uuid}", remedy="run mlops-build watch zabbix discovery to list the cards")
        value = CARD[name](card)
    else:
        value = NODE[name](snapshot)
    if value is None:
        raise NoValue(f"{key} has no value at the moment", remedy="run mlops-build gpu list to see the reason")
    return str(_rounded(value))


def _rounded(value: Value) -> Value:
    return round(value, 4) if isinstance(value, float) else value
