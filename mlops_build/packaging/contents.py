"""context.json: what a build context, and the image made from it, holds. Light, since a pod reads it at every start."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlops_build.errors import NotFound, Refused
from mlops_build.model.identity import DIGEST, NAME

FILE = "context.json"
SCHEMA = 1


class BadContents(Refused):
    """A context.json that is not one."""


@dataclass(frozen=True)
class Model:
    """One model version in a context. digest: over its files. path: its folder, relative to the context's."""

    name: str
    version: int
    digest: str

    @property
    def path(self) -> str:
        return f"models/{self.name}"

    def __str__(self) -> str:
        return f"{self.name} v{self.version}"


@dataclass(frozen=True)
class Contents:
    """What a context holds. image: the name it is to be built as; None where no service.yaml said a registry. The first model answers
    /invocations."""

    service: str
    image: str | None
    python: str
    torch: str
    models: tuple[Model, ...]

    def as_json(self) -> dict[str, Any]:
        models = [{**asdict(model), "path": model.path} for model in self.models]
        return {
            "schema": SCHEMA,
            "service": self.service,
            "image": self.image,
            "python": self.python,
            "torch": self.torch,
            "models": models,
        }


def read(folder: Path) -> Contents:
    """The context.json in `folder`. Raises NotFound or BadContents."""
    path = folder / FILE
    remedy = "write the context anew: mlops-build package MODEL_URI|ENV -o DIR"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{folder} is no build context: it has no {FILE}", remedy=remedy) from None
    except ValueError:
        raise BadContents(f"{path} is not JSON", remedy=remedy) from None
    if not isinstance(found, dict) or found.get("schema") != SCHEMA:
        newer = isinstance(found, dict) and isinstance(found.get("schema"), int) and found["schema"] > SCHEMA
        raise BadContents(
            f"{path} does not say schema {SCHEMA}", remedy="a newer mlops-build wrote it: update this one" if newer else remedy
        )
    try:
        models = tuple(_model(one) for one in found["models"])
        contents = Contents(str(found["service"]), found["image"], str(found["python"]), str(found["torch"]), models)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadContents(f"{path} lacks {error}", remedy=remedy) from None
    except ValueError as error:
        raise BadContents(f"{path}: {error}", remedy=remedy) from None
    if not contents.models:
        raise BadContents(f"{path} names no model", remedy=remedy)
    return contents


def _model(one: Mapping[str, Any]) -> Model:
    model = Model(str(one["name"]), int(one["version"]), str(one["digest"]))
    # The name is part of a path, and the digest is what the files are held against.
    if not NAME.fullmatch(model.name) or not DIGEST.fullmatch(model.digest) or one["path"] != model.path:
        raise ValueError(f"not a model of a context: {str(one)[:200]}")
    return model
