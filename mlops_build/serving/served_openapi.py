"""The OpenAPI document of a running service: the contract of its models (model/openapi.py), and what the server adds, which is the paths of
the Open Inference Protocol and bodies that are not JSON.

The contract is stored with the model version, and callers may rely on it. A server may offer more.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from mlops_build.serving.input.decode import Decoder
from mlops_build.serving.v2.model import V2

# The paths and schemas of the protocol: of the server, and of each model, whose name stands for NAME.
PROTOCOL, NAME = "v2_openapi.json", "MODEL"


def served(
    document: Mapping[str, Any], models: Sequence[tuple[V2, Decoder, Mapping[str, Any] | None]], *, tokens: bool = False
) -> dict[str, Any]:
    """The contract with the server's additions.

    models: each with its recorded example, or None; the first answers at /invocations too. tokens: whether callers need a token.
    """
    extended = copy.deepcopy(dict(document))
    paths, schemas = extended["paths"], extended["components"]["schemas"]
    for position, (model, decoder, _) in enumerate(models):
        for path in (f"/models/{model.metadata['name']}/invocations", *(["/invocations"] if position == 0 else [])):
            paths[path]["post"]["requestBody"]["content"] |= _bodies(decoder)
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


def _bodies(decoder: Decoder) -> dict[str, Any]:
    """The media types that the contract does not have."""
    return {reader.kind: {"schema": reader.schema(decoder.signature)} for reader in decoder.readers if reader.schema is not None}
