"""`gpu run`: one lease for a program and all its descendants, signals and exit status, and a parent that may be killed."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from mlops_build.gpu import testing
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import Promise
from tests.gpu.holder import HOLDER, wait_until

MIB, GIB = 1 << 20, 1 << 30
CONTEXT = 300 * MIB
GPU_RUN = [sys.executable, "-m", "mlops_build", "gpu", "run"]
SERVICE = [sys.executable, "-m", "mlops_build.gpu.testing.service"]
Run = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def run() -> Iterator[Run]:
    """Start `gpu run`: run(environment, "--memory", "4GiB", "--", …)."""
    started = []

    def start(environment: Mapping[str, str], *arguments: str) -> "subprocess.Popen[str]":
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            [*GPU_RUN, *arguments], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def promises(machine: testing.Node) -> list[Promise]:
    with Ledger.open(machine.directory / "leases") as ledger:
        return ledger.promises()


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout
    text = process.stdout.readline()
    assert text, process.communicate()[1]
    return text.strip()


def event(process: "subprocess.Popen[str]", name: str) -> dict[str, object]:
    document: dict[str, object] = json.loads(line(process))
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
    wait_until(lambda: promises(machine)[0].loaded)


def test_a_program_that_states_no_budget_shares_the_one_of_gpu_run(node, run: Run) -> None:
    script = "from mlops_build import gpu; print(gpu.lease().memory_bytes, len(gpu.cards()[0].leases))"
    process = run(node("24GiB").environment, "--memory", "2GiB", "--", sys.executable, "-c", script)
    assert process.communicate(timeout=60)[0] == f"{2 * GIB} 1\n"


@pytest.mark.parametrize("through", ["a shell", "an entrypoint that closes descriptors", "gpu run"])
def test_a_service_shares_the_lease_of_its_ancestor(node, run: Run, through: str) -> None:
    machine = node("24GiB")
    service = [sys.executable, "-c", HOLDER, repr({"memory": "13GiB"})]
    wrappers = {
        "a shell": ["sh", "-c", '"$@"; true', "sh"],
        "an entrypoint that closes descriptors": [sys.executable, "-c", "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:]))"],
        "gpu run": [*GPU_RUN, "--memory", "13GiB", "--"],
    }
    process = run(machine.environment, "--memory", "13GiB", "--", *wrappers[through], *service)
    assert json.loads(line(process))["uuids"] == [machine.cards[0].uuid]
    (promise,) = promises(machine)
    assert promise.bytes == 13 * GIB
    assert process.stdin
    process.stdin.write(f"allocate({GIB})\n")
    process.stdin.flush()
    assert json.loads(line(process)) == {"done": True}
    wait_until(lambda: sum(promises(machine)[0].seen.values()) == GIB + CONTEXT)


@pytest.mark.parametrize("more", [{"memory": "5GiB"}, {"count": 2}, {"exclusive": True}, {"names": ["*H100*"]}, {"uuids": ["GPU-other"]}])
def test_a_program_that_requests_more_than_its_lease_is_refused(node, run: Run, more: dict[str, object]) -> None:
    machine = node("24GiB")
    process = run(machine.environment, "--memory", "4GiB", "--", sys.executable, "-c", HOLDER, repr({"memory": "1GiB"} | more))
    refused = json.loads(line(process))
    assert (refused["error"], refused["code"]) == ("Nested", 4)
    assert "4.0 GiB" in refused["message"]
    assert process.wait(20) == 4


def test_the_next_program_starts_at_once_beside_one_that_allocates_nothing(node, run: Run) -> None:
    machine = node("24GiB")
    first = run(machine.environment, "--memory", "1GiB", "--", "sh", "-c", "echo started; exec cat")
    assert line(first) == "started"
    second = run(machine.environment, "--memory", "1GiB", "--", "echo", "started")
    assert second.communicate(timeout=20)[0] == "started\n"
    assert "waiting" not in second.stderr.read() if second.stderr and not second.stderr.closed else True


def test_killing_the_parent_leaves_program_and_lease(node, run: Run) -> None:
    machine = node("24GiB")
    process = run(machine.environment, "--memory", "6GiB", "--", *SERVICE, "--memory", "3GiB")
    program = int(str(event(process, "started")["pid"]))
    event(process, "loaded")
    process.kill()
    process.wait()
    (promise,) = promises(machine)
    assert promise.pid == program, "the program has the lease, not its parent"
    os.kill(program, signal.SIGTERM)
    wait_until(lambda: promises(machine) == [])


def test_a_program_that_closes_all_descriptors_keeps_its_lease(node, run: Run) -> None:
    machine = node("24GiB")
    program = "import os, time; os.closerange(3, 256); print('closed', flush=True); time.sleep(600)"
    process = run(machine.environment, "--memory", "15GiB", "--", sys.executable, "-c", program)
    assert line(process) == "closed"
    assert [promise.bytes for promise in promises(machine)] == [15 * GIB]
    process.terminate()
    process.wait(20)
    assert promises(machine) == []


def test_memory_of_a_process_whose_ancestors_have_ended_belongs_to_the_lease(node, run: Run, run_python) -> None:
    machine = node("24GiB")
    process = run(machine.environment, "--memory", "10GiB", "--", "sh", "-c", f"{shlex.join([*SERVICE, '--memory', '9GiB'])} & read line")
    event(process, "started")
    loaded = event(process, "loaded")
    try:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(20) == 0
        script = "from mlops_build import gpu; print(gpu.cards()[0].left_bytes)"
        assert run_python(script, machine.environment) == f"{14 * GIB}\n"
    finally:
        os.kill(int(str(loaded["pid"])), signal.SIGTERM)


def test_the_end_is_noticed_if_the_starter_ignores_sigchld(node, run: Run) -> None:
    machine = node("24GiB")
    ignore = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    command = [*GPU_RUN, "--memory", "1GiB", "--", "sh", "-c", "exit 7"]
    done = subprocess.run([sys.executable, "-c", ignore, *command], env=machine.environment, capture_output=True, timeout=30, check=False)
    assert done.returncode == 7


def test_a_closed_standard_output_prevents_nothing(node, tmp_path: Path) -> None:
    machine = node("24GiB")
    command = shlex.join([*GPU_RUN, "--memory", "1GiB", "--", "touch", str(tmp_path / "started")])
    subprocess.run(["sh", "-c", f"{command} >&-"], env=machine.environment, capture_output=True, timeout=30, check=True)
    assert (tmp_path / "started").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_forwarded(node, run: Run, number: signal.Signals) -> None:
    machine = node("24GiB")
    program = f"trap 'echo received; exit 7' {number.name[3:]}; echo ready; while true; do sleep 0.1; done"
    process = run(machine.environment, "--memory", "1GiB", "--", "sh", "-c", program)
    assert line(process) == "ready"
    process.send_signal(number)
    assert line(process) == "received"
    assert process.wait(20) == 7


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_the_end_by_a_signal_is_passed_on(node, run: Run, number: signal.Signals) -> None:
    machine = node("24GiB")
    process = run(machine.environment, "--memory", "1GiB", "--", "sh", "-c", f"kill -{number.name[3:]} $$")
    assert process.wait(20) == -number


def test_variables_that_name_the_process_name_the_program(node, run: Run) -> None:
    """systemd's protocols for sockets and watchdogs."""
    machine = node("24GiB")
    program = [*GPU_RUN, "--memory", "1GiB", "--", "sh", "-c", "echo $LISTEN_PID $WATCHDOG_PID $$"]
    command = ["sh", "-c", 'LISTEN_PID=$$ WATCHDOG_PID=1 exec "$@"', "sh", *program]
    done = subprocess.run(command, env=machine.environment, capture_output=True, text=True, timeout=60, check=True)
    listen, watchdog, pid = done.stdout.split()
    assert (listen, watchdog) == (pid, "1")


def test_the_exit_status_is_the_programs(node, run: Run) -> None:
    machine = node("24GiB")
    assert run(machine.environment, "--memory", "1GiB", "--", "sh", "-c", "exit 42").wait(20) == 42
    assert run(machine.environment, "--memory", "25GiB", "--", "true").wait(20) == 6


def test_a_signal_while_it_waits_for_room_ends_it(node, run: Run) -> None:
    machine = node("24GiB")
    first = run(machine.environment, "--memory", "20GiB", "--", "sh", "-c", "echo started; exec cat")
    assert line(first) == "started"
    waiting = run(machine.environment, "--memory", "20GiB", "--wait", "600", "--", "true")
    assert waiting.stderr
    assert "waiting for 20.0 GiB" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGTERM)
    assert waiting.wait(20) == -signal.SIGTERM
    wait_until(lambda: not list((machine.directory / "leases").glob("*.ticket")) or not tickets(machine))


def tickets(machine: testing.Node) -> list[Promise]:
    with Ledger.open(machine.directory / "leases") as ledger:
        return ledger.tickets()


def test_a_removed_lease_is_written_again(node, run: Run, tmp_path: Path) -> None:
    machine = node("24GiB")
    process = run(machine.environment, "--memory", "6GiB", "--", *SERVICE, "--memory", "3GiB", "--grow-to", "4GiB", "--grow-after", "0.1")
    event(process, "started")
    for file in (machine.directory / "leases").glob("*.lease"):
        file.unlink()
    wait_until(lambda: [promise.bytes for promise in promises(machine)] == [6 * GIB])
    process.terminate()
    assert "was removed" in process.communicate(timeout=20)[1]
    wait_until(lambda: promises(machine) == [])


def test_the_first_process_of_a_container(node, run: Run) -> None:
    """It receives signals although it is process 1, and reaps orphans."""
    machine = node("24GiB")
    unshare = ["unshare", "--pid", "--mount-proc", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make namespaces (unshare)")
    program = "trap 'exit 3' TERM; (sleep 0.1 &); sleep 0.5; ps -o stat= -A | grep -c Z; while true; do sleep 0.1; done"
    with subprocess.Popen(
        [*unshare, *GPU_RUN, "--memory", "1GiB", "--", "sh", "-c", program], env=machine.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "0\n", "no process without a parent is left"
        inner = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout.split()
        os.kill(int(inner[0]), signal.SIGTERM)
        assert process.wait(20) == 3


@pytest.mark.real_python
def test_a_lease_below_a_lease_is_shared_also_if_the_environment_was_reset(node, run: Run) -> None:
    """As sudo, su and env -i do."""
    machine = node("24GiB")
    script = "from mlops_build import gpu; lease = gpu.lease('4GiB'); print(lease.id, flush=True); input()"
    process = run(machine.environment, "--memory", "6GiB", "--", "env", "-u", "MLOPS_GPU_LEASE", sys.executable, "-c", script)
    shared = line(process)
    assert [promise.id for promise in promises(machine)] == [shared]


@pytest.mark.real_python
def test_a_program_whose_parent_was_killed_while_waiting_is_not_started(node, run: Run, lease, tmp_path: Path) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="20GiB")
    process = run(machine.environment, "--memory", "16GiB", "--wait", "60", "--", "touch", str(tmp_path / "started"))

    def tickets() -> int:
        return len(list((machine.directory / "leases").glob("*.ticket")))

    wait_until(lambda: tickets() == 1)
    process.kill()
    process.wait()
    holder.do("lease.release()")
    wait_until(lambda: tickets() == 0 and promises(machine) == [])
    assert not (tmp_path / "started").exists()
