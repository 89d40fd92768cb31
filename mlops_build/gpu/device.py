"""Choose the device for the model, and hold a lease on a card while the service runs.

| mode        | when                                                                   | effect                                            |
| ----------- | ---------------------------------------------------------------------- | ------------------------------------------------- |
| `cpu`       | requested; or `auto` without a driver, a card, or CUDA in torch        | no card is visible; the reason is logged          |
| `shared`    | MLOPS_GPU_MODE is `shared`; a budget is set; or neither other mode     | a lease on a card that has room                   |
| `exclusive` | MLOPS_GPU_MODE is `exclusive`; or one card, no budget, no lease folder | the service uses all visible cards, after a check |

A service that requests `gpu`, or a budget, never runs on the CPU instead. The device is chosen before torch starts CUDA, which reads
CUDA_VISIBLE_DEVICES only once.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlops_build.errors import NoRoom
from mlops_build.gpu import no_gpu
from mlops_build.gpu.cards import Card, cards
from mlops_build.gpu.lease import MEMORY_VARIABLE, Lease, lease
from mlops_build.gpu.ledger import DIRECTORY, DIRECTORY_VARIABLE
from mlops_build.gpu.nvml import NoDriver, Trouble
from mlops_build.quantity import show_bytes
from mlops_build.setting import choice, given, memory_amount, number

DEVICES = ("auto", "cpu", "gpu")
# Set in the image and the Deployment of a service whose service.yaml requests a GPU.
DEVICE_VARIABLE, MODE_VARIABLE, WAIT_VARIABLE = "MLOPS_DEVICE", "MLOPS_GPU_MODE", "MLOPS_GPU_WAIT"
# Default of the wait for room, in seconds: the previous pod may take this long to end (terminationGracePeriodSeconds).
WAIT_SECONDS = 60
# If more bytes of an exclusive card are in use at the start, another process uses it: contexts of a display or a monitor are smaller.
OWN_BYTES = 1 << 30

Say = Callable[[str], None]


@dataclass(frozen=True)
class DeviceRequest:
    """The requested device.

    memory: the budget in bytes; None without one. wait: seconds. needed: whether the CPU is not an alternative. why: for mode `cpu`, the
    device and the reason in words.
    """

    mode: Literal["cpu", "shared", "exclusive"]
    memory: int | None = None
    wait: float = 0
    needed: bool = False
    why: str = "the CPU"


@dataclass(frozen=True)
class Device:
    """The device of this process. description: for people. lease: None on the CPU and on exclusive cards."""

    description: str
    lease: Lease | None = None

    def as_json(self) -> dict[str, Any] | None:
        if self.lease is None:
            return None
        return {"cards": list(self.lease.uuids), "memory_bytes": self.lease.memory_bytes, "lease": self.lease.id}


def requested(device: str | None = None, gpu_memory: str | None = None, wait: str | None = None) -> DeviceRequest:
    """The requested device, from arguments or the environment, if this machine can have it. No card is chosen yet.

    device: auto, cpu or gpu; default MLOPS_DEVICE, otherwise auto. gpu_memory: the budget on the card, such as "4GiB"; default
    MLOPS_GPU_MEMORY. wait: seconds to wait for room; default MLOPS_GPU_WAIT, otherwise 60. Raises NoDriver, NoRoom and UsageError.
    """
    wanted = choice(given("--device", device, DEVICE_VARIABLE, "auto"), DEVICES)
    budget, source = given("--gpu-memory", gpu_memory, MEMORY_VARIABLE)
    memory = memory_amount((budget, source), "1MiB", "4GiB") if budget else None
    seconds = number(given("--wait", wait, WAIT_VARIABLE, WAIT_SECONDS), float, 0)
    if wanted == "cpu":
        return DeviceRequest("cpu")
    needed = wanted == "gpu" or memory is not None
    try:
        visible = [card for card in cards() if card.visible is not False]
    except NoDriver as error:
        if needed:
            why = f"a GPU is requested{f' ({budget})' if budget else ''}, but {error.message}"
            raise NoDriver(why, reason=error.reason, remedy=f"{error.remedy}; or use the CPU: --device cpu") from None
        return DeviceRequest("cpu", why=f"the CPU ({error.message})")
    import torch

    if torch.version.cuda is None:
        if needed:
            raise NoRoom(
                "a GPU is requested, but the installed torch is built without CUDA", remedy="check the image, or use the CPU: --device cpu"
            )
        return DeviceRequest("cpu", why="the CPU (the installed torch is built without CUDA)")
    return DeviceRequest("exclusive" if _is_exclusive(visible, memory, gpu_memory) else "shared", memory, seconds, needed)


def _is_exclusive(visible: list[Card], memory: int | None, gpu_memory: str | None) -> bool:
    """Whether this process has the visible cards for itself, because the device plugin assigned them to its container."""
    mode = os.environ.get(MODE_VARIABLE)
    if mode:
        choice((mode, MODE_VARIABLE), ("shared", "exclusive"))
    if gpu_memory or mode == "shared":
        return False
    if mode == "exclusive":
        return True
    # Releases of an older mlops-build do not set the mode.
    no_leases = DIRECTORY_VARIABLE not in os.environ and not Path(DIRECTORY).is_dir()
    return memory is None and no_leases and len([card for card in visible if card.mig_parent is None]) == 1


@contextlib.contextmanager
def acquired(request: DeviceRequest, service: str, say: Say) -> Iterator[Device]:
    """Acquire the requested device, and release it at the end. service: the name for the lease, unless MLOPS_SERVICE is set.

    On the CPU, no card is visible to torch, whatever the environment sets. Raises NoRoom, with the reason for every card, and NoDriver.
    """
    if request.mode == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        yield Device(request.why)
    elif request.mode == "exclusive":
        own = _healthy()
        _check_torch()
        for card in own:
            if (card.used_bytes or 0) > OWN_BYTES:
                say(f"{card.name} should be exclusive to this service, but {show_bytes(card.used_bytes or 0)} of it are already in use")
        yield Device(", ".join(f"{card.name} ({card.uuid}), exclusive" for card in own))
    else:
        with _leased(request, service, say) as held:
            if held.cpu:
                yield Device("the CPU (no room on a card)")
                return
            _check_torch()
            yield Device(str(held), held)


def _leased(request: DeviceRequest, service: str, say: Say) -> Lease:
    name = os.environ.get("MLOPS_SERVICE") or service
    try:
        return lease(request.memory, wait=request.wait, otherwise="fail" if request.needed else "cpu", service=name, progress=say)
    except NoRoom as error:
        if not isinstance(error, NoDriver):
            error.remedy = (
                "wait longer (--wait), request less (--gpu-memory), or use the CPU (--device cpu); `mlops-build gpu list` shows the leases"
            )
        raise


def _healthy() -> list[Card]:
    """The visible cards. Raises NoRoom if there is none, or if one of them cannot be used."""
    visible = [card for card in cards() if card.visible is not False]
    parents = {card.mig_parent for card in visible}
    visible = [card for card in visible if not (card.trouble is Trouble.MIG_PARENT and card.uuid in parents)]
    faulty = [f"  {card.index} {card.name} {card.uuid}: {card.why}" for card in visible if card.trouble not in (None, Trouble.NO_MEMORY)]
    if faulty:
        raise NoRoom("an exclusive card of this service cannot be used:\n" + "\n".join(faulty), remedy="fix it, or drain the node")
    if not visible:
        raise NoRoom(
            f"a GPU is requested, but no card is visible to this process: {no_gpu.no_card()}",
            remedy="check CUDA_VISIBLE_DEVICES and the device plugin",
        )
    return visible


def _check_torch() -> None:
    """Check that torch can use the card. Starts CUDA. Raises NoRoom."""
    import torch

    if not torch.cuda.is_available():
        raise NoRoom(
            f"a card is visible, but torch cannot use it: {no_gpu.no_cuda()}",
            remedy="run `python -c 'import torch; torch.cuda.init()'` in the container for details; or use the CPU: --device cpu",
        )
