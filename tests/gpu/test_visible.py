"""CUDA_VISIBLE_DEVICES, interpreted like CUDA."""

import json
import random
import subprocess
import sys
import types
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.gpu import testing
from mlops_build.gpu.nvml import Reading, Trouble
from mlops_build.gpu.visible import AmbiguousMask, cuda_started, visible
from tests.gpu.conftest import MakeNode


def card(number: int, name: str = "NVIDIA L4", **more: object) -> Reading:
    return Reading(f"GPU-{number:08x}-d72c-4106-c12f-20bd9faed9f6", number, name, bus_id=f"00000000:{number + 1:02X}:00.0", **more)  # type: ignore[arg-type]


FOUR = [card(number) for number in range(4)]
# The same cards in an order of NVML that differs from the bus order.
SHUFFLED = [FOUR[2], FOUR[0], FOUR[3], FOUR[1]]
MIXED = [card(0, "NVIDIA L4"), card(1, "NVIDIA H100"), card(2, "NVIDIA L4")]


def seen(readings: list[Reading], mask: str | None, **environ: str) -> list[int]:
    environ = environ if mask is None else {**environ, "CUDA_VISIBLE_DEVICES": mask}
    return [reading.index for reading in visible(readings, environ)]


@pytest.mark.parametrize(
    ("mask", "wanted"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        (" ", []),
        ("-1", []),
        ("none", []),
        ("NoDevFiles", []),
        ("2,1", [2, 1]),
        ("0,2,-1,1", [0, 2]),  # the programming guide's example
        ("0,9,1", [0]),
        ("1,,2", [1]),
        ("1gpu,2ampere", [1, 2]),
        (" 3 , 0 ", [3, 0]),
        ("0,0", []),
        ("0,9,0", []),
        ("9,0", []),
        ("0,-1,0", [0]),
        ("4", []),
        ("GPU-00000002", [2]),
        ("GPU-00000002-d72c-4106-c12f-20bd9faed9f6,GPU-00000000", [2, 0]),
        ("GPU-0000000", []),  # matches four cards
        ("GPU-", []),
        ("GPU-00000001,GPU-ffffffff,GPU-00000000", [1]),
        ("GPU-00000001,GPU-00000001-d72c", []),
        ("GPU-00000001,", [1]),
        ("GPU-00000001,GPU-ffffffff,GPU-ffffffff", []),
        ("none,GPU-00000001", []),
        ("gpu-00000001", []),
    ],
)
def test_masks(mask: str | None, wanted: list[int]) -> None:
    assert seen(FOUR, mask) == wanted


def test_an_index_counts_in_bus_order() -> None:
    assert seen(SHUFFLED, "0,1", CUDA_DEVICE_ORDER="PCI_BUS_ID") == [0, 1]
    assert seen(SHUFFLED, "3") == [3]


def test_an_index_among_different_cards_is_refused() -> None:
    with pytest.raises(AmbiguousMask, match="fastest first") as refused:
        seen(MIXED, "0")
    assert "PCI_BUS_ID" in str(refused.value.remedy)
    assert seen(MIXED, "0", CUDA_DEVICE_ORDER="PCI_BUS_ID") == [0]
    assert seen(MIXED, "GPU-00000001") == [1]
    assert sorted(seen(MIXED, "2,0,1")) == [0, 1, 2]  # all cards, in any order
    assert seen(MIXED, "") == []
    assert seen(MIXED, "-1") == []


def test_a_mix_of_indices_and_uuids_is_refused() -> None:
    with pytest.raises(AmbiguousMask, match="mixes"):
        seen(FOUR, "0,GPU-00000001")


def test_a_lost_card_keeps_its_place() -> None:
    lost = Reading("unknown-1", 1, "unknown", trouble=Trouble.LOST)
    assert seen([FOUR[0], lost, *FOUR[2:]], "2") == [2]
    assert seen([FOUR[0], lost, *FOUR[2:]], "1,2") == [1, 2]


def test_mig_instances_in_both_notations() -> None:
    parent = card(0, trouble=Trouble.MIG_PARENT)
    parts = [
        Reading(
            f"MIG-{number}aaaaaaa-1111",
            0,
            "NVIDIA A100 MIG 1g.5gb",
            mig_parent=parent.uuid,
            mig_instance=(7 + number, 0),
            bus_id=parent.bus_id,
        )
        for number in range(2)
    ]
    node = [parent, *parts, card(1)]

    def uuids(mask: str, order: str = "PCI_BUS_ID") -> list[str]:
        return [reading.uuid for reading in visible(node, {"CUDA_VISIBLE_DEVICES": mask, "CUDA_DEVICE_ORDER": order})]

    assert uuids("MIG-1aaaaaaa-1111") == uuids("MIG-1aa") == uuids(f"MIG-{parent.uuid}/8/0") == [parts[1].uuid]
    assert uuids(f"MIG-{parent.uuid}/9/0") == []
    assert uuids("0") == uuids(parent.uuid) == [parent.uuid, parts[0].uuid]
    assert uuids("1") == [node[3].uuid]


CUDA = """
import ctypes, json, os, sys
masks, shown = json.load(sys.stdin), []
for mask, order in masks:
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.environ |= {"CUDA_VISIBLE_DEVICES": mask, "CUDA_DEVICE_ORDER": order}
        cuda, count, uuids = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(0), []
        if cuda.cuInit(0) == 0:
            cuda.cuDeviceGetCount(ctypes.byref(count))
        for ordinal in range(count.value):
            digits = (ctypes.c_ubyte * 16)()
            cuda.cuDeviceGetUuid_v2(digits, ordinal)
            uuids.append(bytes(digits).hex())
        os.write(writer, json.dumps(uuids).encode())
        os._exit(0)
    os.close(writer)
    os.wait()
    shown.append(json.loads(os.read(reader, 65536)))
    os.close(reader)
print(json.dumps(shown))
"""


def test_the_simulated_cuda_reads_the_same(node: MakeNode) -> None:
    """Compare with the simulation's libcuda, an independent implementation in C of torch's rules."""
    rng = random.Random(10)  # noqa: S311
    nodes = node(*[testing.SimulatedCard(total=total, name=total) for total in ("24GiB", "80GiB", "24GiB", "40GiB")])
    readings = [Reading(str(card.uuid), n, card.name, bus_id=f"{n}") for n, card in enumerate(nodes.cards)]
    words = ["0", "1", "2", "3", "4", "-1", "", "x", "1x", " 2", "+3", "00"]
    words += [str(card.uuid)[: rng.randint(4, 40)] for card in nodes.cards * 2]
    masks = [(",".join(rng.choices(words, k=rng.randint(1, 4))), rng.choice(["PCI_BUS_ID", "FASTEST_FIRST"])) for _ in range(150)]
    done = subprocess.run(
        [sys.executable, "-c", CUDA], env=nodes.environment, input=json.dumps(masks), capture_output=True, text=True, timeout=60, check=True
    )
    compared = 0
    for (mask, order), shown in zip(masks, json.loads(done.stdout), strict=True):
        try:
            selected = visible(readings, {"CUDA_VISIBLE_DEVICES": mask, "CUDA_DEVICE_ORDER": order})
        except AmbiguousMask:
            continue
        ours = [reading.uuid.removeprefix("GPU-").replace("-", "") for reading in selected]
        if order == "PCI_BUS_ID" or "GPU-" in mask:
            assert ours == shown, (mask, order)
        else:  # all cards, or none
            assert sorted(ours) == sorted(shown), (mask, order)
        compared += 1
    assert compared > 60


@given(st.text(alphabet="0123,-GPUMI-af /", max_size=24))
def test_a_mask_never_shows_a_card_twice_or_a_missing_card(mask: str) -> None:
    try:
        selected = seen(FOUR, mask)
    except AmbiguousMask as error:
        assert error.remedy  # noqa: PT017
        return
    assert len(selected) == len(set(selected))
    assert set(selected) <= {0, 1, 2, 3}


def test_cuda_started_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert cuda_started() is None
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=types.SimpleNamespace(is_initialized=lambda: True)))
    assert cuda_started() == "torch has started CUDA"


def test_cuda_started_by_the_driver_library(node: MakeNode, run_python: Callable[..., str]) -> None:
    """Detected by the file that cuInit keeps open, also in a forked child. NVML does not open it."""
    script = """
import ctypes, os
from mlops_build.gpu.nvml import Nvml
from mlops_build.gpu.visible import cuda_started
with Nvml() as nvml:
    nvml.read()
    print(cuda_started(), flush=True)
ctypes.CDLL("libcuda.so.1").cuInit(0)
print(cuda_started(), flush=True)
if os.fork() == 0:
    print(cuda_started(), flush=True)
    os._exit(0)
os.wait()
"""
    before, after, forked = run_python(script, node("24GiB").environment).splitlines()
    assert before == "None"
    assert after == forked
    assert after.endswith("/nvidia-uvm open")
