"""Waiting for room: the request that has waited longest is not overtaken for ever."""

import json

from mlops_build.gpu import testing
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import Promise
from tests.gpu.holder import wait_until

GIB = 1 << 30


def tickets(machine: testing.Node) -> list[Promise]:
    with Ledger.open(machine.directory / "leases") as ledger:
        return ledger.tickets()


def begin(holder, memory: str, wait: float) -> None:
    """Let it request memory, without waiting for the result."""
    holder.stdin.write(f"second = gpu.lease('{memory}', wait={wait})\n")
    holder.stdin.flush()


def test_a_large_request_is_not_overtaken_by_small_ones_that_keep_arriving(node, lease) -> None:
    machine = node("24GiB")
    small = [lease(machine.environment, memory="4GiB") for _ in range(6)]
    large = lease(machine.environment, memory="1GiB", otherwise="cpu")
    assert large.answer["cpu"]
    begin(large, "16GiB", 600)
    wait_until(lambda: len(tickets(machine)) == 1)
    for holder in small[:3]:
        holder.kill()
        refused = lease(machine.environment, memory="4GiB").answer
        assert "(waiting)" in refused["message"], "the room is kept for the request that waits"
    small[3].kill()
    assert json.loads(large.stdout.readline()) == {"done": True}
    assert large.do("say(uuids=second.uuids)")["uuids"] == [machine.cards[0].uuid]
    assert tickets(machine) == []


def test_only_one_card_is_kept_for_a_request_that_waits(node, lease) -> None:
    machine = node("24GiB", "24GiB")
    for memory in ("20GiB", "16GiB"):
        lease(machine.environment, memory=memory)
    large = lease(machine.environment, memory="1GiB", otherwise="cpu")
    large.do("lease.release()")
    begin(large, "16GiB", 600)
    wait_until(lambda: len(tickets(machine)) == 1)
    (ticket,) = tickets(machine)
    other = next(card.uuid for card in machine.cards if card.uuid not in ticket.uuids)
    assert lease(machine.environment, memory="4GiB").answer["uuids"] == [other]


def test_the_ticket_of_a_killed_request_ends_with_it(node, lease) -> None:
    machine = node("24GiB")
    lease(machine.environment, memory="20GiB")
    large = lease(machine.environment, memory="1GiB")
    large.do("lease.release()")
    begin(large, "16GiB", 600)
    wait_until(lambda: len(tickets(machine)) == 1)
    large.kill()
    large.wait()
    assert tickets(machine) == []
    assert lease(machine.environment, memory="4GiB").answer["uuids"] == [machine.cards[0].uuid]
