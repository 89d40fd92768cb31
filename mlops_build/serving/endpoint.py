"""A model behind one protocol, and a request to it."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from mlops_build.serving.batcher import Batcher
from mlops_build.serving.failure import ErrorResponse
from mlops_build.serving.http.answer import Answer
from mlops_build.serving.http.body import Reservation
from mlops_build.serving.http.exchange import Exchange
from mlops_build.serving.http.head import Head
from mlops_build.serving.input.json_text import Reserve
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.load import Loaded
from mlops_build.serving.pieces import memory

# Converts the model's output into the response.
Write = Callable[[Any], Answer]
# The memory for the answer to a row if the model has no recorded example, in bytes.
ANSWER_BYTES = 256


@dataclass(frozen=True)
class Endpoint:
    """One model behind one protocol.

    read: parses a body into rows, and returns the function that writes the response. answer: memory for the answer to a row, in bytes.
    """

    loaded: Loaded
    batcher: Batcher
    read: Callable[[bytes, Head, Reserve], tuple[Rows, Write]]
    error: ErrorResponse
    answer: int


@dataclass(slots=True)
class Call:
    """One request to a model. caller: the name of its token. began, ends: its start and its deadline, of time.perf_counter()."""

    endpoint: Endpoint
    exchange: Exchange
    head: Head
    caller: str | None
    reservation: Reservation
    began: float
    ends: float = math.inf
    rows: int = 0

    @property
    def left(self) -> float:
        """The time until its deadline, in seconds."""
        return self.ends - time.perf_counter()

    def line(self, answer: Answer, seconds: float) -> dict[str, Any]:
        """Its line in the access log."""
        line = {
            "time": round(time.time(), 3),
            "request_id": self.head.request_id.decode(),
            "model": self.endpoint.loaded.name,
            "version": self.endpoint.loaded.version,
            "status": answer.status,
            "rows": self.rows,
            "bytes": len(answer.body),
            "ms": round(seconds * 1000, 2),
        }
        if self.head.trace:
            line["trace_id"], line["parent_id"] = (field.decode() for field in self.head.trace)
        return line if self.caller is None else {**line, "caller": self.caller}


def answer_bytes(recorded: Mapping[str, Any] | None) -> int:
    """The memory for the answer to a row, from the recorded example, in bytes."""
    predictions = recorded.get("predictions") if recorded else None
    if not isinstance(predictions, list) or not predictions:
        return ANSWER_BYTES
    return memory(predictions) // len(predictions)
