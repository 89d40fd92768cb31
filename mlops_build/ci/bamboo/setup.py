"""What an administrator sets up in Bamboo for the plans of a service: their names, the items of the checklist and the checks."""

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlops_build.checklist.plans import Plans
from mlops_build.checklist.result import Result, no, ok, unseen
from mlops_build.ci import bamboo
from mlops_build.errors import NotFound, Refused

OUTSIDE = "not run by Bamboo: run it as a script of a job"


def read(root: Path) -> Plans:
    """The plans in the specs of the service at `root`. Raises NotFound or Refused."""
    path = root / bamboo.SPECS
    documents = _documents(path)
    deployments = [document.get("deployment") for document in documents if "environments" in document]
    deployment = next((deployment for deployment in deployments if isinstance(deployment, dict)), {})
    source = str(deployment.get("source-plan", ""))
    keys = sorted(_plan_keys(path, documents), key=lambda key: (key != source, key))
    if not keys:
        raise NotFound(f"{path} has no plan", remedy="restore it from Git, or update the service from its template")
    return Plans(
        system="Bamboo",
        capabilities=tuple(sorted(set(_requirements(documents)))),
        values={
            "project": keys[0].partition("-")[0],
            "plans": " and ".join(f"`{key}`" for key in keys),
            "deployment": str(deployment.get("name", "")),
        },
        items=files("mlops_build.ci.bamboo").joinpath("items.toml").read_text(encoding="utf-8"),
        checks={"plan": lambda _: _plan(keys), "capability": lambda values: _capability(values["capability"])},
    )


def _plan(keys: Sequence[str]) -> Result:
    """Project, linked repository and specs work if this is a build of one of the plans."""
    key = os.environ.get("bamboo_planKey")  # noqa: SIM112 # Bamboo's spelling
    if not key:
        return unseen(OUTSIDE)
    if key in keys:
        return ok(f"this is a build of {key}")
    return no(f"this is a build of {key[:60]}, but the plans in bamboo-specs are {', '.join(keys)}")


def _capability(name: str) -> Result:
    """Whether the agent has a capability, which Bamboo exports to scripts."""
    if f"bamboo_capability_{name.replace('.', '_')}" in os.environ:
        return ok(f"this agent has {name}")
    if "bamboo_buildNumber" in os.environ:
        return no(f"this agent does not have {name}; its jobs run on another agent or wait")
    return unseen(OUTSIDE)


def _documents(path: Path) -> list[dict[str, Any]]:
    try:
        documents = list(YAML(typ="safe").load_all(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise NotFound(f"{path} is missing", remedy="restore it from Git, or update the service from its template") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise Refused(f"{path} is not valid YAML: {str(error).splitlines()[0]}", remedy="fix it, or restore it from Git") from None
    return [document for document in documents if isinstance(document, dict)]


def _plan_keys(path: Path, documents: list[dict[str, Any]]) -> list[str]:
    """The full key of each document that has stages. Raises Refused where its `plan:` lacks one of the two parts."""
    keys = []
    for number, document in enumerate(documents, start=1):
        if "stages" not in document:
            continue
        plan = document.get("plan")
        project, key = (plan.get("project-key"), plan.get("key")) if isinstance(plan, dict) else (None, None)
        if not (isinstance(project, str) and isinstance(key, str) and project and key):
            raise Refused(
                f"{path}: document {number} has `stages:`, but no `plan:` with `project-key:` and `key:`",
                remedy="add `plan: {project-key: PROJECT, key: KEY, name: NAME}`, or restore the file from Git",
            )
        keys.append(f"{project}-{key}")
    return keys


def _requirements(documents: list[dict[str, Any]]) -> list[str]:
    return [
        str(capability)
        for document in documents
        for value in document.values()
        if isinstance(value, dict)
        for requirement in value.get("requirements") or []
        for capability in (requirement if isinstance(requirement, Mapping) else [requirement])
    ]
