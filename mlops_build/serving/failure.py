"""The responses to requests that failed, in the form of each protocol."""

import logging
from collections.abc import Callable

import orjson

from mlops_build.serving import v2
from mlops_build.serving.answer import JSON, Answer
from mlops_build.serving.batcher import Disconnected, QueueFull, Stuck
from mlops_build.serving.body import MemoryFull
from mlops_build.serving.encode import Unencodable
from mlops_build.serving.predictor import Fatal, OutOfMemory
from mlops_build.serving.refusal import Refusal

Headers = tuple[tuple[bytes, bytes], ...]
# Builds an error response from status, code, message and headers.
ErrorResponse = Callable[[int, str, str, Headers], Answer]

log = logging.getLogger("mlops_build.serving")


def failed(failure: BaseException, deadline: float) -> tuple[str, tuple[int, str, str, Headers]]:
    """Why the request is counted as refused ("" if it is not), and the arguments of ErrorResponse. deadline: seconds."""
    match failure:
        case Refusal():
            return "", (failure.status, failure.code, failure.message, ())
        case QueueFull():
            message = "too many requests are waiting: retry later"
            return "queue full", (429, "REQUEST_LIMIT_EXCEEDED", message, retry_after(max(1, round(failure.seconds))))
        case MemoryFull():
            return "memory of requests", (503, "RESOURCE_EXHAUSTED", str(failure), retry_after(1))
        case TimeoutError():
            return "deadline", (504, "DEADLINE_EXCEEDED", f"not answered within {deadline:g} s", retry_after(1))
        case OutOfMemory():
            return "out of memory", (503, "RESOURCE_EXHAUSTED", str(failure), retry_after(1))
        case Stuck():
            return "stuck", (503, "TEMPORARILY_UNAVAILABLE", str(failure), retry_after(10))
        case Fatal():
            log.error("this process can no longer use its card, and stops: %s", failure)
            return "", (503, "TEMPORARILY_UNAVAILABLE", "the service is restarting", retry_after(10))
        case Disconnected():
            return "caller gone", (499, "CANCELLED", "", ())
        case Unencodable():
            return "", (500, "INTERNAL_ERROR", str(failure), ())
    log.error("a request failed", exc_info=failure)
    return "", (500, "INTERNAL_ERROR", "internal error: the service's log has the traceback", ())


def retry_after(seconds: int) -> Headers:
    return ((b"retry-after", b"%d" % seconds),)


def is_inference(path: str) -> bool:
    """Whether a path belongs to the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")


def error_at(path: str) -> ErrorResponse:
    """The form of errors at a path."""
    return inference_error if is_inference(path) else mlflow_error


def mlflow_error(status: int, code: str, message: str, headers: Headers = ()) -> Answer:
    if status == 415:  # plain text, as in MLflow's server
        return Answer(status, message.encode("utf-8", "replace"), b"text/plain; charset=utf-8", headers)
    body = orjson.dumps({"error_code": code, "message": message.encode("utf-8", "replace").decode()})
    return Answer(status, body, JSON, headers)


def inference_error(status: int, _: str, message: str, headers: Headers = ()) -> Answer:
    return v2.refusal(status, message, headers)
