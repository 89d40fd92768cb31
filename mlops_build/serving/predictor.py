"""Predict the rows of several requests with one loaded model.

The rows have been validated and converted (decode.py), so MLflow's enforcement, which takes most of a small model's time, is not repeated.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlops_build.serving import network
from mlops_build.serving.encode import plain
from mlops_build.serving.refusal import BAD_REQUEST, Refusal
from mlops_build.serving.rows import Rows
from mlops_build.serving.sigterm import Terminated

# Allowed difference between predictions in a batch and row by row: kernels may add numbers in another order.
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
    """The card has no memory for this prediction. The process continues."""


class Fatal(Exception):
    """CUDA is unusable in this process. A new process is needed."""


class Predictor:
    """Predicts with one model. Not thread-safe.

    model: mlflow.pyfunc.PyFuncModel. joins: whether requests are predicted in one batch; becomes False if the model's output is found to
    differ from a prediction row by row.
    """

    def __init__(self, model: Any, *, joins: bool = True) -> None:
        self.joins = joins
        self._model = model
        self._call = _direct(model)
        self._network = network.direct(model)
        self._inference = network.inference
        schema = model.metadata.get_input_schema()
        named = schema is not None and not schema.is_tensor_spec() and schema.has_input_names()
        # Created once, since pandas takes ten times as long with a list of names.
        self._names = pd.Index(schema.input_names()) if named else pd.Index([])

    def predict(self, requests: Sequence[Rows]) -> list[Any]:
        """For each request, its output in the form of `encode.plain`, or its exception."""
        with self._inference():
            return self._answers(requests)

    def needs_gradients(self) -> None:
        """Stop using torch.inference_mode, for a model that computes gradients during prediction."""
        self._inference = contextlib.nullcontext

    def _answers(self, requests: Sequence[Rows]) -> list[Any]:
        if not self.joins or len(requests) == 1:
            return [self._alone(rows) for rows in requests]
        answers: list[Any] = [None] * len(requests)
        groups: dict[Any, list[int]] = {}
        for index, rows in enumerate(requests):
            key = (rows.kind, repr(rows.params)) if rows.kind in ("block", "columns", "tensor") else index
            groups.setdefault(key, []).append(index)
        for indices in groups.values():
            group = [requests[index] for index in indices]
            for index, answer in zip(indices, self._batch_or_alone(group), strict=True):
                answers[index] = answer
        return answers

    def check_joining(self, rows: Rows) -> str | None:
        """Why requests like these cannot be predicted in one batch; None if they can. Sets `joins`.

        rows: those of the recorded example; a single row is used twice.
        """
        if not self.joins or rows.kind not in ("block", "columns", "tensor"):
            return None
        parts = [_part(rows, at, at + 1) for at in range(min(rows.count, 8))]
        parts = parts * 2 if len(parts) == 1 else parts
        with self._inference():
            alone = [self._alone(part) for part in parts]
            if any(isinstance(answer, Exception) for answer in alone):
                self.joins = False
                return "the model fails on single rows of its example"
            together = _split(self._output(_joined(parts)), [1] * len(parts))
        if together is None:
            self.joins = False
            return "the model's output does not have one element per row"
        if not all(_close(single, batched) for single, batched in zip(alone, together, strict=True)):
            self.joins = False
            return "the model's output for a row changes with the other rows of a batch"
        return None

    def _alone(self, rows: Rows) -> Any:
        try:
            if rows.kind == "unchecked":
                return plain(self._model.predict(rows.data, params=rows.params))
            return self._output(rows)
        except BaseException as error:
            known = _known(error)
            if isinstance(known, Refusal) and known.__cause__:
                log.warning("a prediction failed", exc_info=error)
            return known

    def _together(self, group: Sequence[Rows]) -> list[Any]:
        try:
            answer = self._output(_joined(group))
        except BaseException as error:
            known = _known(error)
            if isinstance(known, Fatal):
                return [known] * len(group)
            half = len(group) // 2  # an error in one request must not fail the others, and smaller batches need less memory
            return [*self._batch_or_alone(group[:half]), *self._batch_or_alone(group[half:])]
        parts = _split(answer, [rows.count for rows in group])
        if parts is None:
            self.joins = False
            log.warning("the model's output does not have one element per row: from now on, requests are not predicted in batches")
            return [self._alone(rows) for rows in group]
        return parts

    def _batch_or_alone(self, group: Sequence[Rows]) -> list[Any]:
        return self._together(group) if len(group) > 1 else [self._alone(group[0])]

    def _output(self, rows: Rows) -> Any:
        if self._network is not None and not rows.params:
            if rows.kind == "tensor":
                return self._network(rows.data).tolist()
            if rows.kind == "block" and (answer := self._network(rows.data.astype("float32", copy=False))).ndim == 2:
                names = [str(position) for position in range(answer.shape[1])]
                return [dict(zip(names, row, strict=True)) for row in answer.tolist()]
        return plain(self._call(self._input(rows), rows.params))

    def _input(self, rows: Rows) -> Any:
        if rows.kind in ("tensor", "whole"):
            return rows.data
        if rows.kind == "block":
            return pd.DataFrame(rows.data, columns=self._names, copy=False)
        return pd.DataFrame(dict(zip(self._names, rows.data, strict=True)), columns=self._names)


def _direct(model: Any) -> Callable[[Any, Any], Any]:
    """The function that predicts from validated input: what `PyFuncModel.predict` calls after its enforcement."""
    import inspect

    function = model._predict_fn
    parameter = inspect.signature(function).parameters.get("params")
    takes_params = parameter is not None and parameter.kind != inspect.Parameter.VAR_KEYWORD

    def predict(data: Any, params: Any) -> Any:
        return function(data, params=params) if takes_params else function(data)

    wrapper: Any = getattr(function, "__self__", None)
    if type(wrapper).__name__ != "_PythonModelPyfuncWrapper" or wrapper.python_model.predict_type_hints.input is not None:
        return predict
    own = wrapper.python_model.predict
    names = inspect.signature(own).parameters
    if "context" not in names:
        return predict
    context = wrapper.context
    if "params" in names:
        return lambda data, params: own(context, data, params=params)
    return lambda data, _: own(context, data)


def _joined(group: Sequence[Rows]) -> Rows:
    first = group[0]
    count = sum(rows.count for rows in group)
    if first.kind == "columns":
        columns = [
            np.concatenate([rows.data[position] for rows in group])
            if isinstance(column, np.ndarray)
            else [value for rows in group for value in rows.data[position]]
            for position, column in enumerate(first.data)
        ]
        return Rows("columns", columns, count, first.params)
    return Rows(first.kind, np.concatenate([rows.data for rows in group]), count, first.params)


def _part(rows: Rows, begin: int, end: int) -> Rows:
    data = [column[begin:end] for column in rows.data] if rows.kind == "columns" else rows.data[begin:end]
    return Rows(rows.kind, data, end - begin, rows.params)


def _split(answer: Any, counts: Sequence[int]) -> list[Any] | None:
    """The parts of an output, one per request; None if it does not have one element per row."""
    if not isinstance(answer, list) or len(answer) != sum(counts):
        return None
    parts, at = [], 0
    for count in counts:
        parts.append(answer[at : at + count])
        at += count
    return parts


def _close(left: Any, right: Any) -> bool:
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_close(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(_close(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float | int | np.number) and isinstance(right, float | int | np.number):
        return bool(np.isclose(left, right, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True))
    return bool(left == right)


def _known(error: BaseException) -> Exception:
    """Convert what the model raised into an error for the caller. Its cause is the exception, if its traceback belongs into the log."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, Terminated | KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error  # from a signal during the start, and not from the model
    name, text = type(error).__name__, str(error)
    if name == "OutOfMemoryError" or "CUDA out of memory" in text:
        import torch

        torch.cuda.empty_cache()
        return OutOfMemory("the card has no memory left for this request: send fewer rows, or retry later")
    if name == "AcceleratorError" or ("CUDA" in text and any(word in text for word in FATAL)):
        return Fatal(text.splitlines()[0][:200])
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return Refusal(str(error.message)[:500], status=status if 400 <= status < 500 else 400, code=str(error.error_code))
    refusal = Refusal(
        "the model failed on this input; check that the values are valid for it. The service's log has the traceback", code=BAD_REQUEST
    )
    refusal.__cause__ = error
    return refusal
