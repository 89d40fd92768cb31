"""Find out why no card is visible, as far as a process can from inside its container, and describe it in one line.

A container sees a card only if the container runtime adds the devices and the driver's libraries. Two variables of the image request them.
"""

import os
from collections.abc import Mapping

VISIBLE, CAPABILITIES, CUDA = "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "CUDA_VISIBLE_DEVICES"
# Without NVIDIA_DRIVER_CAPABILITIES the runtime adds `utility` only: NVML, but not CUDA.
NEEDED = ("compute", "utility")


def no_driver(environment: Mapping[str, str] = os.environ, root: str = "/") -> str:
    """Why the driver's library is missing."""
    if not _in_container(environment, root):
        return "no NVIDIA driver is installed on this machine"
    visible = environment.get(VISIBLE)
    if visible is None:
        return f"the image does not set {VISIBLE}, so no container runtime adds the driver"
    if visible.strip() in ("", "void", "none"):
        return f"{VISIBLE} is {visible.strip()!r}, which requests no card from the container runtime"
    if missing := _missing_capabilities(environment):
        return f"{CAPABILITIES} is {environment.get(CAPABILITIES, '')!r} and lacks {missing}, so the runtime does not add all libraries"
    if os.path.exists(f"{root}/dev/nvidiactl"):  # noqa: PTH110 -- pathlib's import costs more
        return "the devices /dev/nvidia* exist, but the driver's libraries are missing: the NVIDIA container runtime adds both"
    return "this container was not started with the NVIDIA runtime (docker run --gpus all; in a pod: runtimeClassName, or nvidia.com/gpu)"


def no_card(environment: Mapping[str, str] = os.environ) -> str:
    """Why no card is visible although there is a driver."""
    hidden = environment.get(CUDA)
    if hidden is not None and not hidden.strip():
        return f"{CUDA} is empty, which hides every card"
    if hidden is not None:
        return f"{CUDA} is {hidden!r}, which selects none of the cards of this machine"
    return f"{VISIBLE} is {environment.get(VISIBLE)!r}: the container runtime added the driver, but no card"


def no_cuda(environment: Mapping[str, str] = os.environ) -> str:
    """Why torch cannot use a card that NVML sees."""
    if VISIBLE in environment and (missing := _missing_capabilities(environment)):
        return f"{CAPABILITIES} is {environment.get(CAPABILITIES, '')!r} and lacks {missing}"
    return "its CUDA version is newer than the driver, or the container lacks the capability `compute`"


def _missing_capabilities(environment: Mapping[str, str]) -> str:
    given = {capability.strip() for capability in (environment.get(CAPABILITIES) or "utility").split(",")}
    return "" if "all" in given else " and ".join(f"`{capability}`" for capability in NEEDED if capability not in given)


def _in_container(environment: Mapping[str, str], root: str) -> bool:
    return "KUBERNETES_SERVICE_HOST" in environment or any(
        os.path.exists(f"{root}/{path}")  # noqa: PTH110
        for path in (".dockerenv", "run/.containerenv")
    )
