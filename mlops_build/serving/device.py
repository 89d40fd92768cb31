"""Which card the model may use: what was asked for, and the lease on a card for as long as the service lives.

| mode        | when                                                                | what happens                                        |
| ----------- | ------------------------------------------------------------------- | --------------------------------------------------- |
| `cpu`       | asked for; or `auto`, and there is no driver, card, or CUDA in torch | no card is visible, and it is said aloud            |
| `shared`    | MLOPS_GPU_MODE says so, a budget is named, or nothing else fits      | a lease on a card that has room                     |
| `exclusive` | MLOPS_GPU_MODE says so; or one card, no budget, no lease directory   | the cards that are here are its own; are they well? |

Who says `gpu`, or names a budget, never gets the CPU instead. All of it comes before torch starts CUDA, which looks at CUDA_VISIBLE_DEVICES
only once.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlops_build.errors import NoRoom, UsageError
from mlops_build.quantity import parse_bytes, show_bytes
from mlops_build.serving import unseen

if TYPE_CHECKING:
    from mlops_build.gpu import Card, Lease

DEVICES = ("auto", "cpu", "gpu")
# Set in the image of a service whose service.yaml asks for a GPU, and in its Deployment.
DEVICE_VARIABLE, MODE_VARIABLE, MEMORY_VARIABLE, WAIT_VARIABLE = "MLOPS_DEVICE", "MLOPS_GPU_MODE", "MLOPS_GPU_MEMORY", "MLOPS_GPU_WAIT"
# Seconds to wait for room where nobody says: the pod before this one may take so long to end (terminationGracePeriodSeconds).
WAIT_SECONDS = 60
# More than this of its own card in use before it starts, in bytes, and it is not its own: contexts of a display or a monitor are smaller.
OWN_BYTES = 1 << 30

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What was asked for. memory: the budget in bytes; None where nobody named one. wait: seconds. needed: whether the CPU will not do.

    why: how to say that it is the CPU.
    """

    mode: Literal["cpu", "shared", "exclusive"]
    memory: int | None = None
    wait: float = 0
    needed: bool = False
    why: str = "the CPU"


@dataclass(frozen=True)
class Device:
    """What this process uses from now on. said: for people. lease: None on the CPU, and on cards of its own."""

    said: str
    lease: "Lease | None" = None

    def loading(self) -> contextlib.AbstractContextManager[None]:
        """Load the model inside: neighbours that load onto the same card take turns."""
        return self.lease.loading() if self.lease else contextlib.nullcontext()

    def as_json(self) -> dict[str, Any] | None:
        if self.lease is None:
            return None
        return {"cards": list(self.lease.uuids), "memory_bytes": self.lease.memory_bytes, "lease": self.lease.id}


def wish(device: str | None = None, gpu_memory: str | None = None, wait: float | None = None) -> Wish:
    """What is asked for, by arguments or by the environment, as far as it can be had here at all: no card is chosen yet.

    device: auto, cpu or gpu; None takes MLOPS_DEVICE, else auto. gpu_memory: the budget on the card, such as "4GiB"; None takes
    MLOPS_GPU_MEMORY. wait: seconds to wait for room; None takes MLOPS_GPU_WAIT, else 60. Raises NoDriver, NoRoom and UsageError.
    """
    wanted = device or os.environ.get(DEVICE_VARIABLE) or "auto"
    if wanted not in DEVICES:
        raise UsageError(f"{wanted!r} is no device", remedy=f"use one of {', '.join(DEVICES)}")
    budget = gpu_memory or os.environ.get(MEMORY_VARIABLE)
    memory = parse_bytes(budget) if budget else None
    seconds = _seconds(wait)
    if wanted == "cpu":
        return Wish("cpu")
    needed = wanted == "gpu" or memory is not None
    from mlops_build.gpu.cards import NoDriver, cards
    from mlops_build.gpu.nvml import DriverTrouble

    try:
        found = [card for card in cards() if card.visible is not False]
    except NoDriver as error:
        reason = unseen.no_driver() if error.reason is DriverTrouble.NO_LIBRARY else error.message
        if needed:
            why = f"a GPU is asked for{f' ({budget})' if budget else ''}, but {error.message}"
            why += f": {reason}" if reason != error.message else ""
            raise NoDriver(why, reason=error.reason, remedy=f"{error.remedy}; or choose the CPU: --device cpu") from None
        return Wish("cpu", why=f"the CPU ({reason})")
    import torch

    if torch.version.cuda is None:
        if needed:
            raise NoRoom(
                "a GPU is asked for, but torch here is built without CUDA", remedy="check the image, or choose the CPU: --device cpu"
            )
        return Wish("cpu", why="the CPU (torch here is built without CUDA)")
    return Wish("exclusive" if _own(found, memory, gpu_memory) else "shared", memory, seconds, needed)


def _seconds(wait: float | None) -> float:
    said = os.environ.get(WAIT_VARIABLE)
    try:
        seconds = float(said) if wait is None and said else WAIT_SECONDS if wait is None else wait
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise UsageError(f"{said if wait is None else wait} is no number of seconds", remedy=f"set {WAIT_VARIABLE}, or --wait, to 60, say")
    return seconds


def _own(found: "list[Card]", memory: int | None, gpu_memory: str | None) -> bool:
    """Whether the cards that are here are this process's own: the device plugin gave them to its container."""
    mode = os.environ.get(MODE_VARIABLE)
    if mode not in (None, "", "shared", "exclusive"):
        raise UsageError(f"{MODE_VARIABLE} is {mode!r}", remedy="shared or exclusive, as in service.yaml")
    if gpu_memory or mode == "shared":
        return False
    if mode == "exclusive":
        return True
    from mlops_build.gpu.ledger import DIRECTORY, DIRECTORY_VARIABLE

    # A release that an older mlops-build wrote does not name the mode.
    nobody = DIRECTORY_VARIABLE not in os.environ and not Path(DIRECTORY).is_dir()
    return memory is None and nobody and len([card for card in found if card.mig_parent is None]) == 1


@contextlib.contextmanager
def taken(wish: Wish, service: str, say: Say) -> Iterator[Device]:
    """Take what is wished for, and give it back at the end. service: the name of the lease, unless MLOPS_SERVICE says another.

    With the CPU no card is visible to torch, whatever the environment says. Raises NoRoom (every card, and why not) and NoDriver.
    """
    if wish.mode == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        yield Device(wish.why)
    elif wish.mode == "exclusive":
        own = _healthy()
        _check_torch()
        for card in own:
            if (card.used_bytes or 0) > OWN_BYTES:
                say(f"{card.name} should be this service's own, but {show_bytes(card.used_bytes or 0)} of it are used already")
        yield Device(", ".join(f"{card.name} ({card.uuid}), its own" for card in own))
    else:
        with _leased(wish, service, say) as held:
            if held.cpu:
                yield Device("the CPU (no room on a card)")
                return
            _check_torch()
            yield Device(str(held), held)


def _leased(wish: Wish, service: str, say: Say) -> "Lease":
    from mlops_build.gpu import NoDriver, lease

    name = os.environ.get("MLOPS_SERVICE") or service
    try:
        return lease(wish.memory, wait=wish.wait, otherwise="fail" if wish.needed else "cpu", service=name, progress=say)
    except NoDriver:
        raise
    except NoRoom as error:
        remedy = (
            "wait longer (--wait), ask for less (--gpu-memory), or choose the CPU (--device cpu); `mlops-build gpu list` says who has what"
        )
        raise NoRoom(error.message, remedy=remedy) from None


def _healthy() -> "list[Card]":
    """The visible cards. Raises NoRoom where one of them is in trouble, or there is none."""
    from mlops_build.gpu.cards import cards
    from mlops_build.gpu.nvml import Trouble

    found = [card for card in cards() if card.visible is not False]
    divided = {card.mig_parent for card in found}
    found = [card for card in found if not (card.trouble is Trouble.MIG_PARENT and card.uuid in divided)]
    ill = [f"  {card.index} {card.name} {card.uuid}: {card.why}" for card in found if card.trouble not in (None, Trouble.NO_MEMORY)]
    if ill:
        raise NoRoom("a card that this service has for itself cannot be used:\n" + "\n".join(ill), remedy="mend it, or drain the node")
    if not found:
        raise NoRoom(
            f"a GPU is asked for, but no card is visible to this process: {unseen.no_card()}",
            remedy="check CUDA_VISIBLE_DEVICES and the device plugin",
        )
    return found


def _check_torch() -> None:
    """That torch sees what NVML sees. Starts CUDA."""
    import torch

    if not torch.cuda.is_available():
        raise NoRoom(
            f"a card is there, but torch cannot use it: {unseen.no_cuda()}",
            remedy="run `python -c 'import torch; torch.cuda.init()'` there, which says more; or choose the CPU: --device cpu",
        )
