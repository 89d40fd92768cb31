"""Which device the model may use. Decided before torch is asked for the first time, since it looks at CUDA_VISIBLE_DEVICES only then."""

import os

from mlops_build.errors import NoRoom, UsageError

DEVICES = ("auto", "cpu", "gpu")
# Set in the image of a service whose service.yaml asks for a GPU, and in its Deployment.
DEVICE_VARIABLE, MEMORY_VARIABLE = "MLOPS_DEVICE", "MLOPS_GPU_MEMORY"


def choose(device: str | None, gpu_memory: str | None) -> str:
    """Settle the device of this process; returns how to say it: "the CPU", or the card's name.

    device: auto, cpu or gpu; None takes MLOPS_DEVICE, else auto. gpu_memory: the budget on the card, such as "4GiB"; None takes
    MLOPS_GPU_MEMORY. Whoever names a budget or says gpu does not get the CPU instead: raises NoDriver or NoRoom, and UsageError for a
    word that is no device. With cpu no card is visible to torch, whatever the environment says.
    """
    wanted = device or os.environ.get(DEVICE_VARIABLE) or "auto"
    if wanted not in DEVICES:
        raise UsageError(f"{wanted!r} is no device", remedy=f"use one of {', '.join(DEVICES)}")
    budget = gpu_memory or os.environ.get(MEMORY_VARIABLE)
    needed = wanted == "gpu" or (wanted == "auto" and budget is not None)
    if wanted == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "the CPU"
    # A pod without cards need not have NVML's Python package ask for a driver that is not there: torch knows.
    from mlops_build.gpu.cards import NoDriver, cards

    try:
        found = cards()
    except NoDriver as error:
        if needed:
            remedy = "run it where an NVIDIA driver is, or choose the CPU: --device cpu"
            raise NoDriver(f"a GPU is asked for{f' ({budget})' if budget else ''}, but {error.message}", remedy=remedy) from None
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return "the CPU (no NVIDIA driver here)"
    import torch

    if not found or not torch.cuda.is_available():
        if needed:
            why = "torch here is built without CUDA" if torch.version.cuda is None else "no card is visible to this process"
            raise NoRoom(
                f"a GPU is asked for, but {why}", remedy="check the image and CUDA_VISIBLE_DEVICES, or choose the CPU: --device cpu"
            )
        return "the CPU (torch sees no card)"
    return f"{torch.cuda.get_device_name(0)}"
