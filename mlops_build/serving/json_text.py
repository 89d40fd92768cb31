"""Parse the JSON of a body."""

import json
from typing import Any

import orjson

from mlops_build.serving.refusal import Refusal

# Digits become 0, and the characters before a number a space.
CLASSES = bytes.maketrans(b"123456789,[-:\t\r\n", b"0" * 9 + b" " * 7)
# The start of an integer beyond 64 bits, which has at least 19 digits. Digits of a fraction follow a point.
LARGE = b" " + b"0" * 19


def parse(text: bytes, *, exact: bool = True) -> Any:
    """The value of a JSON text. Raises Refusal, and RecursionError for deep nesting.

    exact: integers beyond 64 bits are integers. Otherwise they may be floats, as orjson reads them, which is faster.
    """
    if not exact or LARGE not in text.translate(CLASSES):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass  # NaN, Infinity, a byte order mark, lone surrogates: not JSON, but MLflow reads them
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise Refusal(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        why = f"{error.msg} at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise Refusal(f"the body is not valid JSON: {why}") from None
