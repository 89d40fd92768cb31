"""Read a version's lineage document and show it as a tree."""

import json
from collections.abc import Mapping
from typing import Any

from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.errors import Refused
from mlops_build.model import identity

DOCUMENT = "lineage.json"


class NoLineage(Refused):
    """The version has no valid lineage document."""


def read(registry: Registry, version: RegisteredVersion) -> dict[str, Any]:
    """A version's lineage.json, with the version's own name, digest and tags added under "version". Raises NoLineage."""
    try:
        document = json.loads(registry.read(version, DOCUMENT))
    except ValueError:
        raise NoLineage(
            f"{version.uri}: its {DOCUMENT} is not JSON", remedy="the version's files were changed: register it again"
        ) from None
    if not isinstance(document, dict) or document.get("schema") != 1:
        raise NoLineage(f"{version.uri}: its {DOCUMENT} does not have schema 1", remedy="upgrade mlops-build, or register it again")
    about = {"uri": version.uri, "digest": version.tags.get(identity.DIGEST_TAG), "image": version.tags.get(identity.IMAGE)}
    return {"version": about, **document}


def show(document: Mapping[str, Any]) -> str:
    """The lineage as text, with a branch for each part of the origin."""
    code, environment = document["code"], document["environment"]
    branches = [
        (
            "code",
            [
                f"{code['commit']}{' + uncommitted changes (dirty.patch)' if code['dirty'] else ''}",
                code["repository"] or "no remote repository",
            ],
        ),
        *([("weights", [f"of {document['weights']['version']}, commit {document['weights']['commit']}"])] if "weights" in document else []),
        ("data", [f"{path}  {revision}" for path, revision in document["data"].items()] or ["none tracked"]),
        (
            "stages",
            [f"{stage['name']}: {len(stage['deps'])} in, {', '.join(stage['outs']) or 'nothing'} out" for stage in document["stages"]],
        ),
        ("params", [f"{name} = {value}" for name, value in _flat(document["params"])]),
        (
            "metrics",
            [f"{name} = {value:.6g}" if isinstance(value, float) else f"{name} = {value}" for name, value in document["metrics"].items()],
        ),
        ("environment", [f"{name} {value}" for name, value in environment.items()]),
        ("run", [document["run"]]),
        ("digest", [str(document["version"]["digest"])]),
        *([("image", [document["version"]["image"]])] if document["version"]["image"] else []),
    ]
    lines = [document["version"]["uri"]]
    for index, (name, known) in enumerate(branches):
        leaves = known or ["none"]
        last = index == len(branches) - 1
        lines.append(f"{'└─' if last else '├─'} {name}")
        margin = "  " if last else "│ "
        lines += [f"{margin} ├─ {leaf}" for leaf in leaves[:-1]]
        lines.append(f"{margin} └─ {leaves[-1]}")
    return "\n".join(lines)


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        pairs += _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else [(f"{prefix}{name}", value)]
    return pairs
