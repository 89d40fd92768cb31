"""What torch may use of a card, so that a service which outgrows its budget fails itself and not its neighbours.

torch's set_per_process_memory_fraction counts what its caching allocator takes, not the CUDA context beside it: the context is subtracted.
"""

import sys
from collections.abc import Callable
from typing import Any

from mlops_build.errors import Failed
from mlops_build.quantity import show_bytes

# A CUDA context with torch's kernels was measured at 300-500 MiB. Where it cannot be measured: the larger end for what torch may not have,
# the smaller end for what a service is believed to use, since what is believed of one is not counted against the card.
CONTEXT_BYTES, LEAST_CONTEXT_BYTES = 512 << 20, 300 << 20


class BudgetTooSmall(Failed):
    """The budget does not even hold the CUDA context."""


def limit(size: int, count: int, used: Callable[[], dict[int, int] | None]) -> list[float]:
    """Let this process's torch use at most `size` bytes on each of its `count` visible cards, context included; the fractions it set.

    used: bytes of this process per ordinal as NVML says them, or None where NVML does not show it. Starts CUDA. Raises BudgetTooSmall.
    """
    torch: Any = sys.modules.get("torch")
    if torch is None:
        import torch
    torch.cuda.init()
    for ordinal in range(count):
        torch.cuda.synchronize(ordinal)  # init alone makes no context on the card
    measured = used() or {}
    fractions = []
    for ordinal in range(count):
        context = measured.get(ordinal, 0) - torch.cuda.memory_reserved(ordinal)
        how = "measured" if context > 0 else "assumed"
        context = context if context > 0 else CONTEXT_BYTES
        if size <= context:
            needed = f"{show_bytes(context)} plus what the model needs"
            raise BudgetTooSmall(
                f"a budget of {show_bytes(size)} does not hold the CUDA context of {show_bytes(context)} ({how}), let alone a model",
                remedy=f"raise it to {needed}: `memory` of gpu.lease, gpu.memory in service.yaml, --memory",
            )
        fraction = (size - context) / torch.cuda.get_device_properties(ordinal).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, fraction), ordinal)
        fractions.append(min(1.0, fraction))
    return fractions
