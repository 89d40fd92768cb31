"""What Zabbix's agent asks: which cards there are (low-level discovery), and values by key.

    NAME            of the node: cards, ready, imbalance, refusals …; `node` is everything as one JSON document, for dependent items
    NAME[UUID]      of one card: memory.used[GPU-…], temperature[GPU-…] …

The names are rows of NODE and CARD below. Each call looks at the node once and is gone, so refusals and waits are those of the last ten
minutes, not a count that only grows.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from mlops_build.errors import NotFound, UsageError
from mlops_build.gpu.cards import Card
from mlops_build.gpu.nvml import Trouble
from mlops_build.watch.metrics import imbalance_of, used_share
from mlops_build.watch.node import Seen

Value = int | float | str | None
# What NVML says of a card that works, but is none to put a service on.
BY_DESIGN = (Trouble.MIG_PARENT, Trouble.NO_MEMORY)


class NoValue(NotFound):
    """There is no such card now, or it does not say this."""


def failed(card: Card) -> bool:
    """Whether something is wrong with it."""
    return card.trouble is not None and card.trouble not in BY_DESIGN


def _shares(seen: Seen) -> list[float]:
    return [share for card in seen.cards if (share := used_share(card)) is not None]


NODE: Mapping[str, Callable[[Seen], Value]] = {
    "driver": lambda seen: 0 if seen.driver else 1,
    "driver.why": lambda seen: f"{seen.driver.value}: {seen.why}" if seen.driver else "",
    "leases.directory": lambda seen: int(seen.ledger),
    "cards": lambda seen: None if seen.driver else len(seen.cards),
    "ready": lambda seen: None if seen.driver else sum(card.trouble is None for card in seen.cards),
    "failed": lambda seen: None if seen.driver else sum(map(failed, seen.cards)),
    "failed.why": lambda seen: (
        None if seen.driver else "; ".join(f"card {card.index}: {card.trouble}: {card.why}" for card in seen.cards if failed(card))
    ),
    "imbalance": lambda seen: imbalance_of(_shares(seen)),
    "memory.percent.most": lambda seen: 100 * max(_shares(seen)) if _shares(seen) else None,
    "refusals": lambda seen: seen.recent.refused + seen.recent.cpu if seen.ledger else None,
    "waits": lambda seen: seen.recent.waiting if seen.ledger else None,
}


def _sum(card: Card, size: int) -> int | None:
    """What is added up from a card's memory; nothing where that is not known."""
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


def named(seen: Seen) -> list[Card]:
    """Cards whose UUID is known: of one that was lost before anybody looked, not even that is."""
    return [card for card in seen.cards if not card.uuid.startswith("unknown-")]


def discovery(seen: Seen) -> list[dict[str, str]]:
    """Zabbix's low-level discovery: the macros of each card. Raises NoValue without a driver, since an empty list would mean that all
    cards were taken out."""
    if seen.driver:
        raise NoValue(f"no card can be looked at: {seen.why}", remedy="mlops-build doctor")
    return [
        {"{#UUID}": card.uuid, "{#INDEX}": str(card.index), "{#NAME}": card.name, "{#MIG}": card.mig_parent or ""} for card in named(seen)
    ]


def parse_key(key: str) -> tuple[str, str]:
    """(NAME, UUID, empty for the node's). Raises UsageError: what is wrong with it."""
    match = _KEY.fullmatch(key)
    if not match:
        raise UsageError(f"{key[:150]!r} is no key", remedy="NAME for the node or NAME[UUID] for a card, such as memory.used[GPU-…]")
    name, uuid = match[1], match[2] or ""
    known = CARD if uuid else {**NODE, "node": None}
    if name not in known:
        about = "a card" if uuid else "the node"
        raise UsageError(f"{about} has no value {name[:100]!r}", remedy=f"it has {', '.join(known)}")
    return name, uuid


def document(seen: Seen) -> dict[str, Any]:
    """Everything. What is not known is left out."""
    return {
        **{name.replace(".", "_"): _rounded(value) for name, ask in NODE.items() if (value := ask(seen)) is not None},
        "cards_by_uuid": {
            card.uuid: {name.replace(".", "_"): _rounded(value) for name, ask in CARD.items() if (value := ask(card)) is not None}
            for card in named(seen)
        },
    }


def get(seen: Seen, key: str) -> str:
    """The value of a key, as text. Raises UsageError, and NoValue if there is none now."""
    name, uuid = parse_key(key)
    if name == "node" and not uuid:
        import json

        return json.dumps(document(seen), ensure_ascii=False, separators=(",", ":"))
    if uuid:
        card = next((card for card in seen.cards if card.uuid == uuid), None)
        if card is None:
            raise NoValue(f"no card {uuid} is seen", remedy="mlops-build watch zabbix discovery lists them")
        value = CARD[name](card)
    else:
        value = NODE[name](seen)
    if value is None:
        raise NoValue(f"{key} has no value now", remedy="mlops-build gpu list says what is the matter")
    return str(_rounded(value))


def _rounded(value: Value) -> Value:
    return round(value, 4) if isinstance(value, float) else value
