"""The Open Inference Protocol v2 (of KServe, Triton and Seldon), with its binary tensor extension.

The tensors of a request become the same rows as the bodies of /invocations, and go through the same batches. Input that is neither plain
columns nor plain tensors is converted to MLflow's JSON forms and enforced by MLflow. docs/reference/http-contract.md describes the contract
with callers.
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
# Types as in a binary body: little-endian.
DTYPES = {
    "BOOL": np.dtype("?"),
    **{f"{sign}INT{bits}": np.dtype(f"<{kind}{bits // 8}") for sign, kind in (("U", "u"), ("", "i")) for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
# MLflow's column types.
COLUMNS = {"boolean": "BOOL", "integer": "INT32", "long": "INT64", "float": "FP32", "double": "FP64"}
# The Python types that JSON may have for an element of each numpy kind; null is NaN, as in responses.
ELEMENTS: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float, type(None)}}
# By numpy's kind: the kinds of numbers that convert to it, and the group that it belongs to.
TAKES = {"f": "fiub", "i": "iu", "u": "iu", "b": "b"}
KINDS = {"f": "f", "i": "i", "u": "i", "b": "b"}
READ = ("", "application/json", "application/octet-stream")  # media types
INPUT, OUTPUT = "input-0", "output-0"  # the names for a single tensor without a name
SIZE = struct.Struct("<I").unpack_from
OCTETS, LENGTH = b"application/octet-stream", b"inference-header-content-length"
RANK = 32
SERVER = {"name": "mlops-build", "version": __version__, "extensions": ["binary_tensor_data"]}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input. data: an array of the shape; for BYTES a flat list of `str` (from JSON) or of `bytes` (binary)."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Any


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """The options of a request for its response.

    outputs: the requested outputs, None for all; the value says whether an output is binary, None for the default, `binary`.
    """

    id: str | None
    outputs: dict[str, bool | None] | None
    binary: bool


class V2:
    """One model behind this protocol, by its signature.

    signature: `mlflow.models.ModelSignature` or None. nan: how NaN is written in JSON, as for /invocations.
    """

    def __init__(self, name: str, version: int | None, decoder: Decoder, signature: Any, nan: Literal["null", "literal"] = "null") -> None:
        self._name, self._version, self._decoder, self._nan = name, version, decoder, nan
        inputs: Any = signature.inputs if signature is not None and not decoder.hinted else None
        outputs = signature.outputs if signature is not None else None
        self._inputs = _described(inputs, INPUT)
        self._outputs = _described(outputs, OUTPUT)
        self._declared = {output["name"]: DTYPES.get(output["datatype"]) for output in self._outputs}
        self._tensors = inputs is not None and inputs.is_tensor_spec()
        self._named = inputs is not None and inputs.has_input_names()
        self._arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        if self._tensors and self._named:
            self._arrays = {tensor.name: (np.dtype(tensor.type), tuple(tensor.shape)) for tensor in inputs.inputs}
        self._quick = bool(decoder.columns)
        self._columns: dict[str, str] = {}  # name → MLflow's type, "" for nested types
        if self._named and not self._tensors:
            self._columns = {column.name: getattr(column.type, "name", "") for column in inputs.inputs}

    @property
    def metadata(self) -> dict[str, Any]:
        """The answer to GET /v2/models/NAME."""
        versions = [] if self._version is None else [str(self._version)]
        return {"name": self._name, "versions": versions, "platform": "mlflow_pyfunc", "inputs": self._inputs, "outputs": self._outputs}

    def example(self, recorded: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """A recorded example of /invocations as a request of this protocol; None if it is neither a table nor a tensor."""
        sent = recorded.get("input") if recorded is not None else None
        if not isinstance(sent, dict):
            return None
        split, tensor = sent.get("dataframe_split"), sent.get("inputs", sent.get("instances"))
        datatypes = {tensor["name"]: tensor["datatype"] for tensor in self._inputs}
        if isinstance(split, dict) and set(self._columns) <= set(split.get("columns", [])) and self._quick:
            rows = split["data"]
            positions = {name: split["columns"].index(name) for name in self._columns}
            named = {name: [row[position] for row in rows] for name, position in positions.items()}
            inputs = [{"name": name, "datatype": datatypes[name], "shape": [len(rows)], "data": data} for name, data in named.items()]
            return {"inputs": inputs}
        if isinstance(tensor, list) and self._decoder.tensor is not None:
            array = np.array(tensor)
            return {"inputs": [{"name": INPUT, "datatype": datatypes[INPUT], "shape": list(array.shape), "data": tensor}]}
        return None

    # -- requests --

    def read(self, body: bytes, kind: str | None, json_bytes: bytes | None) -> tuple[Rows, ResponseOptions]:
        """Decode a body into rows and the options for the response. Raises Refusal, and no other exception for any body.

        kind: Content-Type, which Triton's clients do not send. json_bytes: Inference-Header-Content-Length.
        """
        if kind is not None and kind.partition(";")[0].strip().lower() not in READ:
            raise Refusal(f"Content-Type must be {READ[1]}, or {READ[2]} with binary tensors", status=415)
        try:
            return self._read(body, json_bytes)
        except RecursionError:
            raise Refusal("the body is nested too deeply") from None
        except MemoryError:
            raise Refusal("the body needs too much memory once it is parsed", status=413) from None

    def _read(self, body: bytes, json_bytes: bytes | None) -> tuple[Rows, ResponseOptions]:
        length = len(body)
        if json_bytes is not None:
            if not json_bytes.isdigit() or len(json_bytes) > 18 or int(json_bytes) > length:
                raise Refusal(f"Inference-Header-Content-Length must be a number of bytes, at most the body's {length}")
            length = int(json_bytes)
        document = _parsed(body[:length] if length < len(body) else body)
        parameters = _parameters(document, "the request")
        tensors = _tensors(document.get("inputs"), memoryview(body)[length:])
        request_id, outputs = _id(document.get("id")), _wanted(document.get("outputs"))
        options = ResponseOptions(request_id, outputs, _flag(parameters, "binary_data_output") or False)
        self._refuse_unknown_outputs(options.outputs)
        return self._rows(tensors, {name: parameters[name] for name in self._decoder.parameters if name in parameters} or None), options

    def _refuse_unknown_outputs(self, wanted: Iterable[str] | None) -> None:
        if wanted is not None and self._declared:
            for name in wanted:
                if name not in self._declared:
                    raise Refusal(f"{self._name} has no output {_short(name)}; it has {', '.join(self._declared)}")

    def _rows(self, tensors: Sequence[Tensor], params: dict[str, Any] | None) -> Rows:
        decoder = self._decoder
        if decoder.tensor is not None:
            (tensor,) = _exactly_one(tensors)
            array = _fitting(tensor, *decoder.tensor)
            return Rows("tensor", array, len(array), decoder.params(params))
        if self._arrays:
            named = self._by_name(tensors, self._arrays)
            arrays = {name: _as_array(tensor, *self._arrays[name]) for name, tensor in named.items()}
            return decoder.enforced(arrays, params)
        if self._columns:
            if decoder.block is not None and len(tensors) == 1 < len(self._columns) and tensors[0].name not in self._columns:
                block = _fitting(tensors[0], decoder.block, (-1, len(self._columns)))
                return Rows("block", block, len(block), decoder.params(params))
            return self._of_columns(self._by_name(tensors, self._columns), params)
        document: dict[str, Any] = {} if params is None else {"params": params}
        if self._inputs and not self._tensors:  # columns without names
            (tensor,) = _exactly_one(tensors)
            return decoder.document({**document, "dataframe_split": {"data": _nested(tensor)}})
        inputs = _nested(tensors[0]) if len(tensors) == 1 else {tensor.name: _nested(tensor) for tensor in tensors}
        return decoder.document({**document, "inputs": inputs})

    def _by_name(self, tensors: Sequence[Tensor], known: Mapping[str, Any]) -> dict[str, Tensor]:
        if len(tensors) == len(known) == 1:
            return {next(iter(known)): tensors[0]}  # a single input may have any name
        named = {tensor.name: tensor for tensor in tensors}
        for name in named:
            if name not in known:
                raise Refusal(f"{self._name} has no input {_short(name)}; it takes {_some(known)}")
        for name in self._decoder.required:
            if name not in named:
                raise Refusal(f"the input {_short(name)} is missing")
        return named

    def _of_columns(self, named: Mapping[str, Tensor], params: dict[str, Any] | None) -> Rows:
        kinds = {name: self._columns[name] for name in named}
        for name, tensor in named.items():
            scalars = bool(kinds[name]) or tensor.datatype == BYTES
            if not tensor.shape or (scalars and (len(tensor.shape) > 2 or tensor.shape[1:] not in ((), (1,)))):
                raise Refusal(f"input {_short(name)} has the shape {list(tensor.shape)}; expected one value for each row: [N] or [N, 1]")
        counts = {tensor.shape[0] for tensor in named.values()}
        if len(counts) > 1:
            raise Refusal(f"the inputs have different numbers of rows: {', '.join(map(str, sorted(counts)[:5]))}")
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

    # -- responses --

    def write(self, output: Any, options: ResponseOptions) -> Answer:
        """The response for the model's output, in the form of `encode.plain`. Raises Unencodable, and Refusal for a missing output."""
        outputs = self._named_outputs(output)
        if options.outputs is not None:
            for name in options.outputs:
                if name not in outputs:
                    raise Refusal(f"{self._name} returned no output {_short(name)}; it has {_some(outputs)}")
            outputs = {name: outputs[name] for name in options.outputs}
        described, binary = [], []
        for name, value in outputs.items():
            as_binary = options.outputs[name] if options.outputs is not None else None
            tensor, octets = _output(name, value, self._declared.get(name), binary=options.binary if as_binary is None else as_binary)
            described.append(tensor)
            if octets is not None:
                binary.append(octets)
        document: dict[str, Any] = {"model_name": self._name}
        if self._version is not None:
            document["model_version"] = str(self._version)
        if options.id is not None:
            document["id"] = options.id
        head = encode({**document, "outputs": described}, nan=self._nan, bare=True)
        if not binary:
            return Answer(200, head)
        return Answer(200, b"".join([head, *binary]), OCTETS, ((LENGTH, str(len(head)).encode()),))

    def _named_outputs(self, output: Any) -> dict[str, Any]:
        if (
            isinstance(output, list)
            and output
            and all(type(row) is dict and row.keys() == output[0].keys() for row in output)
            and output[0]
        ):
            return {str(name): [row[name] for row in output] for name in output[0]}
        if isinstance(output, list) and not output and len(self._outputs) > 1:
            return {name: [] for name in self._declared}  # a table without rows
        if isinstance(output, dict) and output:
            return {str(name): plain(value) for name, value in output.items()}
        return {self._outputs[0]["name"] if len(self._outputs) == 1 else OUTPUT: output}


def refusal(status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    """An error response of this protocol."""
    return Answer(status, orjson.dumps({"error": message.encode("utf-8", "replace").decode()}), JSON, headers)


# -- reading --


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        try:
            document = json.loads(text)  # NaN, Infinity, lone surrogates, as for /invocations
        except ValueError as error:
            raise Refusal(f"the request is not valid JSON: {_reason(error)}") from None
    if not isinstance(document, dict):
        raise Refusal("the request must be a JSON object with 'inputs'")
    return document


def _reason(error: ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8, {error.reason} at byte {error.start}"
    return f"{error.msg} at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else "a number is too long"


def _id(request_id: Any) -> str | None:
    if request_id is not None and not isinstance(request_id, str):
        raise Refusal("'id' must be a string")
    return request_id


def _parameters(element: Mapping[str, Any], what: str) -> dict[str, Any]:
    parameters = element.get("parameters")
    if parameters is not None and not isinstance(parameters, dict):
        raise Refusal(f"'parameters' of {what} must be an object")
    return parameters or {}


def _flag(parameters: Mapping[str, Any], name: str) -> bool | None:
    value = parameters.get(name)
    if value is not None and not isinstance(value, bool):
        raise Refusal(f"the parameter {name!r} must be true or false")
    return value


def _wanted(outputs: Any) -> dict[str, bool | None] | None:
    if outputs is None or outputs == []:
        return None
    if not isinstance(outputs, list):
        raise Refusal("'outputs' must be a list of objects, each with a 'name'")
    wanted: dict[str, bool | None] = {}
    for output in outputs:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise Refusal("'outputs' must be a list of objects, each with a 'name'")
        name = output["name"]
        if name in wanted:
            raise Refusal(f"the output {_short(name)} is requested twice")
        parameters = _parameters(output, f"the output {_short(name)}")
        if unknown := sorted(set(parameters) & {"classification", "shared_memory_region"}):
            raise Refusal(f"the parameter {unknown[0]!r} of the output {_short(name)} is an extension that is not supported")
        wanted[name] = _flag(parameters, "binary_data")
    return wanted


def _tensors(inputs: Any, tail: memoryview) -> list[Tensor]:
    if not isinstance(inputs, list) or not inputs:
        raise Refusal("'inputs' must be a list of at least one tensor")
    tensors: list[Tensor] = []
    seen: set[str] = set()
    at = 0
    for position, element in enumerate(inputs):
        if not isinstance(element, dict) or not isinstance(element.get("name"), str):
            raise Refusal(f"inputs[{position}] must be an object with a 'name'")
        name = element["name"]
        if name in seen:
            raise Refusal(f"the input {_short(name)} occurs twice")
        seen.add(name)
        datatype, shape = element.get("datatype"), element.get("shape")
        if not isinstance(datatype, str) or (datatype not in DTYPES and datatype != BYTES):
            raise Refusal(f"input {_short(name)}: the datatype must be one of {', '.join(DTYPES)} and BYTES; got {_short(datatype)}")
        if not isinstance(shape, list) or len(shape) > RANK or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
            raise Refusal(f"input {_short(name)}: the shape must be a list of at most {RANK} whole numbers; got {_short(shape)}")
        size = _parameters(element, f"the input {_short(name)}").get("binary_data_size")
        if size is None:
            if "data" not in element:
                raise Refusal(f"input {_short(name)} has no 'data', and no parameter 'binary_data_size'")
            tensors.append(Tensor(name, datatype, tuple(shape), _from_json(name, datatype, tuple(shape), element["data"])))
            continue
        if "data" in element:
            raise Refusal(f"input {_short(name)} has both 'data' and 'binary_data_size'")
        if type(size) is not int or not 0 <= size <= len(tail) - at:
            raise Refusal(f"input {_short(name)}: binary_data_size is {_short(size)}; {len(tail) - at} bytes are left after the JSON")
        tensors.append(Tensor(name, datatype, tuple(shape), _from_octets(name, datatype, tuple(shape), tail[at : at + size])))
        at += size
    if at != len(tail):
        raise Refusal(f"{len(tail) - at} bytes follow the last tensor: does Inference-Header-Content-Length say the length of the JSON?")
    return tensors


def _from_json(name: str, datatype: str, shape: tuple[int, ...], data: Any) -> Any:
    """The data of a tensor in JSON, flat or nested like the shape. Raises Refusal."""
    flat = data if isinstance(data, list) else [data]
    if flat and isinstance(flat[0], list):
        for depth, size in enumerate(shape):
            parts = [data] if depth == 0 else flat
            if not all(type(part) is list and len(part) == size for part in parts):
                raise Refusal(f"input {_short(name)}: the data is not nested like the shape {list(shape)}")
            flat = list(chain.from_iterable(parts))
    if len(flat) != math.prod(shape):
        raise Refusal(f"input {_short(name)} has {len(flat)} values; the shape {list(shape)} needs {math.prod(shape)}")
    types = set(map(type, flat))
    dtype = DTYPES.get(datatype)
    allowed = {str} if dtype is None else ELEMENTS[dtype.kind]
    if not types <= allowed:
        first_wrong = next(index for index, value in enumerate(flat) if type(value) not in allowed)
        raise Refusal(f"input {_short(name)}, element {first_wrong}: expected {datatype}, got {_short(flat[first_wrong])}")
    if dtype is None:
        return flat
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=dtype).reshape(shape)
    except (OverflowError, ValueError, TypeError):
        first_wrong = next((index for index, value in enumerate(flat) if not _holds(dtype, value)), 0)
        value = _short(flat[first_wrong] if flat else None)
        raise Refusal(f"input {_short(name)}, element {first_wrong}: {value} is not a valid {datatype}") from None


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
        raise Refusal(f"input {_short(name)} has {len(octets)} bytes; {datatype} of the shape {list(shape)} needs {count * dtype.itemsize}")
    try:
        array = np.frombuffer(octets, dtype="u1" if dtype.kind == "b" else dtype).reshape(shape)
    except ValueError:
        raise Refusal(f"input {_short(name)}: {list(shape)} is not a valid shape") from None
    if dtype.kind != "b":
        return array
    if array.size and array.max() > 1:
        raise Refusal(f"input {_short(name)}: a BOOL must be a byte of 0 or 1")
    return array.astype(dtype)


def _byte_strings(name: str, count: int, octets: memoryview) -> list[bytes]:
    strings: list[bytes] = []
    data, at, end = bytes(octets), 0, len(octets)
    while at < end and len(strings) <= count:
        start = at + 4
        stop = start + (SIZE(data, at)[0] if start <= end else end)
        if stop > end:
            raise Refusal(f"input {_short(name)}, element {len(strings)} extends beyond the end of the tensor")
        strings.append(data[start:stop])
        at = stop
    if len(strings) != count:
        raise Refusal(
            f"input {_short(name)}: the shape needs {count} elements, the bytes contain {'more' if len(strings) > count else len(strings)}"
        )
    return strings


# -- conversion to the model's types --


def _exactly_one(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    if len(tensors) != 1:
        raise Refusal(f"this model takes one input; got {len(tensors)}")
    return tensors


def _fitting(tensor: Tensor, dtype: "np.dtype[Any]", shape: Sequence[int]) -> "np.ndarray[Any, Any]":
    """The tensor as an array of this type. Its shape must be `shape`, where -1 is any size. Raises Refusal."""
    if (
        len(tensor.shape) != len(shape)
        or not shape
        or any(expected not in (-1, actual) for expected, actual in zip(shape, tensor.shape, strict=True))
    ):
        raise Refusal(f"input {_short(tensor.name)} has the shape {list(tensor.shape)}; expected {list(shape)}, where -1 is any size")
    return _cast(tensor, dtype)


def _as_array(tensor: Tensor, dtype: "np.dtype[Any]", shape: Sequence[int]) -> "np.ndarray[Any, Any]":
    if dtype.kind in "biuf":
        return _fitting(tensor, dtype, shape)
    if tensor.datatype != BYTES:
        raise Refusal(f"input {_short(tensor.name)}: expected BYTES, got {tensor.datatype}")
    return np.array(_texts(tensor), dtype=object if dtype.kind == "O" else dtype).reshape(tensor.shape)


def _cast(tensor: Tensor, dtype: "np.dtype[Any]") -> "np.ndarray[Any, Any]":
    """The tensor as a new array, since the model may write into it. Floats accept any number; integers only numbers in their range."""
    array, sent = tensor.data, DTYPES.get(tensor.datatype)
    wanted = NAMES.get(dtype.newbyteorder("<"), str(dtype))
    if sent is None or sent.kind not in TAKES[dtype.kind]:
        raise Refusal(f"input {_short(tensor.name)}: expected {wanted}, got {tensor.datatype}")
    if dtype.kind in "iu" and array.size:
        least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
        if int(array.min()) < least or int(array.max()) > most:
            wrong = next(index for index, value in enumerate(array.flat) if not least <= int(value) <= most)
            raise Refusal(
                f"input {_short(tensor.name)}, element {wrong}: {array.flat[wrong]} does not fit into {wanted} ({least} to {most})"
            )
    with np.errstate(over="ignore"):
        converted: np.ndarray[Any, Any] = array.astype(dtype)
    return converted


def _column(tensor: Tensor, kind: str) -> Any:
    """The values of a column: a flat array for numbers, otherwise a list with one element per row."""
    if kind in COLUMNS:
        return _cast(tensor, DTYPES[COLUMNS[kind]].newbyteorder("=")).reshape(-1)
    if not kind and tensor.datatype != BYTES:  # a list of numbers for each row
        return list(tensor.data)
    if tensor.datatype != BYTES:
        raise Refusal(f"input {_short(tensor.name)}: expected BYTES, got {tensor.datatype}")
    if kind == "binary":
        return [value if isinstance(value, bytes) else _decoded(tensor, row, value) for row, value in enumerate(tensor.data)]
    texts = _texts(tensor)
    return texts if kind else [_json_element(tensor, row, text) for row, text in enumerate(texts)]


def _plain_column(column: Any) -> list[Any]:
    """The values of a column for a JSON body: bytes as base64."""
    if isinstance(column, np.ndarray):
        return list(column.tolist())
    return [
        base64.b64encode(value).decode() if isinstance(value, bytes) else value.tolist() if isinstance(value, np.ndarray) else value
        for value in column
    ]


def _texts(tensor: Tensor) -> list[str]:
    if tensor.data and isinstance(tensor.data[0], str):
        return list(tensor.data)
    texts: list[str] = []
    for row, value in enumerate(tensor.data):
        try:
            texts.append(value.decode())
        except UnicodeDecodeError as error:
            raise Refusal(f"input {_short(tensor.name)}, element {row} is not UTF-8: {error.reason} at byte {error.start}") from None
    return texts


def _decoded(tensor: Tensor, row: int, value: str) -> bytes:
    try:
        return base64.b64decode(value.encode(), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise Refusal(f"input {_short(tensor.name)}, element {row}: expected base64, {error}") from None


def _json_element(tensor: Tensor, row: int, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Refusal(f"input {_short(tensor.name)}, element {row}: expected JSON, {_reason(error)}") from None


def _nested(tensor: Tensor) -> Any:
    if tensor.datatype == BYTES:
        return np.array(_texts(tensor), dtype=object).reshape(tensor.shape).tolist()
    return tensor.data.tolist()


# -- building responses --


def _output(name: str, value: Any, declared: "np.dtype[Any] | None", *, binary: bool) -> tuple[dict[str, Any], bytes | None]:
    """An output as a JSON object, and its bytes if it is binary; otherwise the object contains the data."""
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
    while isinstance(leaf, list) and leaf:
        leaf = leaf[0]
    if isinstance(leaf, str | bytes | dict):
        return None  # numpy would convert numbers next to strings into strings
    try:
        array = np.array(value)
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
    return _elements(shape, level, rows)


def _elements(shape: list[int], leaves: list[Any], rows: list[Any]) -> tuple[list[int], list[str | bytes], str | None]:
    if all(isinstance(leaf, str) for leaf in leaves):
        return shape, leaves, None
    if all(isinstance(leaf, bytes | bytearray) for leaf in leaves):
        return shape, [bytes(leaf) for leaf in leaves], "base64"
    if all(isinstance(leaf, datetime.date | datetime.time) and leaf == leaf for leaf in leaves):  # NaT does not equal itself
        return shape, [leaf.isoformat() for leaf in leaves], None
    return [len(rows)], [encode(row, bare=True).decode() for row in rows], "json"


# -- metadata --


def _described(schema: Any, unnamed: str) -> list[dict[str, Any]]:
    """The inputs or outputs of a signature as metadata. unnamed: the name for the first one without a name, with its position 0."""
    if schema is None:
        return []
    described = []
    is_tensor = schema.is_tensor_spec()
    for position, spec in enumerate(schema.inputs):
        datatype, shape = (_of_dtype(np.dtype(spec.type)), list(spec.shape)) if is_tensor else _of_type(spec.type)
        name = spec.name if spec.name is not None else unnamed.replace("0", str(position))
        described.append({"name": str(name), "datatype": datatype, "shape": shape})
    return described


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
