"""Records of decisions: one JSON line each, with its inputs, for `gpu explain` and the exporters.

Each uid writes its own file in the lease directory, readable for all users. It keeps at most LIMIT bytes of the newest lines.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from typing import Any

from mlops_build.gpu.cards import Card
from mlops_build.gpu.choice import Choice, Request, name_of
from mlops_build.gpu.ledger import Ledger

SCHEMA = 1
LIMIT = 256 * 1024
LATEST = 1e11  # unix s; time.localtime refuses times much later
_NAME = re.compile(r"decisions-[0-9]+\.jsonl")
# granted: a lease. waiting: no room yet. refused: no room. cpu: no room, and the CPU was allowed.
PICK = "gpu pick"  # the service of requests that choose a card without taking a lease
OUTCOMES = ("granted", "waiting", "refused", "cpu")
_CARD = (
    *("index", "uuid", "name", "total_bytes", "used_bytes", "trouble", "why", "utilisation", "mig_parent", "compute_capability"),
    *("visible", "external_bytes", "external_counted_bytes", "committed_bytes", "left_bytes"),
)
_LEASE = ("id", "service", "uid", "bytes", "exclusive", "loaded")
_NEIGHBOUR = ("name", "uid", "used_bytes", "counted_bytes", "why")


def line(
    outcome: str,
    request: Request,
    cards: Sequence[Card],
    choice: Choice,
    *,
    service: str,
    lease: str | None,
    waited: float,
) -> str:
    """A decision as a line of JSON. waited: seconds since the request."""
    document = {
        "schema": SCHEMA,
        "time": round(time.time(), 3),
        "outcome": outcome,
        "service": service,
        "lease": lease,
        "waited": round(waited, 3),
        "request": _fields(request, Request.__slots__) | {"strategy": name_of(request.strategy)},
        "cards": [
            _fields(card, _CARD)
            | {
                "leases": [_fields(promise, _LEASE) | {"seen": promise.seen.get(card.uuid)} for promise in card.leases],
                "neighbours": [_fields(neighbour, _NEIGHBOUR) for neighbour in card.neighbours],
            }
            for card in cards
        ],
        "chosen": choice.uuids,
        "refused": dict(choice.refused),
    }
    return json.dumps(document, ensure_ascii=True, separators=(",", ":"))


def record(ledger: Ledger, text: str, uid: int) -> None:
    """Append a line to this uid's file. Raises NoLedger (a full disk)."""
    ledger.append(f"decisions-{uid}.jsonl", text.encode() + b"\n", LIMIT)


def read(ledger: Ledger) -> list[dict[str, Any]]:
    """The decisions of all uids that are kept, oldest first, as parsed JSON with the uid. Lines that cannot be parsed are left out.

    Another user may have written any text into them: see `promise.printable`.
    """
    documents = []
    for name in ledger.files(_NAME):
        content = ledger.read(name, 2 * LIMIT + 65536)
        if content is None or name != f"decisions-{content[1]}.jsonl":  # another uid wrote it
            continue
        for row in content[0].splitlines():
            try:
                document = json.loads(row)
            except (ValueError, RecursionError):
                continue
            is_decision = isinstance(document, dict) and document.get("outcome") in OUTCOMES
            if is_decision and type(document.get("time")) in (int, float) and 0 <= document["time"] < LATEST:
                documents.append(document | {"uid": content[1]})
    return sorted(documents, key=lambda document: document["time"])


def _fields(value: object, names: Iterable[str]) -> dict[str, Any]:
    return {name: getattr(value, name) for name in names}
