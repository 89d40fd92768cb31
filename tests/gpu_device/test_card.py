"""The public API on a real card, without torch: reading, choosing, the mask, leases of two processes."""

import json
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.gpu_device.conftest import ROOT, Program

pytestmark = pytest.mark.gpu

CUDA = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
def check(code):
    assert code == 0, f"CUDA error {code}"
def start():
    context, device = ctypes.c_void_p(), ctypes.c_int()
    check(cuda.cuInit(0)); check(cuda.cuDeviceGet(ctypes.byref(device), 0))
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)); check(cuda.cuCtxSetCurrent(context))
    return device
def allocate(size):
    pointer = ctypes.c_uint64()
    check(cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)))
"""
HOLD = (
    CUDA
    + """
import json, os, sys
from mlops_build import gpu
with gpu.lease(sys.argv[1], service=sys.argv[2]) as lease:
    with lease.loading():
        start(); allocate(int(sys.argv[3]))
    print(json.dumps({"uuids": lease.uuids, "mask": os.environ["CUDA_VISIBLE_DEVICES"]}), flush=True)
    sys.stdin.read()
"""
)


def mlops_build(environment: dict[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mlops_build", "gpu", *arguments]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def listed(environment: dict[str, str]) -> list[dict[str, Any]]:
    document = json.loads(mlops_build(environment, "list", "--json").stdout)
    cards: list[dict[str, Any]] = document["cards"] if isinstance(document, dict) else document
    return cards


def leases(environment: dict[str, str]) -> list[dict[str, Any]]:
    return [lease for card in listed(environment) for lease in card["leases"]]


def hold(environment: dict[str, str], memory: str, service: str, size: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", HOLD, memory, service, str(size)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_cards_have_the_values_of_nvml_and_reading_them_uses_no_memory(program: Program) -> None:
    """torch would create a context of 300 to 500 MiB."""
    code = """
import os
from mlops_build import gpu
import pynvml
cards = {card.uuid: card for card in gpu.cards() if card.mig_parent is None}
pynvml.nvmlInit()
for index in range(pynvml.nvmlDeviceGetCount()):
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    card = cards[pynvml.nvmlDeviceGetUUID(handle)]
    assert card.index == index and card.name == pynvml.nvmlDeviceGetName(handle)
    assert os.getpid() not in [process.pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle)]
    if card.trouble is None:
        total = pynvml.nvmlDeviceGetMemoryInfo(handle).total
        assert 0.9 * total <= card.total_bytes <= total and 0 <= card.used_bytes <= card.total_bytes
"""
    program(code)


def test_cuda_sees_only_the_chosen_card(program: Program) -> None:
    """By UUID: NVML's index and CUDA's ordinal differ on a node with different cards."""
    code = (
        CUDA
        + """
import uuid
from mlops_build import gpu
with gpu.lease("1GiB") as lease:
    device, count, raw = start(), ctypes.c_int(), (ctypes.c_ubyte * 16)()
    check(cuda.cuDeviceGetCount(ctypes.byref(count)))
    get_uuid = getattr(cuda, "cuDeviceGetUuid_v2", None) or cuda.cuDeviceGetUuid
    check(get_uuid(raw, device))
    assert count.value == 1, count.value
    print(lease.uuids[0].removeprefix("GPU-").removeprefix("MIG-") == str(uuid.UUID(bytes=bytes(raw))))
"""
    )
    assert program(code) == "True"


def test_processes_see_each_others_leases_until_they_are_killed(environment: dict[str, str]) -> None:
    first, second = hold(environment, "1GiB", "first", 256 << 20), hold(environment, "1GiB", "second", 256 << 20)
    try:
        for process in (first, second):
            assert process.stdout
            assert json.loads(process.stdout.readline())["uuids"]
        assert sorted(lease["service"] for lease in leases(environment)) == ["first", "second"]
        seen = [lease["seen_bytes"] for lease in leases(environment)]
        assert all(256 << 20 <= size <= 2 << 30 for size in seen), f"what it allocated, and a context: {seen}"
        first.kill()
        first.wait()
        assert [lease["service"] for lease in leases(environment)] == ["second"]
    finally:
        for process in (first, second):
            process.kill()
            process.communicate()


def test_a_request_above_the_card_is_refused_with_the_reason_for_each_card(environment: dict[str, str]) -> None:
    done = mlops_build(environment, "pick", "--memory", "4096GiB")
    assert done.returncode == 6
    assert done.stdout == "", "an empty output would mean the CPU"
    assert all(str(card["uuid"])[:8] in done.stderr or str(card["name"]) in done.stderr for card in listed(environment))


def test_a_program_that_hardcodes_ordinal_0_runs_on_the_leased_card(environment: dict[str, str]) -> None:
    inner = CUDA + "start(); allocate(64 << 20); import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    done = mlops_build(environment, "run", "--memory", "1GiB", "--", sys.executable, "-c", inner)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() in {str(card["uuid"]) for card in listed(environment)}


def test_started_cuda_is_detected_and_reading_nvml_does_not_start_it(program: Program) -> None:
    code = (
        CUDA
        + """
from mlops_build import gpu
from mlops_build.gpu.visible import cuda_started
gpu.cards()
assert cuda_started() is None, cuda_started()
start()
assert cuda_started()
try:
    gpu.lease("1GiB")
except Exception as error:
    print(type(error).__name__, bool(error.remedy))
"""
    )
    assert program(code) == "CudaStarted True"


def test_gpu_run_reports_what_its_program_uses(environment: dict[str, str]) -> None:
    inner = CUDA + "start(); allocate(256 << 20); print('allocated', flush=True); input()"
    command = [sys.executable, "-m", "mlops_build", "gpu", "run", "--memory", "1GiB", "--", "sh", "-c", '"$@"; true', "sh", sys.executable]
    with subprocess.Popen(
        [*command, "-c", inner], env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "allocated\n"
        deadline = time.monotonic() + 30
        seen = 0
        while seen < 256 << 20:
            assert time.monotonic() < deadline, f"{seen} bytes are reported"
            time.sleep(0.2)
            (lease,) = leases(environment)  # the shell and the program share it
            seen = lease["seen_bytes"] or 0
        process.communicate("\n")
    assert process.returncode == 0
