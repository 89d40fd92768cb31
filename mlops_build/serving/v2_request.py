"""Requests of the Open Inference Protocol: their JSON, and the binary data behind it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlops_build.serving.json_text import Reserve
from mlops_build.serving.json_text import parse as parse_json
from mlops_build.serving.refusal import Refusal
from mlops_build.serving.v2_tensors import BYTES, DTYPES, RANK, Tensor, from_json, from_octets, short

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


def parse(body: bytes, json_bytes: bytes | None, reserve: Reserve) -> tuple[list[Tensor], dict[str, Any], ResponseOptions]:
    """The tensors, the parameters and the options for the response. json_bytes: Inference-Header-Content-Length. Raises Refusal."""
    length = len(body)
    if json_bytes is not None:
        if not json_bytes.isdigit() or len(json_bytes) > 18 or int(json_bytes) > length:
            raise Refusal(f"Inference-Header-Content-Length must be a number of bytes, at most the body's {length}")
        length = int(json_bytes)
    document = _parsed(body[:length] if length < len(body) else body, reserve)
    parameters = _parameters(document, "the request")
    tensors = _tensors(document.get("inputs"), memoryview(body)[length:], reserve)
    request_id, outputs = _id(document.get("id")), _wanted(document.get("outputs"))
    return tensors, parameters, ResponseOptions(request_id, outputs, _flag(parameters, "binary_data_output") or False)


def _parsed(text: bytes, reserve: Reserve) -> dict[str, Any]:
    document = parse_json(text, reserve, exact=False)  # `from_json` refuses floats for integers
    if not isinstance(document, dict):
        raise Refusal("the request must be a JSON object with 'inputs'")
    return document


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
            raise Refusal(f"the output {short(name)} is requested twice")
        parameters = _parameters(output, f"the output {short(name)}")
        if unknown := sorted(set(parameters) & {"classification", "shared_memory_region"}):
            raise Refusal(f"the parameter {unknown[0]!r} of the output {short(name)} is an extension that is not supported")
        wanted[name] = _flag(parameters, "binary_data")
    return wanted


def _tensors(inputs: Any, tail: memoryview, reserve: Reserve) -> list[Tensor]:
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
            raise Refusal(f"the input {short(name)} occurs twice")
        seen.add(name)
        datatype, shape = element.get("datatype"), element.get("shape")
        if not isinstance(datatype, str) or (datatype not in DTYPES and datatype != BYTES):
            raise Refusal(f"input {short(name)}: the datatype must be one of {', '.join(DTYPES)} and BYTES; got {short(datatype)}")
        if not isinstance(shape, list) or len(shape) > RANK or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
            raise Refusal(f"input {short(name)}: the shape must be a list of at most {RANK} whole numbers; got {short(shape)}")
        size = _parameters(element, f"the input {short(name)}").get("binary_data_size")
        if size is None:
            if "data" not in element:
                raise Refusal(f"input {short(name)} has no 'data', and no parameter 'binary_data_size'")
            tensors.append(Tensor(name, datatype, tuple(shape), from_json(name, datatype, tuple(shape), element["data"])))
            continue
        if "data" in element:
            raise Refusal(f"input {short(name)} has both 'data' and 'binary_data_size'")
        if type(size) is not int or not 0 <= size <= len(tail) - at:
            raise Refusal(f"input {short(name)}: binary_data_size is {short(size)}; {len(tail) - at} bytes are left after the JSON")
        # Numbers are converted to at most 8 bytes; an element of BYTES is text or JSON in a list.
        reserve(4 * size if datatype != BYTES else 10 * size + BYTES_ELEMENT * min(size // 4, math.prod(shape)))
        tensors.append(Tensor(name, datatype, tuple(shape), from_octets(name, datatype, tuple(shape), tail[at : at + size])))
        at += size
    if at != len(tail):
        raise Refusal(f"{len(tail) - at} bytes follow the last tensor: does Inference-Header-Content-Length say the length of the JSON?")
    return tensors
