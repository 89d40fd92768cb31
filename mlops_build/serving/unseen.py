"""Why no card is visible here, in one line, as far as a process can tell from inside its container.

A container sees a card only if its runtime puts devices and the driver's libraries into it, which two variables of the image ask for.
"""

import os
from collections.abc import Mapping
from pathlib import Path

VISIBLE, CAPABILITIES, CUDA = "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "CUDA_VISIBLE_DEVICES"
# Without NVIDIA_DRIVER_CAPABILITIES the runtime gives `utility` alone, with NVML and without CUDA.
NEEDED = ("compute", "utility")


def no_driver(environment: Mapping[str, str] = os.environ, root: Path = Path("/")) -> str:
    """Why the driver's library is not found."""
    if not _in_container(environment, root):
        return "no NVIDIA driver is installed on this machine"
    visible = environment.get(VISIBLE)
    if visible is None:
        return f"the image does not set {VISIBLE}, so that no container runtime brings the driver"
    if visible.strip() in ("", "void", "none"):
        return f"{VISIBLE} is {visible.strip()!r}, which asks the container runtime for no card"
    if lacks := _lacking(environment):
        return f"{CAPABILITIES} is {environment.get(CAPABILITIES, '')!r} and lacks {lacks}, so that the runtime leaves libraries out"
    if (root / "dev/nvidiactl").exists():
        return "the devices /dev/nvidia* are here and the driver's libraries are not: the NVIDIA container runtime brings both"
    return "this container was not started with the NVIDIA runtime (docker run --gpus all; in a pod: runtimeClassName, or nvidia.com/gpu)"


def no_card(environment: Mapping[str, str] = os.environ) -> str:
    """Why there is a driver and no card to be seen."""
    hidden = environment.get(CUDA)
    if hidden is not None and not hidden.strip():
        return f"{CUDA} is empty, which hides every card"
    if hidden is not None:
        return f"{CUDA} is {hidden!r}, which names none of the cards that are here"
    return f"{VISIBLE} is {environment.get(VISIBLE)!r}: the container runtime put the driver here and no card"


def no_cuda(environment: Mapping[str, str] = os.environ) -> str:
    """Why torch cannot use a card that NVML sees."""
    if VISIBLE in environment and (lacks := _lacking(environment)):
        return f"{CAPABILITIES} is {environment.get(CAPABILITIES, '')!r} and lacks {lacks}"
    return "its CUDA is newer than the driver, or the container lacks the capability `compute`"


def _lacking(environment: Mapping[str, str]) -> str:
    given = {one.strip() for one in (environment.get(CAPABILITIES) or "utility").split(",")}
    return "" if "all" in given else " and ".join(f"`{one}`" for one in NEEDED if one not in given)


def _in_container(environment: Mapping[str, str], root: Path) -> bool:
    return "KUBERNETES_SERVICE_HOST" in environment or any((root / path).exists() for path in (".dockerenv", "run/.containerenv"))
