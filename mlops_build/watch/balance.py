"""What could be placed better on a node: one definition for Prometheus, Graphite and Zabbix.

A card is near its limit if less than LIMIT_SHARE of its memory is left (cards.py). That alone is not a fault: a well used node is full.
Something could be better only if another card has room for a lease of that card, and is not near its limit with it. A service that starts
again then finds more memory left on the other card, and the default strategy chooses it.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from mlops_build.gpu.cards import Card, memory_of
from mlops_build.gpu.choice import Request, why_not

LIMIT_SHARE = 0.1


def near_limit(card: Card) -> bool:
    """Whether less than LIMIT_SHARE of the card's memory can still be leased. False for a card that services cannot use."""
    known = card.trouble is None and card.total_bytes is not None and card.used_bytes is not None
    return known and card.left_bytes < _margin(card)


def movable_leases(card: Card, cards: Sequence[Card]) -> dict[str, int]:
    """Largest lease of each service, in bytes, that another of these cards has room for; empty unless the card is near its limit."""
    movable: dict[str, int] = {}
    others = _others(card, cards)
    for lease in card.leases if others else ():
        size = max(lease.bytes, lease.seen.get(card.uuid, 0))
        request = Request(size, len(lease.uuids), lease.exclusive)
        if size and any(_has_room(other, request) for other in others if other.uuid not in lease.uuids):
            movable[lease.service] = max(size, movable.get(lease.service, 0))
    return movable


def movable_processes(card: Card, cards: Sequence[Card]) -> dict[str, int]:
    """Largest process without a lease, in bytes by name, that another of these cards has room for.

    Empty unless the card is near its limit and such processes use LIMIT_SHARE of it. Declared ones are not included: the administrator
    knows about them. If the processes are not visible, their common use is returned if any other card has room.
    """
    others = _others(card, cards)
    neighbours = [neighbour for neighbour in card.neighbours if neighbour.why != "declared" and neighbour.used_bytes]
    movable: dict[str, int] = {}
    for neighbour in neighbours if sum(neighbour.used_bytes for neighbour in neighbours) >= _margin(card) else ():
        name, size = neighbour.stable_name, neighbour.largest_bytes
        if any(_has_room(other, Request(size)) for other in others):
            movable[name] = max(size or neighbour.used_bytes, movable.get(name, 0))
    return movable


def _margin(card: Card) -> int:
    return math.ceil(LIMIT_SHARE * (card.total_bytes or 0))


def _others(card: Card, cards: Sequence[Card]) -> list[Card]:
    """The cards that may relieve this one; none unless it is near its limit. The mask of this process does not matter.

    Compute instances of the same GPU instance share their memory, so they cannot relieve each other.
    """
    if not near_limit(card):
        return []
    return [replace(other, visible=True) for other in cards if memory_of(other) != memory_of(card) and not near_limit(other)]


def _has_room(card: Card, request: Request) -> bool:
    """Whether the card can take the request without being near its limit afterwards."""
    return why_not(card, replace(request, bytes=request.bytes + _margin(card))) is None
