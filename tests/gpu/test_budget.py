"""limit_torch() with a stand-in for torch, which is built without CUDA here. tests/gpu_device/ tests the real torch on a real card."""

import os
from pathlib import Path

import pytest

from mlops_build.gpu import testing
from mlops_build.gpu.ledger import Ledger

MIB, GIB = 1 << 20, 1 << 30
# The functions of torch that limit_torch calls. A context costs what the node sets, and one allocation is made through "the allocator".
TORCH = """
import ctypes
fractions, reserved = {}, {}
def device(name): return name
class cuda:
    _cuda = None
    def init():
        cuda._cuda = ctypes.CDLL("libcuda.so.1")
        assert cuda._cuda.cuInit(0) == 0
    def is_initialized(): return cuda._cuda is not None
    def device_count(): return 1
    def synchronize(ordinal):
        device, context = ctypes.c_int(), ctypes.c_void_p()
        assert cuda._cuda.cuDeviceGet(ctypes.byref(device), ordinal) == 0
        assert cuda._cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
    def memory_reserved(ordinal): return reserved.get(ordinal, 0)
    def get_device_properties(ordinal):
        class properties: total_memory = TOTAL
        return properties
    def set_per_process_memory_fraction(fraction, ordinal): fractions[ordinal] = fraction
"""


@pytest.fixture
def with_torch(node, tmp_path: Path):
    """A node of 24 GiB cards, and the environment of a process that imports the stand-in."""

    def make(*cards: str, hidden: bool = False) -> tuple[testing.Node, dict[str, str]]:
        machine = node(*cards)
        module = tmp_path / "torch.py"
        module.write_text(TORCH.replace("TOTAL", str(24 * GIB)))
        environment = machine.view(hide_pids=hidden)
        return machine, environment | {"PYTHONPATH": os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])}

    return make


ASK = "import torch; lease.limit_torch(); say(fractions=[torch.fractions[key] for key in sorted(torch.fractions)])"


def test_the_measured_context_is_subtracted_on_each_card(with_torch, lease) -> None:
    machine, environment = with_torch("24GiB", "24GiB")
    holder = lease(environment, memory="6GiB", count=2)
    holder.do(f"import torch; allocate({GIB}); torch.reserved[0] = {GIB}")  # what the allocator has reserved is not the context
    assert holder.do(ASK)["fractions"] == pytest.approx([(6 * GIB - machine.context_bytes) / (24 * GIB)] * 2)
    assert holder.do("say(device=lease.device, devices=lease.devices)") == {"device": "cuda:0", "devices": ["cuda:0", "cuda:1"]}


def test_a_context_that_cannot_be_measured_is_assumed_to_be_large(with_torch, lease) -> None:
    _, environment = with_torch("24GiB", hidden=True)
    (fraction,) = lease(environment, memory="4GiB").do(ASK)["fractions"]
    assert fraction == pytest.approx((4 * GIB - 512 * MIB) / (24 * GIB))


def test_a_budget_below_the_context_is_refused_with_a_remedy(with_torch, lease) -> None:
    _, environment = with_torch("24GiB")
    holder = lease(environment, memory="200MiB")
    refused = holder.do("lease.limit_torch()")
    assert refused["error"] == "BudgetTooSmall"
    assert "300.0 MiB (measured)" in refused["message"]
    assert "gpu.memory in service.yaml" in refused["remedy"]


def test_the_cpu_has_no_limit_and_no_load_slots(with_torch, lease) -> None:
    _, environment = with_torch("24GiB")
    holder = lease(environment, memory="40GiB", otherwise="cpu")
    assert holder.do("lease.limit_torch(); say(device=lease.device)")["device"] == "cpu"
    assert holder.do("with lease.loading(): pass") == {"done": True}


def test_torch_reports_the_use_where_pids_are_hidden(with_torch, lease) -> None:
    machine, environment = with_torch("24GiB", hidden=True)
    holder = lease(environment, memory="4GiB")
    holder.do(f"import torch; torch.cuda.init(); torch.reserved[0] = {2 * GIB}; lease.report()")
    with Ledger.open(machine.directory / "leases") as ledger:
        (promise,) = ledger.promises()
    assert promise.seen == {machine.cards[0].uuid: 2 * GIB + 300 * MIB}
    assert not promise.loaded
