"""Choosing a card: properties of every choice, and the meaning of each strategy and filter. Pure functions only."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlops_build.errors import UsageError
from mlops_build.gpu import choice as choices
from mlops_build.gpu.cards import Card, Snapshot
from mlops_build.gpu.choice import Request, choose, could_ever, pack, random, spread, why_not
from mlops_build.gpu.declared import Settings
from mlops_build.gpu.nvml import Reading, Trouble
from mlops_build.gpu.promise import Promise

GIB = 1 << 30
NAMES = ("NVIDIA L4", "NVIDIA A100-SXM4-80GB", "Tesla T4")

sizes = st.integers(0, 80 * GIB)
readings = st.builds(
    Reading,
    uuid=st.integers(0, 15).map(lambda number: f"GPU-{number:04d}"),
    index=st.integers(0, 15),
    name=st.sampled_from(NAMES),
    total_bytes=st.one_of(st.none(), sizes),
    used_bytes=st.one_of(st.none(), sizes),
    trouble=st.one_of(st.none(), st.none(), st.sampled_from(Trouble)),
    utilisation=st.one_of(st.none(), st.integers(0, 100)),
    compute_capability=st.one_of(st.none(), st.tuples(st.integers(6, 9), st.integers(0, 9))),
)
nodes = st.lists(readings, max_size=8, unique_by=lambda reading: reading.uuid)
promises = st.lists(
    st.builds(
        Promise,
        id=st.integers(0, 10**6).map(lambda number: f"{number:016x}"),
        uuids=st.lists(st.integers(0, 15).map(lambda number: f"GPU-{number:04d}"), min_size=1, max_size=3, unique=True).map(tuple),
        bytes=st.integers(1, 30 * GIB),
        exclusive=st.booleans(),
        service=st.sampled_from(["ranker", "search"]),
        pid=st.just(1),
        pid_namespace=st.just(1),
        uid=st.just(0),
        created=st.just(0.0),
    ),
    max_size=12,
    unique_by=lambda promise: promise.id,
)
requests = st.builds(
    Request,
    bytes=st.integers(1, 40 * GIB),
    count=st.integers(1, 3),
    exclusive=st.booleans(),
    strategy=st.sampled_from(sorted(choices.STRATEGIES)),
    names=st.lists(st.sampled_from(["*L4*", "*a100*", "*"]), max_size=1).map(tuple),
    uuids=st.lists(st.sampled_from(["GPU-0", "GPU-00", "GPU-0001"]), max_size=1).map(tuple),
    max_utilisation=st.one_of(st.none(), st.integers(0, 100)),
    min_compute_capability=st.one_of(st.none(), st.just((8, 0))),
)
seeds = st.integers(0, 2**32 - 1)


def cards_of(node: list[Reading], leases: list[Promise]) -> list[Card]:
    return Snapshot(node, leases).cards()


@settings(deadline=None, max_examples=100)
@given(nodes, promises, requests, seeds)
def test_a_chosen_card_has_room_and_can_be_read(node: list[Reading], leases: list[Promise], request: Request, seed: int) -> None:
    cards = cards_of(node, leases)
    choice = choose(cards, request, seed)
    by_uuid = {card.uuid: card for card in cards}
    assert len(choice.uuids) in (0, request.count)
    assert len(set(choice.uuids)) == len(choice.uuids)
    for uuid in choice.uuids:
        card = by_uuid[uuid]
        assert card.trouble is None
        assert card.total_bytes is not None
        assert card.used_bytes is not None
        assert card.committed_bytes + request.bytes <= card.total_bytes
        assert not any(lease.exclusive for lease in card.leases)
        assert not (request.exclusive and card.leases)
        assert why_not(card, request) is None
    assert choose(cards, request, seed) == choice, "the same seed gives the same choice"
    if not choice.uuids:
        assert set(choice.refused) == set(by_uuid), "a reason for each card"
        assert all(choice.refused.values())
        assert sum(why_not(card, request) is None for card in cards) < request.count, "there is no placement"


def card(index: int, total: int, used: int, **more: object) -> Card:
    (made,) = Snapshot([Reading(f"GPU-{index}", index, "NVIDIA L4", total * GIB, used * GIB, **more)]).cards()
    return made


def order(strategy: choices.Strategy, *cards: Card, size: int = GIB) -> list[int]:
    return [card.index for card in strategy(cards, Request(size), Random(1))]  # noqa: S311


def test_spread_compares_shares_and_pack_compares_bytes() -> None:
    small, large = card(0, 24, 6), card(1, 80, 40)
    assert order(spread, small, large) == [0, 1], "17 of 24 GiB left, 39 of 80"
    assert order(pack, small, large) == [0, 1], "18 GiB left, 40"
    assert order(spread, card(0, 24, 20), large) == [1, 0]
    assert order(pack, card(0, 24, 20), card(1, 24, 22)) == [1, 0]
    # The card with the larger share left before the request can have the smaller share after it.
    small, large = card(0, 16, 0), card(1, 80, 8)
    assert order(spread, small, large, size=GIB) == [0, 1]
    assert order(spread, small, large, size=12 * GIB) == [1, 0]
    assert (pack, spread, random) == (choices.BEST_FIT, choices.WORST_FIT, choices.RANDOM), "the names of gpu-utilities"
    assert choices.name_of(pack) == "pack"


def test_random_is_weighted_by_what_is_left() -> None:
    cards = [card(0, 24, 21), card(1, 24, 0)]
    first = [random(cards, Request(GIB), Random(seed))[0].index for seed in range(1000)]  # noqa: S311
    assert 60 <= first.count(0) <= 170, "3 of 27 GiB are left on it"


def test_a_custom_strategy_receives_cards_with_room_and_must_return_them() -> None:
    cards = [card(0, 24, 0), card(1, 24, 24), card(2, 24, 0)]
    given_cards = []

    def backwards(cards: object, request: object, rng: object) -> list[Card]:
        given_cards.extend(cards)
        return list(reversed(cards))

    assert choose(cards, Request(GIB, strategy=backwards), 0).uuids == ("GPU-2",)
    assert [card.index for card in given_cards] == [0, 2]
    with pytest.raises(UsageError, match="lambda"):
        choose(cards, Request(GIB, strategy=lambda *_: [cards[1]]), 0)
    with pytest.raises(UsageError, match="not a valid strategy"):
        choose(cards, Request(GIB, strategy="best"), 0)


def test_exclusive_tolerates_the_driver_memory_on_an_unused_card() -> None:
    empty = card(0, 24, 0)
    assert why_not(replace(empty, external_counted_bytes=20 << 20), Request(GIB, exclusive=True)) is None
    assert "an exclusive card is requested" in why_not(replace(empty, external_counted_bytes=1 << 30), Request(GIB, exclusive=True))


def test_the_reason_names_promises_use_beyond_them_waiting_requests_neighbours_and_the_reserve_separately() -> None:
    reading = Reading("GPU-0", 0, "NVIDIA L4", 24 * GIB, 7 * GIB)
    over = Promise("0" * 16, ("GPU-0",), 3 * GIB, False, "over", 1, 1, 0, 0.0, seen={"GPU-0": 5 * GIB})
    waits = Promise("1" * 16, ("GPU-0",), 10 * GIB, False, "big (waiting)", 1, 1, 0, 0.0, until=1.0)
    (full,) = Snapshot([reading], [over, waits], settings=Settings(reserve_bytes=GIB // 2)).cards()
    assert why_not(full, Request(12 * GIB)) == (
        "6.5 GiB of 24.0 GiB left: 10.0 GiB kept for big (waiting), 3.0 GiB promised to over, "
        "2.0 GiB counted for processes without a lease, 2.0 GiB used beyond the promises, 512.0 MiB kept free (`reserve`)"
    )
    many = [Promise(f"{number:016x}", ("GPU-0",), GIB, False, f"s{number}", 1, 1, 0, 0.0) for number in range(20)]
    (crowded,) = Snapshot([reading], many).cards()
    assert str(why_not(crowded, Request(12 * GIB))).endswith("1.0 GiB promised to s6, …")
    assert why_not(card(0, 24, 20), Request(12 * GIB)) == "4.0 GiB of 24.0 GiB left: 20.0 GiB counted for processes without a lease"


def test_waiting_does_not_remove_the_reserve() -> None:
    reading = Reading("GPU-0", 0, "NVIDIA L4", 24 * GIB, 0)
    empty = Snapshot([reading], settings=Settings(reserve_bytes=GIB // 2)).cards()
    assert could_ever(empty, Request(23 * GIB))
    assert could_ever(empty, Request(23 * GIB + GIB // 2 + 1)) == []
    assert why_not(empty[0], Request(24 * GIB)) == "it has only 24.0 GiB in total, with 512.0 MiB kept free (`reserve`)"


@pytest.mark.parametrize(
    ("changed", "wanted", "ever"),
    [
        ({}, {}, True),
        ({"used_bytes": 24 * GIB, "external_counted_bytes": 24 * GIB, "committed_bytes": 24 * GIB}, {}, True),
        ({"utilisation": 99}, {"max_utilisation": 5}, True),
        ({"trouble": Trouble.SLOW, "total_bytes": None, "used_bytes": None}, {}, True),
        ({"trouble": Trouble.LOST}, {}, False),
        ({"visible": False}, {}, False),
        ({}, {"bytes": 25 * GIB}, False),
        ({}, {"count": 2}, False),
        ({}, {"names": ("*T4*",)}, False),
        ({"used_bytes": None}, {}, False),
    ],
)
def test_whether_waiting_can_help(changed: dict, wanted: dict, ever: bool) -> None:
    assert bool(could_ever([replace(card(0, 24, 0), **changed)], replace(Request(GIB), **wanted))) is ever
