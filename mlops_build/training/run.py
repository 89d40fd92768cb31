"""An MLflow run with seeds, parameters, lineage and tracking set up. Inside it an ML engineer uses plain mlflow.

mlflow is imported where a run is opened: the prepare stage wants params.yaml only, and would wait two seconds for it.
"""

import atexit
import contextlib
import gc
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlops_build import service
from mlops_build.errors import NotFound, Refused
from mlops_build.model import files
from mlops_build.model.identity import RUN_MODEL, RUN_WEIGHTS
from mlops_build.registry import Registry, tracking_uri
from mlops_build.training import origin, seeds

PARAMS = "params.yaml"
# Where artifacts go when MLflow is a sqlite file: beside it, in the service's root.
ARTIFACTS = "mlartifacts"


@dataclass(frozen=True)
class Run:
    """An open run. `params` is params.yaml as a dict; `root` is the service's folder; `service` its name."""

    run_id: str
    params: Mapping[str, Any]
    root: Path
    service: str


def params(root: Path | None = None) -> dict[str, Any]:
    """params.yaml of the service around the current folder, as plain Python. Raises NotFound or Refused."""
    path = (root or service.find_root()) / PARAMS
    try:
        found = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{path} is missing", remedy="restore it from Git; it holds every number that training uses") from None
    except YAMLError as error:
        raise Refused(f"{path} is not valid YAML: {str(error).splitlines()[0]}", remedy="mend it") from None
    if not isinstance(found, dict) or not isinstance(found.get("seed"), int):
        raise Refused(f"{path} has no `seed`", remedy="add a line `seed: 20261124` (any whole number)")
    return found


@contextlib.contextmanager
def start_run() -> Iterator[Run]:
    """Open a run in the service's experiment: seeds fixed, params.yaml logged, and tagged with what it is made from."""
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
    """Reopen the run that made the model in the folder `made`, to add to it (the evaluate stage does).

    Where MLflow knows no such run (the model came out of DVC's cache, say), a new one is opened and tagged as that model's.
    made: or the file of weights that a script left (`python -m mlops_build.training.script`), to log a model of it.
    """
    import mlflow

    root = service.find_root()
    values, name = params(root), service.load(root).name
    experiment = _experiment(root)
    if (root / made).is_file():
        tag, digest = RUN_WEIGHTS, f"sha256:{files.file_digest(root / made)}"
    else:
        files.remove_bytecode(root / made)  # of whoever loaded the model before
        tag, digest = RUN_MODEL, files.digest(root / made)
    found = Registry().find_run(name, tag, digest)
    with mlflow.start_run(run_id=found.run_id) if found else mlflow.start_run(experiment_id=experiment) as run:
        if not found:
            mlflow.log_params(flat(values))
            mlflow.set_tags({**origin.run_tags(root), tag: digest})
        yield Run(run.info.run_id, values, root, name)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested parameters with dotted names, as MLflow wants them: {"train.epochs": 12}."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found


def _experiment(root: Path) -> str:
    import mlflow

    # A stage ends with its run: the interpreter need not look for garbage in all of torch and MLflow then (half a second).
    atexit.register(gc.freeze)
    uri = tracking_uri(root)
    mlflow.set_tracking_uri(uri)
    registry = Registry(uri, create=True)
    return registry.experiment(service.load(root).name, root / ARTIFACTS if uri.startswith("sqlite:") else None)
