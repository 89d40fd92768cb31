"""The OpenAPI document of a running service: the contract of its models (model/openapi.py), and what the server adds, which is the paths of
the Open Inference Protocol and bodies that are not JSON.

The contract is stored with the model version, and callers may rely on it. A server may offer more.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from mlops_build.serving.images import FORM, Raw
from mlops_build.serving.v2 import V2
from mlops_build.serving.v2_tensors import BYTES, DTYPES

ERROR = "inference.Error"
TENSOR = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "datatype": {"enum": [*DTYPES, BYTES]},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "data": {"type": "array", "description": "flat, or nested like the shape"},
        "parameters": {"type": "object"},
    },
    "required": ["name", "datatype", "shape"],
}


def served(
    document: Mapping[str, Any], models: Sequence[tuple[V2, Raw, Mapping[str, Any] | None]], *, tokens: bool = False
) -> dict[str, Any]:
    """The contract with the server's additions.

    models: each with its recorded example, or None; the first answers at /invocations too. tokens: whether callers need a token.
    """
    extended = copy.deepcopy(dict(document))
    paths, schemas = extended["paths"], extended["components"]["schemas"]
    for position, (model, raw, _) in enumerate(models):
        for path in (f"/models/{model.metadata['name']}/invocations", *(["/invocations"] if position == 0 else [])):
            paths[path]["post"]["requestBody"]["content"] |= _raw(raw)
    schemas[ERROR] = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
    for path, what in (
        ("/v2", "Name and version of the server"),
        ("/v2/health/live", "Is the process alive?"),
        ("/v2/health/ready", "Do the models answer?"),
    ):
        paths[path] = {"get": _get(path.strip("/").replace("/", "."), what)}
    for model, _, recorded in models:
        metadata = model.metadata
        name = metadata["name"]
        at = f"/v2/models/{name}"
        paths[at] = {"get": _get(f"{name}.metadata", f"Inputs and outputs of {name}")}
        paths[f"{at}/ready"] = {"get": _get(f"{name}.ready", f"Does {name} answer?")}
        schemas[f"{name}.inference"] = _request([tensor["name"] for tensor in metadata["inputs"]])
        schemas[f"{name}.inferred"] = _response(name)
        paths[f"{at}/infer"] = {"post": _infer(name, model.example(recorded))}
    if tokens:
        extended["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        extended["security"] = [{"token": []}]
        for methods in paths.values():
            for operation in methods.values():
                operation["responses"]["401"] = {"description": "The token is missing or not valid"}
    return extended


def without_contract(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document without schemas and examples: what /docs may show without a token."""
    stripped = copy.deepcopy(dict(document))
    for name in stripped["components"]["schemas"]:
        stripped["components"]["schemas"][name] = {}
    for methods in stripped["paths"].values():
        if "post" in methods:
            methods["post"]["requestBody"]["content"]["application/json"].pop("example", None)
    return stripped


def _raw(raw: Raw) -> dict[str, Any]:
    properties = {name: _field(kind) for name, kind in raw.columns.items()}
    form = {"type": "object", "properties": properties, "required": raw.required}
    schemas = {FORM: form, "text/plain": {"type": "string"}, "image/*": {"type": "string", "format": "binary"}}
    return {kind: {"schema": schemas[kind]} for kind in raw.kinds}


def _field(kind: str) -> dict[str, Any]:
    """The schema of a field of a form: one value per row, text or a file."""
    value = {"type": "string", "format": "binary"} if kind == "binary" else {"type": "string"}
    return {"type": "array", "items": value, "minItems": 1}


def _get(operation: str, what: str) -> dict[str, Any]:
    return {"operationId": operation, "summary": what, "responses": {"200": {"description": "yes"}}}


def _request(names: Sequence[str]) -> dict[str, Any]:
    described = f"Inputs of this model: {', '.join(names)}" if names else "Tensors"
    return {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "inputs": {"type": "array", "items": TENSOR, "minItems": 1, "description": described},
            "outputs": {"type": "array", "items": {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
            "parameters": {"type": "object"},
        },
        "required": ["inputs"],
    }


def _response(name: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {
            "model_name": {"const": name},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "outputs": {"type": "array", "items": TENSOR},
        },
        "required": ["model_name", "outputs"],
    }


def _infer(name: str, example: Mapping[str, Any] | None) -> dict[str, Any]:
    request: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{name}.inference"}}
    if example is not None:
        request["example"] = example
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{ERROR}"}}}
    answer = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}.inferred"}}}
    why = {
        "400": "The model cannot take the tensors; the message says which part",
        "413": "The body is larger than the limit",
        "415": "The content type or encoding is not supported",
        "429": "The queue is full; retry after the time in Retry-After",
        "503": "Temporarily unavailable; retry later",
        "504": "Not answered within the deadline",
    }
    return {
        "operationId": f"{name}.infer",
        "summary": f"Predictions of {name}, by the Open Inference Protocol v2",
        "requestBody": {"required": True, "content": {"application/json": request}},
        "responses": {
            "200": {"description": "One tensor for each output", "content": answer},
            **{status: {"description": text, "content": error} for status, text in why.items()},
        },
    }
