"""Convert large outputs piece by piece.

`tolist`, orjson and json hold Python's lock (the GIL) until they end: a second for 16 million numbers, also in another thread, in
which the event loop answers nothing. A piece takes less than a millisecond.
"""

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np

# Units in a piece, and the memory of a unit and its JSON, in bytes. A number is one unit, or half of one in an array.
PIECE, UNIT = 8192, 80
COPIED_BYTES = 1 << 20
SCALARS = frozenset((float, int, bool, type(None)))
# Kinds of numbers that Python can represent.
NUMBERS = "fiub"


def size(value: Any, limit: float = PIECE) -> int:
    """An upper bound of the units of an output in the form of `encode.plain`, counted until it exceeds the limit."""
    if isinstance(value, np.ndarray):
        return 1 + value.size // 2
    if isinstance(value, str):  # in JSON, a character may become six, or twelve
        return 2 + len(value) // (24 if value.isascii() and value.isprintable() else 4)
    inner: Iterable[Any]
    if isinstance(value, dict):
        total, inner = 4, chain(value, value.values())
    elif isinstance(value, list | tuple):
        total, inner = 2 + len(value) // 8, value
        if len(value) > limit or SCALARS.issuperset(map(type, value)):
            return 2 + len(value)
    else:
        return 1 + sys.getsizeof(value) // 32
    for element in inner:
        total += size(element, limit - total)
        if total > limit:
            break
    return total


def memory(output: Any) -> int:
    """An upper bound of the memory of an output and its JSON, in bytes."""
    return UNIT * size(output, math.inf)


def as_list(array: "np.ndarray[Any, Any]") -> Any:
    """`array.tolist()`. A large array of numbers stays an array, and is copied, since the model may use its memory again.

    If it has several dimensions, the result is a list of arrays, or of lists if the rows are small.
    """
    if array.size <= PIECE or not array.ndim:
        return array.tolist()
    keeps = array.dtype.kind in NUMBERS and array.dtype.itemsize <= 8
    if keeps and (array.ndim == 1 or array.size > PIECE // 8 * len(array)):
        return array.copy() if array.ndim == 1 else list(array.copy())
    return [element for run in _runs(array) for element in run.tolist()]


def pieces(value: Any, dumps: Callable[[Any], bytes], comma: bytes) -> Iterator[bytes]:
    """What `dumps(value)` returns, in pieces. comma: what `dumps` writes between elements."""
    if size(value) <= PIECE:
        yield dumps(value)
    elif isinstance(value, dict):
        for number, (key, element) in enumerate(value.items()):
            yield (comma if number else b"{") + dumps({key: None})[1:-5]  # without {null}
            yield from pieces(element, dumps, comma)
        yield b"}"
    elif isinstance(value, list | tuple | np.ndarray):
        for number, run in enumerate(_runs(value)):
            yield comma if number else b"["
            if len(run) == 1:
                yield from pieces(run[0], dumps, comma)
            else:
                yield dumps(run)[1:-1]
        yield b"]"
    else:
        yield dumps(value)


def together(parts: Iterable[bytes | bytearray]) -> bytearray:
    """The parts as one. It grows in place, in small steps, and `b"".join` would copy everything in one."""
    whole = bytearray()
    for part in parts:
        for at in range(0, len(part), COPIED_BYTES):
            whole += memoryview(part)[at : at + COPIED_BYTES]
    return whole


def _runs(value: Any) -> Iterator[Any]:
    """Parts of a large list or array: each has one element, or at most PIECE values."""
    if isinstance(value, np.ndarray):
        step = max(1, PIECE * len(value) // value.size)
        yield from (value[at : at + step] for at in range(0, len(value), step))
        return
    for at in range(0, len(value), PIECE):
        block = value[at : at + PIECE]
        if SCALARS.issuperset(map(type, block)):
            yield block
            continue
        begin = total = 0
        for position, element in enumerate(block):
            values = size(element)
            if position > begin and total + values > PIECE:
                yield block[begin:position]
                begin, total = position, 0
            total += values
        yield block[begin:]
