"""The NVIDIA cards that NVML sees. NVML looks at a card without making a CUDA context on it, which torch would."""

from dataclasses import dataclass

import pynvml

from mlops_build.errors import NoRoom


class NoDriver(NoRoom):
    """There is no NVIDIA driver here, or it does not answer."""


@dataclass(frozen=True)
class Card:
    """One card. Memory in bytes; None where the card does not say (a MIG parent, a Jetson)."""

    uuid: str
    name: str
    total_bytes: int | None
    used_bytes: int | None


def cards() -> list[Card]:
    """Every card, in NVML's order. Raises NoDriver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoDriver(
            f"no NVIDIA driver answers: {error}", remedy="install the driver, or run on the CPU on purpose (--device cpu)"
        ) from None
    try:
        return [_card(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def _card(handle: object) -> Card:
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        total, used = int(memory.total), int(memory.used)
    except pynvml.NVMLError:
        return Card(str(pynvml.nvmlDeviceGetUUID(handle)), str(pynvml.nvmlDeviceGetName(handle)), None, None)
    return Card(str(pynvml.nvmlDeviceGetUUID(handle)), str(pynvml.nvmlDeviceGetName(handle)), total, used)
