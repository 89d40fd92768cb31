"""Waiting for room: the request that has waited longest is not overtaken for ever."""

import json
import select
import time

import pytest

from mlops_build.gpu import testing
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import boot_time, new
from tests.gpu.holder import HOLDER, Script, wait_until
from tests.gpu.nodes import GIB, tickets

IMPORT = "from mlops_build import gpu\n"
QUICK = HOLDER.replace(IMPORT, f"{IMPORT}from mlops_build.gpu import search\nsearch.TICKET_SECONDS = 0.5\n")


def waits(machine: testing.Node, holder: Script, memory: str, number: int = 1) -> None:
    """Let it request memory that is not free; returns when it waits, as one of this number."""
    holder.tell(f"second = gpu.lease('{memory}', wait=600)")
    wait_until(lambda: len(tickets(machine)) == number)


def test_a_large_request_is_not_overtaken_by_small_ones_that_keep_arriving(node, lease) -> None:
    machine = node("24GiB")
    small = [lease(machine.environment, memory="4GiB") for _ in range(6)]
    large = lease(machine.environment, memory="1GiB", otherwise="cpu")
    assert large.answer["cpu"]
    waits(machine, large, "16GiB")
    for holder in small[:3]:
        holder.kill()
        refused = lease(machine.environment, memory="4GiB").answer
        assert "(waiting)" in refused["message"], "the room is kept for the request that waits"
    small[3].kill()
    assert json.loads(large.line()) == {"done": True}
    assert large.do("say(uuids=second.uuids)")["uuids"] == [machine.cards[0].uuid]
    assert tickets(machine) == []


def test_only_one_card_is_kept_for_a_request_that_waits(node, lease, run_python) -> None:
    machine = node("24GiB", "24GiB")
    for memory in ("20GiB", "16GiB"):
        lease(machine.environment, memory=memory)
    large = lease(machine.environment, memory="1GiB", otherwise="cpu")
    large.do("lease.release()")
    waits(machine, large, "16GiB")
    (ticket,) = tickets(machine)
    script = (
        "from mlops_build import gpu; print([lease.service for card in gpu.cards() for lease in card.leases if 'waiting' in lease.service])"
    )
    assert "(waiting)" in run_python(script, machine.environment), "gpu list shows it"
    other = next(card.uuid for card in machine.cards if card.uuid not in ticket.uuids)
    assert lease(machine.environment, memory="4GiB").answer["uuids"] == [other]


def test_the_ticket_of_a_killed_request_ends_with_it(node, lease) -> None:
    machine = node("24GiB")
    lease(machine.environment, memory="20GiB")
    large = lease(machine.environment, memory="1GiB")
    large.do("lease.release()")
    waits(machine, large, "16GiB")
    large.kill()
    large.wait()
    assert tickets(machine) == []
    assert lease(machine.environment, memory="4GiB").answer["uuids"] == [machine.cards[0].uuid]


def test_a_request_keeps_another_card_if_nothing_becomes_free(node, lease) -> None:
    """Always one at a time: small requests find room on the other card."""
    machine = node("24GiB", "24GiB")
    for _ in range(2):
        lease(machine.environment, memory="20GiB")
    large = lease(machine.environment, script=QUICK, memory="1GiB", otherwise="cpu")
    large.do("lease.release()")
    waits(machine, large, "16GiB")
    kept: set[str] = set()

    def both_were_kept() -> bool:
        for ticket in tickets(machine)[-1:]:
            assert len(ticket.uuids) == 1
            kept.update(ticket.uuids)
        return len(kept) == 2

    wait_until(both_were_kept)


def test_each_waiting_request_keeps_a_card_of_its_own(node, lease) -> None:
    machine = node("24GiB", "24GiB")
    for _ in range(2):
        lease(machine.environment, memory="20GiB")
    for number in (1, 2):
        waiting = lease(machine.environment, memory="1GiB", otherwise="cpu")
        waiting.do("lease.release()")
        waits(machine, waiting, "16GiB", number)
    assert {uuid for ticket in tickets(machine) for uuid in ticket.uuids} == {card.uuid for card in machine.cards}


def test_the_ticket_of_a_stopped_process_ends(node, lease) -> None:
    machine = node("24GiB")
    with Ledger.open(machine.directory / "leases") as ledger:
        held = ledger.hold(new([machine.cards[0].uuid], 20 * GIB, "a", boot=boot_time() - 30, until=boot_time() - 1))
        assert ledger.tickets() == []
        assert "uuids" in lease(machine.environment, memory="20GiB").answer
        ledger.withdraw(held)


@pytest.mark.slow
def test_a_large_request_gathers_memory_on_one_card_although_small_ones_keep_arriving(node, lease) -> None:
    """Memory becomes free on its card more rarely than every TICKET_SECONDS, and small requests take all that is not kept."""
    machine = node("24GiB", "24GiB")
    small = [lease(machine.environment, memory="6GiB") for _ in range(8)]
    large = lease(machine.environment, script=QUICK.replace("0.5", "1.0"), memory="1GiB", otherwise="cpu")
    waits(machine, large, "20GiB")
    for _ in range(40):
        small.pop(0).kill()
        time.sleep(1.5)
        if select.select([large.stdout], [], [], 0)[0]:
            break
        for _ in range(2):
            later = lease(machine.environment, memory="6GiB", otherwise="cpu")
            if not later.answer["cpu"]:
                small.append(later)
    assert json.loads(large.line()) == {"done": True}
