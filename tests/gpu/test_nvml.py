"""NVML readings in a separate process for each test: values, faults of a card, faults of the driver, calls that hang."""

import _ctypes
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from mlops_build.gpu import testing
from tests.gpu.conftest import MakeNode, RunPython
from tests.gpu.holder import Start

GIB = 2**30

READ = """
import dataclasses, json, sys
from mlops_build.gpu.nvml import read
print(json.dumps([dataclasses.asdict(reading) for reading in read(full="full" in sys.argv)]))
"""


@pytest.fixture
def read(run_python: RunPython) -> Callable[..., list[dict[str, Any]]]:
    def reading(environment: Mapping[str, str], *arguments: str) -> list[dict[str, Any]]:
        readings: list[dict[str, Any]] = json.loads(run_python(READ, environment, *arguments))
        return readings

    return reading


def test_a_reading_has_the_usable_memory(node: MakeNode, read: Callable[..., Any]) -> None:
    """Version 2's total without the driver's reserve; without that function, version 1's total."""
    nodes = node(
        testing.SimulatedCard(total="24GiB", reserved="1GiB", used="2GiB", name="NVIDIA L4", temperature=55, ecc_errors=3), "16GiB"
    )
    nodes.fault(1, "nvmlDeviceGetMemoryInfo_v2", code=13, times=1)
    first, second = read(nodes.environment)
    assert (first["uuid"], first["name"], first["index"]) == (nodes.cards[0].uuid, "NVIDIA L4", 0)
    assert (first["total_bytes"], first["used_bytes"], first["trouble"]) == (23 * GIB, 2 * GIB, None)
    assert (first["compute_capability"], first["bus_id"]) == ([8, 9], "00000000:17:00.0")
    assert (first["utilisation"], first["temperature"], first["power_watts"], first["ecc_errors"]) == (None, None, None, None)
    assert second["total_bytes"] == 16 * GIB
    [first, _] = read(nodes.environment, "full")
    assert (first["utilisation"], first["temperature"], first["power_watts"], first["ecc_errors"]) == (0, 55, 30.0, 3)
    nodes.set_condition(0, utilisation=77, temperature=88, power_watts=66.5, ecc_errors=5)
    [first, _] = read(nodes.environment, "full")
    assert (first["utilisation"], first["temperature"], first["power_watts"], first["ecc_errors"]) == (77, 88, 66.5, 5)


def test_a_reading_lists_processes(node: MakeNode, read: Callable[..., Any]) -> None:
    nodes = node("24GiB")
    service = nodes.start("3GiB")
    service.wait_for("loaded")
    assert read(nodes.environment)[0]["processes"] == [{"pid": service.pid, "used_bytes": 3 * GIB}]
    assert read(nodes.view(hide_process_memory=True))[0]["processes"] == [{"pid": service.pid, "used_bytes": None}]
    assert read(nodes.view(hide_pids=True))[0]["processes"] == []
    nodes.fault(0, "nvmlDeviceGetComputeRunningProcesses", code=4)
    nodes.fault(0, "nvmlDeviceGetGraphicsRunningProcesses", code=4)
    [card] = read(nodes.environment)
    assert (card["processes"], card["trouble"], card["used_bytes"]) == (None, None, 3 * GIB)


@pytest.mark.parametrize(
    ("call", "code", "trouble"),
    [
        ("*", 15, "lost"),
        ("nvmlDeviceGetMemoryInfo", 15, "lost"),
        ("nvmlDeviceGetMemoryInfo", 16, "lost"),
        ("nvmlDeviceGetHandleByIndex", 4, "permission denied"),
        ("nvmlDeviceGetMemoryInfo", 4, "permission denied"),
        ("nvmlDeviceGetMemoryInfo", 10, "does not answer"),
        ("nvmlDeviceGetMemoryInfo", 999, "fault"),
    ],
)
def test_a_fault_affects_only_its_card(node: MakeNode, read: Callable[..., Any], call: str, code: int, trouble: str) -> None:
    nodes = node("24GiB", "24GiB", "24GiB")
    nodes.fault(1, call, code=code)
    readings = read(nodes.environment, "full")
    assert [reading["trouble"] for reading in readings] == [None, trouble, None]
    assert [reading["total_bytes"] for reading in readings] == [24 * GIB, None, 24 * GIB]
    assert readings[1]["why"]
    # Values from before the fault are kept: the card keeps its UUID if it was read.
    assert readings[1]["uuid"] == ("unknown-1" if call in ("*", "nvmlDeviceGetHandleByIndex") else nodes.cards[1].uuid)


def test_cards_that_cannot_be_used(node: MakeNode, read: Callable[..., Any]) -> None:
    nodes = node(
        testing.SimulatedCard(compute_mode=2),
        testing.SimulatedCard(compute_mode=3),
        testing.SimulatedCard(name="NVIDIA GB10", memory_supported=False),
    )
    first, second, of_host = read(nodes.environment)
    assert (of_host["trouble"], of_host["total_bytes"], of_host["name"]) == ("memory not supported", None, "NVIDIA GB10")
    assert (first["trouble"], "PROHIBITED" in first["why"], first["total_bytes"]) == ("permission denied", True, 24 * GIB)
    assert second["trouble"] is None
    service = nodes.start("1GiB")
    assert service.wait(20) == 1  # CUDA refuses it as well
    assert "46" in service.communicate()[1]


@pytest.mark.parametrize("code", [3, 13, 25, 999])
def test_an_older_call_replaces_a_call_that_fails(node: MakeNode, run_python: RunPython, code: int) -> None:
    """25: the driver knows another version of the structure. Then it still answers the older call."""
    nodes = node(testing.SimulatedCard(total="24GiB", reserved="1GiB"), "16GiB")
    service = nodes.start("3GiB")
    service.wait_for("loaded")
    nodes.fault(0, "nvmlDeviceGetComputeRunningProcesses_v3", code=code, times=1)
    older = """
import sys
import pynvml
newest = pynvml.nvmlDeviceGetMemoryInfo
def memory_info(handle, version=None):
    if version is not None:
        raise pynvml.NVMLError(int(sys.argv[1]))
    return newest(handle)
pynvml.nvmlDeviceGetMemoryInfo = memory_info
"""
    first, second = json.loads(run_python(older + READ, nodes.environment, str(code)))
    assert (first["trouble"], first["total_bytes"], first["used_bytes"]) == (None, 24 * GIB, 4 * GIB)
    assert first["processes"] == [{"pid": service.pid, "used_bytes": 3 * GIB}]
    assert second["trouble"] is None


def test_no_optional_value_hides_a_card(node: MakeNode, read: Callable[..., Any]) -> None:
    nodes = node("24GiB", testing.SimulatedCard(utilisation=None, temperature=None, power_watts=None, ecc_errors=None))
    optional = ("Name", "CudaComputeCapability", "PciInfo", "MigMode", "ComputeMode", "UtilizationRates", "Temperature", "PowerUsage")
    lists = ("ComputeRunningProcesses", "GraphicsRunningProcesses", "MPSComputeRunningProcesses")
    for name in (*optional, *lists, "TotalEccErrors"):
        nodes.fault(0, f"nvmlDeviceGet{name}", code=25)
    card, bare = read(nodes.environment, "full")
    assert (card["trouble"], card["uuid"], card["total_bytes"], card["used_bytes"]) == (None, nodes.cards[0].uuid, 24 * GIB, 0)
    assert (card["name"], card["processes"], card["bus_id"], card["temperature"]) == ("unknown", None, None, None)
    assert (bare["trouble"], bare["utilisation"], bare["temperature"], bare["power_watts"], bare["ecc_errors"]) == (None,) * 5


def test_mig(node: MakeNode, read: Callable[..., Any]) -> None:
    nodes = node(testing.SimulatedCard(total="40GiB", name="NVIDIA A100-SXM4-40GB"), "24GiB", testing.SimulatedCard(total="40GiB"))
    uuids = nodes.mig(0, ["10GiB", "20GiB"])
    nodes.mig(2, [])
    service = nodes.start("4GiB", environment={**nodes.environment, "CUDA_VISIBLE_DEVICES": uuids[1]})
    service.wait_for("loaded")
    parent, small, large, card, empty = read(nodes.environment)
    assert (parent["trouble"], "into 2" in parent["why"]) == ("divided by MIG", True)
    assert (empty["trouble"], empty["why"]) == ("divided by MIG", "divided by MIG, without instances")
    assert [reading["uuid"] for reading in (small, large)] == uuids
    assert [reading["total_bytes"] for reading in (small, large, card)] == [10 * GIB, 20 * GIB, 24 * GIB]
    assert [reading["used_bytes"] for reading in (small, large)] == [0, 4 * GIB]
    assert [[process["pid"] for process in part["processes"]] for part in (small, large)] == [[], [service.pid]]
    assert (large["mig_parent"], large["mig_instance"], large["index"]) == (parent["uuid"], [2, 0], 0)
    nodes.fault(uuids[0], "nvmlDeviceGetMemoryInfo", code=4)
    assert [reading["trouble"] for reading in read(nodes.environment)[:3]] == ["divided by MIG", "permission denied", None]


HANG = """
import json, time
from mlops_build.gpu.nvml import Nvml
with Nvml(seconds=0.5) as nvml:
    looks = []
    for _ in range(3):
        start = time.monotonic()
        readings = nvml.read()
        looks.append([[reading.trouble for reading in readings], [reading.uuid for reading in readings], time.monotonic() - start])
        if len(looks) == 2:
            print("twice", flush=True)
            input()
            deadline = time.monotonic() + 20
            while nvml.read()[1].trouble and time.monotonic() < deadline:
                time.sleep(0.01)
    import threading
    print(json.dumps({"looks": looks, "threads": threading.active_count()}))
"""


def test_a_card_that_hangs_does_not_hang_the_others(node: MakeNode, start: Start) -> None:
    """Only the first read waits for it, not each read adds a thread, and it is read again once it answers."""
    nodes = node("24GiB", "24GiB")
    nodes.fault(1, "nvmlDeviceGetMemoryInfo", delay_ms=60_000)
    process = start(HANG, nodes.environment)
    assert process.line() == "twice"
    nodes.restore(1)
    process.tell("go on")
    output = json.loads(process.line())
    assert [look[0] for look in output["looks"]] == [[None, "does not answer"], [None, "does not answer"], [None, None]]
    assert output["looks"][0][1] == [card.uuid for card in nodes.cards]
    assert output["looks"][0][2] >= 0.5 > output["looks"][1][2]
    assert output["threads"] == 1
    assert process.wait(30) == 0


def test_many_cards_that_hang_do_not_hide_the_last(node: MakeNode, run_python: RunPython) -> None:
    nodes = node(*["24GiB"] * 6)
    for card in range(5):
        nodes.fault(card, "nvmlDeviceGetUUID", delay_ms=60_000)
    script = """
from mlops_build.gpu.nvml import Nvml
with Nvml(seconds=1) as nvml:
    print([reading.trouble and reading.trouble.value for reading in nvml.read()])
"""
    assert run_python(script, nodes.environment) == f"{['does not answer'] * 5 + [None]}\n"


def test_cards_are_read_where_no_thread_can_be_started(node: MakeNode, run_python: RunPython) -> None:
    """A container's limit of processes counts threads."""
    nodes = node("24GiB", "24GiB")
    nodes.lose(0)
    script = """
import threading
def refuse(self): raise RuntimeError("can't start new thread")
threading.Thread.start = refuse
from mlops_build.gpu.nvml import read
print([reading.trouble and reading.trouble.value for reading in read()])
"""
    assert run_python(script, nodes.environment) == "['lost', None]\n"


def test_the_process_ends_although_a_call_hangs(node: MakeNode, read: Callable[..., Any]) -> None:
    nodes = node("24GiB")
    nodes.fault(0, "nvmlDeviceGetHandleByIndex", delay_ms=120_000)
    [card] = read(nodes.environment)  # run_python fails after 60 s
    assert (card["trouble"], card["uuid"]) == ("does not answer", "unknown-0")


DRIVER = """
import json
from mlops_build.gpu import NoRoom
from mlops_build.gpu.nvml import Nvml
try:
    with Nvml(seconds=0.5) as nvml:
        nvml.read()
except NoRoom as error:
    print(json.dumps([error.reason, error.message, error.remedy, error.exit_code]))
"""


DRIVER_FAULTS = {
    9: ("driver not loaded", "modprobe"),
    18: ("driver and library differ", "reboot"),
    4: ("permission denied", "/dev/nvidiactl"),
    10: ("does not answer", "dmesg"),
    999: ("fault", "nvidia-smi"),
}


def test_faults_of_the_driver(node: MakeNode, run_python: RunPython) -> None:
    nodes = node("24GiB")
    for code, (reason, remedy) in DRIVER_FAULTS.items():
        nodes.fail_init(code)
        error = json.loads(run_python(DRIVER, nodes.environment))
        assert (error[0], error[3]) == (reason, 5)
        assert remedy in error[2]


def test_a_driver_that_hangs(node: MakeNode, run_python: RunPython) -> None:
    nodes = node("24GiB")
    for call in ("nvmlInit", "nvmlDeviceGetCount"):
        nodes.fault(None, call, delay_ms=60_000)
        error = json.loads(run_python(DRIVER, nodes.environment))
        assert error[:2] == ["does not answer", "the NVIDIA driver does not answer within 0.5 s"]
        nodes.restore()


def test_no_library(run_python: RunPython) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"}
    if os.path.exists("/dev/nvidiactl"):  # noqa: PTH110
        pytest.skip("there is an NVIDIA driver here")
    error = json.loads(run_python(DRIVER, environment))
    assert error[0] == "no library"
    assert "libnvidia-ml.so.1" in error[1]


@pytest.mark.parametrize("library", ["a text file", "an empty file", "another library"])
def test_a_corrupt_library_is_not_reported_as_a_missing_one(tmp_path: Path, run_python: RunPython, library: str) -> None:
    path = tmp_path / "libnvidia-ml.so.1"
    other = Path(_ctypes.__file__).read_bytes()
    path.write_bytes(
        {"a text file": b"version https://git-lfs.github.com/spec/v1\n" * 9, "an empty file": b"", "another library": other}[library]
    )
    reason, message, remedy, code = json.loads(run_python(DRIVER, {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}))
    assert (reason, code) == ("library is corrupt", 5)
    why = {"a text file": "invalid ELF header", "an empty file": "file too short", "another library": "Function Not Found"}
    assert why[library] in message
    assert "not found:" not in message
    assert "install the NVIDIA driver again" in remedy


def test_a_container_s_view(node: MakeNode, read: Callable[..., Any]) -> None:
    """NVML counts from 0, independent of the node's numbers; the UUID is the same."""
    nodes = node("24GiB", "40GiB", "80GiB")
    readings = read(nodes.view(cards=[2]))
    assert [(reading["index"], reading["uuid"], reading["total_bytes"]) for reading in readings] == [(0, nodes.cards[2].uuid, 80 * GIB)]
    assert read(nodes.view([])) == []


def test_only_some_cards_are_read(node: MakeNode, run_python: RunPython) -> None:
    """A watching process reads the cards of its lease only. An instance is read with its parent."""
    nodes = node("24GiB", testing.SimulatedCard(total="40GiB", name="NVIDIA A100-SXM4-40GB"), "24GiB")
    small, large = nodes.mig(1, ["10GiB", "20GiB"])
    script = """
import sys
from mlops_build.gpu.nvml import Nvml
with Nvml() as nvml:
    for only in (None, [sys.argv[1]], [sys.argv[2]], ["GPU-absent"], None):
        print(*(reading.uuid for reading in nvml.read(only=only)))
"""
    first, parent, last = (str(card.uuid) for card in nodes.cards[:3])
    printed = run_python(script, nodes.environment, last, large).splitlines()
    every = " ".join([first, parent, small, large, last])
    assert printed == [every, last, f"{parent} {small} {large}", "", every]


@pytest.mark.parametrize("call", [1, 2], ids=["a process allocates", "a process ends"])
def test_memory_and_processes_are_of_the_same_moment(node: MakeNode, run_python: RunPython, call: int) -> None:
    """Otherwise the memory of a process that the card's use does not include would hide what others use."""
    machine = node("24GiB")
    machine.set_used(0, "14GiB")
    script = """
import sys
import pynvml
from mlops_build.gpu.nvml import read
real, calls = pynvml.nvmlDeviceGetMemoryInfo, []
def changing(handle, *version):
    memory = real(handle, *version)
    calls.append(handle)
    if len(calls) == int(sys.argv[1]):
        memory.used -= 9 << 30
    return memory
pynvml.nvmlDeviceGetMemoryInfo = changing
print(read()[0].used_bytes)
"""
    assert int(run_python(script, machine.environment, str(call))) == 14 * GIB


def test_a_card_that_is_lost_between_reads_keeps_its_name(node: MakeNode, start: Start) -> None:
    """An exporter's NVML stays open: a card that is lost between two reads keeps its name, and is read again once it works."""
    nodes = node("24GiB", "24GiB")
    script = """
import sys
from mlops_build.gpu.nvml import Nvml
with Nvml() as nvml:
    for _ in sys.stdin:
        print([(reading.uuid[-4:], reading.trouble and reading.trouble.value) for reading in nvml.read()], flush=True)
"""
    process = start(script, nodes.environment)
    names = [str(card.uuid)[-4:] for card in nodes.cards]
    for trouble in (None, "lost", None):
        nodes.lose(1) if trouble else nodes.restore(1)
        process.tell("")
        assert process.line() == f"{[(names[0], None), (names[1], trouble)]}"
