"""Leases are confirmed by memory that their owners report, with visible and with hidden pids."""

import pytest

from mlops_build.gpu import testing
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import new
from tests.gpu.holder import HOLDER, wait_until
from tests.gpu.nodes import CONTEXT, GIB, promises

# It is loaded when its memory has been the same for some seconds.
QUICK = f"from mlops_build.gpu import report; report.LOADED_SECONDS = 0.5\n{HOLDER}"


def seen(machine: testing.Node) -> list[int]:
    return [sum(promise.seen.values()) for promise in promises(machine)]


def left(environment: dict[str, str], run_python) -> int:
    return int(run_python("from mlops_build import gpu; print(gpu.cards()[0].left_bytes)", environment))


@pytest.mark.parametrize("hidden", [False, True], ids=["pids can be seen", "pids are hidden"])
def test_memory_that_appears_belongs_to_the_lease(node, lease, run_python, hidden: bool) -> None:
    machine = node("24GiB")
    machine.set_used(0, "1GiB")
    environment = machine.view(hide_pids=hidden)
    holder = lease(environment, script=QUICK, memory="6GiB")
    assert [promise.loaded for promise in promises(machine)] == [False]
    holder.do(f"allocate({4 * GIB})")
    wait_until(lambda: seen(machine) == [4 * GIB + CONTEXT])
    assert left(environment, run_python) == (24 - 1 - 6) * GIB, "not counted in addition to the budget"
    wait_until(lambda: promises(machine)[0].loaded)
    holder.do(f"allocate({GIB})")
    wait_until(lambda: seen(machine) == [5 * GIB + CONTEXT])
    holder.do("lease.release()")
    assert promises(machine) == []
    assert not list((machine.directory / "leases").glob("*.seen"))


def test_two_services_that_load_side_by_side_are_counted_once(node, lease, run_python) -> None:
    """In containers, where NVML shows no processes."""
    environment = node("24GiB").view(hide_pids=True)
    for holder in [lease(environment, memory="6GiB") for _ in range(2)]:
        holder.do(f"allocate({3 * GIB})")
    wait_until(lambda: left(environment, run_python) == 12 * GIB)


def test_a_lease_without_a_report_counts_twice_rather_than_not_at_all(node, lease, run_python) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="6GiB", report=False)
    holder.do(f"allocate({4 * GIB})")
    assert left(machine.view(hide_pids=True), run_python) == 24 * GIB - 6 * GIB - 4 * GIB - CONTEXT
    assert left(machine.environment, run_python) == 18 * GIB, "with visible pids no report is needed"


def test_memory_above_the_budget_is_not_attributed_to_a_lease_that_cannot_be_seen(node, lease, run_python) -> None:
    machine = node("24GiB")
    environment = machine.view(hide_pids=True)
    lease(environment, memory="6GiB")
    machine.set_used(0, "8GiB")
    wait_until(lambda: seen(machine) == [6 * GIB])
    assert left(environment, run_python) == 16 * GIB


def test_a_lease_that_exceeded_its_budget_counts_with_its_peak(node, run_python) -> None:
    """It can take the memory again. The views of host and container agree."""
    machine = node("24GiB")
    with Ledger.open(machine.directory / "leases") as ledger:
        uuid = machine.cards[0].uuid
        held = ledger.hold(new([uuid], 4 * GIB, "ranker"))
        ledger.report(held.promise.id, {uuid: 3 * GIB}, loaded=True, peak={uuid: 7 * GIB, "another": 9 * GIB})
        machine.set_used(0, "3GiB")
        for environment in (machine.environment, machine.view(hide_pids=True)):
            assert left(environment, run_python) == 17 * GIB
        ledger.withdraw(held)


def test_a_report_goes_down_to_nothing(node, lease, run_python) -> None:
    """A report of memory that has gone would hide a neighbour from all who cannot see its processes."""
    machine = node("24GiB")
    machine.start("1GiB").wait_for("loaded")
    holder = lease(machine.environment, memory="10GiB")
    holder.do("import subprocess, sys; from tests.gpu import tenant")
    worker = "from tests.gpu.tenant import allocate; import sys; allocate(8 << 30); print('loaded', flush=True); sys.stdin.read()"
    holder.do(f"worker = subprocess.Popen([sys.executable, '-c', {worker!r}], stdin=-1, stdout=-1); worker.stdout.readline()")
    wait_until(lambda: seen(machine) == [8 * GIB + CONTEXT])
    holder.do("worker.communicate()")
    wait_until(lambda: seen(machine) == [0])
    assert [list(promise.peak.values()) for promise in promises(machine)] == [[8 * GIB + CONTEXT]], "the peak stays"


def test_memory_that_another_lease_has_not_reported_yet_belongs_to_it(node, lease, run_python) -> None:
    """The second lease is granted when the first has allocated, and not reported."""
    machine = node("24GiB")
    environment = machine.view(hide_pids=True)
    first = lease(environment, memory="8GiB", report=False)
    first.do(f"allocate({7 * GIB})")
    second = lease(environment, memory="8GiB")
    second.do(f"allocate({7 * GIB})")
    with Ledger.open(machine.directory / "leases") as ledger:
        ledger.report(first.answer["id"], {machine.cards[0].uuid: 7 * GIB + CONTEXT}, loaded=True)
    wait_until(lambda: left(environment, run_python) == 8 * GIB)
