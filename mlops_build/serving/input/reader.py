"""How bodies of one media type become rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlops_build.serving.input.json_text import Reserve
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.signature import Signature

# The name and the OpenAPI schema of a file in a body.
FILE = {"type": "string", "format": "binary"}


def _always(_: Signature) -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Reader:
    """A media type, such as `text/csv`, or `image/*`.

    read: converts a body: (signature, body, Content-Type, reserve) -> rows. Raises Refusal. takes: whether a model has such bodies. only: a
    description of these models, for the others' message; empty: each model has them. schema: of the body, for OpenAPI; None: the stored
    contract has it. slow: even a small body is read in a thread.
    """

    kind: str
    read: Callable[[Signature, bytes, str, Reserve], Rows]
    takes: Callable[[Signature], bool] = _always
    only: str = ""
    schema: Callable[[Signature], dict[str, Any]] | None = None
    slow: bool = False


def only_type(signature: Signature) -> str:
    """The type of a model's only column; empty if it has several, or none with a plain type."""
    kinds = list(signature.quick.columns.values())
    return kinds[0] if len(kinds) == 1 else ""
