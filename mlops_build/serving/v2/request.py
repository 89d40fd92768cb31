"""Requests of the Open Inference Protocol: their JSON, and the binary data behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from mlops_build.serving.input.json_text import Reserve
from mlops_build.serving.input.json_text import parse as parse_json
from mlops_build.serving.input.mismatch import short
from mlops_build.serving.refusal import Refusal
from mlops_build.serving.v2.tensors import BYTES, DTYPES, RANK, Tensor, from_json, from_octets

# The memory for an element of BYTES, without its content.
BYTES_ELEMENT = 200


@dataclass(frozen=True, slots=True)
class ResponseOptions:
    """The options of a request for its response.

    outputs: the requested outputs, None for all; the value says whether an output is binary, None for the default, `binary`.
    """

    id: str | None
    outputs: dict[str, bool | None] | None
    binary: bool


class _Parameters(BaseModel, strict=True, extra="allow"):
    """The parameters of a request, a tensor or an output that this service reads."""

    binary_data_size: NonNegativeInt | None = None
    binary_data_output: bool | None = None
    binary_data: bool | None = None


class _Tensor(BaseModel, strict=True):
    name: str
    datatype: Literal[(*DTYPES, BYTES)]  # type: ignore[valid-type]
    shape: list[Annotated[int, Field(ge=0, lt=2**31)]] = Field(max_length=RANK)
    parameters: _Parameters | None = None
    data: Any = None


class _Output(BaseModel, strict=True):
    name: str
    parameters: _Parameters | None = None


class _Request(BaseModel, strict=True):
    inputs: list[_Tensor] = Field(min_length=1, fail_fast=True)
    id: str | None = None
    parameters: _Parameters | None = None
    outputs: list[_Output] | None = Field(None, fail_fast=True)


def parse(body: bytes, json_bytes: bytes | None, reserve: Reserve) -> tuple[list[Tensor], dict[str, Any], ResponseOptions]:
    """The tensors, the parameters and the options for the response. json_bytes: Inference-Header-Content-Length. Raises Refusal."""
    length = len(body)
    if json_bytes is not None:
        if not json_bytes.isdigit() or len(json_bytes) > 18 or int(json_bytes) > length:
            raise Refusal(f"Inference-Header-Content-Length must be a number of bytes, at most the body's {length}")
        length = int(json_bytes)
    document = parse_json(body[:length] if length < len(body) else body, reserve, exact=False)  # `from_json` refuses floats for integers
    try:
        request = _Request.model_validate(document)
    except ValidationError as invalid:
        error = invalid.errors(include_url=False)[0]
        where = ".".join(map(str, error["loc"])) or "the request"
        got = "" if isinstance(error["input"], list | dict) else f"; got {short(error['input'])}"
        raise Refusal(f"{where}: {error['msg'].partition(' or instance of ')[0]}{got}") from None
    tensors = _tensors(request.inputs, memoryview(body)[length:], reserve)
    binary = (request.parameters is not None and request.parameters.binary_data_output) or False
    return tensors, document.get("parameters") or {}, ResponseOptions(request.id, _wanted(request.outputs), binary)


def _wanted(outputs: Sequence[_Output] | None) -> dict[str, bool | None] | None:
    wanted: dict[str, bool | None] = {}
    for output in outputs or ():
        if output.name in wanted:
            raise Refusal(f"the output {short(output.name)} is requested twice")
        parameters = output.parameters or _Parameters()
        if unknown := sorted({"classification", "shared_memory_region"} & set(parameters.model_extra or ())):
            raise Refusal(f"the parameter {unknown[0]!r} of the output {short(output.name)} is an extension that is not supported")
        wanted[output.name] = parameters.binary_data
    return wanted or None


def _tensors(inputs: Sequence[_Tensor], tail: memoryview, reserve: Reserve) -> list[Tensor]:
    tensors: dict[str, Tensor] = {}
    at = 0
    for sent in inputs:
        name, datatype, shape = sent.name, sent.datatype, tuple(sent.shape)
        if name in tensors:
            raise Refusal(f"the input {short(name)} occurs twice")
        size = sent.parameters.binary_data_size if sent.parameters else None
        if (size is None) != ("data" in sent.model_fields_set):
            raise Refusal(f"input {short(name)} must have either 'data' or the parameter 'binary_data_size'")
        if size is None:
            tensors[name] = Tensor(name, datatype, shape, from_json(name, datatype, shape, sent.data))
            continue
        if size > len(tail) - at:
            raise Refusal(f"input {short(name)}: binary_data_size is {size}; {len(tail) - at} bytes are left after the JSON")
        # Numbers are converted to at most 8 bytes; an element of BYTES is text or JSON in a list.
        reserve(4 * size if datatype != BYTES else 10 * size + BYTES_ELEMENT * min(size // 4, math.prod(shape)))
        tensors[name] = Tensor(name, datatype, shape, from_octets(name, datatype, shape, tail[at : at + size]))
        at += size
    if at != len(tail):
        raise Refusal(f"{len(tail) - at} bytes follow the last tensor: does Inference-Header-Content-Length say the length of the JSON?")
    return list(tensors.values())
