import random
from enum import Enum, auto

from gpu_utilities.errors import NoGPUAvailableError
from gpu_utilities.gpu import GPU


class GPUSelectStrategy(Enum):
    BEST_FIT = auto()
    WORST_FIT = auto()
    RANDOM = auto()


class GPUSelector:
    def __init__(self, strategy: GPUSelectStrategy) -> None:
        self._strategy = strategy

    def select(self, gpus: list[GPU], expected_memory_consumption_bytes: int) -> GPU:
        available = [gpu for gpu in gpus if gpu.free_memory_bytes() > expected_memory_consumption_bytes]
        if not available:
            raise NoGPUAvailableError
        if self._strategy is GPUSelectStrategy.RANDOM:
            return random.choice(available)  # noqa: S311
        most_first = self._strategy is GPUSelectStrategy.WORST_FIT
        return sorted(available, key=GPU.free_memory_bytes, reverse=most_first)[0]


class GPUSelectorFactory:
    def selector(self, strategy: GPUSelectStrategy) -> GPUSelector:
        return GPUSelector(strategy)
