"""Tensors of the Open Inference Protocol: their datatypes, their data in JSON or binary, and their conversion to the model's types."""

import base64
import binascii
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from mlops_build.serving.input import quick
from mlops_build.serving.input.mismatch import first_bad, fits, short
from mlops_build.serving.refusal import Refusal

BYTES = "BYTES"
# Types as in a binary body: little-endian.
DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"{sign}INT{bits}": np.dtype(f"<{kind}{bits // 8}") for sign, kind in (("U", "u"), ("", "i")) for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The Python types that JSON may have for an element of each numpy kind; null is NaN, as in responses.
ELEMENTS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float, type(None)}}
# By numpy's kind: the kinds of numbers that convert to it.
TAKES = {"f": "fiub", "i": "iu", "u": "iu", "b": "b"}
SIZE = struct.Struct("<I").unpack_from
RANK = 32


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input. data: an array of the shape; for BYTES a flat list of `str` (from JSON) or of `bytes` (binary)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any


def from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Any:
    """The data of a tensor in JSON, flat or nested like the shape. Raises Refusal."""
    flat = data if isinstance(data, list) else [data]
    if flat and isinstance(flat[0], list):
        for depth, size in enumerate(shape):
            parts = [data] if depth == 0 else flat
            if not all(type(part) is list and len(part) == size for part in parts):
                raise Refusal(f"input {short(name)}: the data is not nested like the shape {list(shape)}")
            flat = list(chain.from_iterable(parts))
    if len(flat) != math.prod(shape):
        raise Refusal(f"input {short(name)} has {len(flat)} values; the shape {list(shape)} needs {math.prod(shape)}")
    types = set(map(type, flat))
    dtype = DTYPES.get(datatype)
    allowed = {str} if dtype is None else ELEMENTS[dtype.kind]
    if not types <= allowed:
        first_wrong = next(index for index, value in enumerate(flat) if type(value) not in allowed)
        raise Refusal(f"input {short(name)}, element {first_wrong}: expected {datatype}, got {short(flat[first_wrong])}")
    if dtype is None:
        return flat
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=dtype).reshape(shape)
    except (OverflowError, ValueError, TypeError):
        why = first_bad(flat, dtype, shape) or f"{datatype} of the shape {list(shape)} cannot be created"
        raise Refusal(f"input {short(name)}: {why}") from None


def from_octets(name: str, datatype: str, shape: tuple[int, ...], octets: memoryview) -> Any:
    """The data of a binary tensor. Raises Refusal."""
    count = math.prod(shape)
    dtype = DTYPES.get(datatype)
    if dtype is None:
        return _byte_strings(name, count, octets)
    if len(octets) != count * dtype.itemsize:
        raise Refusal(f"input {short(name)} has {len(octets)} bytes; {datatype} of the shape {list(shape)} needs {count * dtype.itemsize}")
    try:
        array = np.frombuffer(octets, dtype="u1" if dtype.kind == "b" else dtype).reshape(shape)
    except ValueError:
        raise Refusal(f"input {short(name)}: {list(shape)} is not a valid shape") from None
    if dtype.kind != "b":
        return array
    if array.size and array.max() > 1:
        raise Refusal(f"input {short(name)}: a BOOL must be a byte of 0 or 1")
    return array.astype(dtype)


def _byte_strings(name: str, count: int, octets: memoryview) -> list[bytes]:
    strings: list[bytes] = []
    data, at, end = bytes(octets), 0, len(octets)
    while at < end and len(strings) <= count:
        start = at + 4
        stop = start + (SIZE(data, at)[0] if start <= end else end)
        if stop > end:
            raise Refusal(f"input {short(name)}, element {len(strings)} extends beyond the end of the tensor")
        strings.append(data[start:stop])
        at = stop
    if len(strings) != count:
        raise Refusal(
            f"input {short(name)}: the shape needs {count} elements, the bytes contain {'more' if len(strings) > count else len(strings)}"
        )
    return strings


# -- conversion to the model's types --


def exactly_one(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors, which must be one. Raises Refusal."""
    if len(tensors) != 1:
        raise Refusal(f"this model takes one input; got {len(tensors)}")
    return tensors


def fitting(tensor: Tensor, dtype: "np.dtype[Any]", shape: Sequence[int]) -> "np.ndarray[Any, Any]":
    """The tensor as an array of this type. Its shape must be `shape`, where -1 is any size. Raises Refusal."""
    if not shape or not fits(tensor.shape, shape):
        raise Refusal(f"input {short(tensor.name)} has the shape {list(tensor.shape)}; expected {list(shape)}, where -1 is any size")
    return _cast(tensor, dtype)


def as_array(tensor: Tensor, dtype: "np.dtype[Any]", shape: Sequence[int]) -> "np.ndarray[Any, Any]":
    """The tensor as `fitting` returns it, or as an array of text. Raises Refusal."""
    if dtype.kind in "biuf":
        return fitting(tensor, dtype, shape)
    if tensor.datatype != BYTES:
        raise Refusal(f"input {short(tensor.name)}: expected BYTES, got {tensor.datatype}")
    return np.array(_texts(tensor), dtype=object if dtype.kind == "O" else dtype).reshape(tensor.shape)


def _cast(tensor: Tensor, dtype: "np.dtype[Any]") -> "np.ndarray[Any, Any]":
    """The tensor as a new array, since the model may write into it. Floats accept any number; integers only numbers in their range."""
    array, sent = tensor.data, DTYPES.get(tensor.datatype)
    wanted = NAMES.get(dtype.newbyteorder("<"), str(dtype))
    if sent is None or sent.kind not in TAKES[dtype.kind]:
        raise Refusal(f"input {short(tensor.name)}: expected {wanted}, got {tensor.datatype}")
    with np.errstate(over="ignore"):
        converted: np.ndarray[Any, Any] = array.astype(dtype)
    if dtype.kind in "iu" and (wrong := np.flatnonzero(converted != array)).size:
        raise Refusal(f"input {short(tensor.name)}, element {wrong[0]}: {array.flat[wrong[0]]} does not fit into {wanted}")
    return converted


def column(tensor: Tensor, kind: str) -> Any:
    """The values of a column: a flat array for numbers, otherwise a list with one element per row."""
    if kind in quick.DTYPES:
        return _cast(tensor, quick.DTYPES[kind]).reshape(-1)
    if not kind and tensor.datatype != BYTES:  # a list of numbers for each row
        return list(tensor.data)
    if tensor.datatype != BYTES:
        raise Refusal(f"input {short(tensor.name)}: expected BYTES, got {tensor.datatype}")
    if kind == "binary":
        return [value if isinstance(value, bytes) else _decoded(tensor, row, value) for row, value in enumerate(tensor.data)]
    texts = _texts(tensor)
    return texts if kind else [_json_element(tensor, row, text) for row, text in enumerate(texts)]


def _texts(tensor: Tensor) -> list[str]:
    if tensor.data and isinstance(tensor.data[0], str):
        return list(tensor.data)
    texts: list[str] = []
    for row, value in enumerate(tensor.data):
        try:
            texts.append(value.decode())
        except UnicodeDecodeError as error:
            raise Refusal(f"input {short(tensor.name)}, element {row} is not UTF-8: {error.reason} at byte {error.start}") from None
    return texts


def _decoded(tensor: Tensor, row: int, value: str) -> bytes:
    try:
        return base64.b64decode(value.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Refusal(f"input {short(tensor.name)}, element {row}: expected base64, {error}") from None


def _json_element(tensor: Tensor, row: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Refusal(f"input {short(tensor.name)}, element {row}: expected JSON: {error}") from None


def nested(tensor: Tensor) -> Any:
    """The tensor as nested lists. Raises Refusal."""
    if tensor.datatype == BYTES:
        return np.array(_texts(tensor), dtype=object).reshape(tensor.shape).tolist()
    return tensor.data.tolist()
