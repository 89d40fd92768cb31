"""`gpu release`: it ends the process that has a lease, whatever stands between, and never takes a lease from a process that runs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mlops_build.gpu import testing
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import new
from mlops_build.gpu.release import NoSuchLease, SeveralLeases, find
from tests.gpu.conftest import MakeNode
from tests.gpu.holder import HOLDER, Script, Start, wait_until
from tests.gpu.nodes import GIB, ROOT, Shared, Tenant, promises, user
from tests.gpu.test_namespaces import UNSHARE, needs_namespaces, needs_root

MLOPS = [sys.executable, "-m", "mlops_build"]
MakeLease = Callable[..., Script]
# A program that ignores SIGTERM for as long as its input is open.
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def release(environment: dict[str, str], *arguments: str, before: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    command = [*before, *MLOPS, "gpu", "release", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def ids(node: testing.Node) -> list[str]:
    return sorted(promise.id for promise in promises(node))


def test_a_lease_is_found_by_id_service_or_first_letters(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        held = [ledger.hold(new(["GPU-1"], GIB, service)) for service in ("spam", "eggs", "eggs")]
        spam, *eggs = [lease.promise.id for lease in held]
        for name in ("spam", spam, spam[:8]):
            assert find(ledger, name).id == spam
        with pytest.raises(SeveralLeases) as several:
            find(ledger, "eggs")
        assert set(eggs) == set(several.value.details["leases"])
        assert find(ledger, str(several.value.remedy).rpartition(" ")[2]).id in eggs, "the remedy works"
        for name in ("bacon", spam[:3], ""):
            with pytest.raises(NoSuchLease, match="no lease"):
                find(ledger, name)
        for lease in held:
            ledger.withdraw(lease)


def test_a_request_that_waits_has_no_lease_yet(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        ticket = ledger.hold(new(["GPU-1"], GIB, "big", until=1e9))
        for name in ("big", "big (waiting)", ticket.promise.id[:8]):
            with pytest.raises(NoSuchLease, match=r"big \(waiting\) has no lease yet") as waits:
                find(ledger, name)
            assert waits.value.remedy == f"end the waiting process: kill {os.getpid()}"
        ledger.withdraw(ticket)


def test_the_process_receives_sigterm_and_the_memory_is_free(node: MakeNode, lease: MakeLease) -> None:
    machine = node("24GiB")
    holder, other = (lease(machine.environment, memory="4GiB", service=name) for name in ("spam", "eggs"))
    done = release(machine.environment, "spam")
    assert done.returncode == 0, done.stderr
    assert f"spam ({holder.answer['id']}) has released 4.0 GiB on {machine.cards[0].uuid}: pid {holder.pid} received SIGTERM" in done.stdout
    assert holder.wait(20) == -signal.SIGTERM
    assert ids(machine) == [other.answer["id"]]
    done = release(machine.environment, "eggs", "--json")
    assert json.loads(done.stdout) == {
        "lease": other.answer["id"],
        "service": "eggs",
        "cards": [machine.cards[0].uuid],
        "memory_bytes": 4 * GIB,
        "pids": [other.pid],
    }
    done = release(machine.environment, "eggs", "--json")
    assert (done.returncode, json.loads(done.stdout)["exit_code"]) == (3, 3)


def test_without_a_lease_directory_no_lease_is_found(node: MakeNode) -> None:
    done = release(node("24GiB").environment | {"MLOPS_GPU_LEASE_DIR": "/absent"}, "spam")
    assert done.returncode == 3
    assert "no lease directory at /absent: No such file or directory, so no lease is known here" in done.stderr
    assert "`kill PID`" in done.stderr


@pytest.mark.parametrize("killed", [False, True], ids=["with its parent", "its parent was killed"])
def test_a_program_under_gpu_run_receives_the_signal(node: MakeNode, start: Start, killed: bool) -> None:
    machine = node("24GiB")
    program = "trap 'echo received; exit 7' TERM; echo ready; while true; do sleep 0.1; done"
    process = start([*MLOPS, "gpu", "run"], machine.environment, "--memory", "4GiB", "--service", "spam", "--", "sh", "-c", program)
    assert process.line() == "ready"
    if killed:
        process.kill()
        process.wait()
    done = release(machine.environment, "spam", "--json")
    assert done.returncode == 0
    assert len(json.loads(done.stdout)["pids"]) >= 1
    assert process.line() == "received"
    assert process.wait(20) == (-signal.SIGKILL if killed else 7)
    wait_until(lambda: ids(machine) == [])


def test_descendants_that_keep_the_lease_receive_the_signal_too(node: MakeNode, start: Start) -> None:
    machine = node("24GiB")
    process = start([*MLOPS, "gpu", "run"], machine.environment, "--memory", "4GiB", "--service", "spam", "--", "sh", "-c", "cat; true")
    assert "GiB on" in process.stderr.readline()
    done = release(machine.environment, "spam", "--json")
    assert (done.returncode, len(json.loads(done.stdout)["pids"])) == (0, 2), done.stderr
    assert ids(machine) == []


def test_a_lease_that_was_removed_and_written_again_is_released(node: MakeNode, lease: MakeLease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="4GiB", service="spam")
    next((machine.directory / "leases").glob("*.lease")).unlink()
    holder.do("lease.report()")
    assert release(machine.environment, "spam").returncode == 0
    assert holder.wait(20) == -signal.SIGTERM


def test_a_process_that_ignores_sigterm_keeps_its_lease(node: MakeNode, lease: MakeLease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, script=f"{STUBBORN}\n{HOLDER}", memory="4GiB", service="spam")
    done = release(machine.environment, "spam", "--wait", "0.5")
    assert (done.returncode, holder.poll()) == (1, None)
    assert ids(machine) == [holder.answer["id"]]
    assert "--wait 60" in done.stderr
    subprocess.run(done.stderr.partition("at once: ")[2].split(), check=True)
    assert holder.wait(20) == -signal.SIGKILL, "the remedy works"
    assert release(machine.environment, "spam").returncode == 3


@needs_namespaces
def test_a_container_is_released_from_the_host_or_from_inside_but_not_from_another_container(shared: Shared) -> None:
    container = [*UNSHARE, "sh", "-c", '"$@"; true', "sh"]  # the first process of a container ignores SIGTERM by default
    inside = shared.tenant("4GiB", size=GIB, wrapper=container, service="spam")
    bystander = shared.tenant("4GiB", size=GIB, wrapper=container, service="eggs")
    assert inside.events["loaded"]["pid"] == bystander.events["loaded"]["pid"]
    done = release(shared.environment, "spam", before=UNSHARE)
    assert done.returncode == 4
    assert "on the host" in done.stderr
    done = release(shared.environment, "spam")
    assert done.returncode == 0, done.stderr
    inside.process.wait(20)
    assert [lease["service"] for card in shared.cards() for lease in card["leases"]] == ["eggs"]
    first = subprocess.run(["pgrep", "-P", str(bystander.process.pid)], capture_output=True, text=True, check=True).stdout.split()[0]
    done = release(shared.environment, "eggs", before=["nsenter", f"--target={first}", "--pid", "--mount", "--ipc", "--net"])
    assert done.returncode in (0, -signal.SIGKILL), f"the container may end first, with all that runs in it: {done.stderr}"
    assert shared.leased() == []


@needs_root
def test_only_its_user_and_root_may_end_a_process(shared: Shared) -> None:
    tenant: Tenant = shared.tenant("4GiB", uid=12001, service="spam")
    done = release(shared.environment, "spam", before=user(12002))
    assert done.returncode == 4
    assert "belongs to uid 12001, and this is uid 12002" in done.stderr
    assert tenant.process.poll() is None
    for by in (user(12001), []):
        assert release(shared.environment, "spam", before=by).returncode == 0
        tenant.process.wait(20)
        tenant = shared.tenant("4GiB", uid=12001, service="spam")
