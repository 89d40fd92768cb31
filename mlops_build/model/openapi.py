"""The HTTP contract of a service as an OpenAPI 3.1 document, from the signatures of its models. Needs no MLflow and no torch.

The schemas describe what a caller should send. docs/reference/http-contract.md says what the service accepts beyond them, such as numbers
as text.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "openapi.json"
EXAMPLES = "examples/recorded.json"
# The key for what OpenAPI has no place for: the contract's major version, and the signatures in MLflow's form, which contract.py compares.
EXTENSION = "x-mlops-build"
SCALARS: dict[str, dict[str, Any]] = {
    "boolean": {"type": "boolean"},
    "integer": {"type": "integer", "format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1},
    "long": {"type": "integer", "format": "int64", "minimum": -(2**63), "maximum": 2**63 - 1},
    "float": {"type": ["number", "null"], "format": "float"},
    "double": {"type": ["number", "null"], "format": "double"},
    "string": {"type": "string"},
    "binary": {"type": "string", "contentEncoding": "base64"},
    "datetime": {"type": "string", "format": "date-time"},
}
REFUSALS = {
    "400": "The model cannot take the body; the message says which part",
    "413": "The body is larger than the limit",
    "429": "The queue is full; retry after the time in Retry-After",
    "503": "Temporarily unavailable; retry later",
    "504": "Not answered within the deadline",
}


@dataclass(frozen=True)
class Described:
    """One model of a service.

    signature: as in MLmodel, with `inputs`, `outputs` and `params` as JSON text. recorded: body and predictions of its example, or None.
    mlflow: the MLflow version that saved it. contract: the major version that it was registered with.
    """

    name: str
    version: int | None
    signature: Mapping[str, Any]
    recorded: Mapping[str, Any] | None
    mlflow: str | None = None
    contract: int = 1


def describe(name: str, version: int | None, folder: Path) -> Described:
    """The description of the model whose files are in `folder`."""
    mlmodel = read_yaml((folder / "MLmodel").read_text(encoding="utf-8"))
    mlmodel = mlmodel if isinstance(mlmodel, dict) else {}
    example = folder / EXAMPLES
    recorded = json.loads(example.read_text(encoding="utf-8")) if example.is_file() else None
    mlflow = mlmodel.get("mlflow_version")
    return Described(name, version, mlmodel.get("signature") or {}, recorded, str(mlflow) if mlflow else None, _major(folder / FILE))


def parse(document: Mapping[str, Any]) -> list[Described]:
    """The models that a document of `openapi` describes, in its order.

    Raises KeyError, TypeError or AttributeError for any other document.
    """
    extension = document[EXTENSION]
    models = []
    for entry in extension["models"]:
        operation = document["paths"][f"/models/{entry['name']}/invocations"]["post"]
        request = operation["requestBody"]["content"]["application/json"]
        response = operation["responses"]["200"]["content"]["application/json"]
        recorded = {"input": request["example"], **response["example"]} if "example" in request else None
        models.append(Described(entry["name"], None, entry["signature"], recorded, entry.get("mlflow"), extension["contract"]))
    return models


def _major(document: Path) -> int:
    try:
        major = json.loads(document.read_text(encoding="utf-8"))[EXTENSION]["contract"]
    except (OSError, ValueError, KeyError, TypeError):
        return 1
    return major if isinstance(major, int) else 1


def openapi(service: str, models: Sequence[Described], contract: int | None = None) -> dict[str, Any]:
    """The document of a service; the first model answers at /invocations too. The same input gives the same document.

    contract: the major version. Default: the highest that a model was registered with.
    """
    major = contract or max(model.contract for model in models)
    paths: dict[str, Any] = {}
    schemas: dict[str, Any] = {
        "Error": _object({"error_code": {"type": "string"}, "message": {"type": "string"}}, ["error_code", "message"])
    }
    for position, model in enumerate(models):
        schemas[f"{model.name}.request"], schemas[f"{model.name}.response"] = _request(model), _response(model)
        operation = _operation(model)
        if position == 0:
            paths["/invocations"] = {"post": {**operation, "operationId": "invocations"}}
        paths[f"/models/{model.name}/invocations"] = {"post": operation}
    for path, what in (("/ping", "Is the process alive?"), ("/health", "Does the model answer?"), ("/version", "MLflow's version")):
        paths[path] = {"get": {"operationId": path[1:], "summary": what, "responses": {"200": {"description": "yes"}}}}
    versions = ", ".join(f"{model.name} v{model.version}" if model.version is not None else model.name for model in models)
    return {
        "openapi": "3.1.0",
        "info": {"title": service, "version": str(major), "description": f"Predictions of {versions}."},
        "paths": paths,
        "components": {"schemas": schemas},
        EXTENSION: {"schema": 1, "contract": major, "models": [_own(model) for model in models]},
    }


def as_text(document: Mapping[str, Any]) -> str:
    """The document as the text of the file, always in the same form. A list of numbers is one line, since an example may be an image."""
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    text = text.encode("utf-8", "backslashreplace").decode()  # a lone surrogate, as JSON escapes it
    # A JSON string contains no literal line break, so every match is a list.
    return re.sub(r"\[\n[-+0-9.eE,\s]*\]", lambda row: " ".join(row[0].split()).replace("[ ", "[").replace(" ]", "]"), text) + "\n"


def _own(model: Described) -> dict[str, Any]:
    signature = {part: listed(model.signature.get(part)) for part in ("inputs", "outputs", "params")}
    return {"name": model.name, "signature": signature, **({"mlflow": model.mlflow} if model.mlflow else {})}


def _operation(model: Described) -> dict[str, Any]:
    request: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{model.name}.request"}}
    response: dict[str, Any] = {"schema": {"$ref": f"#/components/schemas/{model.name}.response"}}
    if model.recorded:
        request["example"] = model.recorded["input"]
        response["example"] = {"predictions": model.recorded["predictions"]}
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {
        "operationId": f"{model.name}.invocations",
        "summary": f"Predictions of {model.name}",
        "requestBody": {"required": True, "content": {"application/json": request}},
        "responses": {
            "200": {"description": "One prediction for each row", "content": {"application/json": response}},
            **{status: {"description": why, "content": error} for status, why in REFUSALS.items()},
            "415": {
                "description": "The content type or encoding is not supported",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
        },
    }


def _request(model: Described) -> dict[str, Any]:
    inputs = listed(model.signature.get("inputs"))
    params = listed(model.signature.get("params"))
    more = {"params": _object({param["name"]: _param(param) for param in params}, [])} if params else {}

    def form(key: str, schema: dict[str, Any]) -> dict[str, Any]:
        return _object({key: schema, **more}, [key])

    if not inputs:
        return {"anyOf": [form(key, {}) for key in ("dataframe_split", "dataframe_records", "instances", "inputs")]}
    if inputs[0].get("type") == "tensor":
        if len(inputs) == 1 and not inputs[0].get("name"):
            tensor = _tensor(inputs[0])
            return {"anyOf": [form("inputs", tensor), form("instances", tensor)]}
        named = {tensor["name"]: _tensor(tensor) for tensor in inputs}
        return form("inputs", _object(named, list(named)))
    names = [column.get("name") for column in inputs]
    kinds = [_column(column) for column in inputs]
    if not all(names):
        split = _object({"data": {"type": "array", "items": {"type": "array", "prefixItems": kinds, "minItems": len(kinds)}}}, ["data"])
        return form("dataframe_split", split)
    required = [str(column["name"]) for column in inputs if column.get("required", True)]
    row = _object(dict(zip(map(str, names), kinds, strict=True)), required)
    # Records without a row have no columns, so the required ones would be missing.
    records = {"type": "array", "items": row, **({"minItems": 1} if required else {})}
    split = _object(
        {
            "columns": {"type": "array", "items": {"type": "string"}, "allOf": [{"contains": {"const": name}} for name in required]},
            "index": {"type": "array"},
            "data": {"type": "array", "items": {"type": "array"}},
        },
        ["columns", "data"],
    )
    columns = _object({str(name): {"type": "array", "items": kind} for name, kind in zip(names, kinds, strict=True)}, required)
    return {
        "anyOf": [
            form("dataframe_split", split),
            form("dataframe_records", records),
            form("instances", records),
            form("inputs", columns),
        ]
    }


def _response(model: Described) -> dict[str, Any]:
    outputs = listed(model.signature.get("outputs"))
    if not outputs:
        predictions: dict[str, Any] = {}
    elif outputs[0].get("type") == "tensor":
        predictions = _tensor(outputs[0], sent=False) if len(outputs) == 1 else {}
    elif all(column.get("name") for column in outputs):
        properties = {column["name"]: _column(column) for column in outputs}
        predictions = {"type": "array", "items": _object(properties, [])}
    else:
        predictions = {"type": "array"}
    return _object({"predictions": predictions}, ["predictions"])


def _column(column: Mapping[str, Any]) -> dict[str, Any]:
    kind = column.get("type")
    if kind == "array":
        return {"type": "array", "items": _column(column.get("items", {}))}
    if kind == "object":
        properties = column.get("properties", {})
        required = [name for name, inner in properties.items() if inner.get("required", True)]
        return _object({name: _column(inner) for name, inner in properties.items()}, required)
    if kind == "map":
        return {"type": "object", "additionalProperties": _column(column.get("values", {}))}
    schema = dict(SCALARS.get(str(kind), {}))
    if not column.get("required", True) and isinstance(schema.get("type"), str):
        schema["type"] = [schema["type"], "null"]
    return schema


def _tensor(tensor: Mapping[str, Any], *, sent: bool = True) -> dict[str, Any]:
    """sent: True for an input, False for an output."""
    spec = tensor.get("tensor-spec", {})
    dtype = str(spec.get("dtype", ""))
    schema: dict[str, Any] = {"type": ["number", "null"]} if dtype.startswith("float") else {"type": "integer"} if "int" in dtype else {}
    schema = {"type": "boolean"} if dtype == "bool" else schema
    if match := re.fullmatch(r"(u?)int(8|16|32|64)", dtype):
        bits = int(match[2])
        low, high = (0, 2**bits - 1) if match[1] else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        schema |= {"minimum": low, "maximum": high}
    for position, size in enumerate(reversed(spec.get("shape", []))):
        # Only the last dimension may be empty: numpy reads an empty list as one dimension.
        bounds = {"minItems": size, "maxItems": size} if size != -1 else {"minItems": 1} if position and sent else {}
        schema = {"type": "array", "items": schema, **bounds}
    return schema


def _param(param: Mapping[str, Any]) -> dict[str, Any]:
    schema = dict(SCALARS.get(str(param.get("type")), {}))
    return {**({"type": "array", "items": schema} if param.get("shape") else schema), "default": param.get("default")}


def _object(properties: Mapping[str, Any], required: Sequence[str]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), **({"required": list(required)} if required else {})}


def read_yaml(text: str) -> Any:
    """Parse the text of an MLmodel file, plain values only. Raises ValueError for invalid YAML."""
    import yaml  # imported here, since a machine that only reads openapi.json may not have it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error).splitlines()[0]) from None


def listed(text: Any) -> list[dict[str, Any]]:
    """A part of a signature as a list. In MLmodel it is JSON text."""
    part = json.loads(text) if isinstance(text, str) else text
    return [entry for entry in part if isinstance(entry, dict)] if isinstance(part, list) else []
