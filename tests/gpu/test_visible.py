"""CUDA_VISIBLE_DEVICES, read as CUDA reads it."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.gpu.nvml import Reading, Trouble
from mlops_build.gpu.visible import AmbiguousMask, visible


def card(number: int, name: str = "NVIDIA L4", **more: object) -> Reading:
    return Reading(f"GPU-{number:08x}-d72c-4106-c12f-20bd9faed9f6", number, name, bus_id=f"00000000:{number + 1:02X}:00.0", **more)  # type: ignore[arg-type]


FOUR = [card(number) for number in range(4)]
# The same cards as NVML may hand them out: not in the bus's order.
SHUFFLED = [FOUR[2], FOUR[0], FOUR[3], FOUR[1]]
MIXED = [card(0, "NVIDIA L4"), card(1, "NVIDIA H100"), card(2, "NVIDIA L4")]


def seen(readings: list[Reading], mask: str | None, **environ: str) -> list[int]:
    environ = environ if mask is None else {**environ, "CUDA_VISIBLE_DEVICES": mask}
    return [one.index for one in visible(readings, environ)]


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
        ("4", []),
        ("GPU-00000002", [2]),
        ("GPU-00000002-d72c-4106-c12f-20bd9faed9f6,GPU-00000000", [2, 0]),
        ("GPU-0000000", []),  # fits four cards
        ("GPU-", []),
        ("GPU-00000001,GPU-ffffffff,GPU-00000000", [1]),
        ("GPU-00000001,GPU-00000001-d72c", []),
        ("gpu-00000001", []),
    ],
)
def test_masks(mask: str | None, wanted: list[int]) -> None:
    assert seen(FOUR, mask) == wanted


def test_an_index_counts_in_the_bus_s_order_not_in_nvml_s() -> None:
    assert seen(SHUFFLED, "0,1", CUDA_DEVICE_ORDER="PCI_BUS_ID") == [0, 1]
    assert seen(SHUFFLED, "3") == [3]


def test_an_index_among_unlike_cards_is_refused() -> None:
    with pytest.raises(AmbiguousMask, match="fastest first") as refused:
        seen(MIXED, "0")
    assert "PCI_BUS_ID" in str(refused.value.remedy)
    assert seen(MIXED, "0", CUDA_DEVICE_ORDER="PCI_BUS_ID") == [0]
    assert seen(MIXED, "GPU-00000001") == [1]
    assert sorted(seen(MIXED, "2,0,1")) == [0, 1, 2]  # all of them, in whatever order
    assert seen(MIXED, "") == []
    assert seen(MIXED, "-1") == []


def test_indices_beside_uuids_are_refused() -> None:
    with pytest.raises(AmbiguousMask, match="mixes"):
        seen(FOUR, "0,GPU-00000001")


def test_a_lost_card_keeps_its_place() -> None:
    lost = Reading("unknown-1", 1, "unknown", trouble=Trouble.LOST)
    assert seen([FOUR[0], lost, *FOUR[2:]], "2") == [2]
    assert seen([FOUR[0], lost, *FOUR[2:]], "1,2") == [1, 2]


def test_mig_instances_by_both_spellings() -> None:
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
        return [one.uuid for one in visible(node, {"CUDA_VISIBLE_DEVICES": mask, "CUDA_DEVICE_ORDER": order})]

    assert uuids("MIG-1aaaaaaa-1111") == uuids("MIG-1aa") == uuids(f"MIG-{parent.uuid}/8/0") == [parts[1].uuid]
    assert uuids(f"MIG-{parent.uuid}/9/0") == []
    assert uuids("0") == uuids(parent.uuid) == [parent.uuid, parts[0].uuid]
    assert uuids("1") == [node[3].uuid]


@given(st.text(alphabet="0123,-GPUMI-af /", max_size=24))
def test_a_mask_never_shows_a_card_twice_nor_one_that_is_not_there(mask: str) -> None:
    try:
        found = seen(FOUR, mask)
    except AmbiguousMask as error:
        assert error.remedy  # noqa: PT017
        return
    assert len(found) == len(set(found))
    assert set(found) <= {0, 1, 2, 3}


@given(st.lists(st.integers(0, 3), unique=True, max_size=4), st.integers(9, 40))
def test_names_and_numbers_of_the_same_cards_agree(numbers: list[int], digits: int) -> None:
    assert seen(FOUR, ",".join(map(str, numbers))) == numbers
    assert seen(FOUR, ",".join(FOUR[number].uuid[: 4 + digits] for number in numbers)) == numbers


STARTED = """
import sys, types
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.cuda = types.SimpleNamespace(is_initialized=lambda: True)
"""


@pytest.mark.parametrize(("torch", "wanted"), [("", "None"), (STARTED, "torch has started CUDA")])
def test_whether_cuda_is_started(torch: str, wanted: str) -> None:
    code = f"{torch}\nfrom mlops_build.gpu.visible import cuda_started; print(cuda_started())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{wanted}\n"
