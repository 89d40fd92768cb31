"""Parse the JSON of a body."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson

from mlops_build.serving.refusal import Refusal

# Called with a number of bytes before that much memory is used. Raises if there is not enough.
Reserve = Callable[[int], None]

# A larger body is parsed in a thread, since parsing blocks the event loop, and with a reservation of memory.
INLINE_BYTES = 64 * 1024
# The memory to convert a table, and other values, with MLflow and pandas, as a multiple of `size`.
# tests/serving/test_memory.py measures it.
TABLE_CONVERSION, CONVERSION = 1.5, 2.2
# Digits become 0, and the characters before a number a space.
CLASSES = bytes.maketrans(b"123456789,[-:\t\r\n", b"0" * 9 + b" " * 7)
# The start of an integer beyond 64 bits, which has at least 19 digits. Digits of a fraction follow a point.
LARGE = b" " + b"0" * 19


def size(text: bytes) -> int:
    """An upper bound of the memory to parse a JSON text and to keep its value, in bytes, without parsing it."""
    characters = np.frombuffer(text, np.uint8)

    def count(character: str) -> int:  # in a tenth of the time of bytes.count
        return int(np.count_nonzero(characters == ord(character)))

    lists, objects = count("["), count("{")
    values = count(",") + lists + objects
    # A copy, and text: a character that is not in ASCII makes all of its text larger.
    copies = 2 if text.isascii() and not (count("\\") and b"\\u" in text) else 6
    # 60: a number, the reference to it, and orjson's copy of it.
    return copies * len(text) + 60 * values + 72 * lists + 90 * objects + 62 * count(":") + 20 * count('"')


def parse(text: bytes, reserve: Reserve, *, exact: bool = True, what: str = "the body") -> Any:
    """The value of a JSON text. Raises Refusal, and RecursionError for deep nesting.

    exact: integers beyond 64 bits are integers. Otherwise they may be floats, as orjson reads them, which is faster. what: the name of the
    text in messages.
    """
    if len(text) > INLINE_BYTES:
        reserve(size(text))
    if not exact or LARGE not in text.translate(CLASSES):
        try:
            return orjson.loads(text)
        except orjson.JSONDecodeError:
            pass  # NaN, Infinity, a byte order mark, lone surrogates: not JSON, but MLflow reads them
    if len(text) > INLINE_BYTES:
        reserve(4 * len(text))  # decoded
    try:
        return json.loads(text)
    except UnicodeDecodeError as error:
        raise Refusal(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        why = f"{error.msg} at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
        raise Refusal(f"{what} is not valid JSON: {why}") from None
