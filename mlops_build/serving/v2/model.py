"""The Open Inference Protocol v2 (of KServe, Triton and Seldon), with its binary tensor extension.

The tensors of a request become the same rows as the bodies of /invocations, and go through the same batches. Input that is neither plain
columns nor plain tensors is converted to MLflow's JSON forms and enforced by MLflow. docs/reference/http-contract.md describes the contract
with callers.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import orjson

from mlops_build import __version__
from mlops_build.serving.encode import encode, plain
from mlops_build.serving.http.answer import JSON, Answer
from mlops_build.serving.http.head import INFERENCE_LENGTH
from mlops_build.serving.input import quick
from mlops_build.serving.input.decode import Decoder, beyond
from mlops_build.serving.input.json_text import Reserve
from mlops_build.serving.input.mismatch import listed, short, type_of
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.text import media_type
from mlops_build.serving.pieces import together
from mlops_build.serving.refusal import Refusal
from mlops_build.serving.v2.output import as_tensor
from mlops_build.serving.v2.request import ResponseOptions, parse
from mlops_build.serving.v2.tensors import (
    BYTES,
    DTYPES,
    NAMES,
    Tensor,
    as_array,
    column,
    exactly_one,
    fitting,
    nested,
)

READ = ("", "application/json", "application/octet-stream")  # media types
INPUT, OUTPUT = "input-0", "output-0"  # the names for a single tensor without a name
OCTETS = b"application/octet-stream"
SERVER = {"name": "mlops-build", "version": __version__, "extensions": ["binary_tensor_data"]}


class V2:
    """One model behind this protocol, by its signature.

    signature: `mlflow.models.ModelSignature` or None. nan: how NaN is written in JSON, as for /invocations.
    """

    def __init__(self, name: str, version: int | None, decoder: Decoder, signature: Any, nan: Literal["null", "literal"] = "null") -> None:
        self._name, self._version, self._decoder, self._nan = name, version, decoder, nan
        inputs: Any = signature.inputs if signature is not None and not decoder.signature.hinted else None
        outputs = signature.outputs if signature is not None else None
        self._inputs = _described(inputs, INPUT)
        self._outputs = _described(outputs, OUTPUT)
        self._declared = {output["name"]: DTYPES.get(output["datatype"]) for output in self._outputs}
        self._tensors = inputs is not None and inputs.is_tensor_spec()
        self._named = inputs is not None and inputs.has_input_names()
        self._arrays: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {}
        if self._tensors and self._named:
            self._arrays = {tensor.name: (np.dtype(tensor.type), tuple(tensor.shape)) for tensor in inputs.inputs}
        self._columns: dict[str, str] = {}  # name → MLflow's type, "" for nested types
        if self._named and not self._tensors:
            self._columns = {column.name: type_of(column) for column in inputs.inputs}

    @property
    def metadata(self) -> dict[str, Any]:
        """The answer to GET /v2/models/NAME."""
        versions = [] if self._version is None else [str(self._version)]
        return {"name": self._name, "versions": versions, "platform": "mlflow_pyfunc", "inputs": self._inputs, "outputs": self._outputs}

    def example(self, recorded: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """A recorded example of /invocations as a request of this protocol; None if it is neither a table nor a tensor."""
        if recorded is None:
            return None
        try:
            rows = self._decoder.decode(json.dumps(recorded["input"]).encode(), READ[1])
        except Refusal:
            return None
        if rows.kind not in ("tensor", "block", "columns"):
            return None
        columns = rows.data if rows.kind == "columns" else rows.data.T if rows.kind == "block" else [rows.data]
        described = zip(self._inputs, columns, strict=True)
        tensors = [as_tensor(known["name"], plain(values), DTYPES.get(known["datatype"]), binary=False)[0] for known, values in described]
        return dict(orjson.loads(encode({"inputs": tensors}, bare=True)))  # without arrays

    # -- requests --

    def read(
        self, body: bytes, kind: str | None, json_bytes: bytes | None, reserve: Reserve = lambda _: None
    ) -> tuple[Rows, ResponseOptions]:
        """Decode a body into rows and the options for the response. Raises Refusal and what `reserve` raises.

        kind: Content-Type, which Triton's clients do not send. json_bytes: Inference-Header-Content-Length.
        """
        if media_type(kind) not in READ:
            raise Refusal(f"Content-Type must be {READ[1]}, or {READ[2]} with binary tensors", status=415)
        try:
            tensors, parameters, options = parse(body, json_bytes, reserve)
            params = {name: parameters[name] for name in self._decoder.signature.parameters if name in parameters}
            return self._rows(tensors, params or None), options
        except (RecursionError, MemoryError) as error:
            raise beyond(error, body) from None

    def _rows(self, tensors: Sequence[Tensor], params: dict[str, Any] | None) -> Rows:
        model = self._decoder.signature
        if model.quick.tensor is not None:
            (tensor,) = exactly_one(tensors)
            array = fitting(tensor, *model.quick.tensor)
            return Rows("tensor", array, len(array), model.params(params))
        if self._arrays:
            named = self._by_name(tensors, self._arrays)
            arrays = {name: as_array(tensor, *self._arrays[name]) for name, tensor in named.items()}
            return model.enforced(arrays, params)
        if self._columns:
            if model.quick.block is not None and len(tensors) == 1 < len(self._columns) and tensors[0].name not in self._columns:
                block = fitting(tensors[0], model.quick.block, (-1, len(self._columns)))
                return Rows("block", block, len(block), model.params(params))
            return self._of_columns(self._by_name(tensors, self._columns), params)
        if self._inputs and not self._tensors:  # columns without names
            (tensor,) = exactly_one(tensors)
            return model.document({"dataframe_split": {"data": nested(tensor)}, "params": params})
        inputs = nested(tensors[0]) if len(tensors) == 1 else {tensor.name: nested(tensor) for tensor in tensors}
        return model.document({"inputs": inputs, "params": params})

    def _by_name(self, tensors: Sequence[Tensor], known: Mapping[str, Any]) -> dict[str, Tensor]:
        if len(tensors) == len(known) == 1:
            return {next(iter(known)): tensors[0]}  # a single input may have any name
        named = {tensor.name: tensor for tensor in tensors}
        for name in named:
            if name not in known:
                raise Refusal(f"{self._name} has no input {short(name)}; it takes {listed(list(known))}")
        for name in self._decoder.signature.required:
            if name not in named:
                raise Refusal(f"the input {short(name)} is missing")
        return named

    def _of_columns(self, named: Mapping[str, Tensor], params: dict[str, Any] | None) -> Rows:
        kinds = {name: self._columns[name] for name in named}
        for name, tensor in named.items():
            scalars = bool(kinds[name]) or tensor.datatype == BYTES
            if not tensor.shape or (scalars and (len(tensor.shape) > 2 or tensor.shape[1:] not in ((), (1,)))):
                raise Refusal(f"input {short(name)} has the shape {list(tensor.shape)}; expected one value for each row: [N] or [N, 1]")
        counts = {tensor.shape[0] for tensor in named.values()}
        if len(counts) > 1:
            raise Refusal(f"the inputs have different numbers of rows: {', '.join(map(str, sorted(counts)[:5]))}")
        (count,) = counts
        return self._decoder.signature.typed({name: column(named[name], kind) for name, kind in kinds.items()}, count, params)

    # -- responses --

    def write(self, output: Any, options: ResponseOptions) -> Answer:
        """The response for the model's output, in the form of `encode.plain`. Raises Unencodable, and Refusal for a missing output."""
        outputs = self._named_outputs(output)
        if options.outputs is not None:
            for name in options.outputs:
                if name not in outputs:
                    raise Refusal(f"{self._name} returned no output {short(name)}; it has {listed(list(outputs))}")
            outputs = {name: outputs[name] for name in options.outputs}
        described, binary = [], []
        for name, value in outputs.items():
            as_binary = options.outputs[name] if options.outputs is not None else None
            tensor, octets = as_tensor(name, value, self._declared.get(name), binary=options.binary if as_binary is None else as_binary)
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
        return Answer(200, together([head, *binary]), OCTETS, ((INFERENCE_LENGTH, str(len(head)).encode()),))

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
    dtype = quick.DTYPES.get(getattr(inner, "name", ""))
    return (BYTES, [-1]) if dtype is None else (NAMES[dtype], [-1] * depth)
