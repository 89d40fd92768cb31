"""The service's names and addresses in the checklist, from its own files."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlops_build import service as service_file
from mlops_build.adapters import dvc_remote, githost
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.errors import NotFound, Refused, UsageError
from mlops_build.service import Service

SPECS = "bamboo-specs/bamboo.yaml"


@dataclass(frozen=True)
class Names:
    """root: the service's folder. plans: full keys such as ML-DIGITS, the deployment's source plan first.

    capabilities: the ones that jobs require. origin: the repository's address. remote, endpoint: of DVC's default remote. python: the
    interpreter's command.
    """

    root: Path
    service: Service
    project: str
    plans: tuple[str, ...]
    deployment: str
    capabilities: tuple[str, ...]
    origin: str | None
    remote: str | None
    endpoint: str | None
    python: str

    @property
    def image(self) -> str:
        """The repository that images are pushed to."""
        return f"{self.service.image.registry}/{self.service.name}"

    @property
    def image_host(self) -> str:
        return self.service.image.registry.partition("/")[0]

    @property
    def repository(self) -> githost.Repository | None:
        """The repository on Bitbucket; None if origin is on another host."""
        try:
            return githost.repository_of(self.origin) if self.origin else None
        except UsageError:
            return None

    @property
    def wants_token(self) -> bool:
        """Whether git or the API of the host needs MLOPS_GIT_TOKEN."""
        return self.service.git.pull_requests != "none" or str(self.origin).startswith("https://")


def read(root: Path, *, origin: str | None = None) -> Names:
    """The names of the service at `root`. origin: default: the checkout's. Raises NotFound or Refused."""
    service = service_file.load(root)
    documents = _documents(root / SPECS)
    deployments = [document.get("deployment") for document in documents if "environments" in document]
    deployment = next((deployment for deployment in deployments if isinstance(deployment, dict)), {})
    source = str(deployment.get("source-plan", ""))
    keys = sorted(_plan_keys(root / SPECS, documents), key=lambda key: (key != source, key))
    if not keys:
        raise NotFound(f"{root / SPECS} has no plan", remedy="restore it from Git, or update the service from its template")
    remote = dvc_remote.default_remote(root)
    checkout = Checkout.find(root)
    return Names(
        root=root,
        service=service,
        project=keys[0].partition("-")[0],
        plans=tuple(keys),
        deployment=str(deployment.get("name", "")),
        capabilities=tuple(sorted(set(_requirements(documents)))),
        origin=origin or (checkout.origin_url() if checkout else None),
        remote=remote.url if remote else None,
        endpoint=remote.endpoint if remote else None,
        python=_python(root / "pyproject.toml"),
    )


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


def _python(path: Path) -> str:
    match = re.search(r'requires-python = ">=(3\.[0-9]{1,2})"', path.read_text()) if path.is_file() else None
    return f"python{match[1]}" if match else "python3"
