"""The torch networks inside a loaded model: their precision and compilation.

The functions change the networks in place, inside the result of `load_model`, so that the model's own `predict` uses them. torch is
imported only if a model has already loaded it.
"""

import contextlib
import getpass
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any


def networks(model: Any) -> list[tuple[str, Any]]:
    """Name and torch module of each network of a model: its attributes, and the elements of lists and dicts in them.

    model: mlflow.pyfunc.PyFuncModel. Modules inside other modules are not included.
    """
    if "torch" not in sys.modules:
        return []
    from torch import nn

    holder = getattr(model._predict_fn, "__self__", None)
    holder = getattr(holder, "python_model", holder)
    modules: dict[int, tuple[str, Any]] = {}
    for name, value in list(getattr(holder, "__dict__", {}).items()):
        for path, element in _inside(name, value):
            if isinstance(element, nn.Module):
                modules.setdefault(id(element), (path, element))
    inner = {id(part) for _, module in modules.values() for part in module.modules() if part is not module}
    return [(path, module) for key, (path, module) in modules.items() if key not in inner]


def prepare(model: Any, *, compile: bool, precision: str) -> list[str]:  # noqa: A002  # torch's own word, and the flag's
    """Set the precision of a model's networks (float32 or bf16) and, with `compile`, compile them with torch.compile. Returns their names.

    bf16: torch.autocast around each network's forward, whose outputs are converted to float32, since numpy has no bf16. compile: with
    dynamic shapes, for any number of rows; the first call of each network compiles it.
    """
    import torch

    try:
        getpass.getuser()
    except (KeyError, OSError):  # the user id of a pod has no name, which torch needs for its default folder
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="torchinductor-"))
    modules = networks(model)
    for _, network in modules:
        # Wrapped in a function, since torch.compile does not compile the forward of torch's own modules, such as nn.Sequential.
        forward = _in_bf16(network) if precision == "bf16" else _as_is(network)
        network.forward = torch.compile(forward, dynamic=True) if compile else forward
    return [name for name, _ in modules]


def inference() -> "contextlib.AbstractContextManager[Any]":
    """torch.inference_mode if torch is loaded, so that no graph is recorded even if the model's `predict` does not disable it."""
    if "torch" not in sys.modules:
        return contextlib.nullcontext()
    import torch

    return torch.inference_mode()


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield name, value
    if isinstance(value, list | tuple):
        yield from ((f"{name}[{position}]", element) for position, element in enumerate(value))
    elif isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", element) for key, element in value.items())


def _as_is(network: Any) -> Callable[..., Any]:
    forward = network.forward

    def computed(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return computed


def _in_bf16(network: Any) -> Callable[..., Any]:
    import torch
    from torch.utils._pytree import tree_map

    forward = network.forward
    device_type = next((tensor.device.type for tensor in (*network.parameters(), *network.buffers())), "cpu")

    def widened(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value

    def computed(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            answer = forward(*args, **kwargs)
        return tree_map(widened, answer)

    return computed
