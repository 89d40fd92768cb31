"""The simulated node: what many real processes do to it, as NVML and CUDA show it."""

import json
from collections.abc import Callable

from mlops_build.gpu.testing import SimulatedCard
from tests.gpu.conftest import MakeNode

GIB = 2**30
MIB = 2**20

LOOK = """
import json, pynvml
pynvml.nvmlInit()
cards = []
for index in range(pynvml.nvmlDeviceGetCount()):
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    plain, exact = pynvml.nvmlDeviceGetMemoryInfo(handle), pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    cards.append({
        "uuid": pynvml.nvmlDeviceGetUUID(handle), "total": exact.total, "used": exact.used, "free": exact.free, "reserved": exact.reserved,
        "plain_used": plain.used, "minor": pynvml.nvmlDeviceGetMinorNumber(handle),
        "processes": {process.pid: process.usedGpuMemory for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)},
    })
print(json.dumps(cards))
"""


def test_what_one_process_takes_another_sees(node: MakeNode, run_python: Callable[..., str]) -> None:
    made = node("24GiB", SimulatedCard(total="24GiB", reserved="512MiB", used="1GiB"))
    service = made.start("4GiB", load_seconds=0)
    service.wait_for("loaded")
    first, second = json.loads(run_python(LOOK, made.environment))
    assert (first["total"], first["used"], first["free"]) == (24 * GIB, 4 * GIB, 20 * GIB)
    assert first["processes"] == {str(service.pid): 4 * GIB}
    assert (second["used"], second["plain_used"], second["reserved"]) == (1 * GIB, 1 * GIB + 512 * MIB, 512 * MIB)
    assert made.used(0) == 4 * GIB
    assert made.processes(0) == {service.pid: 4 * GIB}


def test_a_killed_process_holds_nothing(node: MakeNode) -> None:
    made = node("24GiB")
    service = made.start("20GiB", load_seconds=0)
    service.wait_for("loaded")
    service.kill()
    service.wait()
    assert made.used(0) == 0
    assert made.start("20GiB", load_seconds=0).wait_for("loaded")["held_bytes"] == 20 * GIB


def test_a_full_card_has_no_room(node: MakeNode) -> None:
    made = node("24GiB")
    made.start("20GiB", load_seconds=0).wait_for("loaded")
    newcomer = made.start("5GiB", load_seconds=0)
    assert newcomer.wait_for("out of memory")["held_bytes"] > 0
    assert newcomer.wait(10) == 77
    assert made.used(0) == 20 * GIB
