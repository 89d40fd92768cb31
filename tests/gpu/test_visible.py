"""CUDA_VISIBLE_DEVICES, interpreted like CUDA."""

import random
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
from tests.gpu.test_testing import cuda_sees, digits


def card(number: int, name: str = "NVIDIA L4", **more: object) -> Reading:
    return Reading(f"GPU-{number:08x}-d72c-4106-c12f-20bd9faed9f6", number, name, bus_id=f"00000000:{number + 1:02X}:00.0", **more)  # type: ignore[arg-type]


FOUR = [card(number) for number in range(4)]
# The same cards in an order of NVML that differs from the bus order.
SHUFFLED = [FOUR[2], FOUR[0], FOUR[3], FOUR[1]]
MIXED = [card(0, "NVIDIA L4"), card(1, "NVIDIA H100"), card(2, "NVIDIA L4")]


def seen(readings: list[Reading], mask: str | None, **environ: str) -> list[int]:
    environ = environ if mask is None else {**environ, "CUDA_VISIBLE_DEVICES": mask}
    return [reading.index for reading in visible(readings, environ)]


EXAMPLES = {
    None: [0, 1, 2, 3],
    "": [],
    "none": [],
    "NoDevFiles": [],
    "0,2,-1,1": [0, 2],  # the programming guide's
    "1gpu,2ampere": [1, 2],
    " 3 , 0 ": [3, 0],
    "0,9,0": [],
    "GPU-00000002-d72c-4106-c12f-20bd9faed9f6,GPU-00000000": [2, 0],
    "GPU-0000000": [],  # matches four cards
    "GPU-00000001,GPU-ffffffff,GPU-00000000": [1],
    "GPU-00000001,GPU-00000001-d72c": [],
    "gpu-00000001": [],
}


def test_masks() -> None:
    for mask, wanted in EXAMPLES.items():
        assert seen(FOUR, mask) == wanted, mask


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


@pytest.mark.parametrize("order", ["PCI_BUS_ID", "FASTEST_FIRST"])
def test_the_simulated_cuda_reads_the_same(node: MakeNode, order: str) -> None:
    """Compare with the simulation's libcuda, an independent implementation in C of torch's rules."""
    rng = random.Random(10)  # noqa: S311
    nodes = node(*[testing.SimulatedCard(total=total, name=total) for total in ("24GiB", "80GiB", "24GiB", "40GiB")])
    readings = [Reading(str(card.uuid), n, card.name, bus_id=f"{n}") for n, card in enumerate(nodes.cards)]
    words = ["0", "1", "2", "3", "4", "-1", "", "x", "1x", " 2", "+3", "00"]
    words += [str(card.uuid)[: rng.randint(4, 40)] for card in nodes.cards * 2]
    masks = [",".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(80)]
    compared = 0
    for mask, shown in zip(masks, cuda_sees(nodes, masks, order), strict=True):
        try:
            selected = visible(readings, {"CUDA_VISIBLE_DEVICES": mask, "CUDA_DEVICE_ORDER": order})
        except AmbiguousMask:
            continue
        ours: list[str] | int = [digits(reading.uuid) for reading in selected] or 100  # CUDA's code for no device
        # Of different cards, the fastest is CUDA's first; then ours are all cards, or none.
        assert ours == shown or (order == "FASTEST_FIRST" and "GPU-" not in mask and set(ours) == set(shown)), mask  # type: ignore[arg-type]
        compared += 1
    assert compared > 20


ENTRIES = st.one_of(
    st.from_regex(r"\A ?[0-9]{1,2}[a-z]?\Z"),
    st.integers(-2, 6).map(str),
    st.sampled_from(["", "GPU-x", "none"]),
    st.sampled_from(FOUR).flatmap(lambda card: st.integers(4, 40).map(lambda length: card.uuid[:length])),
)


@given(st.lists(ENTRIES, max_size=5).map(",".join))
def test_torch_reads_the_same(mask: str) -> None:
    """torch's own parser, which it uses before it starts CUDA."""
    torch_cuda = pytest.importorskip("torch.cuda", reason="torch is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", mask)
        entries = torch_cuda._parse_visible_devices()
    if entries and isinstance(entries[0], str):
        entries = torch_cuda._transform_uuid_to_ordinals(entries, [card.uuid for card in FOUR])
    elif missing := [index for index, entry in enumerate(entries) if entry >= len(FOUR)]:
        entries = entries[: missing[0]]
    try:
        selected = seen(FOUR, mask)
    except AmbiguousMask:
        return
    assert selected == list(entries)


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
