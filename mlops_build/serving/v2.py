"""The Open Inference Protocol v2 (KServe's, Triton's, Seldon's) as a second door to a model, with its binary tensor extension.

A request's tensors become the same rows that /invocations makes of its bodies, and go through the same batches. What is neither plain
columns nor plain tensors is put into MLflow's words and enforced by MLflow. docs/reference/http-contract.md says what callers may rely on.
"""

import base64
import binascii
import datetime
import json
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal

import numpy as np
import orjson

from mlops_build import __version__
from mlops_build.serving.answer import JSON, Answer
from mlops_build.serving.decode import Decoder, Rows
from mlops_build.serving.encode import encode, plain
from mlops_build.serving.refusal import Refusal

BYTES = "BYTES"
# As they lie in a binary body: little-endian.
DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"{sign}INT{bits}": np.dtype(f"<{kind}{bits // 8}") for sign, kind in (("U", "u"), ("", "i")) for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# MLflow's types of columns.
COLUMNS = {"boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64"}
# What JSON may hold for an element of each kind; null is NaN, as it is in answers.
ELEMENTS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float, type(None)}}
# Which kinds of numbers fit into which, as numpy names them; and which are one kind.
TAKES = {"f": "fiub", "i": "iu", "u": "iu", "b": "b"}
KINDS = {"f": "f", "i": "i", "u": "i", "b": "b"}
READ = ("", "application/json", "application/octet-stream")  # media types
INPUT, OUTPUT = "input-0", "output-0"  # of a model whose one tensor has no name
SIZE = struct.Struct("<I").unpack_from
OCTETS, LENGTH = b"application/octet-stream", b"inference-header-content-length"
RANK = 32
SERVER = {"name": "mlops-build", "version": __version__, "extensions": ["binary_tensor_data"]}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input. data: an array of the shape; for BYTES a flat list, of `str` where it came as JSON and of `bytes` where it came binary."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any


@dataclass(frozen=True, slots=True)
class Asked:
    """What the answer must know of its request. outputs: the wanted ones, None for all; each binary or not, None for `binary`."""

    id: str | None
    outputs: dict[str, bool | None] | None
    binary: bool


class V2:
    """One model behind this protocol. Made once, from the model's signature.

    signature: `mlflow.models.ModelSignature` or None. nan: how JSON has NaN, as for /invocations.
    """

    def __init__(self, name: str, version: int | None, decoder: Decoder, signature: Any, nan: Literal["null", "literal"] = "null") -> None:
        self._name, self._version, self._decoder, self._nan = name, version, decoder, nan
        inputs: Any = signature.inputs if signature is not None and not decoder.hinted else None
        outputs = signature.outputs if signature is not None else None
        self._inputs = _described(inputs, INPUT)
        self._outputs = _described(outputs, OUTPUT)
        self._declared = {one["name"]: DTYPES.get(one["datatype"]) for one in self._outputs}
        self._tensors = inputs is not None and inputs.is_tensor_spec()
        self._named = inputs is not None and inputs.has_input_names()
        self._arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        if self._tensors and self._named:
            self._arrays = {one.name: (np.dtype(one.type), tuple(one.shape)) for one in inputs.inputs}
        self._quick = bool(decoder.columns)
        self._columns: dict[str, str] = {}  # name: MLflow's type, or "" for one that is no scalar
        if self._named and not self._tensors:
            self._columns = {one.name: getattr(one.type, "name", "") for one in inputs.inputs}

    @property
    def metadata(self) -> dict[str, Any]:
        """The answer to GET /v2/models/NAME."""
        versions = [] if self._version is None else [str(self._version)]
        return {"name": self._name, "versions": versions, "platform": "mlflow_pyfunc", "inputs": self._inputs, "outputs": self._outputs}

    def example(self, recorded: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """A recorded example of /invocations in this protocol's words; None where it has another form than a table or a tensor."""
        sent = recorded.get("input") if recorded is not None else None
        if not isinstance(sent, dict):
            return None
        split, tensor = sent.get("dataframe_split"), sent.get("inputs", sent.get("instances"))
        datatypes = {one["name"]: one["datatype"] for one in self._inputs}
        if isinstance(split, dict) and set(self._columns) <= set(split.get("columns", [])) and self._quick:
            rows = split["data"]
            places = {name: split["columns"].index(name) for name in self._columns}
            named = {name: [row[place] for row in rows] for name, place in places.items()}
            inputs = [{"name": name, "datatype": datatypes[name], "shape": [len(rows)], "data": data} for name, data in named.items()]
            return {"inputs": inputs}
        if isinstance(tensor, list) and self._decoder.tensor is not None:
            array = np.array(tensor)
            return {"inputs": [{"name": INPUT, "datatype": datatypes[INPUT], "shape": list(array.shape), "data": tensor}]}
        return None

    # -- what was asked --

    def read(self, body: bytes, kind: str | None, json_bytes: bytes | None) -> tuple[Rows, Asked]:
        """kind: Content-Type, which Triton's clients do not send. json_bytes: Inference-Header-Content-Length. Raises Refusal, and nothing
        else for whatever the body is."""
        if kind is not None and kind.partition(";")[0].strip().lower() not in READ:
            raise Refusal(f"Content-Type must be {READ[1]}, or {READ[2]} with binary tensors", status=415)
        try:
            return self._read(body, json_bytes)
        except RecursionError:
            raise Refusal("the body is nested too deeply") from None
        except MemoryError:
            raise Refusal("the body is too large once it is read", status=413) from None

    def _read(self, body: bytes, json_bytes: bytes | None) -> tuple[Rows, Asked]:
        length = len(body)
        if json_bytes is not None:
            if not json_bytes.isdigit() or len(json_bytes) > 18 or int(json_bytes) > length:
                raise Refusal(f"Inference-Header-Content-Length must be a number of bytes, at most the body's {length}")
            length = int(json_bytes)
        document = _parsed(body[:length] if length < len(body) else body)
        parameters = _parameters(document, "the request")
        tensors = _tensors(document.get("inputs"), memoryview(body)[length:])
        asked = Asked(_id(document.get("id")), _wanted(document.get("outputs")), _flag(parameters, "binary_data_output") or False)
        self._refuse_unknown_outputs(asked.outputs)
        return self._rows(tensors, {name: parameters[name] for name in self._decoder.parameters if name in parameters} or None), asked

    def _refuse_unknown_outputs(self, wanted: Iterable[str] | None) -> None:
        if wanted is not None and self._declared:
            for name in wanted:
                if name not in self._declared:
                    raise Refusal(f"{self._name} has no output {_short(name)}; it has {', '.join(self._declared)}")

    def _rows(self, tensors: Sequence[Tensor], params: dict[str, Any] | None) -> Rows:
        decoder = self._decoder
        if decoder.tensor is not None:
            (one,) = _exactly_one(tensors)
            array = _fitting(one, *decoder.tensor)
            return Rows("tensor", array, len(array), decoder.params(params))
        if self._arrays:
            named = self._by_name(tensors, self._arrays)
            arrays = {name: _as_array(one, *self._arrays[name]) for name, one in named.items()}
            return decoder.enforced(arrays, params)
        if self._columns:
            if decoder.block is not None and len(tensors) == 1 < len(self._columns) and tensors[0].name not in self._columns:
                block = _fitting(tensors[0], decoder.block, (-1, len(self._columns)))
                return Rows("block", block, len(block), decoder.params(params))
            return self._of_columns(self._by_name(tensors, self._columns), params)
        document: dict[str, Any] = {} if params is None else {"params": params}
        if self._inputs and not self._tensors:  # columns without names
            (one,) = _exactly_one(tensors)
            return decoder.document({**document, "dataframe_split": {"data": _nested(one)}})
        whole = _nested(tensors[0]) if len(tensors) == 1 else {one.name: _nested(one) for one in tensors}
        return decoder.document({**document, "inputs": whole})

    def _by_name(self, tensors: Sequence[Tensor], known: Mapping[str, Any]) -> dict[str, Tensor]:
        if len(tensors) == len(known) == 1:
            return {next(iter(known)): tensors[0]}  # there is no doubt what is meant
        named = {one.name: one for one in tensors}
        for name in named:
            if name not in known:
                raise Refusal(f"{self._name} has no input {_short(name)}; it takes {_some(known)}")
        for name in self._decoder.required:
            if name not in named:
                raise Refusal(f"the input {_short(name)} is missing")
        return named

    def _of_columns(self, named: Mapping[str, Tensor], params: dict[str, Any] | None) -> Rows:
        kinds = {name: self._columns[name] for name in named}
        for name, one in named.items():
            scalars = bool(kinds[name]) or one.datatype == BYTES
            if not one.shape or (scalars and (len(one.shape) > 2 or one.shape[1:] not in ((), (1,)))):
                raise Refusal(f"input {_short(name)} has the shape {list(one.shape)}; expected one value for each row: [N] or [N, 1]")
        counts = {one.shape[0] for one in named.values()}
        if len(counts) > 1:
            raise Refusal(f"the inputs have unlike numbers of rows: {', '.join(map(str, sorted(counts)[:5]))}")
        (count,) = counts
        columns = {name: _column(named[name], kind) for name, kind in kinds.items()}
        decoder = self._decoder
        if self._quick and count and len(columns) == len(self._columns):
            ordered = [columns[name] for name in self._columns]
            if decoder.block is not None:
                return Rows("block", np.column_stack(ordered), count, decoder.params(params))
            return Rows("columns", ordered, count, decoder.params(params))
        data = [_plain_column(column) for column in columns.values()]
        split = {"columns": list(columns), "data": [list(row) for row in zip(*data, strict=True)]}
        return decoder.document({"dataframe_split": split, **({} if params is None else {"params": params})})

    # -- what is answered --

    def write(self, found: Any, asked: Asked) -> Answer:
        """found: as `encode.plain` has it. Raises Refusal for an output that is not there, and Unencodable."""
        outputs = self._named_outputs(found)
        if asked.outputs is not None:
            for name in asked.outputs:
                if name not in outputs:
                    raise Refusal(f"{self._name} answered with no output {_short(name)}; it has {_some(outputs)}")
            outputs = {name: outputs[name] for name in asked.outputs}
        described, binary = [], []
        for name, value in outputs.items():
            wish = asked.outputs[name] if asked.outputs is not None else None
            one, octets = _output(name, value, self._declared.get(name), binary=asked.binary if wish is None else wish)
            described.append(one)
            if octets is not None:
                binary.append(octets)
        document: dict[str, Any] = {"model_name": self._name}
        if self._version is not None:
            document["model_version"] = str(self._version)
        if asked.id is not None:
            document["id"] = asked.id
        head = encode({**document, "outputs": described}, nan=self._nan, bare=True)
        if not binary:
            return Answer(200, head)
        return Answer(200, b"".join([head, *binary]), OCTETS, ((LENGTH, str(len(head)).encode()),))

    def _named_outputs(self, found: Any) -> dict[str, Any]:
        if isinstance(found, list) and found and all(type(one) is dict and one.keys() == found[0].keys() for one in found) and found[0]:
            return {str(name): [one[name] for one in found] for name in found[0]}
        if isinstance(found, list) and not found and len(self._outputs) > 1:
            return {name: [] for name in self._declared}  # a table without rows
        if isinstance(found, dict) and found:
            return {str(name): plain(value) for name, value in found.items()}
        return {self._outputs[0]["name"] if len(self._outputs) == 1 else OUTPUT: found}


def refusal(status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    """An error as this protocol has it."""
    return Answer(status, orjson.dumps({"error": message.encode("utf-8", "replace").decode()}), JSON, headers)


# -- reading --


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            document = json.loads(text)  # NaN, Infinity, lone surrogates, as for /invocations
        except ValueError as error:
            raise Refusal(f"the request is not valid JSON: {_said(error)}") from None
    if not isinstance(document, dict):
        raise Refusal("the request must be a JSON object with 'inputs'")
    return document


def _said(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8, {error.reason} at byte {error.start}"
    return f"{error.msg} at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else "a number is too long"


def _id(said: Any) -> str | None:
    if said is not None and not isinstance(said, str):
        raise Refusal("'id' must be a string")
    return said


def _parameters(of: Mapping[str, Any], what: str) -> dict[str, Any]:
    found = of.get("parameters")
    if found is not None and not isinstance(found, dict):
        raise Refusal(f"'parameters' of {what} must be an object")
    return found or {}


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    found = parameters.get(name)
    if found is not None and not isinstance(found, bool):
        raise Refusal(f"the parameter {name!r} must be true or false")
    return found


def _wanted(outputs: Any) -> dict[str, bool | None] | None:
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list):
        raise Refusal("'outputs' must be a list of objects, each with a 'name'")
    wanted: dict[str, bool | None] = {}
    for one in outputs:
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise Refusal("'outputs' must be a list of objects, each with a 'name'")
        name = one["name"]
        if name in wanted:
            raise Refusal(f"the output {_short(name)} is asked for twice")
        parameters = _parameters(one, f"the output {_short(name)}")
        if unknown := sorted(set(parameters) & {"classification", "shared_memory_region"}):
            raise Refusal(f"the parameter {unknown[0]!r} of the output {_short(name)} is an extension that is not known here")
        wanted[name] = _flag(parameters, "binary_data")
    return wanted


def _tensors(inputs: Any, tail: memoryview) -> list[Tensor]:
    if not isinstance(inputs, list) or not inputs:
        raise Refusal("'inputs' must be a list of at least one tensor")
    found: list[Tensor] = []
    seen: set[str] = set()
    at = 0
    for place, one in enumerate(inputs):
        if not isinstance(one, dict) or not isinstance(one.get("name"), str):
            raise Refusal(f"inputs[{place}] must be an object with a 'name'")
        name = one["name"]
        if name in seen:
            raise Refusal(f"the input {_short(name)} stands there twice")
        seen.add(name)
        datatype, shape = one.get("datatype"), one.get("shape")
        if not isinstance(datatype, str) or (datatype not in DTYPES and datatype != BYTES):
            raise Refusal(f"input {_short(name)}: the datatype must be one of {', '.join(DTYPES)} and BYTES; got {_short(datatype)}")
        if not isinstance(shape, list) or len(shape) > RANK or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
            raise Refusal(f"input {_short(name)}: the shape must be a list of at most {RANK} whole numbers; got {_short(shape)}")
        size = _parameters(one, f"the input {_short(name)}").get("binary_data_size")
        if size is None:
            if "data" not in one:
                raise Refusal(f"input {_short(name)} has no 'data', and no parameter 'binary_data_size'")
            found.append(Tensor(name, datatype, tuple(shape), _from_json(name, datatype, tuple(shape), one["data"])))
            continue
        if "data" in one:
            raise Refusal(f"input {_short(name)} has both 'data' and 'binary_data_size'")
        if type(size) is not int or not 0 <= size <= len(tail) - at:
            raise Refusal(f"input {_short(name)}: binary_data_size is {_short(size)}; {len(tail) - at} bytes are left after the JSON")
        found.append(Tensor(name, datatype, tuple(shape), _from_octets(name, datatype, tuple(shape), tail[at : at + size])))
        at += size
    if at != len(tail):
        raise Refusal(f"{len(tail) - at} bytes follow the last tensor: does Inference-Header-Content-Length say the length of the JSON?")
    return found


def _from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Any:
    """Flat, or nested as the shape is."""
    flat = data if isinstance(data, list) else [data]
    if flat and isinstance(flat[0], list):
        for depth, size in enumerate(shape):
            parts = [data] if depth == 0 else flat
            if not all(type(part) is list and len(part) == size for part in parts):
                raise Refusal(f"input {_short(name)}: the data is not nested as the shape {list(shape)} says")
            flat = list(chain.from_iterable(parts))
    if len(flat) != math.prod(shape):
        raise Refusal(f"input {_short(name)} has {len(flat)} values; the shape {list(shape)} wants {math.prod(shape)}")
    types = set(map(type, flat))
    dtype = DTYPES.get(datatype)
    may = {str} if dtype is None else ELEMENTS[dtype.kind]
    if not types <= may:
        wrong = next(place for place, value in enumerate(flat) if type(value) not in may)
        raise Refusal(f"input {_short(name)}, element {wrong}: expected {datatype}, got {_short(flat[wrong])}")
    if dtype is None:
        return flat
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=dtype).reshape(shape)
    except (OverflowError, ValueError, TypeError):
        wrong = next((place for place, value in enumerate(flat) if not _holds(dtype, value)), 0)
        raise Refusal(f"input {_short(name)}, element {wrong}: {_short(flat[wrong] if flat else None)} is no {datatype}") from None


def _holds(dtype: "np.dtype[Any]", value: Any) -> bool:
    try:
        np.array(value, dtype=dtype)
    except (OverflowError, ValueError, TypeError):
        return False
    return True


def _from_octets(name: str, datatype: str, shape: tuple[int, ...], octets: memoryview) -> Any:
    count = math.prod(shape)
    dtype = DTYPES.get(datatype)
    if dtype is None:
        return _byte_strings(name, count, octets)
    if len(octets) != count * dtype.itemsize:
        raise Refusal(f"input {_short(name)} has {len(octets)} bytes; {datatype} of the shape {list(shape)} are {count * dtype.itemsize}")
    try:
        array = np.frombuffer(octets, dtype="u1" if dtype.kind == "b" else dtype).reshape(shape)
    except ValueError:
        raise Refusal(f"input {_short(name)}: {list(shape)} is no shape") from None
    if dtype.kind != "b":
        return array
    if array.size and array.max() > 1:
        raise Refusal(f"input {_short(name)}: a BOOL is a byte of 0 or 1")
    return array.astype(dtype)


def _byte_strings(name: str, count: int, octets: memoryview) -> list[bytes]:
    found: list[bytes] = []
    data, at, end = bytes(octets), 0, len(octets)
    while at < end and len(found) <= count:
        start = at + 4
        stop = start + (SIZE(data, at)[0] if start <= end else end)
        if stop > end:
            raise Refusal(f"input {_short(name)}, element {len(found)} reaches beyond the tensor's end")
        found.append(data[start:stop])
        at = stop
    if len(found) != count:
        raise Refusal(
            f"input {_short(name)}: the shape wants {count} elements, the bytes hold {'more' if len(found) > count else len(found)}"
        )
    return found


# -- fitting to the model --


def _exactly_one(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(tensors) != 1:
        raise Refusal(f"this model takes one input; got {len(tensors)}")
    return tensors


def _fitting(one: Tensor, dtype: "np.dtype[Any]", shape: Sequence[int]) -> "np.ndarray[Any, Any]":
    """As an array of this type; its shape must be this one, -1 for any size."""
    if len(one.shape) != len(shape) or not shape or any(want not in (-1, got) for want, got in zip(shape, one.shape, strict=True)):
        raise Refusal(f"input {_short(one.name)} has the shape {list(one.shape)}; expected {list(shape)}, where -1 is any size")
    return _cast(one, dtype)


def _as_array(one: Tensor, dtype: "np.dtype[Any]", shape: Sequence[int]) -> "np.ndarray[Any, Any]":
    if dtype.kind in "biuf":
        return _fitting(one, dtype, shape)
    if one.datatype != BYTES:
        raise Refusal(f"input {_short(one.name)}: expected BYTES, got {one.datatype}")
    return np.array(_texts(one), dtype=object if dtype.kind == "O" else dtype).reshape(one.shape)


def _cast(one: Tensor, dtype: "np.dtype[Any]") -> "np.ndarray[Any, Any]":
    """A copy, as the model may write into it. Floats take any number; whole numbers only what fits."""
    array, has = one.data, DTYPES.get(one.datatype)
    wanted = NAMES.get(dtype.newbyteorder("<"), str(dtype))
    if has is None or has.kind not in TAKES[dtype.kind]:
        raise Refusal(f"input {_short(one.name)}: expected {wanted}, got {one.datatype}")
    if dtype.kind in "iu" and array.size:
        least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if int(array.min()) < least or int(array.max()) > most:
            wrong = next(place for place, value in enumerate(array.flat) if not least <= int(value) <= most)
            raise Refusal(f"input {_short(one.name)}, element {wrong}: {array.flat[wrong]} does not fit into {wanted} ({least} to {most})")
    with np.errstate(over="ignore"):
        found: np.ndarray[Any, Any] = array.astype(dtype)
    return found


def _column(one: Tensor, kind: str) -> Any:
    """A flat array for numbers, else a list with one element for each row."""
    if kind in COLUMNS:
        return _cast(one, DTYPES[COLUMNS[kind]].newbyteorder("=")).reshape(-1)
    if not kind and one.datatype != BYTES:  # a list of numbers for each row
        return list(one.data)
    if one.datatype != BYTES:
        raise Refusal(f"input {_short(one.name)}: expected BYTES, got {one.datatype}")
    if kind == "binary":
        return [value if isinstance(value, bytes) else _decoded(one, row, value) for row, value in enumerate(one.data)]
    texts = _texts(one)
    return texts if kind else [_json_element(one, row, text) for row, text in enumerate(texts)]


def _plain_column(column: Any) -> list[Any]:
    """For a JSON body: bytes as base64."""
    if isinstance(column, np.ndarray):
        return list(column.tolist())
    return [
        base64.b64encode(value).decode() if isinstance(value, bytes) else value.tolist() if isinstance(value, np.ndarray) else value
        for value in column
    ]


def _texts(one: Tensor) -> list[str]:
    if one.data and isinstance(one.data[0], str):
        return list(one.data)
    found: list[str] = []
    for row, value in enumerate(one.data):
        try:
            found.append(value.decode())
        except UnicodeDecodeError as error:
            raise Refusal(f"input {_short(one.name)}, element {row} is not UTF-8: {error.reason} at byte {error.start}") from None
    return found


def _decoded(one: Tensor, row: int, value: str) -> bytes:
    try:
        return base64.b64decode(value.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Refusal(f"input {_short(one.name)}, element {row}: expected base64, {error}") from None


def _json_element(one: Tensor, row: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Refusal(f"input {_short(one.name)}, element {row}: expected JSON, {_said(error)}") from None


def _nested(one: Tensor) -> Any:
    if one.datatype == BYTES:
        return np.array(_texts(one), dtype=object).reshape(one.shape).tolist()
    return one.data.tolist()


# -- writing --


def _output(name: str, value: Any, declared: "np.dtype[Any] | None", *, binary: bool) -> tuple[dict[str, Any], bytes | None]:
    """Its description, with the data where it goes as JSON; its bytes where it does not."""
    array = _numbers(value, declared)
    if array is not None:
        datatype = NAMES[array.dtype.newbyteorder("<")]
        described: dict[str, Any] = {"name": name, "datatype": datatype, "shape": list(array.shape)}
        if not binary:
            return {**described, "data": array.ravel().tolist()}, None
        octets = array.astype(DTYPES[datatype]).tobytes()
        return {**described, "parameters": {"binary_data_size": len(octets)}}, octets
    shape, leaves, content = _byte_elements(value)
    described = {"name": name, "datatype": BYTES, "shape": shape}
    parameters: dict[str, Any] = {} if content is None else {"content_type": content}
    if not binary:
        data = [base64.b64encode(one).decode() if isinstance(one, bytes) else one for one in leaves]
        return {**described, **({"parameters": parameters} if parameters else {}), "data": data}, None
    parts = [one if isinstance(one, bytes) else one.encode("utf-8", "replace") for one in leaves]
    octets = b"".join(len(one).to_bytes(4, "little") + one for one in parts)
    if content == "base64":
        del parameters["content_type"]  # the bytes themselves
    return {**described, "parameters": {**parameters, "binary_data_size": len(octets)}}, octets


def _numbers(value: Any, declared: "np.dtype[Any] | None") -> "np.ndarray[Any, Any] | None":
    """As an array; None where it is not numbers alone. declared: by the signature, which wins where the values are of that kind."""
    leaf = value
    while isinstance(leaf, list) and leaf:
        leaf = leaf[0]
    if isinstance(leaf, str | bytes | dict):
        return None  # not looked at by numpy, which would make strings of numbers beside strings
    try:
        array = np.array(value)
        if array.dtype == object:
            if not all(type(one) in (int, float, type(None)) for one in array.flat):
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
    """Shape, elements, and what they are beside text: base64, or json for what is neither text, bytes nor dates."""
    rows = value if isinstance(value, list) else [value]
    shape, level = [len(rows)], rows
    while level and len(shape) < RANK and all(type(one) is list and len(one) == len(level[0]) for one in level):
        shape.append(len(level[0]))
        level = list(chain.from_iterable(level))
    return _elements(shape, level, rows)


def _elements(shape: list[int], leaves: list[Any], rows: list[Any]) -> tuple[list[int], list[str | bytes], str | None]:
    if all(isinstance(one, str) for one in leaves):
        return shape, leaves, None
    if all(isinstance(one, bytes | bytearray) for one in leaves):
        return shape, [bytes(one) for one in leaves], "base64"
    if all(isinstance(one, datetime.date | datetime.time) and one == one for one in leaves):  # NaT is not itself
        return shape, [one.isoformat() for one in leaves], None
    return [len(rows)], [encode(one, bare=True).decode() for one in rows], "json"


# -- describing --


def _described(schema: Any, unnamed: str) -> list[dict[str, Any]]:
    """The inputs or outputs of a signature."""
    if schema is None:
        return []
    found = []
    tensors = schema.is_tensor_spec()
    for place, one in enumerate(schema.inputs):
        datatype, shape = (_of_dtype(np.dtype(one.type)), list(one.shape)) if tensors else _of_type(one.type)
        name = one.name if one.name is not None else unnamed.replace("0", str(place))
        found.append({"name": str(name), "datatype": datatype, "shape": shape})
    return found


def _of_dtype(dtype: "np.dtype[Any]") -> str:
    return NAMES.get(dtype.newbyteorder("<"), BYTES)


def _of_type(kind: Any) -> tuple[str, list[int]]:
    depth, inner = 1, kind
    while type(inner).__name__ == "Array":
        depth, inner = depth + 1, inner.dtype
    datatype = COLUMNS.get(getattr(inner, "name", ""))
    if datatype is None:
        return BYTES, [-1]
    return datatype, [-1] * depth


def _some(names: Iterable[str]) -> str:
    return _short(", ".join(names), 200)


def _short(value: object, limit: int = 80) -> str:
    text = repr(value) if limit == 80 else str(value)
    return text if len(text) <= limit else f"{text[:limit]}…"
