"""Compare our decoder and predictor with MLflow's scoring functions: the same status and the same answer.

test_against_mlflow.py sends all requests to both servers. Deliberate differences are listed in differences.py.
"""

import copy
import itertools
import json
import resource
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.pyfunc import scoring_server
from mlflow.types import Schema, TensorSpec

from mlops_build.model.openapi import Described
from mlops_build.serving.app import Service
from mlops_build.serving.encode import encode
from mlops_build.serving.input.decode import Decoder
from mlops_build.serving.load import Loaded, Serving
from mlops_build.serving.predictor import Predictor
from mlops_build.serving.refusal import Refusal
from tests.serving import models
from tests.serving.differences import Answers, Verdict, reasons, verdict
from tests.serving.forms import CSV, JSON, PARQUET, Request, requests, tensors
from tests.serving.kinds import KINDS_OF_MODELS, NESTED


class Pair:
    """One model behind MLflow's server and behind ours."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder, self.predictor = Decoder(model), Predictor(model, declared="a function of each row")

    def mlflow(self, request: Request) -> Verdict:
        try:
            answer = scoring_server.invocations(request.body, request.kind, self.model, self.model.metadata.get_input_schema())
        except MlflowException as error:
            return Verdict(error.get_http_status_code(), error.error_code, error.message)
        except Exception as error:
            return Verdict(500, None, repr(error))
        return verdict(answer.status, answer.response.encode("utf-8", "surrogatepass"))

    def ours(self, request: Request) -> Verdict:
        try:
            rows = self.decoder.decode(request.body, request.kind)
        except Refusal as error:
            return Verdict(error.status, None if error.status == 415 else error.code, error.message)
        (answer,) = self.predictor.predict([rows])
        if isinstance(answer, Refusal):
            return Verdict(answer.status, answer.code, answer.message)
        assert not isinstance(answer, Exception), answer
        return verdict(200, encode(answer, bare=rows.bare))


Pairs = Callable[[str], Pair]


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    folder = tmp_path_factory.mktemp("kinds")
    return cache(lambda name: Pair(KINDS_OF_MODELS[name].save(folder / name)))


def compare(pair: Pair, request: Request, model: str = "") -> int:
    """Our status. The answers may differ only as documented."""
    answers = Answers(model, request, pair.mlflow(request), pair.ours(request))
    assert reasons(answers) is not None, str(answers)
    return answers.ours.status


@pytest.mark.parametrize("model", KINDS_OF_MODELS)
def test_some_of_the_requests_of_the_slow_comparison(pair_of: Pairs, model: str) -> None:
    for request in itertools.islice(requests(KINDS_OF_MODELS[model]), 0, None, 20):
        if request.encoding is None:
            compare(pair_of(model), request, model)


TYPES = ["bool", "int8", "int32", "int64", "uint8", "uint64", "float16", "float32", "float64", "str", "object", "bytes", "datetime64[ns]"]
VALUES: dict[str, list[Any]] = {
    "b": [True, False], "i": [1, -2], "u": [1, 2], "f": [1.5, -2], "U": ["a", "bc"], "O": ["a", "bc"], "S": ["YQ==", "b"],
    "M": ["2024-02-29", "2024-03-01"],
}  # fmt: skip
SHOW = """
    def predict(self, context, data, params=None):
        arrays = data if isinstance(data, dict) else {"": data}
        return [{name: [str(array.dtype), list(array.shape), repr(array.tolist())] for name, array in arrays.items()}]
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return models.save(tmp_path_factory.mktemp("tensors") / "saved", models.tensor("float32", (-1,)), SHOW)


def with_signature(model: Any, *specs: TensorSpec) -> Any:
    changed, metadata = copy.copy(model), copy.copy(model.metadata)
    metadata.signature = ModelSignature(inputs=Schema(list(specs)))
    changed._model_meta = metadata
    return changed


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(
    "shape",
    [(-1,), (4,), *(pytest.param(shape, marks=pytest.mark.slow) for shape in [(-1, 2), (2, 2), (-1, -1), (-1, 2, 2), (-1, 1, 1, 2, 1)])],
)
def test_a_tensor_of_any_type_and_rank(shown: Any, dtype: str, shape: tuple[int, ...]) -> None:
    kind = np.dtype(dtype)
    sizes = [2 if size == -1 else size for size in shape]
    tensor = np.resize(np.array(VALUES[kind.kind], dtype=object), sizes).tolist()
    seen: Counter[int] = Counter()
    for name in (None, "x"):
        pair = Pair(with_signature(shown, TensorSpec(kind, shape, name)))
        seen.update(compare(pair, request) for request in itertools.islice(tensors(tensor), 0, None, 3))
    assert seen[200], seen
    assert seen[400], seen


def test_a_service_starts_with_any_tensor(shown: Any) -> None:
    for dtype, shape, name in itertools.product(("float32", "str"), ((), (-1,), (4,)), (None, "x")):
        changed = with_signature(shown, TensorSpec(np.dtype(dtype), shape, name))
        described = Described("m", None, changed.metadata.signature.to_dict(), None)
        Service(Serving("m", None, (Loaded("m", None, None, changed, Predictor(changed), described),)))


def test_server_errors_of_mlflow_are_errors_of_the_caller(pair_of: Pairs) -> None:
    deep = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for model in ("floats", "matrix", "no-signature"):
        assert pair_of(model).ours(Request("", deep)).status == 400
    assert pair_of("floats").ours(Request("", b"{}", None)).status == 415


# -- messages --

ROW = [0.5, 1.0, 2.0]
SPLIT = {"columns": ["a", "b", "c"], "data": [ROW]}


def record(model: str, **changes: Any) -> dict[str, Any]:
    return {**KINDS_OF_MODELS[model].rows[0], **changes}


DATE = "expected a date and time (ISO 8601, without a time zone, in the years 1678 to 2261), got"
INTEGER = "1099511627776 does not fit into integer (-2147483648 to 2147483647)"
SAME_LENGTH = (
    "This model contains a column-based signature, which suggests a DataFrame input. "
    "There was an error casting the input data to a DataFrame: All arrays must be of the same length"
)
FORMS = "dataframe_split, dataframe_records, instances, inputs"
MESSAGES: list[tuple[str, Any, str]] = [
    ("floats", {"dataframe_split": {**SPLIT, "data": [ROW, ["abc", 1, 2]]}}, "row 1, column 'a': expected float, got 'abc'"),
    ("floats", {"inputs": {"a": [1], "b": ["x"], "c": [2]}}, "row 0, column 'b': expected float, got 'x'"),
    ("floats", {"instances": [{"a": 1, "b": [1], "c": 2}]}, "row 0, column 'b': expected float, got [1]"),
    ("floats", {"inputs": {"a": [1, 2], "b": [1], "c": [2, 3]}}, SAME_LENGTH),
    ("floats", {"dataframe_split": {**SPLIT, "data": [ROW, [1.0]]}}, "row 1 has 1 value; expected 3, one for each column"),
    ("floats", {"dataframe_records": [{"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 3}]}, "row 1 has no column 'b', which other rows have"),
    ("floats", {"dataframe_split": {"columns": ["a", "z"], "data": [[1, 2]]}}, "missing columns: 'b', 'c'; sent were: 'a', 'z'"),
    ("floats", {"dataframe_records": []}, "missing columns: 'a', 'b', 'c'; sent were: none"),
    ("floats", [1], f"the body must be a JSON object with exactly one of {FORMS}"),
    ("floats", {"a": 1}, f"the object must contain exactly one of {FORMS}; it contains 'a'"),
    ("mixed", {"dataframe_records": [record("mixed", integer=2**40)]}, f"row 0, column 'integer': {INTEGER}"),
    ("mixed", {"dataframe_records": [record("mixed", integer=None)]}, "row 0, column 'integer': expected integer, got null"),
    ("mixed", {"inputs": record("mixed", integer="2.5")}, "row 0, column 'integer': expected integer, got '2.5'"),
    ("dates", {"dataframe_records": [record("dates"), record("dates", integer=2**40)]}, f"row 1, column 'integer': {INTEGER}"),
    ("dates", {"inputs": {name: [value] for name, value in record("dates", integer=2**40).items()}}, f"row 0, column 'integer': {INTEGER}"),
    ("dates", {"dataframe_records": [record("dates"), record("dates", datetime="soon")]}, f"row 1, column 'datetime': {DATE} 'soon'"),
    ("dates", {"instances": [record("dates", datetime="9999-12-31")]}, f"row 0, column 'datetime': {DATE} '9999-12-31'"),
    ("dates", {"dataframe_records": [record("dates", datetime="2024-02-29T01:00+02")]},
     f"row 0, column 'datetime': {DATE} '2024-02-29T01:00+02'"),
    ("unnamed", {"dataframe_split": {"data": [[1, 2, "a"], [2**40, 4, "a"]]}}, f"row 1, column 0: {INTEGER}"),
    ("unnamed", {"inputs": [[1, "x", "a"]]}, "row 0, column 1: expected double, got 'x'"),
    ("unnamed", {"inputs": [[1]]}, "the rows have 1 value; expected 3, one for each column"),
    ("nested", {"dataframe_records": [NESTED, NESTED | {"a": [2.5]}]}, "row 1, column 'a': expected Array(long), got [2.5]"),
    ("nested", {"inputs": [NESTED | {"m": {"k": "x"}}]}, "row 0, column 'm': expected Map(str -> DataType.double), got {'k': 'x'}"),
    ("matrix", {"inputs": [ROW, [1.0, 2.0]]}, "the tensor is ragged: element [1] has the shape (2), and [0] has (3); expected (any, 3)"),
    ("matrix", {"inputs": [ROW, [1.0, "x", 2.0]]}, "element [1][1]: expected float64, got 'x'"),
    ("matrix", {"inputs": [[1.0, 2.0]]}, "the tensor has the shape (1, 2); expected (any, 3)"),
    ("integers", {"inputs": [[1, 2], [2**63, 4]]},
     "element [1][0]: 9223372036854775808 does not fit into int64 (-9223372036854775808 to 9223372036854775807)"),
    ("integers", {"inputs": [[1, 2], [3, None]]}, "element [1][1]: expected int64, got null"),
    ("bytes", {"inputs": [[[[0], [-1]], [[0], [0]]]]}, "element [0][0][1][0]: -1 does not fit into uint8 (0 to 255)"),
    ("bytes", {"dataframe_records": [{"x": 1, "y": 2**40}]}, "row 0, column 'y': 1099511627776 does not fit into uint8 (0 to 255)"),
    ("tensors", {"inputs": {"x": [[1, 2]], "n": [1]}}, "missing inputs: 'w'; sent were: 'x', 'n'"),
    ("tensors", {"inputs": {"x": [[1, 2, 3]], "n": [1], "w": [[1]]}}, "input 'x': the tensor has the shape (1, 3); expected (any, 2)"),
    ("tensors", {"inputs": {"x": [["a", 2]], "n": [1], "w": [[1]]}}, "input 'x': element [0][0]: expected float32, got 'a'"),
    ("tensors", {"instances": [{"x": [1, 2], "n": 2**63, "w": [1]}]},
     "input 'n': element [0]: 9223372036854775808 does not fit into int64 (-9223372036854775808 to 9223372036854775807)"),
    ("tensors", {"dataframe_split": {"columns": ["x", "n", "w"], "data": [[[1, 2], 1, [1]], [[1], 1, [1]]]}},
     "row 1, column 'x': 1 values; expected 2"),
    ("floats", "a,b\n1,2\n", "missing columns: 'c'; sent were: 'a', 'b'"),
    ("floats", "a,b,c\n1,2,3\n1,x,3\n", "row 1, column 'b': expected float, got 'x'"),
    ("floats", "a,b,c\n1,2,3\n1,2\n", "row 1 has 2 values; expected 3, one for each column"),
    ("floats", "a,b,c\n0,1,2,3\n", "row 0 has 4 values; expected 3, one for each column"),
    ("mixed", "double,integer,long,float,boolean,string\n1,,3,1,true,x\n", "row 0, column 'integer': expected integer, got nothing"),
    ("mixed", "double,integer,long,float,boolean,string\n1,2.5,3,1,true,x\n", "row 0, column 'integer': expected integer, got '2.5'"),
    ("mixed", "double,integer,long,float,boolean,string\n1,1099511627776,3,1,true,x\n",
     f"row 0, column 'integer': {INTEGER.replace('1099511627776', repr('1099511627776'))}"),
    ("dates", "datetime,binary,integer\n2024-02-29,x,1\n",
     "column 'datetime' contains dates, which CSV cannot contain: send JSON or Parquet"),
    ("nested", "a,o,i\n1,2,3\n", "column 'a' contains Array(long), which CSV cannot contain: send JSON or Parquet"),
    ("matrix", "a,b,c\n1,2,3\n", "this model takes a tensor, which CSV cannot contain: send JSON with 'inputs'"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "body", "message"), MESSAGES, ids=range(len(MESSAGES)))
def test_a_refusal_names_the_place_and_the_expected_and_actual_value(pair_of: Pairs, model: str, body: Any, message: str) -> None:
    is_csv = isinstance(body, str)
    request = Request("", body.encode() if is_csv else json.dumps(body).encode(), CSV if is_csv else JSON)
    assert pair_of(model).ours(request).content == message
    compare(pair_of(model), request)


def test_parquet_is_refused_where_it_would_wrap(pair_of: Pairs) -> None:
    large = Request("", pd.DataFrame({"x": [1, 2**40]}).to_parquet(), PARQUET)
    column = Pair(with_signature(pair_of("vector").model, TensorSpec(np.dtype("int32"), (-1, 1))))
    assert column.mlflow(large).status == 200, "otherwise this test checks nothing"
    assert "row 1, column 'x': 1099511627776 does not fit into int32" in column.ours(large).content
    frame = pd.DataFrame({"integer": [2**40], "datetime": pd.to_datetime(["2024-02-29"]), "binary": ["YQ=="]})
    assert f"row 0, column 'integer': {INTEGER}" in pair_of("dates").ours(Request("", frame.to_parquet(), PARQUET)).content


MODELS = ("floats", "mixed", "dates", "unnamed", "nested", "matrix", "tensors", "no-signature")


def test_a_small_body_creates_no_large_table(pair_of: Pairs) -> None:
    """For 20,000 rows and 20,000 columns pandas would allocate 3 GiB."""
    few = [{f"c{number}": 1} for number in range(20_000)]
    tables = [json.dumps({form: few}).encode() for form in ("dataframe_records", "inputs", "instances")]
    splits = [json.dumps({"dataframe_split": {"data": data}}).encode() for data in (few, [[1] * 20_000, *[[1]] * 20_000])]
    pairs = [pair_of(model) for model in MODELS]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pair in pairs:
        assert {pair.ours(Request("", body)).status for body in tables} <= {200, 400}
        assert {pair.ours(Request("", body)).status for body in splits} == {400}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10, "KiB"


@pytest.mark.parametrize("model", MODELS)
def test_no_message_contains_the_whole_body(pair_of: Pairs, model: str) -> None:
    rows = [["x" * 10_000, "y", "z"]] * 50
    for document in (
        {"dataframe_split": {"columns": [str(number) for number in range(300)], "data": [["x" * 10_000] * 300]}},
        {"dataframe_split": {**SPLIT, "data": rows}},
        {"inputs": rows},
        {"instances": [dict(zip("abc", row, strict=True)) for row in rows]},
        {"x" * 5000: 1},
    ):
        answer = pair_of(model).ours(Request("", json.dumps(document).encode()))
        assert answer.status == 200 or len(answer.content) <= 700


NUMBER = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-1000, 1000))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(NUMBER, min_size=3, max_size=3), min_size=1, max_size=6))
def test_a_batch_gives_the_same_answers_as_single_requests(pair_of: Pairs, rows: list[list[float]]) -> None:
    pair = pair_of("floats")
    decoded = [pair.decoder.decode(json.dumps({"dataframe_split": {**SPLIT, "data": [row]}}).encode(), JSON) for row in rows]
    assert pair.predictor.predict(decoded) == [pair.predictor.predict([request])[0] for request in decoded]
