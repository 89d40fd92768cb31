"""The origin of a model, read from the working tree: commit, data, parameters, package and template version."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mlops_build import __version__
from mlops_build.adapters import dvc
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.model import environment, identity

ANSWERS = ".copier-answers.yml"
# Keys of `adopted` in params.yaml → tags.
ADOPTED = {
    "version": identity.WEIGHTS_FROM,
    "origin": identity.ORIGIN,
    "sha256": identity.FILE_TAG,
    "decided_by": identity.DECIDED_BY,
}


def template_version(root: Path) -> str:
    """The template's version from which the service was last rendered; "unknown" for a service that copier did not create."""
    path = root / ANSWERS
    answers = (YAML(typ="safe").load(path.read_text()) or {}) if path.is_file() else {}
    return str(answers.get("_commit", "unknown"))


def params_hash(values: Mapping[str, Any]) -> str:
    """A hash of params.yaml's values that does not depend on their order: "sha256:<64 hex>"."""
    return f"sha256:{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()}"


def run_tags(root: Path) -> dict[str, str]:
    """Lineage as tags of a run. In a folder that is not a Git repository, the commit is "none"."""
    checkout = Checkout.find(root)
    tags = {identity.PACKAGE: __version__, identity.TEMPLATE: template_version(root), identity.DATA: dvc.data_hash(dvc.tracked(root))}
    head = checkout.head() if checkout else None
    return {**tags, identity.COMMIT_TAG: head or "none", identity.DIRTY: "true" if not head or dirt(root) else "false"}


def adopted(params: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a version whose weights were adopted: those of the section `adopted` that `mlops-build scaffold --model` writes."""
    section = params.get("adopted")
    if not isinstance(section, Mapping) or not str(section.get("version")).startswith("models:/"):
        return {}
    return {tag: str(section[key]) for key, tag in ADOPTED.items() if section.get(key)}


def dirt(root: Path) -> list[str]:
    """Uncommitted changes, except the files that the pipeline writes. With them, a version's commit would not be its origin."""
    checkout = Checkout.find(root)
    return checkout.changes(ignoring=dvc.machine_files(root)) if checkout else []


def lineage(
    root: Path,
    *,
    service: str,
    repository: str,
    commit: str,
    dirty: bool,
    params: Mapping[str, Any],
    metrics: Mapping[str, float],
    run_id: str,
) -> dict[str, Any]:
    """The lineage document of a model version. It has no time stamps, so that the same origin gives the same bytes."""
    return {
        "schema": 1,
        "service": service,
        "code": {"repository": repository, "commit": commit, "dirty": dirty},
        "data": dvc.tracked(root),
        "stages": [
            {"name": stage.name, "deps": dict(stage.deps), "outs": dict(stage.outs), "params": dict(stage.params)}
            for stage in dvc.stages(root)
        ],
        "params": dict(params),
        "metrics": dict(metrics),
        "run": run_id,
        "environment": {
            "python": environment.python_version(),
            "torch": environment.torch_version(),
            "mlops-build": __version__,
            "template": template_version(root),
        },
    }
