"""A registry in a folder, and tiny model versions laid out as `mlops-build train` lays them out, made in a second instead of a minute."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import pandas as pd
import torch

from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.model import environment, files, identity

COMMIT = "0123456789abcdef0123456789abcdef01234567"
# Not to be installed: what only looks at a context needs no real hashes.
LOCK = f"numpy==2.4.6 \\\n    --hash=sha256:{'a' * 64} \\\n    --hash=sha256:{'b' * 64}\npandas==3.1.1 \\\n    --hash=sha256:{'c' * 64}\n"
ROWS = pd.DataFrame({"x": [1.0, -2.0], "y": [0.5, 0.25]})

MODEL = '''
from typing import Any

import mlflow
import pandas as pd
import torch


class Predictor(mlflow.pyfunc.PythonModel):
    """label: the sign of a weighted sum; score: the sum."""

    def load_context(self, context: Any) -> None:
        self.weights = torch.load(context.artifacts["weights"], weights_only=True)["weights"]

    def predict(self, context: Any, model_input: pd.DataFrame, params: Any = None) -> pd.DataFrame:
        scores = torch.tensor(model_input[["x", "y"]].to_numpy("float32")) @ self.weights
        return pd.DataFrame({"label": ["plus" if score > 0 else "minus" for score in scores.tolist()], "score": scores.tolist()})
'''

SERVICE = """\
schema: 1
name: points
team: ml
models: [{name: points}]
environments:
  staging: {namespace: ml-staging, host: points-staging.example.com}
  production: {namespace: ml, host: points.example.com, replicas: 2}
image: {registry: REGISTRY, base: "python:3.11-slim"}
"""


@dataclass
class World:
    """folder: everything lies in it. registry: MLflow on sqlite. wheels: of a service called points, and of mlops-build."""

    folder: Path
    registry: Registry
    wheels: Path
    lock: str = LOCK

    @property
    def uri(self) -> str:
        return self.registry.uri

    def copy(self, database: Path) -> "World":
        """The same files under another database, whose tags and aliases can be changed."""
        shutil.copyfile(self.registry.uri.removeprefix("sqlite:///"), database)
        return replace(self, registry=Registry(f"sqlite:///{database}"))

    def files(self, name: str, *, weight: float = 1.0) -> Path:
        """A version's files in a new folder; another weight is another model."""
        folder = self.folder / name
        source = self.folder / f"{name}-source"
        source.mkdir()
        torch.save({"weights": torch.tensor([weight, 2.0])}, source / "weights.pt")
        (source / "predictor.py").write_text(
            "from mlflow.models import set_model\n\nfrom points_service.model import Predictor\n\nset_model(Predictor())\n"
        )
        predictor = _predictor()()
        predictor.load_context(SimpleNamespace(artifacts={"weights": str(source / "weights.pt")}))
        answer = predictor.predict(None, ROWS)
        _save(folder, source, mlflow.models.infer_signature(ROWS, answer))
        (folder / "examples").mkdir()
        recorded = {
            "schema": 1,
            "input": {"dataframe_split": ROWS.to_dict(orient="split", index=False)},
            "predictions": answer.to_dict(orient="records"),
        }
        (folder / "examples/recorded.json").write_text(json.dumps(recorded))
        wheels = folder / "environment/wheels"
        wheels.mkdir(parents=True)
        for wheel in self.wheels.iterdir():
            (wheels / wheel.name).write_bytes(wheel.read_bytes())
        (folder / "environment/requirements.lock").write_text(self.lock)
        needs = {"schema": 1, "python": environment.python_version(), "torch": environment.torch_version()}
        (folder / "environment/environment.json").write_text(json.dumps(needs))
        (folder / "lineage.json").write_text(json.dumps({"schema": 1, "code": {"commit": COMMIT, "repository": "", "dirty": False}}))
        return folder

    def register(self, folder: Path, name: str = "points", *, digest: str | None = None) -> RegisteredVersion:
        """A registered version with these files, tagged as training tags it."""
        experiment = self.registry.experiment("points", self.folder / "artifacts")
        run = mlflow.MlflowClient(self.uri).create_run(experiment)
        digest = digest or files.digest(folder)
        source = self.registry.upload(run.info.run_id, folder, f"versions/{digest.removeprefix('sha256:')[:12]}")
        tags = {identity.SERVICE: "points", identity.COMMIT_TAG: COMMIT, identity.DIGEST_TAG: digest}
        return self.registry.create_version(name, source, run.info.run_id, tags)


def make(folder: Path, *dependencies: str) -> World:
    """A new world in an empty folder. dependencies: of the service; pandas and torch by default."""
    wheels = folder / "wheels"
    environment.project_wheel(_project(folder / "project", dependencies or ("pandas>=2.2", "torch>=2.6")), wheels)
    environment.mlops_build_wheel(wheels)
    return World(folder, Registry(f"sqlite:///{folder / 'mlflow.db'}", create=True), wheels)


def _project(folder: Path, dependencies: Sequence[str]) -> Path:
    package = folder / "points_service"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text(MODEL)
    (folder / "pyproject.toml").write_text(
        textwrap.dedent(f"""\
        [build-system]
        requires = ["hatchling"]
        build-backend = "hatchling.build"

        [project]
        name = "points"
        version = "0.1.0"
        requires-python = ">=3.11"
        dependencies = {list(dependencies)}

        [tool.hatch.build.targets.wheel]
        packages = ["points_service"]
        """)
    )
    return folder


def _predictor() -> type:
    namespace: dict[str, type] = {}
    exec(MODEL, namespace)  # noqa: S102 # our own text above; importing it would leave the package in every test's process
    return namespace["Predictor"]


def _save(folder: Path, source: Path, signature: object) -> None:
    """`mlflow.pyfunc.save_model` without loading the model: the predictor's package is not installed here."""
    from mlflow.models import Model

    (folder / "artifacts").mkdir(parents=True)
    (folder / "artifacts/weights.pt").write_bytes((source / "weights.pt").read_bytes())
    (folder / "predictor.py").write_bytes((source / "predictor.py").read_bytes())
    model = Model(signature=signature)
    model.add_flavor(
        "python_function",
        loader_module="mlflow.pyfunc.model",
        python_version="3.11.0",
        artifacts={"weights": {"path": "artifacts/weights.pt", "uri": "artifacts/weights.pt"}},
        model_code_path="predictor.py",
        streamable=False,
        env={},
    )
    model.save(str(folder / "MLmodel"))


def answered(folder: Path) -> list[dict[str, object]]:
    """What a version recorded as its answer."""
    return json.loads((folder / "examples/recorded.json").read_text())["predictions"]
