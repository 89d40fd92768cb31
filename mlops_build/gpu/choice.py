"""Choose a card: a pure function of the observed cards, the request and a seed.

A strategy is a function that sorts the cards that have room by preference. The names from gpu-utilities are aliases: WORST_FIT is
`spread`, BEST_FIT is `pack`, RANDOM is `random` (weighted).
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random

from mlops_build.errors import UsageError
from mlops_build.gpu.cards import Card
from mlops_build.gpu.nvml import Trouble
from mlops_build.gpu.visible import hidden
from mlops_build.quantity import show_bytes

# The driver's own daemons keep a few MiB on an unused card.
EXCLUSIVE_SLACK = 64 << 20
MOST_PARTS = 8  # of a reason
MAY_RECOVER = (None, Trouble.SLOW, Trouble.FAULT)


@dataclass(frozen=True, slots=True)
class Request:
    """The requested memory and cards. bytes: on each card. names: patterns ("*A100*"). uuids: prefixes. max_utilisation: %."""

    bytes: int
    count: int = 1
    exclusive: bool = False
    strategy: str | Strategy = "spread"
    names: tuple[str, ...] = ()
    uuids: tuple[str, ...] = ()
    max_utilisation: int | None = None
    min_compute_capability: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The chosen cards; none if there is no room. refused: by UUID, why a card could not be taken."""

    uuids: tuple[str, ...]
    refused: Mapping[str, str]


Strategy = Callable[[Sequence[Card], Request, Random], Sequence[Card]]


def spread(cards: Sequence[Card], request: Request, rng: Random) -> Sequence[Card]:  # noqa: ARG001 -- all strategies share a signature
    """The card with the largest share left after the request comes first, so cards of all sizes fill evenly. Alias: WORST_FIT."""
    return sorted(cards, key=lambda card: ((request.bytes - card.left_bytes) / (card.total_bytes or 1), card.index, card.uuid))


def pack(cards: Sequence[Card], request: Request, rng: Random) -> Sequence[Card]:  # noqa: ARG001 -- all strategies share a signature
    """The card with the fewest bytes left comes first, so whole cards stay free. Alias: BEST_FIT."""
    return sorted(cards, key=lambda card: (card.left_bytes, card.index, card.uuid))


def random(cards: Sequence[Card], request: Request, rng: Random) -> Sequence[Card]:  # noqa: ARG001 -- all strategies share a signature
    """Random order, weighted by the memory left. Best if the choices of others are not visible. Alias: RANDOM.

    Weighted order without replacement: sort by u^(1/weight) (Efraimidis and Spirakis, 2006).
    """
    keys = {card.uuid: rng.random() ** (1 / max(card.left_bytes / (1 << 20), 1e-6)) for card in cards}
    return sorted(cards, key=lambda card: (-keys[card.uuid], card.index))


WORST_FIT, BEST_FIT, RANDOM = spread, pack, random
STRATEGIES: dict[str, Strategy] = {
    "spread": spread,
    "pack": pack,
    "random": random,
    "WORST_FIT": spread,
    "BEST_FIT": pack,
    "RANDOM": random,
}


def choose(cards: Sequence[Card], request: Request, seed: int | None = None) -> Choice:
    """Choose among these cards. With a seed, the same cards and request give the same choice.

    A card that cannot be read, or that has less memory left than requested, is never chosen. Raises UsageError for a strategy that does
    not exist or that returns cards which it did not receive.
    """
    refused = {card.uuid: why for card in cards if (why := why_not(card, request)) is not None}
    free = [card for card in cards if card.uuid not in refused]
    if len(free) < request.count:
        too_few = f"it has room, but {request.count} cards are requested" if request.count > 1 else ""
        return Choice((), refused | {card.uuid: too_few for card in free})
    order = named(request.strategy)(free, request, Random(seed))  # noqa: S311 -- nothing secret
    chosen = tuple(dict.fromkeys(card.uuid for card in order))[: request.count]
    if len(chosen) < request.count or not set(chosen) <= {card.uuid for card in free}:
        raise UsageError(
            f"the strategy {name_of(request.strategy)} did not return the cards that it received",
            remedy="return all of `cards`, in order of preference",
        )
    return Choice(chosen, refused)


def why_not(card: Card, request: Request) -> str | None:
    """Why this card cannot take the request; None if it can."""
    if card.trouble is not None:
        return f"{card.trouble}: {card.why}" if card.why else str(card.trouble)
    return _unsuitable(card, request) or _busy(card, request)


def could_ever(cards: Sequence[Card], request: Request) -> list[str]:
    """The UUIDs of the cards that could take the request if all other processes ended, the card with most memory left first. Empty if these
    are too few, so that waiting does not help."""
    could = [card for card in cards if card.trouble in MAY_RECOVER and _unsuitable(card, request) is None]
    could.sort(key=lambda card: (-card.left_bytes, card.index))
    return [card.uuid for card in could] if len(could) >= request.count else []


def _unsuitable(card: Card, request: Request) -> str | None:
    """A reason that waiting does not remove."""
    if card.trouble is None and (card.total_bytes is None or card.used_bytes is None):
        return "it does not report its memory"
    if not card.visible:
        return hidden() if card.visible is False else "CUDA_VISIBLE_DEVICES does not say unambiguously whether it is included"
    if request.names and not any(fnmatch.fnmatchcase(card.name.lower(), name.lower()) for name in request.names):
        return f"its name is {card.name}"
    if request.uuids and not any(card.uuid.lower().startswith(uuid.lower()) for uuid in request.uuids):
        return "its UUID is not among the requested ones"
    if request.count > 1 and card.mig_parent is not None:
        return "it is a MIG instance, and CUDA gives a process only one of them"
    if (capability := request.min_compute_capability) is not None:
        if card.compute_capability is None:
            return "it does not report its compute capability"
        if card.compute_capability < capability:
            return "its compute capability is {}.{}, below {}.{}".format(*card.compute_capability, *capability)
    if card.total_bytes is not None and request.bytes > card.total_bytes - card.reserve_bytes:
        return (
            f"it has only {show_bytes(card.total_bytes)} in total"
            f"{f', with {show_bytes(card.reserve_bytes)} kept free (`reserve`)' if card.reserve_bytes else ''}"
        )
    if request.max_utilisation is not None and card.utilisation is None:
        return "it does not report its utilisation"
    return None


def named(strategy: str | Strategy) -> Strategy:
    """The strategy with this name; a function is its own strategy. Raises UsageError."""
    if not isinstance(strategy, str):
        return strategy
    if strategy not in STRATEGIES:
        raise UsageError(f"{strategy!r} is not a valid strategy", remedy=f"use one of {', '.join(STRATEGIES)}, or a function of your own")
    return STRATEGIES[strategy]


def name_of(strategy: str | Strategy) -> str:
    """A strategy's name for records and messages."""
    return strategy if isinstance(strategy, str) else str(getattr(strategy, "__name__", "own"))


def _busy(card: Card, request: Request) -> str | None:
    """A reason that others cause by what they use."""
    if request.max_utilisation is not None and card.utilisation is not None and card.utilisation > request.max_utilisation:
        return f"its utilisation is {card.utilisation} %, above {request.max_utilisation} %"
    for lease in card.leases:
        if lease.exclusive or request.exclusive:
            kind = "an exclusive lease" if lease.exclusive else "a lease, and an exclusive card is requested"
            return f"{lease.service} {'has' if lease.until is None else 'waits for'} {kind}"
    if request.exclusive and card.external_counted_bytes > EXCLUSIVE_SLACK:
        return f"an exclusive card is requested, but {show_bytes(card.external_counted_bytes)} are used without a lease"
    if card.left_bytes < request.bytes:
        held = {
            "counted for processes without a lease": card.external_counted_bytes,
            "kept free (`reserve`)": card.reserve_bytes,
            "used beyond the promises": card.committed_bytes - card.external_counted_bytes - card.reserve_bytes,
        }
        for lease in card.leases:
            what = f"{'promised to' if lease.until is None else 'kept for'} {lease.service}"
            held[what] = held.get(what, 0) + lease.bytes
            held["used beyond the promises"] -= lease.bytes
        largest = sorted((what for what in held if held[what] > 0), key=lambda what: -held[what])
        parts = [f"{show_bytes(held[what])} {what}" for what in largest[:MOST_PARTS]] + ["…"] * (len(largest) > MOST_PARTS)
        return f"{show_bytes(card.left_bytes)} of {show_bytes(card.total_bytes or 0)} left: {', '.join(parts)}"
    return None
