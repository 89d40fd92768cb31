"""context.json: the contents of a build context and its image. This module imports little, because a pod reads it at every start."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build.errors import NotFound, Refused
from mlops_build.model.version import BadVersion, ModelVersion
from mlops_build.reason import checked

FILE = "context.json"
SCHEMA = 1


class BadContents(Refused):
    """An invalid context.json."""


@dataclass(frozen=True)
class Contents:
    """The contents of a context. image: the name to build it as; None if there is no service.yaml with a registry. The first model answers
    /invocations. unsafe_pickle: the reason why pickled files were accepted, if there are any."""

    service: str
    image: str | None
    python: str
    torch: str
    models: tuple[ModelVersion, ...]
    unsafe_pickle: str | None = None

    def as_json(self) -> dict[str, Any]:
        models = [
            {"name": model.name, "version": model.version, "digest": model.digest, "path": folder_of(model.name)} for model in self.models
        ]
        return {
            "schema": SCHEMA,
            "service": self.service,
            "image": self.image,
            "python": self.python,
            "torch": self.torch,
            "models": models,
            **({"unsafe_pickle": self.unsafe_pickle} if self.unsafe_pickle else {}),
        }

    def as_text(self) -> str:
        """The document, as the context and the image have it."""
        return json.dumps(self.as_json(), indent=1) + "\n"


def folder_of(model: str) -> str:
    """The folder of a model, relative to the context's, and to /app in the image."""
    return f"models/{model}"


def read(folder: Path) -> Contents:
    """The context.json in `folder`. Raises NotFound or BadContents."""
    path = folder / FILE
    remedy = "write the context again: mlops-build package MODEL_URI|ENV -o DIR"
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{folder} is not a build context: it has no {FILE}", remedy=remedy) from None
    except ValueError:
        raise BadContents(f"{path} is not JSON", remedy=remedy) from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        newer = isinstance(document, dict) and isinstance(document.get("schema"), int) and document["schema"] > SCHEMA
        raise BadContents(
            f"{path} does not have schema {SCHEMA}",
            remedy="it was written by a newer mlops-build: update this installation" if newer else remedy,
        )
    try:
        models = tuple(_model(entry) for entry in document["models"])
        reason = document.get("unsafe_pickle")
        contents = Contents(
            str(document["service"]),
            document["image"],
            str(document["python"]),
            str(document["torch"]),
            models,
            checked(str(reason)) if reason else None,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise BadContents(f"{path} does not have {error}", remedy=remedy) from None
    except (ValueError, BadVersion) as error:
        raise BadContents(f"{path}: {error}", remedy=remedy) from None
    if not contents.models:
        raise BadContents(f"{path} names no model", remedy=remedy)
    return contents


def _model(entry: Mapping[str, Any]) -> ModelVersion:
    # The name is part of a path, and the files are checked against the digest.
    model = ModelVersion(str(entry["name"]), int(entry["version"]), str(entry["digest"]))
    if entry["path"] != folder_of(model.name):
        raise ValueError(f"not a valid model entry: {str(entry)[:200]}")
    return model
