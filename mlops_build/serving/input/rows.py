"""The decoded input of one request."""

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(slots=True)
class Rows:
    """The input of one request, validated and converted.

    kind: `block`, a 2-d array (rows, columns) if all columns have the same float type; `columns`, an array or a list per column of the
    signature; `tensor`, an array whose first axis is the rows; `whole`, the result of MLflow's enforcement; `unchecked`, for a model that
    validates its input itself. count: rows. params: validated, with defaults; None if none were sent and the model has none.
    """

    kind: Literal["block", "columns", "tensor", "whole", "unchecked"]
    data: Any
    count: int
    params: dict[str, Any] | None = None
    bare: bool = False  # the response has no {"predictions": …} around it, as MLflow's for chat
    request_id: bytes = b""
    output_bytes: int = 0  # of a large output and its JSON, once it is predicted; 0 for a small one
