"""The networks inside a loaded model: what they compute in, whether they are compiled, and how they are asked without pandas.

Everything here works in place, on what `load_model` returned, so that the model's own `predict` is what callers get. torch is imported
only for a model that has it loaded already.
"""

import contextlib
import getpass
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

# What a wrapper of MLflow keeps its network in; a service's own predictor may keep any number under any names.
FLAVOR = "_PyTorchWrapper"


def networks(model: Any) -> list[tuple[str, Any]]:
    """The torch modules that a model holds, with the names it holds them by: attributes, and what stands in lists and dicts there.

    model: mlflow.pyfunc.PyFuncModel. A module inside another one is not named again.
    """
    if "torch" not in sys.modules:
        return []
    from torch import nn

    holder = getattr(model._predict_fn, "__self__", None)
    holder = getattr(holder, "python_model", holder)
    found: dict[int, tuple[str, Any]] = {}
    for name, value in list(getattr(holder, "__dict__", {}).items()):
        for at, one in _inside(name, value):
            if isinstance(one, nn.Module):
                found.setdefault(id(one), (at, one))
    inner = {id(part) for _, module in found.values() for part in module.modules() if part is not module}
    return [(at, module) for key, (at, module) in found.items() if key not in inner]


def prepare(model: Any, *, compile: bool, precision: str) -> list[str]:  # noqa: A002  # torch's own word, and the flag's
    """Let a model's networks compute in `precision` (float32 or bf16) and, with `compile`, by torch.compile. Returns their names.

    bf16: torch.autocast around each network's forward, whose answers are float32 again, since numpy has no bf16. compile: for any number
    of rows (dynamic shapes); the first call of each network compiles it.
    """
    import torch

    try:
        getpass.getuser()
    except (KeyError, OSError):  # a pod's uid has no name, which torch wants for its default
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", tempfile.mkdtemp(prefix="torchinductor-"))
    found = networks(model)
    for _, network in found:
        # Our own function around it, since torch does not compile the forward of its own modules (a bare nn.Sequential) as such.
        forward = _in_bf16(network) if precision == "bf16" else _as_is(network)
        network.forward = torch.compile(forward, dynamic=True) if compile else forward
    return [name for name, _ in found]


def inference() -> "contextlib.AbstractContextManager[Any]":
    """torch.inference_mode where torch is loaded: no graph is recorded, whoever forgot it in `predict`."""
    if "torch" not in sys.modules:
        return contextlib.nullcontext()
    import torch

    return torch.inference_mode()


def direct(model: Any) -> "Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None":
    """A model of MLflow's PyTorch flavour as a function of an array; None for any other, and for one that forecasts.

    As `_PyTorchWrapper.predict` has it, without the DataFrames before and after. Raises TypeError for an answer that is no single tensor.
    """
    wrapper: Any = getattr(model._predict_fn, "__self__", None)
    if type(wrapper).__name__ != FLAVOR or getattr(wrapper, "_is_forecasting_model", True):
        return None
    import torch

    network, device = wrapper.pytorch_model, wrapper.device

    def ask(rows: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
        answer = network(torch.from_numpy(rows).to(device))
        if not isinstance(answer, torch.Tensor):
            raise TypeError(f"expected the network to answer with one tensor, got {type(answer).__name__}")
        found: np.ndarray[Any, Any] = answer.detach().cpu().numpy()
        return found

    return ask


def _inside(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    yield name, value
    if isinstance(value, list | tuple):
        yield from ((f"{name}[{place}]", one) for place, one in enumerate(value))
    elif isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", one) for key, one in value.items())


def _as_is(network: Any) -> Callable[..., Any]:
    forward = network.forward

    def computed(*args: Any, **kwargs: Any) -> Any:
        return forward(*args, **kwargs)

    return computed


def _in_bf16(network: Any) -> Callable[..., Any]:
    import torch
    from torch.utils._pytree import tree_map

    forward = network.forward
    place = next((one.device.type for one in (*network.parameters(), *network.buffers())), "cpu")

    def widened(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.dtype == torch.bfloat16 else value

    def computed(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(place, dtype=torch.bfloat16):
            answer = forward(*args, **kwargs)
        return tree_map(widened, answer)

    return computed
