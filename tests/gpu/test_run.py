"""`gpu run`: one lease for a program and all its descendants, signals and exit status, and a parent that may be killed."""

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.gpu.holder import HOLDER, Script, Start, wait_until
from tests.gpu.nodes import CONTEXT, GIB, promises, tickets
from tests.gpu.test_namespaces import UNSHARE, needs_namespaces

GPU_RUN = [sys.executable, "-m", "mlops_build", "gpu", "run"]
SERVICE = [sys.executable, "-m", "mlops_build.gpu.testing.service"]
Run = Callable[..., Script]


@pytest.fixture
def run(start: Start) -> Run:
    """Start `gpu run`: run(environment, "--memory", "4GiB", "--", …)."""
    return functools.partial(start, GPU_RUN)


def event(process: Script, name: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(process.line())
    assert document["event"] == name
    return document


@pytest.mark.parametrize("hidden", [False, True], ids=["pids can be seen", "pids are hidden"])
def test_the_parent_reports_what_an_unaware_program_uses_as_long_as_it_runs(node, run: Run, run_python, hidden: bool) -> None:
    machine = node("8GiB", "24GiB")
    service = [*SERVICE, "--memory", "3GiB", "--grow-to", "5GiB", "--grow-after", "1"]
    process = run(machine.view(hide_pids=hidden), "--memory", "6GiB", "--", *service)
    for name in ("started", "loaded", "grown"):
        event(process, name)
    assert machine.used(1) == 5 * GIB, "hardcoded cuda:0 is the chosen card"
    wait_until(lambda: [sum(promise.seen.values()) for promise in promises(machine)] == [5 * GIB])
    script = "from mlops_build import gpu; print([card.left_bytes for card in gpu.cards()])"
    views = [machine.environment, machine.view(hide_pids=True)]
    assert {run_python(script, view) for view in views} == {f"[{8 * GIB}, {18 * GIB}]\n"}, "the views of host and container agree"


def test_a_program_that_states_no_budget_shares_the_one_of_gpu_run(node, run: Run) -> None:
    script = "from mlops_build import gpu; print(gpu.lease().memory_bytes, len(gpu.cards()[0].leases))"
    assert run(node("24GiB").environment, "--memory", "2GiB", "--", sys.executable, "-c", script).line() == f"{2 * GIB} 1"


SHELL = ["sh", "-c", '"$@"; true', "sh"]
CLOSES_DESCRIPTORS = [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"]


@pytest.mark.parametrize("through", [SHELL, CLOSES_DESCRIPTORS, [*GPU_RUN, "--memory", "13GiB", "--"]], ids=["sh", "closes", "gpu run"])
def test_a_service_shares_the_lease_of_its_ancestor(node, run: Run, through: list[str]) -> None:
    machine = node("24GiB")
    service = [sys.executable, "-c", HOLDER, repr({"memory": "13GiB"})]
    process = run(machine.environment, "--memory", "13GiB", "--", *through, *service)
    assert json.loads(process.line())["uuids"] == [machine.cards[0].uuid]
    assert [promise.bytes for promise in promises(machine)] == [13 * GIB]
    assert process.do(f"allocate({GIB})") == {"done": True}
    wait_until(lambda: sum(promises(machine)[0].seen.values()) == GIB + CONTEXT)


def test_a_program_that_requests_more_than_its_lease_is_refused(node, run: Run) -> None:
    process = run(node("24GiB").environment, "--memory", "4GiB", "--", sys.executable, "-c", HOLDER, repr({"memory": "1GiB"}))
    assert "uuids" in process.line()
    for more in ({"memory": "5GiB"}, {"count": 2}, {"exclusive": True}, {"names": ["*H100*"]}, {"uuids": ["GPU-other"]}):
        refused = process.do(f"gpu.lease(**{ ({'memory': '1GiB'} | more)!r})")
        assert (refused["error"], refused["code"]) == ("Nested", 4)
        assert "4.0 GiB" in refused["message"]


def test_the_next_program_starts_at_once_beside_one_that_allocates_nothing(node, run: Run) -> None:
    machine = node("24GiB")
    first = run(machine.environment, "--memory", "1GiB", "--", "sh", "-c", "echo started; exec cat")
    assert first.line() == "started"
    second = run(machine.environment, "--memory", "1GiB", "--", "echo", "started")
    assert second.line() == "started"
    assert "waiting" not in second.end()


@pytest.mark.parametrize("closes", [False, True], ids=["as it is", "all its descriptors are closed"])
def test_killing_the_parent_leaves_program_and_lease(node, run: Run, closes: bool) -> None:
    machine = node("24GiB")
    program = f"import os, time; {'os.closerange(3, 256)' if closes else 'pass'}; print(os.getpid(), flush=True); time.sleep(600)"
    process = run(machine.environment, "--memory", "6GiB", "--", sys.executable, "-c", program)
    pid = int(process.line())
    if not closes:
        process.kill()
        process.wait()
    assert [(promise.pid, promise.bytes) for promise in promises(machine)] == [(pid, 6 * GIB)], "the program has the lease, not its parent"
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: promises(machine) == [])


def test_memory_of_a_process_whose_ancestors_have_ended_belongs_to_the_lease(node, run: Run, run_python) -> None:
    machine = node("24GiB")
    process = run(machine.environment, "--memory", "10GiB", "--", "sh", "-c", f"{shlex.join([*SERVICE, '--memory', '9GiB'])} & read line")
    event(process, "started")
    event(process, "loaded")
    process.tell("")
    assert process.wait(20) == 0
    script = "from mlops_build import gpu; print(gpu.cards()[0].left_bytes)"
    assert run_python(script, machine.environment) == f"{14 * GIB}\n"


def test_the_exit_status_is_the_programs(node, run: Run, start: Start) -> None:
    machine = node("24GiB")
    ignore = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    statuses = {
        42: run(machine.environment, "--memory", "1GiB", "--", "sh", "-c", "exit 42"),
        6: run(machine.environment, "--memory", "25GiB", "--", "true"),
        -signal.SIGKILL: run(machine.environment, "--memory", "1GiB", "--", "sh", "-c", "kill -KILL $$"),
        -signal.SIGSEGV: run(machine.environment, "--memory", "1GiB", "--", "sh", "-c", "kill -SEGV $$"),
        7: start(ignore, machine.environment, *GPU_RUN, "--memory", "1GiB", "--", "sh", "-c", "exit 7"),  # its end is noticed
    }
    assert {process.wait(60) for process in statuses.values()} == statuses.keys()


def test_a_closed_standard_output_prevents_nothing(node, tmp_path: Path) -> None:
    machine = node("24GiB")
    command = shlex.join([*GPU_RUN, "--memory", "1GiB", "--", "touch", str(tmp_path / "started")])
    subprocess.run(["sh", "-c", f"{command} >&-"], env=machine.environment, capture_output=True, timeout=30, check=True)
    assert (tmp_path / "started").exists()


def test_signals_are_forwarded(node, run: Run) -> None:
    traps = 'for name in TERM INT HUP USR1; do trap "echo $name" $name; done; echo ready; while true; do sleep 0.1; done'
    process = run(node("24GiB").environment, "--memory", "1GiB", "--", "sh", "-c", traps)
    assert process.line() == "ready"
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        process.send_signal(number)
        assert process.line() == number.name[3:]


def test_variables_that_name_the_process_name_the_program(node, run: Run) -> None:
    """systemd's protocols for sockets and watchdogs."""
    machine = node("24GiB")
    program = [*GPU_RUN, "--memory", "1GiB", "--", "sh", "-c", "echo $LISTEN_PID $WATCHDOG_PID $$"]
    command = ["sh", "-c", 'LISTEN_PID=$$ WATCHDOG_PID=1 exec "$@"', "sh", *program]
    done = subprocess.run(command, env=machine.environment, capture_output=True, text=True, timeout=60, check=True)
    listen, watchdog, pid = done.stdout.split()
    assert (listen, watchdog) == (pid, "1")


def test_a_signal_while_it_waits_for_room_ends_it(node, run: Run) -> None:
    machine = node("24GiB")
    first = run(machine.environment, "--memory", "20GiB", "--", "sh", "-c", "echo started; exec cat")
    assert first.line() == "started"
    waiting = run(machine.environment, "--memory", "20GiB", "--wait", "600", "--", "true")
    assert "waiting for 20.0 GiB" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(20) == -signal.SIGTERM
    wait_until(lambda: not tickets(machine))


def test_a_removed_lease_is_written_again(node, run: Run) -> None:
    machine = node("24GiB")
    process = run(machine.environment, "--memory", "6GiB", "--", *SERVICE, "--memory", "3GiB", "--grow-to", "4GiB", "--grow-after", "0.1")
    event(process, "started")
    for file in (machine.directory / "leases").glob("*.lease"):
        file.unlink()
    wait_until(lambda: [promise.bytes for promise in promises(machine)] == [6 * GIB])
    process.terminate()
    assert "was removed" in process.end()
    wait_until(lambda: promises(machine) == [])


@needs_namespaces
def test_the_first_process_of_a_container(node, start: Start) -> None:
    """It receives signals although it is process 1, and reaps orphans."""
    program = "trap 'exit 3' TERM; (sleep 0.1 &); sleep 0.5; ps -o stat= -A | grep -c Z; while true; do sleep 0.1; done"
    process = start(GPU_RUN, node("24GiB").environment, "--memory", "1GiB", "--", "sh", "-c", program, before=UNSHARE)
    assert process.line() == "0", "no process without a parent is left"
    inner = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
    os.kill(int(inner[0]), signal.SIGTERM)
    assert process.wait(20) == 3


def test_a_lease_below_a_lease_is_shared_also_if_the_environment_was_reset(node, run: Run) -> None:
    """As sudo, su and env -i do."""
    machine = node("24GiB")
    script = "from mlops_build import gpu; lease = gpu.lease('4GiB'); print(lease.id, flush=True); input()"
    process = run(machine.environment, "--memory", "6GiB", "--", "env", "-u", "MLOPS_GPU_LEASE", sys.executable, "-c", script)
    shared = process.line()
    assert [promise.id for promise in promises(machine)] == [shared]


def test_a_program_whose_parent_was_killed_while_waiting_is_not_started(node, run: Run, lease, tmp_path: Path) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="20GiB")
    process = run(machine.environment, "--memory", "16GiB", "--wait", "60", "--", "touch", str(tmp_path / "started"))
    wait_until(lambda: len(tickets(machine)) == 1)
    process.kill()
    process.wait()
    holder.do("lease.release()")
    wait_until(lambda: tickets(machine) == promises(machine) == [])
    assert not (tmp_path / "started").exists()
