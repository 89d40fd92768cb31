"""Records of decisions: one JSON line each, with all inputs, so that `gpu explain` can print and repeat them.

Each uid writes its own file in the lease directory, readable for all users. It keeps at most LIMIT bytes of the newest lines.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from mlops_build.errors import MlopsBuildError, Refused
from mlops_build.gpu.cards import Card
from mlops_build.gpu.choice import STRATEGIES, Choice, Request, Strategy, choose, name_of
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.nvml import Trouble
from mlops_build.gpu.promise import Promise, printable

if TYPE_CHECKING:
    from typing import Any

SCHEMA = 1
LIMIT = 256 * 1024
# granted: a lease. waiting: no room yet. refused: no room. cpu: no room, and the CPU was allowed.
_NAME = re.compile(r"decisions-[0-9]+\.jsonl")
OUTCOMES = ("granted", "waiting", "refused", "cpu")
_CARD = ("index", "uuid", "name", "total_bytes", "used_bytes", "why", "utilisation", "mig_parent", "visible")
_SUMS = ("external_bytes", "external_counted_bytes", "committed_bytes")
_LEASE = ("id", "service", "uid", "bytes", "exclusive", "loaded")


class NotReplayable(Refused):
    """The line is not a valid decision, or its strategy is not available."""


def line(
    outcome: str,
    request: Request,
    seed: int,
    cards: Sequence[Card],
    choice: Choice,
    *,
    service: str,
    lease: str | None,
    waited: float,
    decided: float | None = None,
) -> str:
    """A decision as a line of JSON.

    waited: seconds since the request. decided: seconds from the request for the directory's lock to the lease on disk; None for a decision
    without the lock.
    """
    document = {
        "schema": SCHEMA,
        "time": round(time.time(), 3),
        "outcome": outcome,
        "service": printable(service),
        "lease": lease,
        "waited": round(waited, 3),
        "decided": None if decided is None else round(decided, 4),
        "request": {
            "bytes": request.bytes,
            "count": request.count,
            "exclusive": request.exclusive,
            "strategy": name_of(request.strategy),
            "names": request.names,
            "uuids": request.uuids,
            "max_utilisation": request.max_utilisation,
            "min_compute_capability": request.min_compute_capability,
        },
        "seed": seed,
        "cards": [_card(card) for card in cards],
        "chosen": choice.uuids,
        "refused": dict(choice.refused),
    }
    return json.dumps(document, ensure_ascii=True, separators=(",", ":"))


def replay(text: str, strategies: dict[str, Strategy] | None = None) -> Choice:
    """Repeat a recorded decision from its line. Raises NotReplayable.

    strategies: your own functions, by the name that the record has (`module:function`).
    """
    try:
        document = json.loads(text)
        fields = document["request"]
        known = STRATEGIES | (strategies or {})
        if fields["strategy"] not in known:
            raise NotReplayable(f"its strategy {printable(fields['strategy'])} is not available here", remedy="pass it in `strategies`")
        capability = fields["min_compute_capability"]
        request = Request(
            bytes=fields["bytes"],
            count=fields["count"],
            exclusive=fields["exclusive"],
            strategy=known[fields["strategy"]],
            names=tuple(fields["names"]),
            uuids=tuple(fields["uuids"]),
            max_utilisation=fields["max_utilisation"],
            min_compute_capability=None if capability is None else (capability[0], capability[1]),
        )
        return choose([_read_card(card) for card in document["cards"]], request, document["seed"])
    except MlopsBuildError:
        raise
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise NotReplayable(f"this line is not a valid decision: {type(error).__name__}: {printable(str(error))}") from None


def record(ledger: Ledger, text: str, uid: int) -> None:
    """Append a line to this uid's file. Raises NoLedger (a full disk)."""
    ledger.append(f"decisions-{uid}.jsonl", text.encode() + b"\n", LIMIT)


def read(ledger: Ledger, count: int | None = None) -> list[dict[str, Any]]:
    """The newest `count` decisions of all uids (None: all that are kept), oldest first, as parsed JSON."""
    documents = [document for name in ledger.files(_NAME) for document in _documents(ledger, name)]
    documents.sort(key=lambda document: document["time"])
    return documents if count is None else documents[-count:] if count > 0 else []


class Follower:
    """New decisions, for an exporter that counts refusals and waits. Keeps the read position."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._seen: dict[str, tuple[float, int]] = {}

    def new(self) -> list[dict[str, Any]]:
        """Decisions since the last call, oldest first; the first call returns all that are kept."""
        unread = []
        for name in self.ledger.files(_NAME):
            newest, times = self._seen.get(name, (0.0, 0))
            documents = _documents(self.ledger, name)
            # A full file is replaced by its newest half, so byte positions do not last. Times do; several decisions may share one.
            later = [document for document in documents if document["time"] > newest]
            same = [document for document in documents if document["time"] == newest][times:]
            unread += same + later
            if documents:
                latest = max(newest, *(document["time"] for document in documents))
                self._seen[name] = (latest, sum(document["time"] == latest for document in documents))
        return sorted(unread, key=lambda document: document["time"])


def follow(ledger: Ledger) -> Follower:
    """A follower whose `new()` returns only decisions from now on."""
    follower = Follower(ledger)
    follower.new()
    return follower


def _documents(ledger: Ledger, name: str) -> list[dict[str, Any]]:
    """The decisions in a uid's file; none if another uid wrote the file. Lines that cannot be parsed are left out."""
    content = ledger.read(name, 2 * LIMIT + 65536)
    if content is None or name != f"decisions-{content[1]}.jsonl":
        return []
    documents = []
    for row in content[0].splitlines():
        try:
            document = json.loads(row)
        except (ValueError, RecursionError):
            continue
        if isinstance(document, dict) and document.get("outcome") in OUTCOMES and _is_time(document.get("time")):
            documents.append(_clean(document) | {"uid": content[1]})
    return documents


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e11


def _clean(value: Any, depth: int = 0) -> Any:
    """A value from another uid's file, with strings that are safe to print on a terminal and in a log."""
    if isinstance(value, str):
        return printable(value, 300) if value else ""
    if isinstance(value, dict):
        return {printable(str(key)): _clean(inner, depth + 1) for key, inner in value.items()} if depth < 8 else {}
    if isinstance(value, list):
        return [_clean(inner, depth + 1) for inner in value] if depth < 8 else []
    return value


def _card(card: Card) -> dict[str, Any]:
    document: dict[str, Any] = {name: getattr(card, name) for name in _CARD + _SUMS}
    document["trouble"] = None if card.trouble is None else card.trouble.value
    document["compute_capability"] = card.compute_capability
    document["left_bytes"] = card.left_bytes
    document["leases"] = [{name: getattr(lease, name) for name in _LEASE} | {"seen": lease.seen.get(card.uuid)} for lease in card.leases]
    document["neighbours"] = [
        {name: getattr(neighbour, name) for name in ("name", "uid", "used_bytes", "counted_bytes", "why")} for neighbour in card.neighbours
    ]
    return document


def _read_card(document: dict[str, Any]) -> Card:
    capability = document["compute_capability"]
    leases = tuple(
        Promise(
            **{name: lease[name] for name in _LEASE},
            uuids=(document["uuid"],),
            pid=0,
            pid_namespace=0,
            created=0.0,
            seen=MappingProxyType({} if lease["seen"] is None else {document["uuid"]: lease["seen"]}),
        )
        for lease in document["leases"]
    )
    return Card(
        **{name: document[name] for name in _CARD + _SUMS},
        trouble=None if document["trouble"] is None else Trouble(document["trouble"]),
        compute_capability=None if capability is None else (capability[0], capability[1]),
        leases=leases,
    )
