"""The OpenAPI document of a running service: the contract of its models (model/openapi.py), and what the server adds, which is the paths of
the Open Inference Protocol and bodies that are not JSON.

The contract is stored with the model version, and callers may rely on it. A server may offer more.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from mlops_build.serving.input.images import FORM, Raw
from mlops_build.serving.v2.model import V2

# The paths and schemas of the protocol: of the server, and of each model, whose name stands for NAME.
PROTOCOL, NAME = "v2_openapi.json", "MODEL"


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
    protocol = resources.files(__package__).joinpath(PROTOCOL).read_text(encoding="utf-8")
    server = json.loads(protocol)["server"]
    paths |= server["paths"]
    schemas |= server["schemas"]
    for model, _, recorded in models:
        metadata = model.metadata
        name = metadata["name"]
        own = json.loads(protocol.replace(NAME, json.dumps(name)[1:-1]))["model"]
        if names := [tensor["name"] for tensor in metadata["inputs"]]:
            own["schemas"][f"{name}.inference"]["properties"]["inputs"]["description"] = f"Inputs of this model: {', '.join(names)}"
        if (example := model.example(recorded)) is not None:
            own["paths"][f"/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]["example"] = example
        paths |= own["paths"]
        schemas |= own["schemas"]
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
