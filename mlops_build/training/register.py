"""Register a model version with everything that packaging needs: files, lock, wheels, recorded examples, lineage, tags."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build import __version__
from mlops_build import service as service_file
from mlops_build.adapters import dvc
from mlops_build.adapters.registry import RegisteredVersion, Registry, Run
from mlops_build.errors import Refused
from mlops_build.model import environment, files, identity, openapi
from mlops_build.training import origin

# The folder of a version's files in its run's artifacts; the subfolder is the start of their digest.
VERSIONS = "versions"
# The file with uncommitted changes, next to a version's files.
PATCH = "dirty.patch"


class NoRun(Refused):
    """MLflow has no run that created this model."""


@dataclass(frozen=True)
class Origin:
    """The origin of a version's code. `tree` is a folder with exactly that code; `patch` is only set for a dirty tree.

    contract: the major version in service.yaml.
    """

    service: str
    repository: str
    commit: str
    tree: Path
    patch: bytes | None
    contract: int = 1


def run_of(registry: Registry, service: str, folder: Path) -> Run:
    """The newest run that created the model in `folder`. Raises NoRun."""
    run = registry.find_run(service, identity.RUN_MODEL, files.digest(folder))
    if not run:
        raise NoRun(
            f"MLflow at this address has no run that created {folder.name}: it was trained elsewhere, or not written by training.log_model",
            remedy="run `mlops-build train --force` to train it here, or set MLFLOW_TRACKING_URI to the server where it was trained; "
            "train.py must call training.log_model inside training.start_run",
        )
    return run


def register(
    registry: Registry, root: Path, name: str, folder: Path, origin_: Origin, params: Mapping[str, Any], metrics: Mapping[str, float]
) -> tuple[RegisteredVersion, bool]:
    """The version of this model folder and origin, and whether it is new: the same content is never registered twice.

    The files are uploaded to a path with their digest; then a single request creates the version with all its tags. If this is killed,
    there is either no version or a complete one. Raises NoRun, and the errors of the environment and the registry.
    """
    files.remove_bytecode(folder)  # evaluating loads the model, which writes bytecode
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
        **origin.adopted(params),
        identity.DATA: dvc.data_hash(dvc.tracked(root)),
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
) -> tuple[RegisteredVersion, bool]:
    """Collect a version's files, upload them to the run's artifacts and register the version, as `register` describes.

    lineage: returns the document; only called for a new version. tags: in addition to the computed ones.
    """
    from mlops_build.packaging import assemble

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
            identity.LAYERS: assemble.layers_tag(name, made),
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
