"""A model's output as JSON, in the form of MLflow's server: `{"predictions": …}`.

A DataFrame becomes a list of records, an array a nested list, a date ISO 8601, bytes base64. Two deliberate differences from MLflow: NaN
and infinity are null, since the JSON parsers of Go and PHP fail on its literals (`nan="literal"` restores them), and a torch tensor is a
nested list.
"""

import base64
import datetime
import json
import math
from typing import Any, Literal

import numpy as np
import orjson

from mlops_build.serving import pieces
from mlops_build.serving.refusal import Unanswered

IMMUTABLE = pieces.SCALARS | {str, bytes}


class Unencodable(Unanswered):
    """The model's output has no JSON representation."""

    status, code, retry = 500, "INTERNAL_ERROR", 0


def plain(answer: Any) -> Any:
    """The output as lists and dicts, whose elements may still be values of numpy or pandas. A list has one element per row."""
    import pandas as pd

    if isinstance(answer, BaseException):
        raise TypeError("the model returned an exception") from answer
    if isinstance(answer, pd.Series):
        answer = pd.DataFrame(answer)
    if isinstance(answer, pd.DataFrame):
        names = [name if isinstance(name, str) else json.dumps(_key(name)) for name in answer.columns]
        if len(set(names)) == len(names):
            rows = zip(*(_copied(column.tolist()) for _, column in answer.items()), strict=True)
            return [dict(zip(names, row, strict=True)) for row in rows] if names else [{} for _ in range(len(answer))]
        return answer.to_dict(orient="records")
    if isinstance(answer, np.ndarray):
        return plain(answer.tolist()) if answer.dtype == object else pieces.as_list(answer)
    if isinstance(answer, dict):
        return {key: plain(value) for key, value in answer.items()}
    if type(answer).__module__.partition(".")[0] == "torch" and hasattr(answer, "detach"):
        if getattr(answer, "is_nested", False):
            return [plain(tensor) for tensor in answer.unbind()]
        tensor = answer.detach().cpu()
        if tensor.numel() <= pieces.PIECE or tensor.is_quantized or tensor.is_complex():
            return tensor.tolist()
        return pieces.as_list((tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy())
    return _copied(answer) if isinstance(answer, list | tuple) else answer


def _copied(values: "list[Any] | tuple[Any, ...]") -> list[Any]:
    """A copy: it is written later, and the model may change its lists and arrays in the next prediction."""
    copy: list[Any] = []
    for at in range(0, len(values), pieces.PIECE):
        block = values[at : at + pieces.PIECE]
        copy += block if IMMUTABLE.issuperset(map(type, block)) else map(plain, block)
    return copy


def encode(answer: Any, *, nan: Literal["null", "literal"] = "null", bare: bool = False) -> bytes | bytearray:
    """The body of the response for an output of `plain`. bare: without {"predictions": …} around it. Raises Unencodable.

    For an output of more than `pieces.PIECE`, call it in a thread.
    """
    document = answer if bare else {"predictions": answer}
    try:
        large = pieces.size(answer) > pieces.PIECE
        if nan == "null":
            try:
                return pieces.together(pieces.pieces(document, _fast, b",")) if large else _fast(document)
            except orjson.JSONEncodeError as error:
                if isinstance(error.__cause__, Unencodable):
                    raise error.__cause__ from None
                # Integers beyond 64 bits and lone surrogates: valid JSON that orjson does not write.
        dumps = _literal if nan == "literal" else _slow
        return pieces.together(pieces.pieces(document, dumps, b", ")) if large else dumps(document)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unencodable(str(error)) from None


def _fast(value: Any) -> bytes:
    return orjson.dumps(value, default=_default, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME)


def _literal(value: Any) -> bytes:
    return json.dumps(value, default=_default).encode()


def _slow(value: Any) -> bytes:
    return json.dumps(_without_nan(value), default=_default, allow_nan=False).encode()


def _default(value: Any) -> Any:
    import pandas as pd

    if value is pd.NaT or value is pd.NA:
        return None
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes | bytearray):
        return base64.encodebytes(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.time):  # includes datetime and pandas' Timestamp
        return value.isoformat()
    if isinstance(value, pd.DataFrame | pd.Series) or type(value).__module__.partition(".")[0] == "torch":
        converted = plain(value)
        if converted is not value:
            return converted
    raise Unencodable(
        f"the model's output contains a {type(value).__module__}.{type(value).__qualname__}, which has no JSON representation"
    )


def _key(name: Any) -> Any:
    return name.item() if isinstance(name, np.generic) else name if isinstance(name, int | float | bool | None) else str(name)


def _without_nan(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(inner) for inner in value]
    return _without_nan(_default(value)) if not isinstance(value, str | int | type(None)) else value
