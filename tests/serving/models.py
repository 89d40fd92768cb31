"""Small models for tests of the server: each returns its input, so that a wrong conversion gives a wrong answer."""

import textwrap
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array, Object, Property

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
DATES = columns(("i", "integer"), ("t", "datetime"), ("s", "string"))
UNNAMED = ModelSignature(inputs=Schema([ColSpec("integer"), ColSpec("long")]))
NESTED = ModelSignature(
    inputs=Schema([
        ColSpec(Array(DataType.long), "a"), ColSpec(Object([Property("p", DataType.double)]), "o"), ColSpec("integer", "i"),
    ])
)  # fmt: skip
TENSORS = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 2), "x"), TensorSpec(np.dtype("int32"), (-1,), "y")]))
FRAME = pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]})
