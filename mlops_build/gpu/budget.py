"""Limit torch's memory, so that a service that exceeds its budget fails alone.

torch's set_per_process_memory_fraction counts its caching allocator but not the CUDA context, so the context is subtracted.
"""

import sys
from collections.abc import Callable
from typing import Any

from mlops_build.errors import Failed
from mlops_build.quantity import show_bytes

# A CUDA context with torch's kernels was measured at 300-500 MiB. If it cannot be measured, the larger value is subtracted from torch's
# limit, and the smaller value is added to the reported use: too much reported use would hide memory that another process holds.
CONTEXT_BYTES, LEAST_CONTEXT_BYTES = 512 << 20, 300 << 20


class BudgetTooSmall(Failed):
    """The budget is smaller than the CUDA context."""


def limit(size: int, count: int, used: Callable[[], dict[int, int] | None]) -> list[float]:
    """Limit torch in this process to `size` bytes, CUDA context included, on each of its `count` visible cards.

    used: returns the bytes that this process uses, by ordinal, as NVML reports them; None if NVML does not show the process.
    Returns the memory fractions that were set. Starts CUDA. Raises BudgetTooSmall.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        import torch
    torch.cuda.init()
    for ordinal in range(count):
        torch.cuda.synchronize(ordinal)  # init alone does not create a context on the card
    measured = used() or {}
    fractions = []
    for ordinal in range(count):
        context = measured.get(ordinal, 0) - torch.cuda.memory_reserved(ordinal)
        source = "measured" if context > 0 else "assumed"
        context = context if context > 0 else CONTEXT_BYTES
        if size <= context:
            needed = f"{show_bytes(context)} plus what the model needs"
            raise BudgetTooSmall(
                f"a budget of {show_bytes(size)} is too small for the CUDA context of {show_bytes(context)} ({source}), without a model",
                remedy=f"raise it to {needed}: `memory` of gpu.lease, gpu.memory in service.yaml, or --memory",
            )
        fraction = (size - context) / torch.cuda.get_device_properties(ordinal).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), ordinal)
        fractions.append(min(1.0, fraction))
    return fractions
