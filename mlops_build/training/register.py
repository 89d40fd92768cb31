"""Register a model version that carries everything packaging needs: files, lock, wheels, recorded examples, lineage, tags."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build import __version__, data
from mlops_build import service as service_file
from mlops_build.errors import Refused
from mlops_build.model import environment, files, identity, openapi
from mlops_build.registry import ModelVersion, Registry, Run
from mlops_build.training import origin

# Where a version's files stand among its run's artifacts; what follows is the start of their digest.
VERSIONS = "versions"
# Beside a version's files: what was not committed.
PATCH = "dirty.patch"


class NoRun(Refused):
    """MLflow knows no run that made this model."""


@dataclass(frozen=True)
class Origin:
    """Where the code of a version comes from. `tree` is a folder with exactly that code; `patch` is set for a dirty tree only.

    contract: the major of service.yaml.
    """

    service: str
    repository: str
    commit: str
    tree: Path
    patch: bytes | None
    contract: int = 1


def run_of(registry: Registry, service: str, folder: Path) -> Run:
    """The newest run that made the model in `folder`. Raises NoRun."""
    found = registry.find_run(service, identity.RUN_MODEL, files.digest(folder))
    if not found:
        raise NoRun(
            f"the pipeline has nothing to do, but MLflow at this address knows no run that made {folder.name}",
            remedy="run `mlops-build train --force` to train it anew here, or set MLFLOW_TRACKING_URI to where it was trained",
        )
    return found


def register(
    registry: Registry, root: Path, name: str, folder: Path, origin_: Origin, params: Mapping[str, Any], metrics: Mapping[str, float]
) -> tuple[ModelVersion, bool]:
    """The version for this model folder and origin, and whether it is new: the same content is never registered twice.

    The files are uploaded to a place named by their digest before the version is made, with all its tags, in one request: killed at
    any moment, either there is no version or it is whole. Raises NoRun and what the environment and the registry raise.
    """
    files.remove_bytecode(folder)  # of evaluating, which loads the model
    run = run_of(registry, origin_.service, folder)

    def lineage() -> dict[str, Any]:
        return origin.lineage(
            root,
            service=origin_.service,
            repository=origin_.repository,
            commit=origin_.commit,
            dirty=origin_.patch is not None,
            params=params,
            metrics=metrics,
            run_id=run.run_id,
        )

    tags = {
        identity.DATA: data.data_hash(data.tracked(root)),
        identity.PARAMS: origin.params_hash(params),
        identity.TEMPLATE: origin.template_version(root),
    }
    return publish(registry, name, folder, origin_, run.run_id, lineage, tags)


def publish(
    registry: Registry,
    name: str,
    folder: Path,
    origin_: Origin,
    run_id: str,
    lineage: Callable[[], Mapping[str, Any]],
    tags: Mapping[str, str],
) -> tuple[ModelVersion, bool]:
    """Put together what a version carries, upload it to the run's artifacts and register it; as `register`.

    lineage: the document, asked for where the version is new. tags: beside those that follow from the rest.
    """
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        made = Path(scratch) / "version"
        shutil.copytree(folder, made)
        _add_environment(made, origin_.tree, Path(scratch))
        contract = openapi.openapi(origin_.service, [openapi.describe(name, None, made)], origin_.contract)
        (made / openapi.FILE).write_text(openapi.as_text(contract), encoding="utf-8")
        content = files.digest(made)
        for version in registry.versions(name):
            if version.tags.get(identity.CONTENT) == content and version.tags.get(identity.DIRTY) != "true" and not origin_.patch:
                return version, False
        (made / "lineage.json").write_text(json.dumps(lineage(), indent=1, sort_keys=True) + "\n")
        if origin_.patch is not None:
            (made / PATCH).write_bytes(origin_.patch)
        digest = files.digest(made)
        source = registry.upload(run_id, made, f"{VERSIONS}/{digest.removeprefix('sha256:')[:12]}")
        all_tags = {
            identity.SERVICE: origin_.service,
            identity.REPOSITORY: origin_.repository,
            identity.COMMIT_TAG: origin_.commit,
            identity.DIGEST_TAG: digest,
            identity.CONTENT: content,
            identity.PACKAGE: __version__,
            **({identity.DIRTY: "true"} if origin_.patch is not None else {}),
            **tags,
        }
        return registry.create_version(name, source, run_id, all_tags), True


def _add_environment(made: Path, tree: Path, scratch: Path) -> None:
    wheels = made / "environment" / "wheels"
    built = [environment.project_wheel(tree, wheels), environment.mlops_build_wheel(wheels)]
    environment.image_files(tree, service_file.load(tree).image.files, made / "environment" / "files")
    locked = scratch / "lock"
    locked.mkdir()
    (made / "environment" / "requirements.lock").write_text(environment.lock(built, locked))
    needs = {"schema": 1, "python": environment.python_version(), "torch": environment.torch_version()}
    (made / "environment" / "environment.json").write_text(json.dumps(needs, indent=1) + "\n")
