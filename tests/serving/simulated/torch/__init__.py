"""The little of torch that a service on a card asks for, answered by the simulated driver: the torch of the tests has no CUDA.

Put its folder first on PYTHONPATH. `allocate` is what a model does with its weights: it obeys the process's fraction, as torch's allocator.
"""

import contextlib
import ctypes
from types import SimpleNamespace
from typing import Any

__version__ = "2.9.0+simulated"
version = SimpleNamespace(cuda="13.0")
inference_mode = contextlib.nullcontext


class OutOfMemoryError(RuntimeError):
    """What torch raises where its allocator may not, or cannot, take more."""


class _Cuda:
    """torch.cuda for cuda:0."""

    def __init__(self) -> None:
        self._library: Any = None
        self._fraction, self._reserved = 1.0, 0
        self.OutOfMemoryError = OutOfMemoryError

    def is_initialized(self) -> bool:
        return self._library is not None

    def is_available(self) -> bool:
        count = ctypes.c_int()
        library = ctypes.CDLL("libcuda.so.1")
        return library.cuInit(0) == 0 and library.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0

    def init(self) -> None:
        if self._library is None:
            library = ctypes.CDLL("libcuda.so.1")
            context = ctypes.c_void_p()
            for code in (library.cuInit(0), library.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), library.cuCtxSetCurrent(context)):
                if code:
                    raise RuntimeError(f"CUDA error {code}")
            self._library = library

    def synchronize(self, _: int = 0) -> None:
        self.init()

    def device_count(self) -> int:
        return 1

    def memory_reserved(self, _: int = 0) -> int:
        return self._reserved

    def get_device_properties(self, _: int = 0) -> Any:
        total = ctypes.c_size_t()
        self._library.cuDeviceTotalMem_v2(ctypes.byref(total), 0)
        return SimpleNamespace(total_memory=total.value)

    def get_device_name(self, _: int = 0) -> str:
        return "simulated"

    def set_per_process_memory_fraction(self, fraction: float, _: int = 0) -> None:
        self._fraction = fraction


cuda = _Cuda()


def allocate(amount: int) -> None:
    """Hold bytes of cuda:0. Raises OutOfMemoryError."""
    cuda.init()
    if cuda._reserved + amount > cuda._fraction * cuda.get_device_properties().total_memory:
        raise OutOfMemoryError(
            f"CUDA out of memory. Tried to allocate {amount} bytes; this process may use {cuda._fraction:.0%} of the card"
        )
    address = ctypes.c_uint64()
    if cuda._library.cuMemAlloc_v2(ctypes.byref(address), ctypes.c_size_t(amount)):
        raise OutOfMemoryError(f"CUDA out of memory. Tried to allocate {amount} bytes")
    cuda._reserved += amount
