"""The labels of an image: OCI's annotations, and the origin of each model. No time, so that they depend only on the version."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlops_build.adapters import dvc
from mlops_build.model.version import ModelVersion
from mlops_build.packaging import grammar
from mlops_build.packaging.contents import Contents
from mlops_build.packaging.recipe import Recipe

OCI, OURS = "org.opencontainers.image", "mlops-build"
KEY = re.compile(r"[a-z][a-z0-9.-]{0,150}")
VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._:/@+~-]{0,400}")


def labels(recipe: Recipe, contents: Contents, models: Sequence[Path]) -> dict[str, str]:
    """The labels of an image. models: each model's folder; its lineage.json has code, data and run.

    Raises BadValue for an invalid lineage, because its text is written into the Dockerfile.
    """
    lineages = [_lineage(folder) for folder in models]
    first = lineages[0]
    name, _, digest = recipe.base.partition("@")
    values = {
        f"{OCI}.title": contents.service,
        f"{OCI}.version": f"v{contents.models[0].version}",
        f"{OCI}.revision": first.get("commit"),
        f"{OCI}.source": first.get("repository"),
        f"{OCI}.base.name": name,
        f"{OCI}.base.digest": digest or None,
        f"{OURS}.template": first.get("template"),
    }
    for model, lineage in zip(contents.models, lineages, strict=True):
        values |= _of_model(model, lineage)
    return {key: value for key, value in values.items() if value}


def checked(values: Mapping[str, str]) -> list[tuple[str, str]]:
    """Labels as pairs, after checking them against their grammar."""
    for key, value in values.items():
        if not KEY.fullmatch(key) or not VALUE.fullmatch(value):
            raise grammar.BadValue(f"label {key[:100]!r}: {value[:100]!r} is not allowed here", remedy="allowed: plain text")
    return list(values.items())


def _of_model(model: ModelVersion, lineage: Mapping[str, str | None]) -> dict[str, str | None]:
    return {
        f"{OURS}.model.{model.name}": f"{model.version} {model.digest}",
        f"{OURS}.run.{model.name}": lineage.get("run"),
        f"{OURS}.data.{model.name}": lineage.get("data"),
    }


def _lineage(model: Path) -> dict[str, str | None]:
    """The values in lineage.json, as far as they exist."""
    try:
        document: Any = json.loads((model / "lineage.json").read_text(encoding="utf-8"))
        code, environment = document.get("code", {}), document.get("environment", {})
        commit, repository, template = code.get("commit"), code.get("repository"), environment.get("template")
        tracked, run = document.get("data"), document.get("run")
    except (OSError, ValueError, AttributeError):
        return {}
    return {
        "commit": None if commit is None else grammar.commit(commit, "lineage.json: commit"),
        "repository": grammar.address(repository),
        "template": None if template is None else grammar.release(template, "lineage.json: template"),
        # The same hash as in the version's tag.
        "data": dvc.data_hash(tracked) if isinstance(tracked, dict) else None,
        "run": None if run is None else grammar.run(run, "lineage.json: run"),
    }
