"""Invariants of a node, checked with random histories of requests, faults, kills and growth.

The first half uses a real lease directory and computes the rest, to cover many cases; the second starts real processes on a simulated
node, several at once.
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from mlops_build.gpu.cards import Card, Snapshot
from mlops_build.gpu.choice import STRATEGIES, Request, choose
from mlops_build.gpu.ledger import Held, Ledger
from mlops_build.gpu.nvml import Reading, Trouble
from mlops_build.gpu.promise import Promise, new
from tests.gpu.nodes import GIB, Shared, Tenant, shared_node

SOAK = int(os.environ.get("SOAK_EXAMPLES", "400"))
MIB = 1 << 20
SETTLED = settings(deadline=None, suppress_health_check=list(HealthCheck))


def breaches(cards: list[Card]) -> list[str]:
    """Violated invariants of a node's promises."""
    violations = []
    for card in cards:
        promised = sum(lease.bytes for lease in card.leases)
        if promised > (card.total_bytes or 0) and card.trouble is None:
            violations.append(f"{promised} bytes are promised of {card}")
        if len(card.leases) > 1 and any(lease.exclusive for lease in card.leases):
            violations.append(f"an exclusive lease is not alone on {card}")
    return violations


class Histories(RuleBasedStateMachine):
    """A node whose cards fail, whose neighbours grow, and whose services start and are killed. A lease's owner is a descriptor here, since
    the lease directory depends only on the descriptor's lock."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.ledger = Ledger.open(self.folder.name)
        self.owners: dict[str, Held] = {}
        self.used: dict[str, int] = {}  # by lease id, on each of its cards
        self.neighbours: list[int] = []
        self.readings: list[Reading] = []

    @initialize(totals=st.lists(st.integers(1, 80), min_size=1, max_size=4))
    def cards(self, totals: list[int]) -> None:
        self.readings = [
            Reading(f"GPU-{number}", number, "NVIDIA L4", total * GIB, 0, (), compute_capability=(8, 9))
            for number, total in enumerate(totals)
        ]
        self.neighbours = [0] * len(totals)

    def look(self) -> list[Card]:
        """NVML shows the used memory, but in a container not the processes."""
        promises = self.ledger.promises()
        seen = []
        for reading, neighbour in zip(self.readings, self.neighbours, strict=True):
            leased = sum(self.used.get(promise.id, 0) for promise in promises if reading.uuid in promise.uuids)
            seen.append(replace(reading, used_bytes=min(reading.total_bytes or 0, leased + neighbour), processes=None))
        return Snapshot(seen, promises).cards()

    @rule(
        size=st.integers(1, 60 * 1024),
        count=st.integers(1, 2),
        exclusive=st.booleans(),
        strategy=st.sampled_from(sorted(STRATEGIES)),
        seed=st.integers(0, 2**32 - 1),
    )
    def ask(self, size: int, count: int, exclusive: bool, strategy: str, seed: int) -> None:
        request = Request(size * MIB, count, exclusive, strategy)

        def decide() -> None:
            cards = self.look()
            choice = choose(cards, request, seed)
            if not choice.uuids:
                assert choice.refused.keys() == {card.uuid for card in cards}, "a reason for each card"
                return
            chosen = {card.uuid: card for card in cards if card.uuid in choice.uuids}
            assert len(chosen) == count
            for card in chosen.values():
                assert card.trouble is None
                assert (card.used_bytes or 0) - sum(self.used.get(lease.id, 0) for lease in card.leases) + request.bytes + sum(
                    lease.bytes for lease in card.leases
                ) <= (card.total_bytes or 0)
            held = self.ledger.hold(new(choice.uuids, request.bytes, "ranker", exclusive=exclusive))
            self.owners[held.promise.id] = held

        with self.ledger.turn():
            decide()

    @precondition(lambda self: self.owners)
    @rule(number=st.integers(0, 100), share=st.floats(0, 1), reported=st.booleans())
    def load(self, number: int, share: float, reported: bool) -> None:
        held = list(self.owners.values())[number % len(self.owners)]  # ids are random, so their order must not matter
        self.used[held.promise.id] = int(held.promise.bytes * share)
        if reported:
            seen = dict.fromkeys(held.promise.uuids, self.used[held.promise.id])
            self.ledger.report(held.promise.id, seen, loaded=True)

    @precondition(lambda self: self.owners)
    @rule(number=st.integers(0, 100), killed=st.booleans())
    def end(self, number: int, killed: bool) -> None:
        held = self.owners.pop(list(self.owners)[number % len(self.owners)])
        self.used.pop(held.promise.id, None)
        if killed:
            os.close(held.descriptor)  # as the kernel does when a process ends
        else:
            self.ledger.withdraw(held)

    @rule(card=st.integers(0, 3), used=st.integers(0, 80))
    def neighbour(self, card: int, used: int) -> None:
        self.neighbours[card % len(self.neighbours)] = used * GIB

    @rule(card=st.integers(0, 3), trouble=st.sampled_from([None, None, *Trouble]))
    def fault(self, card: int, trouble: Trouble | None) -> None:
        card %= len(self.readings)
        self.readings[card] = replace(self.readings[card], trouble=trouble)

    @invariant()
    def what_must_hold(self) -> None:
        assert {promise.id for promise in self.ledger.promises()} == self.owners.keys(), "a lease lives exactly as long as its owner"
        if self.readings:
            assert breaches(self.look()) == []

    def teardown(self) -> None:
        for held in self.owners.values():
            os.close(held.descriptor)
        self.ledger.close()
        self.folder.cleanup()


def test_random_histories() -> None:
    run_state_machine_as_test(Histories, settings=settings(SETTLED, max_examples=25, stateful_step_count=25))


@pytest.mark.soak
def test_many_random_histories() -> None:
    run_state_machine_as_test(Histories, settings=settings(SETTLED, max_examples=5 * SOAK, stateful_step_count=60))


# ── with real processes ──

steps = st.one_of(
    st.tuples(
        st.just("start"),
        st.lists(st.tuples(st.integers(1, 20), st.booleans(), st.sampled_from(sorted(STRATEGIES))), min_size=1, max_size=4),
    ),
    st.tuples(st.just("kill"), st.integers(0, 20)),
    st.tuples(st.just("kill"), st.integers(0, 20)),
    st.tuples(st.just("neighbour"), st.tuples(st.integers(0, 2), st.integers(0, 10))),
    st.tuples(st.just("fault"), st.tuples(st.integers(0, 2), st.sampled_from([3, 15, 999]))),
    st.tuples(st.just("restore"), st.integers(0, 2)),
)


def promised(shared: Shared) -> dict[str, set[str]]:
    """The live leases on each card, after checking their invariants."""
    cards = shared.cards()
    for card in cards:
        leases = [Promise(lease["id"], (card["uuid"],), lease["bytes"], lease["exclusive"], "", 0, 0, 0, 0.0) for lease in card["leases"]]
        assert breaches([Card(card["uuid"], 0, "", card["total_bytes"] or 1 << 50, 0, (), leases=tuple(leases))]) == []
    return {card["uuid"]: {lease["id"] for lease in card["leases"]} for card in cards}


def play(history: list[tuple[str, object]]) -> None:
    with tempfile.TemporaryDirectory(prefix="mlops-gpu-") as folder, shared_node(Path(folder), cards=3) as shared:
        alive: list[Tenant] = []
        for what, how in history:
            if what == "start":
                begun = []
                for size, exclusive, strategy in how:  # type: ignore[attr-defined]  # all at once
                    size_on_it = size * GIB - 512 * MIB  # without the context
                    begun.append(shared.tenant(f"{size}GiB", size=size_on_it, until=set(), exclusive=exclusive, strategy=strategy))
                for tenant in begun:
                    tenant.until({"loaded", "full", "refused"})
                    assert "Traceback" not in tenant.warnings()
                    assert "full" not in tenant.events or any(step == "neighbour" for step, _ in history), "it had a promise"
                alive += [tenant for tenant in begun if "leased" in tenant.events]
            elif what == "kill" and alive:
                alive.pop(how % len(alive)).kill()  # type: ignore[operator]
            elif what == "neighbour":
                card, size = how  # type: ignore[misc]
                shared.node.set_used(card, size * GIB)
            elif what == "fault":
                shared.node.fault(how[0], code=how[1])  # type: ignore[index]
            elif what == "restore":
                shared.node.restore(how)  # type: ignore[arg-type]
            leases = promised(shared)
            masks = [tenant.events["leased"]["mask"] for tenant in alive]
            for card, ids in leases.items():  # a lost card has no UUID, so its leases cannot be attributed
                assert len(ids) == masks.count(card), "as many leases as live services with this mask"


@pytest.mark.usefixtures("simulation")
@settings(SETTLED, max_examples=2, phases=[Phase.generate])
@given(st.lists(steps, min_size=4, max_size=8))
def test_histories_of_real_processes(history: list[tuple[str, object]]) -> None:
    play(history)


@pytest.mark.soak
@pytest.mark.usefixtures("simulation")
@settings(SETTLED, max_examples=max(10, SOAK // 4), phases=[Phase.generate, Phase.shrink])
@given(st.lists(steps, min_size=10, max_size=20))
def test_many_histories_of_real_processes(history: list[tuple[str, object]]) -> None:
    play(history)
