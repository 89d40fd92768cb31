"""Outputs of a model as tensors of the Open Inference Protocol, in JSON or binary."""

import base64
import datetime
from itertools import chain
from typing import Any

import numpy as np

from mlops_build.serving.encode import encode
from mlops_build.serving.pieces import as_list
from mlops_build.serving.v2.tensors import BYTES, DTYPES, NAMES, RANK

# The group of each of numpy's kinds: an output has the declared type if its values are of the same group.
KINDS = {"f": "f", "i": "i", "u": "i", "b": "b"}


def as_tensor(name: str, value: Any, declared: "np.dtype[Any] | None", *, binary: bool) -> tuple[dict[str, Any], bytes | None]:
    """An output as a JSON object, and its bytes if it is binary; otherwise the object contains the data."""
    array = _numbers(value, declared)
    if array is not None:
        datatype = NAMES[array.dtype.newbyteorder("<")]
        described: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if not binary:
            return {**described, "data": as_list(array.ravel())}, None
        octets = array.astype(DTYPES[datatype]).tobytes()
        return {**described, "parameters": {"binary_data_size": len(octets)}}, octets
    shape, leaves, content = _byte_elements(value)
    described = {"name": name, "datatype": BYTES, "shape": shape}
    parameters: dict[str, Any] = {} if content is None else {"content_type": content}
    if not binary:
        data = [base64.b64encode(leaf).decode() if isinstance(leaf, bytes) else leaf for leaf in leaves]
        return {**described, **({"parameters": parameters} if parameters else {}), "data": data}, None
    parts = [leaf if isinstance(leaf, bytes) else leaf.encode("utf-8", "replace") for leaf in leaves]
    octets = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
    if content == "base64":
        del parameters["content_type"]  # not encoded in a binary response
    return {**described, "parameters": {**parameters, "binary_data_size": len(octets)}}, octets


def _numbers(value: Any, declared: "np.dtype[Any] | None") -> "np.ndarray[Any, Any] | None":
    """The value as an array; None unless it consists of numbers.

    declared: the signature's type, which is used if the values are of that kind.
    """
    leaf = value
    for _ in range(RANK):  # a list may contain itself
        leaf = leaf[0] if isinstance(leaf, list) and leaf else leaf
    python = leaf.flat[:1].tolist() if isinstance(leaf, np.ndarray) and leaf.dtype != "uint64" else []
    if isinstance(leaf, str | bytes | dict):
        return None  # numpy would convert numbers next to strings into strings
    try:
        array = np.array(value, dtype=np.array(python).dtype if python else None)  # the type of its values as a list
        if array.dtype == object:
            if not all(type(element) in (int, float, type(None)) for element in array.flat):
                return None
            array = array.astype("float64")  # None among numbers
    except (ValueError, TypeError, OverflowError, RuntimeError):
        return None
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        return None
    array = array.reshape(1) if array.ndim == 0 else array
    if declared is None or (array.size and KINDS[declared.kind] != KINDS[array.dtype.kind]):
        return array
    if declared.kind in "iu" and array.size and not np.iinfo(declared).min <= array.min() <= array.max() <= np.iinfo(declared).max:
        return array
    with np.errstate(over="ignore"):
        return array.astype(declared)


def _byte_elements(value: Any) -> tuple[list[int], list[str | bytes], str | None]:
    """Shape, elements and content type of a BYTES output.

    The content type is None for text and dates, base64 for bytes, and json for everything else.
    """
    rows = value if isinstance(value, list) else [value]
    shape, level = [len(rows)], rows
    while level and len(shape) < RANK and all(type(part) is list and len(part) == len(level[0]) for part in level):
        shape.append(len(level[0]))
        level = list(chain.from_iterable(level))
    if all(isinstance(leaf, str) for leaf in level):
        return shape, level, None
    if all(isinstance(leaf, bytes | bytearray) for leaf in level):
        return shape, [bytes(leaf) for leaf in level], "base64"
    if all(isinstance(leaf, datetime.date | datetime.time) and leaf == leaf for leaf in level):  # NaT does not equal itself
        return shape, [leaf.isoformat() for leaf in level], None
    return [len(rows)], [encode(row, bare=True).decode() for row in rows], "json"
