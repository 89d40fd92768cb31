"""The models of the container in the soak test, and its image."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from mlops_build.model import environment, files
from mlops_build.model.version import ModelVersion
from mlops_build.packaging.context import Source, write_context
from mlops_build.packaging.recipe import Recipe
from tests.packaging.world import make
from tests.serving import models

# Values are multiples of 1/16, so that float32 represents results exactly.
ROWS = """
    def predict(self, context, data, params=None):
        import pandas as pd

        total = data["a"] + 2 * data["b"] - 3 * data["c"]
        return pd.DataFrame({"total": total, "sign": ["plus" if value > 0 else "minus" for value in total]})
"""
# Rows of one request influence each other, so requests must not be predicted together.
CENTRED = """
    def predict(self, context, data, params=None):
        return (data["x"] - data["x"].mean()).tolist()
"""
PIXELS = """
    def predict(self, context, data, params=None):
        import torch

        images = torch.from_numpy(data.copy())
        return torch.stack([images.sum(dim=(1, 2, 3)), images.amax(dim=(1, 2, 3))], dim=1).numpy()
"""
TEXT = """
    def predict(self, context, data, params=None):
        return [f"{text[::-1]}:{number}" for text, number in zip(data["text"], data["number"])]
"""
# A negative value selects an error; other values are returned.
ODD = """
    def predict(self, context, data, params=None):
        import asyncio
        import time

        values = data["what"].tolist()
        if -1 in values:
            raise ValueError("a secret of the model")
        if -2 in values:
            time.sleep(1)
        if -3 in values:
            return [0.0] * (len(values) + 1)
        if -4 in values:
            raise asyncio.CancelledError
        if -5 in values:
            raise GeneratorExit
        if -6 in values:
            raise SystemExit(0)
        if -9 in values:
            raise MemoryError
        if -10 in values:
            raise RuntimeError("CUDA out of memory")
        return [{1, 2} if value == -7 else "x" * 1_000_000 if value == -8 else value for value in values]
"""
ERRORS = 10
SHAPE = (3, 8, 8)
FLOATS = models.columns(("a", "float"), ("b", "float"), ("c", "float"))
X = models.columns(("x", "double"))
SIGNATURES: dict[str, tuple[ModelSignature, str, Any]] = {
    "rows": (FLOATS, ROWS, {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3], [4, 0.5, -1], [0, 0, 1], [2, 2, 2]]}}),
    "centred": (X, CENTRED, None),
    "centred-one": (X, CENTRED, {"dataframe_split": {"columns": ["x"], "data": [[1.5]]}}),
    "pixels": (ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, *SHAPE))])), PIXELS, None),
    "text": (
        models.columns(("text", "string"), ("number", "long")),
        TEXT,
        {"dataframe_split": {"columns": ["text", "number"], "data": [["ab", 1], ["é", 2]]}},
    ),
    "odd": (models.columns(("what", "double")), ODD, None),
}


def context(folder: Path) -> Path:
    """A build context with all models; `pyarrow` is among the dependencies, so that Parquet is read."""
    world = make(folder / "world", "pandas>=2.2", "torch>=2.6", "pyarrow>=15")
    (folder / "lock").mkdir()
    world.lock = environment.lock(sorted(world.wheels.iterdir()), folder / "lock")
    environment_of = world.files("one")
    sources = []
    for name, (signature, body, example) in SIGNATURES.items():
        loaded = models.save(folder / name, signature, body)
        saved = folder / name / "model"
        shutil.copytree(environment_of / "environment", saved / "environment")
        shutil.copyfile(environment_of / "lineage.json", saved / "lineage.json")
        if example is not None:
            _record(saved, loaded, example)
        sources.append(Source(ModelVersion(name, 1, files.digest(saved)), lambda target, saved=saved: shutil.copytree(saved, target)))  # type: ignore[misc]
    write_context(Recipe("rows", "python:3.11-slim"), None, sources, folder / "context")
    return folder / "context"


def _record(saved: Path, loaded: Any, example: Any) -> None:
    import pandas as pd

    split = example["dataframe_split"]
    columns = {column.name: column.type.to_pandas() for column in loaded.metadata.get_input_schema().inputs}
    answer = loaded.predict(pd.DataFrame(**split).astype(columns))
    predictions = answer.to_dict("records") if hasattr(answer, "columns") else answer
    (saved / "examples").mkdir()
    (saved / "examples/recorded.json").write_text(json.dumps({"schema": 1, "input": example, "predictions": predictions}))


def build(folder: Path, tag: str) -> None:
    """Build the image of a context with the engine of DOCKER_HOST."""
    command = [os.environ["DOCKER_CLI"], "build", "--quiet", *os.environ["MLOPS_BUILD_DOCKER_ARGS"].split(), "--tag", tag, str(folder)]
    subprocess.run(command, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=True, capture_output=True, timeout=1800)
