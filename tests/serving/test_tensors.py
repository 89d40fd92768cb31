"""Tensor signatures of all ranks and types, with and without names: the same verdicts and values as MLflow."""

import copy
import itertools
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from mlops_build.model.openapi import Described
from mlops_build.serving.app import Service
from mlops_build.serving.load import Loaded, Serving
from mlops_build.serving.predictor import Predictor
from tests.serving import models
from tests.serving.forms import Request
from tests.serving.test_differential import Pair, compare

SHOW = """
    def predict(self, context, data, params=None):
        arrays = data if isinstance(data, dict) else {"": data}
        return [{name: [str(array.dtype), list(array.shape), repr(array.tolist())] for name, array in arrays.items()}]
"""
TYPES = ["bool", "int8", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64", "str", "object", "bytes", "datetime64[ns]"]
VALUES: dict[str, list[Any]] = {
    "b": [True, False], "i": [1, -2], "u": [1, 2], "f": [1.5, -2], "U": ["a", "bc"], "O": ["a", 1], "S": ["YQ==", "b"],
    "M": ["2024-02-29", "2024-03-01"],
}  # fmt: skip
SHAPES: list[tuple[int, ...]] = [(), (-1,), (4,), (-1, 2), (2, 2), (-1, -1), (-1, 2, 2), (-1, 1, 2, 1), (-1, 1, 1, 2, 1)]
SENT: list[tuple[int, ...]] = [(), (0,), (1,), (4,), (2, 2), (1, 2), (2, 2, 2), (2, 1, 2, 1), (2, 1, 1, 2, 1)]
ODD: list[Any] = [
    [None], ["x"], [2**70], [2**63], [-(2**63) - 1], [1e300], [True], [1.5], [[1], [2, 3]], ["1", "2"], [-1], [300], [{}], [[]],
    [float("nan")],
]  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return models.save(tmp_path_factory.mktemp("tensors") / "saved", models.tensor("float32", (-1,)), SHOW)


def with_signature(model: Any, signature: ModelSignature) -> Any:
    changed, metadata = copy.copy(model), copy.copy(model.metadata)
    metadata.signature = signature
    changed._model_meta = metadata
    return changed


def nested(shape: tuple[int, ...], values: Iterator[Any]) -> Any:
    return [nested(shape[1:], values) for _ in range(shape[0])] if shape else next(values)


def bodies(kind: str, names: tuple[str | None, ...]) -> Iterator[Any]:
    values = [nested(shape, itertools.cycle(VALUES[kind])) for shape in SENT] + ODD
    for value in values:
        for form in ("inputs", "instances"):
            yield {form: value}
        yield {"inputs": {"x": value, **{name: [1.0] for name in names[1:]}}}
        if isinstance(value, list):
            yield {"instances": [{"x": row, **dict.fromkeys(names[1:], 1.0)} for row in value]}
    rows = [[value] for value in VALUES[kind]]
    yield {"dataframe_split": {"columns": ["x"], "data": rows}}
    yield {"dataframe_split": {"data": rows}}
    yield {"dataframe_records": [{"x": value} for (value,) in rows]}


def compare_all(model: Any, dtype: str, shape: tuple[int, ...], names: tuple[str | None, ...]) -> Counter[int]:
    kind = np.dtype(dtype)
    specs = [TensorSpec(kind, shape, names[0]), *(TensorSpec(np.dtype("float32"), (-1,), name) for name in names[1:])]
    pair = Pair(with_signature(model, ModelSignature(inputs=Schema(specs))))
    seen: Counter[int] = Counter()
    for body in bodies(kind.kind, names):
        status, _ = compare(pair, Request(str(specs), json.dumps(body).encode()))
        seen[status] += 1
    return seen


def test_one_dimension(model: Any) -> None:
    for dtype in TYPES:
        for shape, name in (((-1,), None), ((4,), "x")):
            seen = compare_all(model, dtype, shape, (name,))
            assert seen[200] >= 1, (dtype, shape, name, seen)


@pytest.mark.slow
@pytest.mark.parametrize("names", [(None,), ("x",), ("x", "y")])
def test_all_ranks(model: Any, names: tuple[str | None, ...]) -> None:
    seen: Counter[int] = Counter()
    for dtype, shape in itertools.product(TYPES, SHAPES):
        seen += compare_all(model, dtype, shape, names)
    assert min(seen[200], seen[400]) > 100, seen


def test_a_service_starts(model: Any) -> None:
    for dtype, shape, name in itertools.product(("float32", "str"), ((), (-1,), (4,)), (None, "x")):
        signature = ModelSignature(inputs=Schema([TensorSpec(np.dtype(dtype), shape, name)]))
        changed = with_signature(model, signature)
        described = Described("m", None, signature.to_dict(), None)
        Service(Serving("m", None, (Loaded("m", None, None, changed, Predictor(changed), described),)))
