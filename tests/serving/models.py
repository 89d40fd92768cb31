"""Small models for tests of the server: each returns its input, so that a wrong conversion gives a wrong answer."""

import json
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec

from mlops_build.model import files
from mlops_build.model.version import ModelVersion
from mlops_build.packaging.contents import Contents

ECHO = """
    def predict(self, context, data, params=None):
        return data
"""
KINDS = """
    def predict(self, context, data, params=None):
        kinds = " ".join(str(kind) for kind in data.dtypes)
        return [{"values": [str(value) for value in row], "kinds": kinds, "params": params} for row in data.to_numpy(dtype=object)]
"""
SHAPES = """
    def predict(self, context, data, params=None):
        return [{name: [list(array.shape), str(array.dtype), array.sum().item()] for name, array in data.items()}]
"""


HEAD = "import mlflow\nfrom mlflow.models import set_model\n\n\nclass Model(mlflow.pyfunc.PythonModel):\n"


def save(folder: Path, signature: ModelSignature | None, body: str = ECHO, head: str = HEAD) -> Any:
    """Save and load a model whose class has this body. head: what precedes it. Returns mlflow.pyfunc.PyFuncModel."""
    folder.mkdir(parents=True)
    code = folder / "code.py"
    methods = textwrap.indent(textwrap.dedent(body).strip("\n"), "    ")
    code.write_text(f"{head}{methods}\n\n\nset_model(Model())\n")
    mlflow.pyfunc.save_model(str(folder / "model"), python_model=str(code), signature=signature, pip_requirements=["mlflow"])
    return mlflow.pyfunc.load_model(str(folder / "model"))


def context(folder: Path, **saved: Path) -> Path:
    """A build context as in an image, with these models by name: the first answers at /invocations. They need no code of a service."""
    versions = []
    for name, model in saved.items():
        shutil.copytree(model, folder / "models" / name, ignore=shutil.ignore_patterns("__pycache__"))
        versions.append(ModelVersion(name, 1, files.digest(folder / "models" / name)))
    contents = Contents(versions[0].name, None, "3.11", "2.9.0", tuple(versions))
    (folder / "context.json").write_text(json.dumps(contents.as_json()))
    return folder


def record(model: Path, rows: Sequence[Sequence[Any]], names: Sequence[str] = ("a", "b", "c")) -> Path:
    """Give a saved model a recorded example. Returns its folder."""
    (model / "examples").mkdir()
    document = {"schema": 1, "input": {"dataframe_split": {"columns": list(names), "data": list(rows)}}, "predictions": []}
    (model / "examples/recorded.json").write_text(json.dumps(document))
    return model


def columns(*specs: tuple[str, str] | tuple[str, str, bool], params: ParamSchema | None = None) -> ModelSignature:
    """A signature of columns. specs: (name, type[, required])."""
    inputs = [ColSpec(DataType[spec[1]], spec[0], required=spec[2] if len(spec) == 3 else True) for spec in specs]
    return ModelSignature(inputs=Schema(inputs), params=params)


def tensor(dtype: str, shape: tuple[int, ...]) -> ModelSignature:
    return ModelSignature(inputs=Schema([TensorSpec(np.dtype(dtype), shape)]))


FLOATS = columns(("a", "float"), ("b", "float"), ("c", "float"))
MIXED = columns(
    ("d", "double"), ("i", "integer"), ("l", "long"), ("o", "boolean"), ("s", "string"), ("x", "float", False),
    params=ParamSchema([ParamSpec("depth", DataType.long, 3), ParamSpec("name", DataType.string, "n")]),
)  # fmt: skip
