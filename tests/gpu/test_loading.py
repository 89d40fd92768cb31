"""Loading: one at a time behind the gate, and confirmed by memory that appeared, whoever can see whose it is."""

import json
import os
import sys
from pathlib import Path

import pytest

from mlops_build.gpu import loading, testing
from mlops_build.gpu.ledger import Ledger, Promise
from tests.gpu.lessee import LESSEE, wait_until

MIB, GIB = 1 << 20, 1 << 30
CONTEXT = 300 * MIB


def promises(machine: testing.Node) -> list[Promise]:
    with Ledger.open(machine.directory / "leases") as ledger:
        return ledger.promises()


def seen(machine: testing.Node) -> list[int]:
    return [sum(promise.seen.values()) for promise in promises(machine)]


def left(environment: dict[str, str], run_python) -> int:
    return int(run_python("from mlops_build import gpu; print(gpu.cards()[0].left_bytes)", environment))


@pytest.mark.parametrize("hidden", [False, True], ids=["pids can be seen", "pids are hidden"])
def test_what_appeared_while_loading_is_the_leases(node, lease, run_python, hidden: bool) -> None:
    machine = node("24GiB")
    machine.set_used(0, "1GiB")
    environment = machine.view(hide_pids=hidden)
    lessee = lease(environment, memory="6GiB")
    assert [promise.loaded for promise in promises(machine)] == [False]
    assert lessee.do(f"with lease.loading(): allocate({4 * GIB})") == {"done": True}
    (promise,) = promises(machine)
    assert promise.loaded
    assert promise.seen == {machine.cards[0].uuid: 4 * GIB + CONTEXT}
    assert left(environment, run_python) == (24 - 1 - 6) * GIB, "not counted beside the budget"


def test_an_unconfirmed_lease_counts_twice_rather_than_not_at_all(node, lease, run_python) -> None:
    machine = node("24GiB")
    lessee = lease(machine.environment, memory="6GiB")
    lessee.do(f"allocate({4 * GIB})")
    assert left(machine.view(hide_pids=True), run_python) == 24 * GIB - 6 * GIB - 4 * GIB - CONTEXT
    assert left(machine.environment, run_python) == 18 * GIB, "who sees pids needs no report"


def test_a_report_follows_what_the_service_uses_and_ends_with_it(node, lease) -> None:
    machine = node("24GiB")
    lessee = lease(machine.environment, memory="6GiB")
    lessee.do(f"with lease.loading(): allocate({GIB})")
    lessee.do(f"allocate({2 * GIB})")
    wait_until(lambda: seen(machine) == [3 * GIB + CONTEXT])
    lessee.do("lease.release()")
    assert promises(machine) == []
    assert not list((machine.directory / "leases").glob("*.seen"))


def test_a_failed_load_confirms_nothing(node, lease) -> None:
    machine = node("24GiB")
    lessee = lease(machine.environment, memory="6GiB")
    assert lessee.do("with lease.loading(): raise OSError('no such model')")["error"] == "OSError"
    (promise,) = promises(machine)
    assert not promise.loaded
    assert lessee.do("with lease.loading(): pass") == {"done": True}, "and the gate is free again"


def test_a_driver_that_no_longer_answers_keeps_nobody_from_loading(node, lease) -> None:
    machine = node("24GiB")
    lessee = lease(machine.environment, memory="6GiB")
    machine.fail_init(18)
    assert lessee.do("with lease.loading(): pass") == {"done": True}
    assert "is not reported" in lessee.end()


def test_one_service_at_a_time_loads_onto_a_card(node, lease) -> None:
    machine = node("24GiB")
    first, second = (lease(machine.environment, memory="1GiB") for _ in range(2))
    enter = "slots = lease.loading(); slots.__enter__()"
    assert first.do(enter) == {"done": True}
    second.stdin.write(enter + "\n")
    second.stdin.flush()
    assert "waiting to load onto" in second.stderr.readline()
    assert not second_is_through(second)
    first.kill()
    assert json.loads(second.stdout.readline()) == {"done": True}, "a load that died is no load"


def second_is_through(process) -> bool:
    import select

    return bool(select.select([process.stdout], [], [], 0.3)[0])


def test_as_many_at_a_time_as_the_administrator_says(node, lease) -> None:
    machine = node("24GiB")
    (machine.directory / "mlops-gpu.toml").write_text("loading = 2\n")
    lessees = [lease(machine.environment, memory="1GiB") for _ in range(2)]
    for lessee in lessees:
        assert lessee.do("slots = lease.loading(); slots.__enter__()") == {"done": True}


def test_a_stuck_load_stops_nobody_for_good(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Ledger.open(tmp_path) as ledger:
        first = loading.enter(ledger, ["GPU-a", "GPU-b"])
        assert first.alone
        second = loading.enter(ledger, ["GPU-b", "MIG-GPU-c/1/0"], 0.3)
        assert not second.alone
        assert len(second.descriptors) == 1
        assert "loading onto GPU-b without a load slot" in caplog.text
        first.release()
        second.release()
        third = loading.enter(ledger, ["GPU-a", "GPU-b"], 0)
        assert third.alone
        third.release()


def test_a_gate_that_somebody_made_something_else_of_is_passed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "load-GPU-a-0")
    with Ledger.open(tmp_path) as ledger:
        slots = loading.enter(ledger, ["GPU-a"], 60)
    assert slots.descriptors == ()
    assert not slots.alone, "what grows on the card need not be ours"
    assert "loading without a load slot" in caplog.text


SERVICE = [sys.executable, "-m", "mlops_build.gpu.testing.service"]


def test_a_program_that_knows_nothing_of_leases_is_watched_while_it_loads(node, lease) -> None:
    machine = node("8GiB", "24GiB")
    command = [*SERVICE, "--memory", "3GiB", "--load-seconds", "1"]
    lessee = lease(machine.view(hide_pids=True), memory="4GiB")
    lessee.stdin.write(f"lease.before_exec(); os.execv(sys.executable, {command!r})\n")
    lessee.stdin.flush()
    events = [json.loads(lessee.stdout.readline())["event"] for _ in range(2)]
    assert events == ["started", "loaded"]
    assert machine.used(1) == 3 * GIB, "hardcoded cuda:0, and yet the chosen card"
    wait_until(lambda: seen(machine) == [3 * GIB])
    with Ledger.open(machine.directory / "leases") as ledger:
        gate = f"load-{machine.cards[1].uuid}-0"
        assert ledger.slot(gate) is None, "held until it stays the same"
        wait_until(lambda: ledger.promises()[0].loaded)
        wait_until(lambda: (descriptor := ledger.slot(gate)) is not None and os.close(descriptor) is None)
    lessee.kill()
    lessee.wait()
    assert promises(machine) == [], "nobody else kept the lease"


def test_the_watching_process_goes_with_the_program_and_keeps_nothing_of_it(node, lease) -> None:
    machine = node("24GiB")
    lessee = lease(machine.environment, memory="4GiB")
    program = "import sys; print('{}', flush=True); sys.stdin.read()"
    lessee.stdin.write(f"lease.before_exec(); os.execv(sys.executable, [sys.executable, '-c', {program!r}])\n")
    lessee.stdin.flush()
    assert lessee.stdout.readline() == "{}\n"
    lessee.kill()
    assert lessee.stdout.read() == "", "its pipes are closed: whoever reads them is not kept waiting"
    assert promises(machine) == []
    with Ledger.open(machine.directory / "leases") as ledger:
        wait_until(lambda: (descriptor := ledger.slot(f"load-{machine.cards[0].uuid}-0")) is not None and os.close(descriptor) is None)


def test_a_service_under_gpu_run_that_asks_for_a_lease_itself_shares_the_one_it_has(node, lease, run_python) -> None:
    machine = node("24GiB", "24GiB")
    lessee = lease(machine.environment, memory="4GiB")
    again = [sys.executable, "-c", LESSEE, repr({"memory": "3GiB"})]
    lessee.stdin.write(f"lease.before_exec(); os.execv(sys.executable, {again!r})\n")
    lessee.stdin.flush()
    assert json.loads(lessee.stdout.readline())["uuids"] == lessee.said["uuids"]
    assert [promise.bytes for promise in promises(machine)] == [4 * GIB], "promised once"
    lessee.do(f"with lease.loading(): allocate({GIB})")
    assert seen(machine) == [GIB + CONTEXT]
    lessee.do("lease.release()")
    assert len(promises(machine)) == 1, "it is the process's, which still has it"


def test_a_service_under_gpu_run_that_asks_for_more_is_refused(node, lease) -> None:
    machine = node("24GiB")
    lessee = lease(machine.environment, memory="4GiB")
    again = [sys.executable, "-c", LESSEE, repr({"memory": "5GiB"})]
    lessee.stdin.write(f"os.execv(sys.executable, {again!r})\n")
    lessee.stdin.flush()
    refused = json.loads(lessee.stdout.readline())
    assert (refused["error"], refused["code"]) == ("Nested", 4)
    assert "4.0 GiB" in refused["message"]
