"""Parse the JSON of a body."""

import json
from collections.abc import Callable
from typing import Any

import orjson

from mlops_build.serving.refusal import Refusal

# Called with a number of bytes before that much memory is used. Raises if there is not enough.
Reserve = Callable[[int], None]

# A larger body is parsed in a thread, since parsing blocks the event loop, and with a reservation of memory.
INLINE_BYTES = 64 * 1024
# The memory to convert a value with MLflow and pandas, as a multiple of `size`. tests/serving/test_memory.py measures it.
CONVERSION = 2
# Digits become 0, and the characters before a number a space.
CLASSES = bytes.maketrans(b"123456789,[-:\t\r\n", b"0" * 9 + b" " * 7)
# The start of an integer beyond 64 bits, which has at least 19 digits. Digits of a fraction follow a point.
LARGE = b" " + b"0" * 19


def size(text: bytes) -> int:
    """An upper bound of the memory for the value of a text in JSON or CSV, in bytes, without parsing it."""
    lists, objects = text.count(b"["), text.count(b"{")
    values = text.count(b",") + text.count(b"\n") + lists + objects
    characters = len(text) if text.isascii() and b"\\u" not in text else 4 * len(text)
    # 41: a number, and the reference to it in a list that grows.
    return 2 * characters + 41 * values + 96 * lists + 240 * objects + 110 * text.count(b":") + 40 * text.count(b'"')


def parse(text: bytes, reserve: Reserve, *, exact: bool = True, what: str = "the body") -> Any:
    """The value of a JSON text. Raises Refusal, and RecursionError for deep nesting.

    exact: integers beyond 64 bits are integers. Otherwise they may be floats, as orjson reads them, which is faster. what: the name of the
    text in messages.
    """
    if len(text) > INLINE_BYTES:
        reserve(3 * size(text) // 2)  # also for the arrays of the fast path
    if not exact or LARGE not in text.translate(CLASSES):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass  # NaN, Infinity, a byte order mark, lone surrogates: not JSON, but MLflow reads them
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise Refusal(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        why = f"{error.msg} at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise Refusal(f"{what} is not valid JSON: {why}") from None
