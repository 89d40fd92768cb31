"""The responses to requests that failed, in the form of each protocol."""

import logging
from collections.abc import Callable

from mlops_build.serving.http.answer import Answer, Headers, mlflow_error
from mlops_build.serving.refusal import Unanswered
from mlops_build.serving.v2 import model as v2

# Builds an error response from status, code, message and headers.
ErrorResponse = Callable[[int, str, str, Headers], Answer]

log = logging.getLogger("mlops_build.serving")


def failed(failure: BaseException, deadline: float) -> tuple[str, tuple[int, str, str, Headers]]:
    """Why the request is counted as refused ("" if it is not), and the arguments of ErrorResponse. deadline: seconds."""
    if isinstance(failure, Unanswered):
        return failure.why, (failure.status, failure.code, str(failure), retry_after(failure.retry))
    if isinstance(failure, TimeoutError):
        return "deadline", (504, "DEADLINE_EXCEEDED", f"not answered within {deadline:g} s", retry_after(1))
    log.error("a request failed", exc_info=failure)
    return "", (500, "INTERNAL_ERROR", "internal error: the service's log has the traceback", ())


def retry_after(seconds: int) -> Headers:
    return ((b"retry-after", b"%d" % seconds),) if seconds else ()


def is_inference(path: str) -> bool:
    """Whether a path belongs to the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")


def error_at(path: str) -> ErrorResponse:
    """The form of errors at a path."""
    return inference_error if is_inference(path) else mlflow_error


def inference_error(status: int, _: str, message: str, headers: Headers = ()) -> Answer:
    return v2.refusal(status, message, headers)
