"""What a simulated card is like."""

import uuid
from dataclasses import dataclass, replace

from mlops_build.errors import UsageError
from mlops_build.quantity import parse_bytes

NAMESPACE = uuid.UUID("8d3f7c52-2a54-4f0e-9d0e-6f1b1c6c9a11")  # of the UUIDs that follow from a card's place


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedCard:
    """One card. Memory in bytes, or as text: "24GiB".

    total is what NVML calls so, with the `reserved` part that the driver keeps to itself; used belongs to no process. What is None, the
    card does not support (NVML's NotSupported). memory_supported=False is a Jetson or a GB10: no memory information at all. speed orders
    the cards for CUDA, which by default counts the fastest first; by default it follows compute capability, then memory. uuid by default
    follows from the card's place, so that a test sees the same ones in each run.
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
        raise UsageError(f"{card.uuid} is not the UUID of a card", remedy="begin it with GPU-")
    speed = card.speed
    if speed is None:
        speed = (card.compute_capability[0] * 100 + card.compute_capability[1]) * 2**20 + in_bytes(card.total) // 2**20
    return replace(card, uuid=card.uuid or f"GPU-{uuid.uuid5(NAMESPACE, str(index))}", speed=speed)
