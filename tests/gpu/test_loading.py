"""Load slots, and leases that are confirmed by memory that appeared, with visible and with hidden pids."""

import json
import os
import sys
from pathlib import Path

import pytest

from mlops_build.gpu import loading, testing
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import Promise
from tests.gpu.holder import HOLDER, wait_until

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
def test_memory_that_appears_while_loading_belongs_to_the_lease(node, lease, run_python, hidden: bool) -> None:
    machine = node("24GiB")
    machine.set_used(0, "1GiB")
    environment = machine.view(hide_pids=hidden)
    holder = lease(environment, memory="6GiB")
    assert [promise.loaded for promise in promises(machine)] == [False]
    assert holder.do(f"with lease.loading(): allocate({4 * GIB})") == {"done": True}
    (promise,) = promises(machine)
    assert promise.loaded
    assert promise.seen == {machine.cards[0].uuid: 4 * GIB + CONTEXT}
    assert left(environment, run_python) == (24 - 1 - 6) * GIB, "not counted in addition to the budget"


def test_an_unconfirmed_lease_counts_twice_rather_than_not_at_all(node, lease, run_python) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="6GiB")
    holder.do(f"allocate({4 * GIB})")
    assert left(machine.view(hide_pids=True), run_python) == 24 * GIB - 6 * GIB - 4 * GIB - CONTEXT
    assert left(machine.environment, run_python) == 18 * GIB, "with visible pids no report is needed"


def test_reports_follow_the_use_and_end_with_the_service(node, lease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="6GiB")
    holder.do(f"with lease.loading(): allocate({GIB})")
    holder.do(f"allocate({2 * GIB})")
    wait_until(lambda: seen(machine) == [3 * GIB + CONTEXT])
    holder.do("lease.release()")
    assert promises(machine) == []
    assert not list((machine.directory / "leases").glob("*.seen"))


def test_a_failed_load_confirms_nothing(node, lease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="6GiB")
    assert holder.do("with lease.loading(): raise OSError('no such model')")["error"] == "OSError"
    (promise,) = promises(machine)
    assert not promise.loaded
    assert holder.do("with lease.loading(): pass") == {"done": True}, "the load slot is free again"


def test_a_driver_that_stops_answering_does_not_prevent_loading(node, lease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="6GiB")
    machine.fail_init(18)
    assert holder.do("with lease.loading(): pass") == {"done": True}
    assert "is not reported" in holder.end()


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
    assert json.loads(second.stdout.readline()) == {"done": True}, "the slot of an ended process is free"


def second_is_through(process) -> bool:
    import select

    return bool(select.select([process.stdout], [], [], 0.3)[0])


def test_the_administrator_sets_how_many_services_load(node, lease) -> None:
    machine = node("24GiB")
    (machine.directory / "mlops-gpu.toml").write_text("loading = 2\n")
    holders = [lease(machine.environment, memory="1GiB") for _ in range(2)]
    for holder in holders:
        assert holder.do("slots = lease.loading(); slots.__enter__()") == {"done": True}


def test_a_service_that_hangs_while_loading_delays_others_only_for_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
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


def test_a_load_slot_that_is_not_a_regular_file_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "load-GPU-a-0")
    with Ledger.open(tmp_path) as ledger:
        slots = loading.enter(ledger, ["GPU-a"], 60)
    assert slots.descriptors == ()
    assert not slots.alone, "growth of the card's use may belong to others"
    assert "loading without a load slot" in caplog.text


SERVICE = [sys.executable, "-m", "mlops_build.gpu.testing.service"]


def test_a_program_that_does_not_use_leases_is_watched_while_it_loads(node, lease) -> None:
    machine = node("8GiB", "24GiB")
    command = [*SERVICE, "--memory", "3GiB", "--load-seconds", "1"]
    holder = lease(machine.view(hide_pids=True), memory="4GiB")
    holder.stdin.write(f"lease.before_exec(); os.execv(sys.executable, {command!r})\n")
    holder.stdin.flush()
    events = [json.loads(holder.stdout.readline())["event"] for _ in range(2)]
    assert events == ["started", "loaded"]
    assert machine.used(1) == 3 * GIB, "hardcoded cuda:0 is the chosen card"
    wait_until(lambda: seen(machine) == [3 * GIB])
    with Ledger.open(machine.directory / "leases") as ledger:
        gate = f"load-{machine.cards[1].uuid}-0"
        assert ledger.slot(gate) is None, "held until the memory is stable"
        wait_until(lambda: ledger.promises()[0].loaded)
        wait_until(lambda: (descriptor := ledger.slot(gate)) is not None and os.close(descriptor) is None)
    holder.kill()
    holder.wait()
    assert promises(machine) == [], "no other process kept the lease"


def test_the_watching_process_ends_with_the_program_and_keeps_no_descriptors(node, lease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="4GiB")
    program = "import sys; print('{}', flush=True); sys.stdin.read()"
    holder.stdin.write(f"lease.before_exec(); os.execv(sys.executable, [sys.executable, '-c', {program!r}])\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "{}\n"
    holder.kill()
    assert holder.stdout.read() == "", "its pipes are closed, so readers do not block"
    assert promises(machine) == []
    with Ledger.open(machine.directory / "leases") as ledger:
        wait_until(lambda: (descriptor := ledger.slot(f"load-{machine.cards[0].uuid}-0")) is not None and os.close(descriptor) is None)


def test_a_service_under_gpu_run_that_requests_a_lease_shares_the_existing_one(node, lease, run_python) -> None:
    machine = node("24GiB", "24GiB")
    holder = lease(machine.environment, memory="4GiB")
    again = [sys.executable, "-c", HOLDER, repr({"memory": "3GiB"})]
    holder.stdin.write(f"lease.before_exec(); os.execv(sys.executable, {again!r})\n")
    holder.stdin.flush()
    assert json.loads(holder.stdout.readline())["uuids"] == holder.answer["uuids"]
    assert [promise.bytes for promise in promises(machine)] == [4 * GIB], "promised once"
    holder.do(f"with lease.loading(): allocate({GIB})")
    assert seen(machine) == [GIB + CONTEXT]
    holder.do("lease.release()")
    assert len(promises(machine)) == 1, "the process still has its lease"


def test_a_service_under_gpu_run_that_requests_more_is_refused(node, lease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="4GiB")
    again = [sys.executable, "-c", HOLDER, repr({"memory": "5GiB"})]
    holder.stdin.write(f"os.execv(sys.executable, {again!r})\n")
    holder.stdin.flush()
    refused = json.loads(holder.stdout.readline())
    assert (refused["error"], refused["code"]) == ("Nested", 4)
    assert "4.0 GiB" in refused["message"]
