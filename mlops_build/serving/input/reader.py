"""How bodies of one media type become rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlops_build.serving.input.json_text import Reserve
from mlops_build.serving.input.mismatch import SHOWN
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.signature import Signature
from mlops_build.serving.refusal import Refusal

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


def check_parameters(content_type: str) -> None:
    """Raises Refusal (415) for a Content-Type with another charset than UTF-8, or other parameters."""
    _, *parameters = (part.strip() for part in content_type.split(";"))
    values = {name.lower(): value for name, _, value in (parameter.partition("=") for parameter in parameters)}
    if values.get("charset", "utf-8").strip('"').lower() != "utf-8":
        raise Refusal("the charset must be UTF-8", status=415)
    if unknown := sorted(set(values) - {"charset"}):
        raise Refusal(f"Content-Type has unknown parameters: {', '.join(unknown)[:SHOWN]}", status=415)


def decoded(value: bytes, what: str) -> str:
    """UTF-8 as text. what: the name of the value in the message. Raises Refusal."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Refusal(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None
