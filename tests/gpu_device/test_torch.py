"""torch on a leased card: the device, the enforced budget, the size of a context."""

import pytest

from tests.gpu_device.conftest import Program

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("torch_card")]


def test_the_device_is_cuda_0_under_the_mask(program: Program) -> None:
    code = """
import torch
from mlops_build import gpu
with gpu.lease("2GiB") as lease:
    tensor = torch.ones(1024, device=lease.device)
    properties = torch.cuda.get_device_properties(0)
    assert torch.cuda.device_count() == 1
    assert str(lease.device) == "cuda:0" and str(tensor.device) == "cuda:0"
    assert str(getattr(properties, "uuid", "")) in lease.uuids[0] or lease.uuids[0].startswith("MIG-")
    print(tensor.sum().item())
"""
    assert program(code) == "1024.0"


def test_context_and_allocator_together_stay_within_the_budget(program: Program) -> None:
    """By NVML's count: the context, which torch's fraction does not include, is subtracted. The card has room for more."""
    code = """
import os, torch, pynvml
from mlops_build import gpu
budget = 2 << 30
with gpu.lease(budget) as lease:
    before = next(card.used_bytes for card in gpu.cards() if card.uuid == lease.uuids[0])
    lease.limit_torch()
    taken = []
    try:
        while True:
            taken.append(torch.zeros(16 << 20, dtype=torch.uint8, device=lease.device))
    except torch.OutOfMemoryError:
        assert taken.pop().sum().item() == 0, "the process continues"
    after = next(card.used_bytes for card in gpu.cards() if card.uuid == lease.uuids[0])
    used = after - before
    reserved = torch.cuda.memory_reserved()
    print(used, reserved)
    assert reserved < used <= budget + (64 << 20), (used, reserved, budget)
    assert used > 0.7 * budget, "it can use its budget"
"""
    used, reserved = map(int, program(code).split())
    print(f"context: {(used - reserved) >> 20} MiB")


def test_a_lease_after_torch_has_started_cuda_is_refused_with_the_remedy(program: Program) -> None:
    code = """
import torch
torch.ones(1, device="cuda")
from mlops_build import gpu
try:
    gpu.lease("1GiB")
except Exception as error:
    print(type(error).__name__, bool(error.remedy))
"""
    assert program(code) == "CudaStarted True"


def test_checking_for_cuda_before_the_lease_never_gives_a_wrong_card(program: Program) -> None:
    """is_available() may call cuInit, which reads the mask only once: then the lease is refused, or the mask still has effect."""
    code = """
import torch
torch.cuda.is_available()
from mlops_build import gpu
try:
    lease = gpu.lease("1GiB")
except Exception as error:
    assert type(error).__name__ == "CudaStarted" and error.remedy, error
else:
    assert torch.cuda.device_count() == 1
    assert str(torch.cuda.get_device_properties(0).uuid) in lease.uuids[0]
print("right")
"""
    assert program(code) == "right"


def test_a_lease_observes_the_memory_of_its_model(program: Program) -> None:
    code = """
import torch
from mlops_build import gpu
with gpu.lease("2GiB") as lease:
    with lease.loading():
        weights = torch.empty(512 << 20, dtype=torch.uint8, device=lease.device)
    promise = next(promise for card in gpu.cards() for promise in card.leases)
    print(promise.loaded, promise.seen[lease.uuids[0]] >= 512 << 20)
"""
    assert program(code) == "True True"
