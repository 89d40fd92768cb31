"""Properties of a simulated card."""

import uuid
from dataclasses import dataclass, replace

from mlops_build.errors import UsageError
from mlops_build.quantity import parse_bytes

NAMESPACE = uuid.UUID("8d3f7c52-2a54-4f0e-9d0e-6f1b1c6c9a11")  # for UUIDs that are derived from a card's index


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCard:
    """A simulated card. Memory in bytes, or as text: "24GiB". None means that the card does not support the value (NVML's NotSupported).

    total: NVML's total, including the part that the driver reserves (`reserved`). used: memory in use that belongs to no process.
    memory_supported: False simulates a Jetson or a GB10, without memory information. speed: CUDA counts cards with a higher value first;
    by default it depends on compute capability, then memory. uuid: by default derived from the card's index, so it is the same in each run.
    """

    total: int | str = "24GiB"
    name: str = "NVIDIA L4"
    used: int | str = 0
    reserved: int | str = 0
    compute_capability: tuple[int, int] = (8, 9)
    uuid: str | None = None
    utilisation: int | None = 0  # %
    temperature: int | None = 40  # °C
    power_watts: float | None = 30.0
    power_limit_watts: float | None = 72.0
    ecc_errors: int | None = 0  # uncorrected
    memory_supported: bool = True
    mig_capable: bool = False
    speed: int | None = None
    multiprocessors: int = 58
    compute_mode: int = 0  # nvidia-smi --compute-mode; with 2 (PROHIBITED) no process may use it


def in_bytes(amount: int | str) -> int:
    return parse_bytes(amount) if isinstance(amount, str) else amount


def complete(card: SimulatedCard | str, index: int) -> SimulatedCard:
    if isinstance(card, str):
        card = SimulatedCard(total=card)
    if card.uuid is not None and not card.uuid.startswith("GPU-"):
        raise UsageError(f"{card.uuid} is not the UUID of a card", remedy="start it with GPU-")
    speed = card.speed
    if speed is None:
        speed = (card.compute_capability[0] * 100 + card.compute_capability[1]) * 2**20 + in_bytes(card.total) // 2**20
    return replace(card, uuid=card.uuid or f"GPU-{uuid.uuid5(NAMESPACE, str(index))}", speed=speed)
