"""Nested lists of numbers as an array, in a third of the time that numpy takes, which looks at every element twice."""

import functools
import itertools
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np

FORMATS = {np.dtype("float32"): "f", np.dtype("float64"): "d"}


def packed(data: Sequence[Any], dtype: "np.dtype[Any]", sizes: Sequence[int]) -> "np.ndarray[Any, Any] | None":
    """The same array as np.array(data, dtype) of this shape (-1: any size); None where numpy must say what it makes of the data."""
    form = FORMATS.get(dtype)
    if form is None or len(sizes) < 2 or not data:
        return None
    lists, found = data, [len(data)]
    try:
        for want in sizes[1:]:
            width = len(lists[0]) if want == -1 else want
            found.append(width)
            if width == 0:  # "" and {} would do for an empty list
                return None
            if len(found) == len(sizes):
                break
            if any(type(one) is not list or len(one) != width for one in lists):
                return None
            lists = list(itertools.chain.from_iterable(lists))
        pack = _packer(f"={width}{form}")
        array = np.frombuffer(bytearray().join([pack(*one) for one in lists]), dtype)
    except (struct.error, OverflowError, TypeError, IndexError):  # null, text, unlike lengths, what only numpy makes infinite
        return None
    return array.reshape(found) if sizes[0] in (-1, len(data)) else None


@functools.lru_cache(maxsize=64)
def _packer(form: str) -> Any:
    return struct.Struct(form).pack
