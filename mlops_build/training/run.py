"""Open an MLflow run with seeds, parameters, lineage and tracking. The code inside it uses plain mlflow.

mlflow is only imported when a run is opened, because it takes two seconds and the prepare stage only needs params.yaml.
"""

import atexit
import contextlib
import gc
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlops_build import service, tracking
from mlops_build.adapters.registry import quiet_mlflow
from mlops_build.errors import NotFound, Refused
from mlops_build.model import files
from mlops_build.model.identity import RUN_MODEL, RUN_WEIGHTS
from mlops_build.training import origin, seeds

PARAMS = "params.yaml"
# The folder of artifacts in the service's root if MLflow is a sqlite file.
ARTIFACTS = "mlartifacts"


@dataclass(frozen=True)
class Run:
    """An open run. `params` is params.yaml as a dict; `root` is the service's folder; `service` its name."""

    run_id: str
    params: Mapping[str, Any]
    root: Path
    service: str


def params(root: Path | None = None) -> dict[str, Any]:
    """The values of params.yaml of the service that contains the current folder. Raises NotFound or Refused."""
    path = (root or service.find_root()) / PARAMS
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{path} is missing", remedy="restore it from Git; it has every number that training uses") from None
    except YAMLError as error:
        raise Refused(f"{path} is not valid YAML: {str(error).splitlines()[0]}", remedy="fix the syntax") from None
    if not isinstance(values, dict) or not isinstance(values.get("seed"), int):
        raise Refused(f"{path} has no `seed`", remedy="add a line `seed: 20261124` (any whole number)")
    return values


@contextlib.contextmanager
def start_run() -> Iterator[Run]:
    """Open a run in the service's experiment: set the seeds, log params.yaml, and tag the run with its origin."""
    quiet_mlflow()
    import mlflow

    root = service.find_root()
    values, name = params(root), service.load(root).name
    seeds.fix(values["seed"])
    with mlflow.start_run(experiment_id=_experiment(root)) as run:
        mlflow.log_params(flat(values))
        mlflow.set_tags(origin.run_tags(root))
        yield Run(run.info.run_id, values, root, name)


@contextlib.contextmanager
def resume_run(made: Path) -> Iterator[Run]:
    """Reopen the run that created the model in the folder `made`, to log more to it (in the evaluate stage).

    If MLflow has no such run (for example because the model comes from DVC's cache), a new one is opened and tagged with the model.
    made: also the weights file of a script (`python -m mlops_build.training.script`), to log a model with it.
    """
    quiet_mlflow()
    import mlflow

    root = service.find_root()
    values, name = params(root), service.load(root).name
    experiment = _experiment(root)
    if (root / made).is_file():
        tag, digest = RUN_WEIGHTS, f"sha256:{files.file_digest(root / made)}"
    else:
        files.remove_bytecode(root / made)  # loading the model writes bytecode
        tag, digest = RUN_MODEL, files.digest(root / made)
    existing = tracking.registry().find_run(name, tag, digest)
    with mlflow.start_run(run_id=existing.run_id) if existing else mlflow.start_run(experiment_id=experiment) as run:
        if not existing:
            mlflow.log_params(flat(values))
            mlflow.set_tags({**origin.run_tags(root), tag: digest})
        yield Run(run.info.run_id, values, root, name)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters with dotted names, as MLflow needs them: {"train.epochs": 12}."""
    flattened: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flattened.update(flat(value, f"{prefix}{key}."))
        else:
            flattened[f"{prefix}{key}"] = value
    return flattened


def _experiment(root: Path) -> str:
    import mlflow

    # A stage ends with its run: skip the garbage collection of torch and MLflow at exit, which takes half a second.
    atexit.register(gc.freeze)
    place = tracking.find(root)
    mlflow.set_tracking_uri(place.uri)
    if place.s3_endpoint_url:  # mlflow reads it from the environment only
        os.environ.setdefault("MLFLOW_S3_ENDPOINT_URL", place.s3_endpoint_url)
    registry = tracking.registry(root, create=True)
    return registry.experiment(service.load(root).name, root / ARTIFACTS if place.uri.startswith("sqlite:") else None)
