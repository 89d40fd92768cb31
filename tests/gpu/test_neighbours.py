"""Processes without a lease: real processes on a simulated node, seen from the host and from containers."""

import json
import os
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.gpu.cards import REST_NAME
from mlops_build.gpu.neighbours import Known, Neighbour, key_of, known, name_of
from mlops_build.gpu.promise import pid_namespace
from tests.gpu.conftest import MakeNode, RunPython
from tests.gpu.holder import Start
from tests.gpu.nodes import CONTEXT, GIB, backdate
from tests.gpu.test_namespaces import UNSHARE, needs_namespaces, needs_root

Cards = Callable[..., list[dict[str, Any]]]

CARDS = """
import json
from mlops_build.gpu import cards
print(json.dumps([
    {
        "external": card.external_bytes, "counted": card.external_counted_bytes, "committed": card.committed_bytes, "visible": card.visible,
        "neighbours": [
            [getattr(neighbour, name) for name in ("name", "uid", "pid", "used_bytes", "counted_bytes", "why")]
            for neighbour in card.neighbours
        ],
        "leases": [[lease.service, dict(lease.seen)] for lease in card.leases],
    }
    for card in cards()
]))
"""


@pytest.fixture
def cards(run_python: RunPython) -> Cards:
    return lambda environment: json.loads(run_python(CARDS, environment))


def test_the_host_shows_names(node: MakeNode, cards: Cards) -> None:
    nodes = node("24GiB")
    old, older = nodes.start("3GiB", name="score"), nodes.start("2GiB", name="train")
    for service in (old, older):
        service.wait_for("loaded")
    [card] = cards(nodes.environment)
    # Both run the same program as the same user, so they are one neighbour with the larger process.
    assert card["neighbours"] == [["service.py", os.getuid(), old.pid, 5 * GIB, 5 * GIB, "used"]]
    (nodes.directory / "mlops-gpu.toml").write_text('[[neighbour]]\nname = "scoring"\ncommand = "*--name score *"\nmemory = "6GiB"\n')
    [card] = cards(nodes.environment)
    assert card["neighbours"] == [
        ["scoring", os.getuid(), old.pid, 3 * GIB, 6 * GIB, "declared"],
        ["service.py", os.getuid(), older.pid, 2 * GIB, 2 * GIB, "used"],
    ]
    assert (card["external"], card["counted"], card["committed"]) == (5 * GIB, 8 * GIB, 8 * GIB)


def test_a_container_counts_all_neighbours_together(node: MakeNode, cards: Cards) -> None:
    nodes = node("24GiB")
    nodes.start("3GiB").wait_for("loaded")
    nodes.set_used(0, "1GiB")
    for view in ({"hide_pids": True}, {"hide_process_memory": True}):
        [card] = cards(nodes.view(**view) | {"MLOPS_GPU_LEASE_DIR": "/nonexistent/leases"})
        assert (card["external"], card["committed"], card["leases"]) == (4 * GIB, 4 * GIB, [])
        assert card["neighbours"][0] == ["nobody that can be seen", None, None, 4 * GIB, 4 * GIB, "used"]


def test_the_process_of_a_lease_is_not_a_neighbour(node: MakeNode, cards: Cards, lease: Start) -> None:
    """Without a report, by NVML's pid."""
    nodes = node("24GiB")
    holder = lease(nodes.environment, memory="4GiB", service="mine", report=False)
    holder.do(f"allocate({3 * GIB})")
    nodes.start("2GiB").wait_for("loaded")
    [card] = cards(nodes.environment)
    assert card["leases"] == [["mine", {nodes.cards[0].uuid: 3 * GIB + CONTEXT}]]
    assert (card["external"], card["committed"], len(card["neighbours"])) == (2 * GIB, 6 * GIB, 1)
    # With hidden pids it counts twice until it reports: with its budget, and as use without a lease.
    [card] = cards(nodes.view(hide_pids=True))
    assert (card["external"], card["committed"]) == (5 * GIB + CONTEXT, 9 * GIB + CONTEXT)
    holder.kill()
    holder.wait()
    [card] = cards(nodes.environment)
    assert (card["leases"], card["external"]) == ([], 2 * GIB)


@needs_namespaces
def test_a_lease_in_another_pid_namespace(node: MakeNode, lease: Start, cards: Cards, start: Start) -> None:
    """A pod's lease, seen from the host, where it has another pid."""
    nodes = node("24GiB")
    holder = lease(nodes.environment, before=UNSHARE, memory="4GiB", report=False)
    holder.do(f"allocate({3 * GIB})")
    [card] = cards(nodes.environment)
    assert (card["external"], card["committed"], card["neighbours"]) == (0, 4 * GIB, [])
    # In another container the host's pids are not valid: the lease counts, and its memory counts as a neighbour's, too.
    [card] = json.loads(start(CARDS, nodes.environment, before=UNSHARE).line())
    assert (card["external"], card["committed"]) == (3 * GIB + CONTEXT, 7 * GIB + CONTEXT)
    assert card["neighbours"][0][:3] == ["others (their processes cannot be seen from here)", None, None]


def test_cards_have_the_visibility_of_the_mask(node: MakeNode, cards: Cards) -> None:
    nodes = node("24GiB", "24GiB")
    mask = {"CUDA_VISIBLE_DEVICES": str(nodes.cards[1].uuid)[:12]}
    assert [card["visible"] for card in cards(nodes.environment | mask)] == [False, True]
    mixed = node("24GiB", "80GiB")
    assert [card["visible"] for card in cards(mixed.environment | {"CUDA_VISIBLE_DEVICES": "0"})] == [None, None]


def test_data_of_processes() -> None:
    """Of this process, its parent, and a missing process."""
    processes = known([os.getpid()], {})
    assert processes is not None
    me = processes[os.getpid()]
    assert (me.uid, me.parent, me.place) == (os.geteuid(), os.getppid(), (pid_namespace(), os.getpid()))
    assert "pytest" in me.command or "python" in me.command
    assert me.started >= 0
    if os.getppid() > 1:
        assert processes[os.getppid()].command == ""


@needs_root
def test_a_process_in_many_groups() -> None:
    with subprocess.Popen(["sleep", "60"], extra_groups=range(1_000_000, 1_001_000)) as process:
        processes = known([process.pid], {})
        process.kill()
    assert processes is not None
    assert processes[process.pid].place == (pid_namespace(), process.pid)


WORKER = """
import os, subprocess
from mlops_build.gpu.neighbours import by_owner, known, owner
from mlops_build.gpu.promise import Promise, boot_time, pid_namespace
worker = subprocess.Popen(["sleep", "60"])
lease = Promise("a", ("GPU-a",), 1, False, "mine", os.getpid(), pid_namespace(), 0, 0.0, boot=boot_time())
processes = known([worker.pid], by_owner([lease]))
print(os.getpid(), owner(worker.pid, processes, by_owner([lease])) == lease)
worker.kill()
"""


@needs_namespaces
def test_a_worker_of_a_service_with_pid_1_has_its_lease(start: Start) -> None:
    assert start(WORKER, os.environ, before=UNSHARE).line() == "1 True"


def test_a_process_name_that_is_not_text(start: Start) -> None:
    """A program's name can look like a line of /proc/PID/status or a bracket of /proc/PID/stat."""
    script = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b') R 1\\nUid: 0\\xff', 0, 0, 0); print('named', flush=True); input()"
    process = start(script, os.environ)
    assert process.line() == "named"
    processes = known([process.pid], {})
    assert processes is not None
    assert (processes[process.pid].parent, processes[process.pid].uid) == (os.getpid(), os.geteuid())


def process(command: str, cgroup: str = "/user.slice", uid: int = 1000) -> Known:
    return Known(10, 1, uid, (None, 10), 0.0, command, cgroup)


POD = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0123abcd_89ab_4cde_8f01_23456789abcd.slice/cri-containerd-" + "f" * 64


@pytest.mark.parametrize(
    ("known_process", "name", "key"),
    [
        (process("/usr/bin/python3.11 -u /srv/train.py --token=secret"), "train.py", "1000:train.py"),
        (process("python -m ipykernel_launcher -f /home/a/kernel-1.json"), "ipykernel_launcher", "1000:ipykernel_launcher"),
        (process("python -c print()"), "python", "1000:python"),
        (process("/opt/tritonserver --x"), "tritonserver", "1000:tritonserver"),
        (process("tritonserver", "/system.slice/triton.service", 0), "triton.service", "0:triton.service"),
        (process("python a.py", "/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope"), "a.py", "1000:a.py"),
        (process("python a.py", "/system.slice/run-u1234.service"), "a.py", "1000:a.py"),
        (process("python a.py", f"/system.slice/run-r{'c' * 32}.service"), "a.py", "1000:a.py"),
        (process("python a.py", "/system.slice/run-p12-i34.service"), "a.py", "1000:a.py"),
        (process("python a.py", "/system.slice/run-report.service"), "run-report.service", "1000:run-report.service"),
        (process("python a.py", POD + ".scope"), "a.py (pod 0123abcd)", "1000:a.py"),
        (
            process("python a.py", "/kubepods/burstable/pod0123abcd-89ab-4cde-8f01-23456789abcd/" + "e" * 64),
            "a.py (pod 0123abcd)",
            "1000:a.py",
        ),
        (process("python a.py", f"/system.slice/docker-{'a' * 64}.scope"), "a.py (container aaaaaaaaaaaa)", "1000:a.py"),
        (process(""), "process", "1000:process"),
    ],
)
def test_names(known_process: Known, name: str, key: str) -> None:
    assert (name_of(known_process), key_of(known_process)) == (name, key)


@given(st.text(max_size=80), st.text(max_size=80), st.sampled_from(["", ".service", ".scope"]))
def test_names_are_short_and_printable(command: str, cgroup: str, kind: str) -> None:
    known_process = process(command, cgroup + kind)
    assert 0 < len(name_of(known_process)) <= 100
    assert name_of(known_process).isprintable()
    assert len(key_of(known_process)) <= 60


STABLE = {"a.py (pod 0123abcd)": "a.py", "a.py (container aaaaaaaaaaaa)": "a.py"}


@pytest.mark.parametrize("name", [*STABLE, "digits (its lease is for another card)", REST_NAME])
def test_a_stable_name_has_no_container(name: str) -> None:
    assert Neighbour(name=name, used_bytes=0, counted_bytes=0, why="used").stable_name == STABLE.get(name, name)


def test_peaks_are_stored_in_the_lease_directory(node: MakeNode, cards: Cards) -> None:
    nodes = node("24GiB")
    leases = nodes.directory / "leases"
    large, small = nodes.start("5GiB"), nodes.start("1GiB")
    for service in (large, small):
        service.wait_for("loaded")
    cards(nodes.environment)
    backdate(leases, 60)
    [card] = cards(nodes.environment)
    assert (card["external"], card["counted"]) == (6 * GIB, 6 * GIB)
    large.kill()
    large.wait()
    [card] = cards(nodes.environment)
    # One process with that name is left, and none had more than 5 GiB.
    assert (card["external"], round(card["counted"] / GIB, 2), card["neighbours"][0][5]) == (GIB, 5, "peak")
    backdate(leases, 3.5 * 86400)
    [card] = cards(nodes.environment)
    assert round(card["counted"] / GIB, 2) == 2.5
    small.kill()
    small.wait()
    [card] = cards(nodes.environment)
    assert (card["counted"], card["neighbours"]) == (0, [])
    (leases / f"peaks-{os.getuid()}.json").write_text('{"schema": 1, "cards": {"x": [}')
    assert cards(nodes.environment)[0]["counted"] == 0
