"""Kinds of models for the comparison with MLflow's server: signatures, outputs and ways to write a model that services use."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Map, Object, Property

from tests.serving import models
from tests.serving.models import ECHO, KINDS, SHAPES

# Two typical values of each type, as JSON writes them.
TYPICAL: dict[str, tuple[Any, Any]] = {
    "float": (0.5, -2.25),
    "double": (1.5, 1e-9),
    "integer": (1, -(2**31)),
    "long": (3, 2**53 + 1),
    "boolean": (True, False),
    "string": ("a", "é😀 \u2028"),
    "binary": ("YWJj", "AP8="),
    "datetime": ("2024-02-29T12:30:00.25", "1999-12-31T00:00:00.5"),
}


@dataclass(frozen=True)
class Kind:
    """A model and what is typically sent to it.

    body: of the class. types: MLflow's type of each column; empty if the model takes no named columns of plain types. rows: typical rows.
    tensor: a typical tensor of a model without columns. bodies: further documents for this model only. values: how many of the unusual
    values are sent in each column; all by default.
    """

    signature: ModelSignature | None
    body: str = KINDS
    head: str = models.HEAD
    types: Mapping[str, str] = field(default_factory=dict)
    tensor: Any = None
    bodies: tuple[Any, ...] = ()
    values: int | None = None

    def save(self, folder: Path) -> Any:
        """Save and load a model of this kind. Returns mlflow.pyfunc.PyFuncModel."""
        return models.save(folder, self.signature, self.body, self.head)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [{name: TYPICAL[kind][row] for name, kind in self.types.items()} for row in (0, 1)]


def of_columns(
    *names: str, optional: bool = False, params: ParamSchema | None = None, body: str = KINDS, values: int | None = None
) -> Kind:
    """A model with a column of each of these types, named like its type. optional: all columns but the first."""
    types = dict(zip(names, names, strict=True))
    signature = models.columns(*((name, name, not optional or name == names[0]) for name in names), params=params)
    return Kind(signature, body, types=types, values=values)


def of_tensor(dtype: str, shape: tuple[int, ...], tensor: Any) -> Kind:
    # A list, since a bare array would not show its type.
    body = """
        def predict(self, context, data, params=None):
            return [[str(data.dtype), list(data.shape), row.tolist() if hasattr(row, "tolist") else row] for row in data]
    """
    return Kind(ModelSignature(inputs=Schema([TensorSpec(np.dtype(dtype), shape)])), body, tensor=tensor)


OUTPUTS = """
    def predict(self, context, data, params=None):
        import datetime
        import numpy as np
        import pandas as pd
        import torch
        from mlflow.exceptions import MlflowException
        n = len(data)
        x = data["x"].to_numpy() if hasattr(data, "columns") else np.zeros(n)
        day = datetime.datetime(2024, 2, 29, 12, 30, 0, 250)
        made = {
            "frame": lambda: pd.DataFrame({"x": x, "label": ["é"] * n}),
            "frame, gaps": lambda: pd.DataFrame({"x": np.where(x > 0, x, np.nan), "y": [None] * n, "z": [np.inf] * n}),
            "frame, dates": lambda: pd.DataFrame({"at": pd.to_datetime([day] * n), "gap": pd.to_datetime([None] * n)}),
            "frame, zones": lambda: pd.DataFrame({"at": pd.to_datetime([day] * n).tz_localize("Europe/Paris")}),
            "frame, spans": lambda: pd.DataFrame({"span": pd.to_timedelta([90] * n, unit="s")}),
            "frame, numbers as names": lambda: pd.DataFrame(np.ones((n, 2), dtype="float32")),
            "frame, mixed names": lambda: pd.DataFrame({1: x, "a": x, None: x}),
            "frame, equal names": lambda: pd.DataFrame(np.arange(2.0 * n).reshape(n, 2), columns=["a", "a"]),
            "frame, levels": lambda: pd.DataFrame(np.ones((n, 2)), columns=pd.MultiIndex.from_tuples([("a", "b"), ("a", "c")])),
            "frame, categories": lambda: pd.DataFrame({"c": pd.Categorical(["u"] * n), "n": pd.array([None] * n, dtype="Int64")}),
            "frame, bytes": lambda: pd.DataFrame({"b": [b"\\x00\\xff"] * n}),
            "frame, lists": lambda: pd.DataFrame({"l": [[1, 2.5, None]] * n, "o": [{"k": np.float32(0.5)}] * n}),
            "frame, no rows": lambda: pd.DataFrame({"x": []}),
            "frame, no columns": lambda: pd.DataFrame(index=range(n)),
            "frame, index": lambda: pd.DataFrame({"x": x}, index=[f"r{row}" for row in range(n)]),
            "series": lambda: pd.Series(x),
            "series, named": lambda: pd.Series(x, name="score"),
            "series, dates": lambda: pd.Series([day] * n),
            "dict": lambda: {"a": 1, "b": [1.5, None]},
            "dict of arrays": lambda: {"a": np.arange(n), "b": np.ones((n, 2), dtype="float32")},
            "dict, numbers as keys": lambda: {1: "a", 2.5: "b", True: "c", None: "d"},
            "list": lambda: x.tolist(),
            "list of dicts": lambda: [{"x": float(value), "n": None} for value in x],
            "list of numpy": lambda: list(x),
            "list, NaN": lambda: [float("nan"), float("-inf"), 1.0],
            "tuple": lambda: (1, "a"),
            "array": lambda: x,
            "array, two axes": lambda: np.stack([x, x + 0.1], axis=1).astype("float32"),
            "array, four axes": lambda: np.ones((n, 1, 2, 2), dtype="uint8"),
            "array, no axes": lambda: np.array(1.5),
            "array, NaN": lambda: np.array([np.nan, np.inf, 1.0]),
            "array, booleans": lambda: np.array([True, False]),
            "array, text": lambda: np.array(["a", "é"]),
            "array, objects": lambda: np.array([None, "a", 1, day], dtype=object),
            "array, bytes": lambda: np.array([b"ab"], dtype="S2"),
            "array, dates": lambda: np.array(["2024-02-29", "NaT"], dtype="datetime64[D]"),
            "array, nanoseconds": lambda: np.array(["2024-02-29T01:02:03.000000004"], dtype="datetime64[ns]"),
            "array, half": lambda: np.array([0.1], dtype="float16"),
            "array, complex": lambda: np.array([1 + 2j]),
            "array, large": lambda: np.array([2**64 - 1], dtype="uint64"),
            "a date": lambda: day,
            "a day": lambda: day.date(),
            "a time": lambda: day.time(),
            "text": lambda: "a \\u2028 é \\" <b>",
            "a surrogate": lambda: "\\ud800",
            "bytes": lambda: b"\\x00\\xff" * 50,
            "none": lambda: None,
            "true": lambda: True,
            "an integer": lambda: 2**70,
            "a float": lambda: 0.1,
            "NaN": lambda: float("nan"),
            "numpy scalar": lambda: np.float32(0.1),
            "torch": lambda: torch.ones(n, 2),
            "torch in a list": lambda: [torch.tensor(0.5)] * n,
            "a set": lambda: {1, 2},
            "an object": lambda: [object()],
            "ValueError": lambda: int("x"),
            "KeyError": lambda: {}["x"],
            "MlflowException": lambda: (_ for _ in ()).throw(MlflowException("a reason", error_code=3)),
            "invalid value": lambda: (_ for _ in ()).throw(MlflowException.invalid_parameter_value("a reason")),
            "MemoryError": lambda: (_ for _ in ()).throw(MemoryError()),
            "RecursionError": lambda: (_ for _ in ()).throw(RecursionError()),
            "one row fails": lambda: [1 / value for value in x.tolist()],
        }
        return made[str(data["kind"].iloc[0])]()
"""
OUTPUT_NAMES = [line.strip().split('"')[1] for line in OUTPUTS.splitlines() if '": lambda' in line]

PARAMS = ParamSchema([
    ParamSpec("depth", DataType.long, 3), ParamSpec("name", DataType.string, "n"), ParamSpec("rate", DataType.double, 0.5),
    ParamSpec("small", DataType.float, 0.25), ParamSpec("whole", DataType.integer, 7), ParamSpec("on", DataType.boolean, True),
    ParamSpec("stop", DataType.string, ["a"], shape=(-1,)), ParamSpec("at", DataType.datetime, np.datetime64("2024-02-29T00:00:00")),
    ParamSpec("limit", DataType.long, None),
])  # fmt: skip
SENT_PARAMS: list[Any] = [
    {}, None, [], [1], "x", 3, True,
    *({name: value} for name in ("depth", "name", "rate", "small", "whole", "on", "stop", "at", "limit")
      for value in (None, 5, 5.0, 1.5, "5", "x", True, [1], ["x", "y"], [], {}, {"a": 1}, 2**40, 2**63, 2**70, 1e400,
      "2024-01-01T00:00:00")),
    {"unknown": 1}, {"depth": 5, "unknown": [1]}, {"depth": 5, "name": "m", "rate": 1.0, "stop": ["b", "c"]},
]  # fmt: skip

NESTED = {"a": [1, 2], "o": {"p": 1.5, "q": ["u"]}, "m": {"k": 1.5, "l": -2.0}, "x": {"any": [1, "two", None]}, "i": 3}
NESTED_ODD: list[dict[str, Any]] = [
    {name: value} for name in ("a", "o", "m", "x", "i")
    for value in (None, 1, 1.5, "x", True, [], [1], [1.5], ["x"], [None], [[1]], {}, {"p": 1.5}, {"p": "x"}, {"p": 1.5, "q": None},
                  {"k": 1}, {"k": None}, {"k": "x"}, [2**70], 2**70, {"p": 1.5, "z": 1})
]  # fmt: skip

TYPED_HEAD = """import datetime

import mlflow
import pydantic
from mlflow.models import set_model


class Message(pydantic.BaseModel):
    role: str
    score: float = 0.5
    tags: list[str] | None = None
    at: datetime.datetime | None = None


class Model(mlflow.pyfunc.PythonModel):
"""
HINTED_TEXT = """
    def predict(self, model_input: list[str], params=None):
        return [f"{text}!" for text in model_input]
"""
HINTED_OBJECTS = """
    def predict(self, model_input: list[Message], params=None):
        return [message.model_dump(mode="json") for message in model_input]
"""
CHAT_HEAD = """import mlflow
from mlflow.models import set_model
from mlflow.types.llm import ChatChoice, ChatCompletionResponse, ChatMessage


class Model(mlflow.pyfunc.ChatModel):
"""
CHAT = """
    def predict(self, context, messages, params):
        text = " ".join(f"{message.role}:{message.content}" for message in messages) + f" {params.temperature} {params.max_tokens}"
        return ChatCompletionResponse(choices=[ChatChoice(index=0, message=ChatMessage(role="assistant", content=text))], created=7)
"""
USER = {"role": "user", "content": "é"}
COMPLETION = """
    def predict(self, context, data, params=None):
        rows = data if isinstance(data, list) else data.to_dict("records") if hasattr(data, "to_dict") else [data]
        return {"choices": [{"text": str(row)} for row in rows], "params": params}
"""

KINDS_OF_MODELS: dict[str, Kind] = {
    "floats": Kind(models.FLOATS, ECHO, types={"a": "float", "b": "float", "c": "float"}),
    "mixed": of_columns("double", "integer", "long", "float", "boolean", "string"),
    "dates": of_columns("datetime", "binary", "integer"),
    "optional": of_columns("double", *(name for name in TYPICAL if name != "double"), optional=True, values=12),
    "text": of_columns("string"),
    "params": of_columns("double", params=PARAMS, values=1),
    "unnamed": Kind(
        ModelSignature(inputs=Schema([ColSpec("integer"), ColSpec("double"), ColSpec("string")])), tensor=[[1, 2.5, "a"], [3, 4, "b"]]
    ),
    "vector": of_tensor("float32", (-1,), [0.5, 2.0]),
    "fixed-vector": of_tensor("int32", (4,), [1, 2, 3, 4]),
    "matrix": of_tensor("float64", (-1, 3), [[0.5, 1, 2], [3, 4, 5]]),
    "integers": of_tensor("int64", (-1, 2), [[1, 2], [3, 2**53 + 1]]),
    "bytes": of_tensor("uint8", (-1, 2, 2, 1), [[[[0], [255]], [[7], [8]]]]),
    "image": of_tensor("float32", (-1, 3, 2, 2), [[[[0.5, 1], [2, 3]]] * 3]),
    "flags": of_tensor("bool", (-1, 2), [[True, False]]),
    "words": of_tensor("str", (-1, 2), [["a", "é"], ["", "b"]]),
    "free-axes": of_tensor("float32", (-1, -1), [[0.5, 1.0]]),
    "tensors": Kind(
        ModelSignature(inputs=Schema([
            TensorSpec(np.dtype("float32"), (-1, 2), "x"), TensorSpec(np.dtype("int64"), (-1,), "n"), TensorSpec(np.dtype("float64"), (-1,
            1), "w"),
        ])),
        SHAPES,
        tensor={"x": [[0.5, 1], [2, 3]], "n": [1, 2], "w": [[0.25], [0.5]]},
        bodies=(
            {"instances": [{"x": [0.5, 1], "n": 1, "w": [0.25]}]}, {"inputs": {"x": [[0.5, 1]], "n": [1]}},
            {"inputs": {"x": [[0.5, 1]], "n": [1], "w": [[1]], "z": [1]}}, {"inputs": {"x": [[0.5, 1]], "n": [1, 2, 3], "w": [[1]]}},
            {"inputs": {"x": [0.5, 1], "n": 1, "w": 1}}, {"inputs": {"x": [[0.5]], "n": [1], "w": [[1]]}},
            {"inputs": {"x": [[0.5, "1"]], "n": ["1"], "w": [[None]]}}, {"inputs": {"x": [[0.5, None]], "n": [None], "w": [[1]]}},
            {"dataframe_records": [{"x": [0.5, 1], "n": 1, "w": [0.25]}]},
            {"dataframe_split": {"columns": ["x", "n", "w"], "data": [[[0.5, 1], 2, [0.25]]]}},
        ),
    ),
    "no-signature": Kind(
        None,
        """
    def predict(self, context, data, params=None):
        if hasattr(data, "columns"):
            return [[str(data.dtypes.tolist()), [str(name) for name in data.columns], [str(value) for value in row]]
                    for row in data.to_numpy(dtype=object)]
        return str(data) if not hasattr(data, "dtype") else f"{data.dtype} {data.shape} {data.tolist()}"
""",
        tensor=[[0.5, 1], [2, 3]],
        bodies=({"inputs": {"a": [1, 2], "b": ["x", None]}}, {"instances": [{"a": 1}, {"a": 2}]}, {"dataframe_split": {"data": [[1,
        "x"]]}}),
    ),
    "nested": Kind(
        ModelSignature(inputs=Schema([
            ColSpec(Array(DataType.long), "a"), ColSpec(Object([Property("p", DataType.double), Property("q", Array(DataType.string),
            required=False)]), "o"),
            ColSpec(Map(DataType.double), "m"), ColSpec(AnyType(), "x"), ColSpec("integer", "i"),
        ])),
        bodies=tuple(
            {form: document}
            for odd in ({}, *NESTED_ODD)
            for form, document in (
                ("dataframe_records", [NESTED | odd]), ("inputs", [NESTED | odd]), ("instances", [NESTED | odd]),
                ("inputs", NESTED | odd),
                ("dataframe_split", {"columns": list(NESTED), "data": [list((NESTED | odd).values())]}),
            )
        ),
    ),
    "outputs": Kind(
        models.columns(("kind", "string"), ("x", "double")), OUTPUTS,
        bodies=tuple(
            {"dataframe_split": {"columns": ["kind", "x"], "data": data}}
            for data in (*([[name, 0.5], [name, 0.0]] for name in OUTPUT_NAMES), [["one row fails", 2.0]])
        ),
    ),
    "hinted-text": Kind(
        None, HINTED_TEXT, TYPED_HEAD, tensor=["a", "é"], bodies=({"inputs": []}, {"inputs": "a"}, {"inputs": [1]}, {"inputs": [None]},
        {"inputs": {"a": ["b"]}},
            {"inputs": ["a"], "params": {"x": 1}}, {"dataframe_split": {"columns": ["a"], "data": [["x"]]}}, {"instances": ["a"]}),
    ),
    "hinted-objects": Kind(
        None,
        HINTED_OBJECTS, TYPED_HEAD,
        bodies=tuple({"inputs": sent} for sent in (
            [{"role": "u"}], [{"role": "u", "score": 1, "tags": ["t"], "at": "2024-02-29T00:00:00"}], [{"role": 1}], [{}], [{"role": "u",
            "score": "x"}],
            [{"role": "u", "z": 1}], {"role": "u"}, "u", [], None, [{"role": "u", "score": "1.5"}], [{"role": "u", "tags": [1]}],
            [{"role": "u", "at": "soon"}],
        )),
    ),
    "chat": Kind(
        None, CHAT, CHAT_HEAD,
        bodies=(
            {"messages": [USER]}, {"messages": [USER], "temperature": 0.5, "max_tokens": 7}, {"messages": [USER], "unknown": 1},
            {"messages": []}, {"messages": "x"}, {"messages": [{"role": "user"}]}, {"messages": [{"role": 1, "content": "x"}]},
            {"messages": [USER], "temperature": "hot"}, {"messages": [USER], "temperature": 1}, {"messages": [USER], "max_tokens": 1.5},
            {"messages": [USER], "stop": ["a"]}, {"messages": [USER], "stop": "a"}, {"messages": None}, {"prompt": "x"}, {"input": "x"},
            {"messages": [USER | {"name": "ada"}]}, {"dataframe_records": [{"messages": [USER]}]}, {"inputs": {"messages": [USER]}},
            {"messages": [USER], "temperature": None}, {"messages": [USER], "params": {"temperature": 0.5}},
        ),
    ),
    "completion": Kind(
        None, COMPLETION,
        bodies=({"prompt": "x"}, {"prompt": ["x", "y"]}, {"input": ["x"]}, {"input": None}, {"prompt": "x", "inputs": [1]},
        {"messages": [USER], "params": {"a": 1}}),
    ),
}  # fmt: skip
