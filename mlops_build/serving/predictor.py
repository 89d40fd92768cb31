"""Predict the rows of several requests with one loaded model.

The rows have been validated and converted (serving/input), so MLflow's enforcement, which takes most of a small model's time, is not
repeated.
"""

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from mlops_build.model.independence import FLOAT32, Inconclusive, Tolerance
from mlops_build.serving import network
from mlops_build.serving.encode import plain
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.joining import Joining, joined, key_of, part
from mlops_build.serving.pieces import PIECE, memory, size
from mlops_build.serving.refusal import BAD_REQUEST, Refusal, Unanswered
from mlops_build.serving.sigterm import Terminated

FATAL = (
    "device-side assert",
    "illegal memory access",
    "unspecified launch failure",
    "misaligned address",
    "uncorrectable ECC",
    "GPU is lost",
)
# The parts of a request grow while this reduces the seconds for a row to less than this fraction.
FASTER = 0.75

log = logging.getLogger("mlops_build.serving")


class OutOfMemory(Unanswered):
    """The card has no memory for this prediction. The process continues."""

    why = "out of memory"


class Fatal(Unanswered):
    """CUDA is unusable in this process. A new process is needed."""

    code, retry = "TEMPORARILY_UNAVAILABLE", 10


class Predictor:
    """Predicts with one model. Not thread-safe.

    model: mlflow.pyfunc.PyFuncModel. tolerance: between a row's answer alone and in a batch. declared: why service.yaml says that rows are
    independent, or empty. joining: decides which requests are predicted in one batch. chunk_rows: a request with more rows is predicted
    in parts, the first of which has this size, if its rows are independent.
    """

    def __init__(self, model: Any, *, tolerance: Tolerance = FLOAT32, declared: str = "") -> None:
        self.declared = declared
        self.joining = Joining(self._evidence, tolerance, declared=bool(declared))
        self.chunk_rows = 128
        self._model = model
        self._call = _direct(model)
        self._inference = network.inference
        schema = model.metadata.get_input_schema()
        if schema is not None and schema.is_tensor_spec() and tuple(schema.inputs[0].shape[:1]) != (-1,):
            self.joining.refuted = "the signature has a fixed number of rows"
        named = schema is not None and not schema.is_tensor_spec() and schema.has_input_names()
        # Created once, since pandas takes ten times as long with a list of names.
        self._names = pd.Index(schema.input_names()) if named else pd.Index([])

    def predict(self, requests: Sequence[Rows]) -> list[Any]:
        """For each request, its output in the form of `encode.plain`, or its exception."""
        with self._inference():
            self.joining.step(idle=False)
            answers: list[Any] = [None] * len(requests)
            groups: dict[Any, list[int]] = {}
            for index, rows in enumerate(requests):
                groups.setdefault(key_of(rows) or index, []).append(index)
            for key, indices in groups.items():
                group = [requests[index] for index in indices]
                for index, answer in zip(indices, self._group(group), strict=True):
                    answers[index] = answer
                if not self.joining.allows(key):
                    for rows, index in zip(group, indices, strict=True):
                        self.joining.observe(rows, answers[index])
            for rows, answer in zip(requests, answers, strict=True):
                rows.output_bytes = memory(answer) if size(answer) > PIECE else 0
            return answers

    def needs_gradients(self) -> None:
        """Stop using torch.inference_mode, for a model that computes gradients during prediction."""
        self._inference = contextlib.nullcontext

    def _group(self, group: Sequence[Rows]) -> list[Any]:
        """Answers of requests with the same key."""
        if len(group) > 1 and self.joining.allows(key_of(group[0])):
            return self._together(group)
        return [self._alone(rows) for rows in group]

    def _together(self, group: Sequence[Rows]) -> list[Any]:
        began = time.perf_counter()
        try:
            parts = _split(self._output(joined(group)), [rows.count for rows in group])
        except BaseException as error:
            known = _known(error)
            if isinstance(known, Fatal):
                return [known] * len(group)
            half = len(group) // 2  # an error in one request must not fail the others, and smaller batches need less memory
            return [*self._group(group[:half]), *self._group(group[half:])]
        if parts is None:
            self.joining.doubt(key_of(group[0]))
        elif self.joining.compare(group, parts, time.perf_counter() - began):
            return parts
        return [self._alone(rows) for rows in group]

    def _alone(self, rows: Rows) -> Any:
        try:
            if rows.kind == "unchecked":
                return plain(self._model.predict(rows.data, params=rows.params))
            if rows.count > self.chunk_rows and self.joining.allows(key_of(rows)):
                return self._in_chunks(rows)
            return self._output(rows)
        except BaseException as error:
            known = _known(error)
            if isinstance(known, Refusal) and known.__cause__:
                log.warning("a prediction failed (request %s)", rows.request_id.decode(), exc_info=error)
            return known

    def _in_chunks(self, rows: Rows) -> Any:
        """The output for a large request, computed in parts, so that the memory for it does not grow with its rows.

        The parts grow as long as this makes the prediction of a row faster.
        """
        chunks: list[Rows] = []
        outputs: list[Any] = []
        at, size, seconds = 0, self.chunk_rows, math.inf
        while at < rows.count:
            chunk, began = part(rows, at, min(at + size, rows.count)), time.perf_counter()
            output = self._output(joined([chunk]))
            if _split(output, [chunk.count]) is None:
                self.joining.doubt(key_of(rows))
                return self._output(rows)
            before, seconds = seconds, (time.perf_counter() - began) / chunk.count
            if seconds < FASTER * before:
                size *= 2
            at += chunk.count
            chunks.append(chunk)
            outputs.append(output)
        if self.joining.compare(chunks, outputs, 0.0):
            if any(isinstance(output, np.ndarray) for output in outputs):
                return np.concatenate(outputs)
            return [answer for output in outputs for answer in output]
        return self._output(rows)

    def _evidence(self, rows: Rows) -> Any:
        """The output for rows of a check. Raises Inconclusive, and the exceptions of the model."""
        try:
            with self._inference():
                return self._output(joined([rows]))  # a copy, since a model may change its input
        except BaseException as error:
            known = _known(error)
            raise (Inconclusive(str(known)) if isinstance(known, OutOfMemory | Fatal) else known) from error

    def _output(self, rows: Rows) -> Any:
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


def _split(answer: Any, counts: Sequence[int]) -> list[Any] | None:
    """The parts of an output, one per request; None if it does not have one element per row."""
    if not isinstance(answer, list | np.ndarray) or len(answer) != sum(counts):
        return None
    parts, at = [], 0
    for count in counts:
        parts.append(answer[at : at + count])
        at += count
    return parts


def _known(error: BaseException) -> Exception:
    """Convert what the model raised into an error for the caller. Its cause is the exception, if its traceback belongs into the log."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, Terminated | KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
        raise error  # from a signal during the start, and not from the model
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        text = ""
    if name == "OutOfMemoryError" or "CUDA out of memory" in text:
        import torch

        torch.cuda.empty_cache()
        return OutOfMemory("the card has no memory left for this request: send fewer rows, or retry later")
    if name == "AcceleratorError" or ("CUDA" in text and any(word in text for word in FATAL)):
        log.error("this process can no longer use its card, and stops: %s", text.splitlines()[0][:200])
        return Fatal("the service is restarting")
    if isinstance(error, MlflowException):
        status = error.get_http_status_code()
        return Refusal(str(error.message)[:500], status=status if 400 <= status < 500 else 400, code=str(error.error_code))
    refusal = Refusal(
        "the model failed on this input; check that the values are valid for it. The service's log has the traceback", code=BAD_REQUEST
    )
    refusal.__cause__ = error
    return refusal
