"""One loaded model, asked for the rows of several requests at once.

The rows were checked and converted before (decode.py), so MLflow's own enforcement, most of a small model's time, is not run again.
"""

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlops_build.serving import network
from mlops_build.serving.decode import Rows
from mlops_build.serving.encode import plain
from mlops_build.serving.refusal import BAD_REQUEST, Refusal

# How far the answers of rows that were asked together may be from those of rows asked alone: kernels add up in another order.
RELATIVE, ABSOLUTE = 1e-3, 1e-5
FATAL = (
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "misaligned address",
    "uncorrectable ECC",
    "GPU is lost",
)

log = logging.getLogger("mlops_build.serving")


class OutOfMemory(Exception):
    """The card has no room for this prediction. The process lives."""


class Fatal(Exception):
    """CUDA is lost to this process: only a new one helps."""


class Predictor:
    """Asks one model. Not for several threads at once.

    model: mlflow.pyfunc.PyFuncModel. joins: whether requests are predicted together; False once the model was seen to answer otherwise than
    row by row.
    """

    def __init__(self, model: Any, *, joins: bool = True) -> None:
        self.joins = joins
        self._model = model
        self._ask = _direct(model)
        self._network = network.direct(model)
        self._inference = network.inference
        schema = model.metadata.get_input_schema()
        named = schema is not None and not schema.is_tensor_spec() and schema.has_input_names()
        # An Index made once: pandas takes ten times as long with a list of names.
        self._names = pd.Index(schema.input_names()) if named else pd.Index([])

    def predict(self, requests: Sequence[Rows]) -> list[Any]:
        """For each request its answer, as `encode.plain` has it, or the exception that is its own."""
        with self._inference():
            return self._answers(requests)

    def needs_gradients(self) -> None:
        """From now on without torch.inference_mode, for a model that computes gradients to answer."""
        self._inference = contextlib.nullcontext

    def _answers(self, requests: Sequence[Rows]) -> list[Any]:
        if not self.joins or len(requests) == 1:
            return [self._alone(one) for one in requests]
        answers: list[Any] = [None] * len(requests)
        groups: dict[Any, list[int]] = {}
        for place, one in enumerate(requests):
            key = (one.kind, repr(one.params)) if one.kind in ("block", "columns", "tensor") else place
            groups.setdefault(key, []).append(place)
        for places in groups.values():
            group = [requests[place] for place in places]
            for place, answer in zip(places, self._together(group) if len(group) > 1 else [self._alone(group[0])], strict=True):
                answers[place] = answer
        return answers

    def check_joining(self, rows: Rows) -> str | None:
        """Why requests like these cannot be predicted together; None if they can. Rows of a recorded example, the first one twice if there
        is only one. Sets `joins`."""
        if not self.joins or rows.kind not in ("block", "columns", "tensor"):
            return None
        parts = [_part(rows, at, at + 1) for at in range(min(rows.count, 8))]
        parts = parts * 2 if len(parts) == 1 else parts
        with self._inference():
            alone = [self._alone(one) for one in parts]
            if any(isinstance(one, Exception) for one in alone):
                self.joins = False
                return "it does not answer the rows of its example one by one"
            together = _split(self._asked(_joined(parts)), [1] * len(parts))
        if together is None:
            self.joins = False
            return "it does not answer with one element for each row"
        if not all(_close(one, other) for one, other in zip(alone, together, strict=True)):
            self.joins = False
            return "it answers a row otherwise when other rows stand beside it"
        return None

    def _alone(self, rows: Rows) -> Any:
        try:
            if rows.kind == "unchecked":
                return plain(self._model.predict(rows.data, params=rows.params))
            return self._asked(rows)
        except Exception as error:
            return _known(error)

    def _together(self, group: Sequence[Rows]) -> list[Any]:
        try:
            answer = self._asked(_joined(group))
        except Exception as error:
            known = _known(error)
            if isinstance(known, Fatal):
                return [known] * len(group)
            if isinstance(known, OutOfMemory) and len(group) > 1:
                half = len(group) // 2
                return [*self._some(group[:half]), *self._some(group[half:])]
            return [self._alone(one) for one in group]  # one bad request must not fail its neighbours
        parts = _split(answer, [one.count for one in group])
        if parts is None:
            self.joins = False
            log.warning("the model does not answer with one element for each row: requests are predicted one by one from now on")
            return [self._alone(one) for one in group]
        return parts

    def _some(self, group: Sequence[Rows]) -> list[Any]:
        return self._together(group) if len(group) > 1 else [self._alone(group[0])]

    def _asked(self, rows: Rows) -> Any:
        if self._network is not None and not rows.params:
            if rows.kind == "tensor":
                return self._network(rows.data).tolist()
            if rows.kind == "block" and (answer := self._network(rows.data.astype("float32", copy=False))).ndim == 2:
                names = [str(place) for place in range(answer.shape[1])]
                return [dict(zip(names, row, strict=True)) for row in answer.tolist()]
        return plain(self._ask(self._input(rows), rows.params))

    def _input(self, rows: Rows) -> Any:
        if rows.kind in ("tensor", "whole"):
            return rows.data
        if rows.kind == "block":
            return pd.DataFrame(rows.data, columns=self._names, copy=False)
        return pd.DataFrame(dict(zip(self._names, rows.data, strict=True)), columns=self._names)


def _direct(model: Any) -> Callable[[Any, Any], Any]:
    """How the model is asked once its input was enforced: as `PyFuncModel.predict` does after that."""
    import inspect

    function = model._predict_fn
    parameter = inspect.signature(function).parameters.get("params")
    takes_params = parameter is not None and parameter.kind != inspect.Parameter.VAR_KEYWORD

    def ask(data: Any, params: Any) -> Any:
        return function(data, params=params) if takes_params else function(data)

    wrapper: Any = getattr(function, "__self__", None)
    if type(wrapper).__name__ != "_PythonModelPyfuncWrapper" or wrapper.python_model.predict_type_hints.input is not None:
        return ask
    own = wrapper.python_model.predict
    names = inspect.signature(own).parameters
    if "context" not in names:
        return ask
    context = wrapper.context
    if "params" in names:
        return lambda data, params: own(context, data, params=params)
    return lambda data, _: own(context, data)


def _joined(group: Sequence[Rows]) -> Rows:
    first = group[0]
    count = sum(one.count for one in group)
    if first.kind == "columns":
        columns = [
            np.concatenate([one.data[place] for one in group])
            if isinstance(part, np.ndarray)
            else [value for one in group for value in one.data[place]]
            for place, part in enumerate(first.data)
        ]
        return Rows("columns", columns, count, first.params)
    return Rows(first.kind, np.concatenate([one.data for one in group]), count, first.params)


def _part(rows: Rows, begin: int, end: int) -> Rows:
    data = [one[begin:end] for one in rows.data] if rows.kind == "columns" else rows.data[begin:end]
    return Rows(rows.kind, data, end - begin, rows.params)


def _split(answer: Any, counts: Sequence[int]) -> list[Any] | None:
    """The answer's parts, one for each request; None where it has not one element for each row."""
    if not isinstance(answer, list) or len(answer) != sum(counts):
        return None
    parts, at = [], 0
    for count in counts:
        parts.append(answer[at : at + count])
        at += count
    return parts


def _close(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_close(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, float | int | np.number) and isinstance(other, float | int | np.number):
        return bool(np.isclose(one, other, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True))
    return bool(one == other)


def _known(error: Exception) -> Exception:
    """What an exception of the model means for its caller. Its trace goes to the log."""
    from mlflow.exceptions import MlflowException

    name, said = type(error).__name__, str(error)
    if name == "OutOfMemoryError" or "CUDA out of memory" in said:
        import torch

        torch.cuda.empty_cache()
        return OutOfMemory("no memory is left on the card for this request: send fewer rows, or wait")
    if name == "AcceleratorError" or ("CUDA" in said and any(word in said for word in FATAL)):
        return Fatal(said.splitlines()[0][:200])
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return Refusal(str(error.message)[:500], status=status if 400 <= status < 500 else 400, code=str(error.error_code))
    log.warning("a prediction failed", exc_info=error)
    refusal = Refusal(
        "the model failed on this input: are the values what it was trained for? The service's log has the trace", code=BAD_REQUEST
    )
    refusal.__cause__ = error
    return refusal
