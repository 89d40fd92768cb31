"""Compare our decoder and predictor with MLflow's scoring functions: the same status and the same answer for generated requests.

test_against_mlflow.py compares the servers. Deliberate differences are listed in differences.py.
"""

import datetime
import json
import resource
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from mlops_build.serving.encode import encode
from mlops_build.serving.input.decode import Decoder
from mlops_build.serving.predictor import Predictor
from mlops_build.serving.refusal import Refusal
from tests.serving import models
from tests.serving.differences import Answers, Verdict, reasons, verdict
from tests.serving.forms import CSV, JSON, PARQUET, Request, requests
from tests.serving.kinds import KINDS_OF_MODELS


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


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "floats": Pair(models.save(folder / "floats", models.FLOATS)),
        "mixed": Pair(models.save(folder / "mixed", models.MIXED, models.KINDS)),
        "tensor": Pair(models.save(folder / "tensor", models.tensor("float32", (-1, 3)))),
        "whole": Pair(models.save(folder / "whole", models.tensor("int64", (-1, 2, 2)))),
        "free": Pair(models.save(folder / "free", None)),
        "dates": Pair(models.save(folder / "dates", models.DATES, models.KINDS)),
        "unnamed": Pair(models.save(folder / "unnamed", models.UNNAMED, models.KINDS)),
        "nested": Pair(models.save(folder / "nested", models.NESTED, models.KINDS)),
        "bytes": Pair(models.save(folder / "bytes", models.tensor("uint8", (-1, 2)))),
        "column": Pair(models.save(folder / "column", models.tensor("int32", (-1, 1)))),
        "tensors": Pair(models.save(folder / "tensors", models.TENSORS, models.SHAPES)),
    }


def compare(pair: Pair, request: Request) -> tuple[int, set[str]]:
    """Our status, and the documented differences between the answers."""
    answers = Answers("", request, pair.mlflow(request), pair.ours(request))
    why = reasons(answers)
    assert why is not None, str(answers)
    return answers.ours.status, why


ROW = [0.5, 1.0, 2.0]
SPLIT = {"columns": ["a", "b", "c"], "data": [ROW]}


WRITTEN: dict[str, tuple[str, Any]] = {
    "split": ("floats", {"dataframe_split": SPLIT}),
    "split with an index": ("floats", {"dataframe_split": {**SPLIT, "index": [7]}}),
    "split without columns": ("floats", {"dataframe_split": {"data": [ROW]}}),
    "split in another order": ("floats", {"dataframe_split": {"columns": ["c", "a", "b"], "data": [[3, 1, 2]]}}),
    "records": ("floats", {"dataframe_records": [dict(zip("abc", ROW, strict=True))]}),
    "instances of dicts": ("floats", {"instances": [dict(zip("abc", ROW, strict=True))]}),
    "instances of lists": ("floats", {"instances": [ROW]}),
    "inputs of columns": ("floats", {"inputs": {"a": [1.0], "b": [2.0], "c": [3.5]}}),
    "inputs of scalars": ("floats", {"inputs": {"a": 1.0, "b": 2.0, "c": 3.5}}),
    "inputs of rows": ("floats", {"inputs": [ROW]}),
    "inputs of dicts": ("floats", {"inputs": [dict(zip("abc", ROW, strict=True))]}),
    "whole numbers": ("floats", {"dataframe_split": {**SPLIT, "data": [[0, 1, 2]]}}),
    "an extra column": ("floats", {"dataframe_split": {"columns": ["a", "b", "c", "z"], "data": [[*ROW, "x"]]}}),
    "an extra key": ("floats", {"dataframe_split": SPLIT, "more": 1}),
    "unknown params": ("floats", {"dataframe_split": SPLIT, "params": {"x": 1}}),
    "empty params": ("floats", {"dataframe_split": SPLIT, "params": {}}),
    "null": ("floats", {"dataframe_split": {**SPLIT, "data": [[None, 1, 2]]}}),
    "null and true": ("floats", {"dataframe_split": {**SPLIT, "data": [[None, 1, 2], [True, 1, 2]]}}),
    "no rows": ("floats", {"dataframe_split": {**SPLIT, "data": []}}),
    "beyond float32": ("floats", {"dataframe_split": {**SPLIT, "data": [[1e300, 1, 2]]}}),
    "beyond float64": ("floats", {"dataframe_split": {**SPLIT, "data": [[10**400, 1, 2]]}}),
    "beyond 2^53": ("floats", {"dataframe_split": {**SPLIT, "data": [[2**60 + 1, 1, 2]]}}),
    "a list": ("floats", [[1, 2]]),
    "a number": ("floats", 3),
    "a string": ("floats", "abc"),
    "null body": ("floats", None),
    "an empty object": ("floats", {}),
    "no known key": ("floats", {"data": [[1]]}),
    "two forms": ("floats", {"dataframe_split": SPLIT, "inputs": [ROW]}),
    "messages": ("floats", {"messages": [{"role": "user", "content": "x"}]}),
    "split is a list": ("floats", {"dataframe_split": [1, 2]}),
    "split is empty": ("floats", {"dataframe_split": {}}),
    "split is null": ("floats", {"dataframe_split": None}),
    "records are a dict": ("floats", {"dataframe_records": {"a": 1}}),
    "records are empty": ("floats", {"dataframe_records": []}),
    "records are null": ("floats", {"dataframe_records": None}),
    "inputs are null": ("floats", {"inputs": None}),
    "instances are empty": ("floats", {"instances": []}),
    "a missing column": ("floats", {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}),
    "text": ("floats", {"dataframe_split": {**SPLIT, "data": [["abc", 1, 2]]}}),
    "a number as text": ("floats", {"dataframe_split": {**SPLIT, "data": [["1.5", 1, 2]]}}),
    "a boolean": ("floats", {"dataframe_split": {**SPLIT, "data": [[True, 1, 2]]}}),
    "a list in a cell": ("floats", {"dataframe_split": {**SPLIT, "data": [[[1.0], 1, 2]]}}),
    "ragged rows": ("floats", {"dataframe_split": {**SPLIT, "data": [ROW, [1.0]]}}),
    "ragged records": ("floats", {"dataframe_records": [dict(zip("abc", ROW, strict=True)), {"a": 1.0}]}),
    "columns twice": ("floats", {"dataframe_split": {"columns": ["a", "a", "b", "c"], "data": [[1, 2, 3, 4]]}}),
    "wide rows": ("floats", {"dataframe_split": {**SPLIT, "data": [[*ROW, 4.0]]}}),
    "mixed": ("mixed", {"dataframe_records": [{"d": 1.5, "i": 2, "l": 3, "o": True, "s": "x", "x": 0.25}]}),
    "mixed, optional missing": ("mixed", {"dataframe_records": [{"d": 1.5, "i": 2, "l": 3, "o": True, "s": "x"}]}),
    "mixed, truncates": ("mixed", {"dataframe_records": [{"d": 1.5, "i": 2.5, "l": 3, "o": True, "s": "x", "x": 1}]}),
    "mixed, null integer": ("mixed", {"dataframe_records": [{"d": 1.5, "i": None, "l": 3, "o": True, "s": "x", "x": 1}]}),
    "mixed, overflow": ("mixed", {"dataframe_records": [{"d": 1.5, "i": 2**40, "l": 3, "o": True, "s": "x", "x": 1}]}),
    "mixed, number as text": ("mixed", {"dataframe_records": [{"d": 1.5, "i": "2", "l": 3, "o": True, "s": 7, "x": 1}]}),
    "mixed, inputs": ("mixed", {"inputs": {"d": [1.5], "i": [2], "l": [3], "o": [True], "s": ["x"], "x": [1]}}),
    "mixed, instances": ("mixed", {"instances": [{"d": 1.5, "i": 2, "l": 3, "o": True, "s": "x", "x": 1}]}),
    "params": ("mixed", {"dataframe_records": [{"d": 1, "i": 2, "l": 3, "o": True, "s": "x", "x": 1}], "params": {"depth": 5, "z": 1}}),
    "wrong params": ("mixed", {"dataframe_records": [{"d": 1, "i": 2, "l": 3, "o": True, "s": "x", "x": 1}], "params": {"depth": "5"}}),
    "params are a list": ("mixed", {"dataframe_records": [{"d": 1, "i": 2, "l": 3, "o": True, "s": "x", "x": 1}], "params": [1]}),
    "tensor": ("tensor", {"inputs": [ROW]}),
    "tensor, two rows": ("tensor", {"inputs": [ROW, ROW]}),
    "tensor, instances": ("tensor", {"instances": [ROW]}),
    "tensor, split": ("tensor", {"dataframe_split": SPLIT}),
    "tensor, wrong width": ("tensor", {"inputs": [[1.0, 2.0]]}),
    "tensor, wrong rank": ("tensor", {"inputs": ROW}),
    "tensor, ragged": ("tensor", {"inputs": [ROW, [1.0]]}),
    "tensor, text": ("tensor", {"inputs": [["a", "b", "c"]]}),
    "tensor, numbers as text": ("tensor", {"inputs": [["1", "2.5", "3"]]}),
    "tensor, null": ("tensor", {"inputs": [[None, 1, 2]]}),
    "tensor, no rows": ("tensor", {"inputs": []}),
    "tensor, dict": ("tensor", {"inputs": {"x": [ROW]}}),
    "tensor, scalar": ("tensor", {"inputs": 3}),
    "integers": ("whole", {"inputs": [[[1, 2], [3, 4]]]}),
    "integers, truncated": ("whole", {"inputs": [[[1.5, 2], [3, 4]]]}),
    "integers, too large": ("whole", {"inputs": [[[2**70, 2], [3, 4]]]}),
    "a date": ("dates", {"dataframe_records": [{"i": 1, "t": "2024-02-29", "s": "x"}]}),
    "a date and a time": ("dates", {"inputs": {"i": [1], "t": ["2024-02-29T12:30:00.25"], "s": ["x"]}}),
    "no date": ("dates", {"dataframe_records": [{"i": 1, "t": "yesterday", "s": "x"}]}),
    "no date, inputs": ("dates", {"inputs": {"i": [1], "t": ["yesterday"], "s": ["x"]}}),
    "a date's zone": ("dates", {"dataframe_records": [{"i": 1, "t": "2024-02-29T12:30:00Z", "s": "x"}]}),
    "a far date": ("dates", {"dataframe_records": [{"i": 1, "t": "9999-12-31", "s": "x"}]}),
    "a far date, inputs": ("dates", {"inputs": {"i": [1], "t": ["9999-12-31"], "s": ["x"]}}),
    "an early date, instances": ("dates", {"instances": [{"i": 1, "t": "0001-01-01", "s": "x"}]}),
    "beside a date": ("dates", {"dataframe_records": [{"i": 2**40, "t": "2024-02-29", "s": "x"}]}),
    "beside a date, split": ("dates", {"dataframe_split": {"columns": ["t", "s", "i"], "data": [["2024-02-29", "x", 1e12]]}}),
    "beside a date, inputs": ("dates", {"inputs": {"i": [2**40], "t": ["2024-02-29"], "s": ["x"]}}),
    "beside a date, columns": ("dates", {"dataframe_split": {"data": {"i": [2**40], "t": ["2024-02-29"], "s": ["x"]}}}),
    "beside a date, null": ("dates", {"dataframe_records": [{"i": None, "t": "2024-02-29", "s": "x"}]}),
    "beside a date, ragged": ("dates", {"dataframe_records": [{"i": 1, "t": "2024-02-29", "s": "x"}, {"i": 2, "t": "2024-02-29"}]}),
    "beside a date, instances, ragged": ("dates", {"inputs": [{"i": 1, "t": "2024-02-29", "s": "x"}, {"i": 2, "t": "2024-02-29"}]}),
    "unnamed": ("unnamed", {"dataframe_split": {"data": [[1, 2], [3, 4]]}}),
    "unnamed, inputs": ("unnamed", {"inputs": [[1, 2], [3, 4]]}),
    "unnamed, overflow": ("unnamed", {"dataframe_split": {"data": [[1, 2], [2**40, 4]]}}),
    "unnamed, records, overflow": ("unnamed", {"dataframe_records": [{"a": 1, "b": 2**63}]}),
    "unnamed, float, overflow": ("unnamed", {"dataframe_split": {"data": [[1, 2.0**63]]}}),
    "unnamed, inputs, overflow": ("unnamed", {"inputs": [[2**40, 2]]}),
    "unnamed, least and most": ("unnamed", {"dataframe_split": {"data": [[-(2**31), -(2**63)], [2**31 - 1, 2**63 - 1]]}}),
    "unnamed, too few": ("unnamed", {"dataframe_split": {"data": [[1]]}}),
    "unnamed, ragged": ("unnamed", {"dataframe_records": [{"a": 1, "b": 2}, {"a": 1}]}),
    "nested": ("nested", {"dataframe_records": [{"a": [1, 2], "o": {"p": 1.5}, "i": 3}]}),
    "nested, wrong": ("nested", {"dataframe_records": [{"a": [1, 2], "o": {"p": 1.5}, "i": 3}, {"a": [2.5], "o": {"p": 1.5}, "i": 3}]}),
    "nested, overflow": ("nested", {"dataframe_records": [{"a": [1, 2], "o": {"p": 1.5}, "i": 2**40}]}),
    "nested, overflow inside": ("nested", {"dataframe_records": [{"a": [2**70], "o": {"p": 1.5}, "i": 1}]}),
    "bytes": ("bytes", {"inputs": [[0, 255]]}),
    "bytes, too large": ("bytes", {"inputs": [[0, 256]]}),
    "bytes, negative": ("bytes", {"instances": [[0, -1]]}),
    "bytes, truncated": ("bytes", {"inputs": [[0.5, 254.9]]}),
    "bytes, split": ("bytes", {"dataframe_split": {"columns": ["x", "y"], "data": [[0, 255]]}}),
    "bytes, split, 2^40": ("bytes", {"dataframe_split": {"columns": ["x", "y"], "data": [[0, 2**40]]}}),
    "bytes, records, 2^40": ("bytes", {"dataframe_records": [{"x": 1, "y": 2**40}]}),
    "bytes, records, ragged": ("bytes", {"dataframe_records": [{"x": 1, "y": 2}, {"x": 1}]}),
    "tensors": ("tensors", {"inputs": {"x": [[1, 2]], "y": [3]}}),
    "tensors, instances": ("tensors", {"instances": [{"x": [1, 2], "y": 3}]}),
    "tensors, split": ("tensors", {"dataframe_split": {"columns": ["x", "y"], "data": [[[1, 2], 3]]}}),
    "tensors, overflow": ("tensors", {"inputs": {"x": [[1, 2]], "y": [2**40]}}),
    "tensors, split, overflow": ("tensors", {"dataframe_split": {"columns": ["x", "y"], "data": [[[1, 2], 2**40]]}}),
    "tensors, missing": ("tensors", {"inputs": {"x": [[1, 2]]}}),
    "tensors, shape": ("tensors", {"inputs": {"x": [[1, 2, 3]], "y": [3]}}),
    "tensors, split, shape": ("tensors", {"dataframe_split": {"columns": ["x", "y"], "data": [[[1, 2, 3], 3]]}}),
    "tensors, text": ("tensors", {"inputs": {"x": [["a", 2]], "y": [3]}}),
    "long, least - 1": ("unnamed", {"dataframe_split": {"data": [[1, -(2**63) - 1]]}}),
    "long, least - 1, inputs": ("mixed", {"inputs": {"d": 1.5, "i": 2, "l": -(2**63) - 1, "o": True, "s": "x", "x": 1}}),
    "long, 2^70": ("mixed", {"dataframe_records": [{"d": 1.5, "i": 2, "l": 2**70, "o": True, "s": "x", "x": 1}]}),
    "long tensor, least - 1": ("whole", {"inputs": [[[-(2**63) - 1, 2], [3, 4]]]}),
    "float tensor, 2^70": ("tensor", {"inputs": [[2**70 + 1, -(2**63) - 1, 2]]}),
    "floats, 2^70": ("floats", {"dataframe_split": {**SPLIT, "data": [[2**70 + 1, -(2**63) - 1, 2]]}}),
    "floats, 2^70, instances": ("floats", {"instances": [{"a": 2**70 + 1, "b": -(2**63) - 1, "c": "x"}]}),
    "no signature, 2^70": ("free", {"inputs": {"x": [2**70, 1]}}),
    "no signature, least - 1": ("free", {"dataframe_records": [{"x": -(2**63) - 1}]}),
    "no signature, 2^70 as the only value": ("free", {"inputs": 2**70}),
    "no signature, digits": ("free", {"inputs": ["12345678901234567890", 0.00123456789012345678, 12345678901234567890.5]}),
    "no signature, split": ("free", {"dataframe_split": SPLIT}),
    "no signature, inputs": ("free", {"inputs": [ROW]}),
    "no signature, dict": ("free", {"inputs": {"x": [1, 2], "y": [3, 4]}}),
    "no signature, ragged": ("free", {"inputs": [[1], [1, 2]]}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_recorded_cases(pairs: dict[str, Pair], name: str) -> None:
    model, body = WRITTEN[name]
    compare(pairs[model], Request(name, json.dumps(body).encode()))


@pytest.mark.parametrize("kind", ["mixed", "matrix", "nested", "params", "no-signature"])
def test_some_of_the_requests_of_the_slow_comparison(kind: str, tmp_path: Path) -> None:
    """test_against_mlflow.py sends all of them."""
    model = KINDS_OF_MODELS[kind]
    pair = Pair(models.save(tmp_path / kind, model.signature, model.body, model.head))
    for request in islice(requests(model), 0, None, 20):
        if request.encoding is None:
            compare(pair, request)


def test_server_errors_of_mlflow_are_errors_of_the_caller(pairs: dict[str, Pair]) -> None:
    deep = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for pair in pairs.values():
        assert pair.ours(Request("", deep)).status == 400
    with pytest.raises(Refusal) as refused:
        pairs["floats"].decoder.decode(b"{}", None)
    assert refused.value.status == 415


RECORD = {"i": 1, "t": "2024-02-29", "s": "x"}
SAME_LENGTH = (
    "This model contains a column-based signature, which suggests a DataFrame input. "
    "There was an error casting the input data to a DataFrame: All arrays must be of the same length"
)
MESSAGES: list[tuple[str, Any, str]] = [
    ("floats", {"dataframe_split": {**SPLIT, "data": [ROW, ["abc", 1, 2]]}}, "row 1, column 'a': expected float, got 'abc'"),
    ("floats", {"inputs": {"a": [1], "b": ["x"], "c": [2]}}, "row 0, column 'b': expected float, got 'x'"),
    ("floats", {"instances": [{"a": 1, "b": [1], "c": 2}]}, "row 0, column 'b': expected float, got [1]"),
    ("floats", {"inputs": {"a": [1, 2], "b": [1], "c": [2, 3]}}, SAME_LENGTH),
    ("floats", {"dataframe_split": {**SPLIT, "data": [ROW, [1.0]]}}, "row 1 has 1 value; expected 3, one for each column"),
    ("floats", {"dataframe_records": [{"a": 1, "b": 2, "c": 3}, {"a": 1, "c": 3}]}, "row 1 has no column 'b', which other rows have"),
    ("floats", {"dataframe_split": {"columns": ["a", "z"], "data": [[1, 2]]}}, "missing columns: 'b', 'c'; sent were: 'a', 'z'"),
    ("floats", {"dataframe_records": []}, "missing columns: 'a', 'b', 'c'; sent were: none"),
    ("floats", [1], "the body must be a JSON object with exactly one of {}"),
    ("floats", {"a": 1}, "the object must contain exactly one of {}; it contains 'a'"),
    ("mixed", {"dataframe_records": [{"d": 1, "i": 2**40, "l": 3, "o": True, "s": "x"}]},
     "row 0, column 'i': 1099511627776 does not fit into integer (-2147483648 to 2147483647)"),
    ("mixed", {"dataframe_records": [{"d": 1, "i": None, "l": 3, "o": True, "s": "x"}]}, "row 0, column 'i': expected integer, got null"),
    ("mixed", {"inputs": {"d": [1], "i": ["2.5"], "l": [3], "o": [True], "s": ["x"]}}, "row 0, column 'i': expected integer, got '2.5'"),
    ("dates", {"dataframe_records": [RECORD, {**RECORD, "i": 2**40}]},
     "row 1, column 'i': 1099511627776 does not fit into integer (-2147483648 to 2147483647)"),
    ("dates", {"inputs": {"i": [2**40], "t": ["2024-02-29"], "s": ["x"]}},
     "row 0, column 'i': 1099511627776 does not fit into integer (-2147483648 to 2147483647)"),
    ("dates", {"dataframe_records": [RECORD, {**RECORD, "t": "soon"}]},
     "row 1, column 't': expected a date and time (ISO 8601, without a time zone, in the years 1678 to 2261), got 'soon'"),
    ("dates", {"instances": [{**RECORD, "t": "9999-12-31"}]},
     "row 0, column 't': expected a date and time (ISO 8601, without a time zone, in the years 1678 to 2261), got '9999-12-31'"),
    ("dates", {"dataframe_records": [{**RECORD, "t": "2024-02-29T01:00+02"}]},
     "row 0, column 't': expected a date and time (ISO 8601, without a time zone, in the years 1678 to 2261), got '2024-02-29T01:00+02'"),
    ("unnamed", {"dataframe_split": {"data": [[1, 2], [2**40, 4]]}},
     "row 1, column 0: 1099511627776 does not fit into integer (-2147483648 to 2147483647)"),
    ("unnamed", {"inputs": [[1, "x"]]}, "row 0, column 1: expected long, got 'x'"),
    ("unnamed", {"inputs": [[1]]}, "the rows have 1 value; expected 2, one for each column"),
    ("nested", {"dataframe_records": [{"a": [1], "o": {"p": 1.5}, "i": 3}, {"a": [2.5], "o": {"p": 1.5}, "i": 3}]},
     "row 1, column 'a': expected Array(long), got [2.5]"),
    ("nested", {"inputs": [{"a": [1], "o": {"q": 1.5}, "i": 3}]}, "row 0, column 'o': expected {p: double (required)}, got {'q': 1.5}"),
    ("tensor", {"inputs": [ROW, [1.0, 2.0]]},
     "the tensor is ragged: element [1] has the shape (2), and [0] has (3); expected (any, 3)"),
    ("tensor", {"inputs": [ROW, [1.0, "x", 2.0]]}, "element [1][1]: expected float32, got 'x'"),
    ("tensor", {"inputs": [[1.0, 2.0]]}, "the tensor has the shape (1, 2); expected (any, 3)"),
    ("whole", {"inputs": [[[1, 2], [2**63, 4]]]},
     "element [0][1][0]: 9223372036854775808 does not fit into int64 (-9223372036854775808 to 9223372036854775807)"),
    ("whole", {"inputs": [[[1, 2], [3, None]]]}, "element [0][1][1]: expected int64, got null"),
    ("whole", {"inputs": [[[1, 2], [3, 4]], [[1, 2, 3], [4, 5, 6]]]},
     "the tensor is ragged: element [1] has the shape (2, 3), and [0] has (2, 2); expected (any, 2, 2)"),
    ("bytes", {"inputs": [[0, -1]]}, "element [0][1]: -1 does not fit into uint8 (0 to 255)"),
    ("bytes", {"dataframe_records": [{"x": 1, "y": 2**40}]}, "row 0, column 'y': 1099511627776 does not fit into uint8 (0 to 255)"),
    ("tensors", {"inputs": {"x": [[1, 2]]}}, "missing inputs: 'y'; sent were: 'x'"),
    ("tensors", {"inputs": {"x": [[1, 2, 3]], "y": [1]}}, "input 'x': the tensor has the shape (1, 3); expected (any, 2)"),
    ("tensors", {"inputs": {"x": [["a", 2]], "y": [1]}}, "input 'x': element [0][0]: expected float32, got 'a'"),
    ("tensors", {"instances": [{"x": [1, 2], "y": 2**40}]},
     "input 'y': element [0]: 1099511627776 does not fit into int32 (-2147483648 to 2147483647)"),
    ("tensors", {"dataframe_split": {"columns": ["x", "y"], "data": [[[1, 2], 1], [[1], 1]]}}, "row 1, column 'x': 1 values; expected 2"),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(MESSAGES)))
def test_a_refusal_names_the_place_and_the_expected_and_actual_value(pairs: dict[str, Pair], case: int) -> None:
    model, body, message = MESSAGES[case]
    with pytest.raises(Refusal) as refused:
        pairs[model].decoder.decode(json.dumps(body).encode(), JSON)
    assert refused.value.message == message.replace("{}", "dataframe_split, dataframe_records, instances, inputs")


@pytest.mark.parametrize(
    ("model", "body", "message"),
    [
        ("floats", "a,b\n1,2\n", "missing columns: 'c'; sent were: 'a', 'b'"),
        ("floats", "a,b,c\n1,2,3\n1,x,3\n", "row 1, column 'b': expected float, got 'x'"),
        ("floats", "a,b,c\n1,2,3\n1,2\n", "row 1 has 2 values; expected 3, one for each column"),
        ("floats", "a,b,c\n0,1,2,3\n", "row 0 has 4 values; expected 3, one for each column"),
        ("mixed", "d,i,l,o,s\n1,,3,true,x\n", "row 0, column 'i': expected integer, got nothing"),
        ("mixed", "d,i,l,o,s\n1,2.5,3,true,x\n", "row 0, column 'i': expected integer, got '2.5'"),
        (
            "mixed",
            "d,i,l,o,s\n1,1099511627776,3,true,x\n",
            "row 0, column 'i': '1099511627776' does not fit into integer (-2147483648 to 2147483647)",
        ),
        ("dates", "i,t,s\n1,2024-02-29,x\n", "column 't' contains dates, which CSV cannot contain: send JSON or Parquet"),
        ("nested", "a,o,i\n1,2,3\n", "column 'a' contains Array(long), which CSV cannot contain: send JSON or Parquet"),
        ("tensor", "a,b,c\n1,2,3\n", "this model takes a tensor, which CSV cannot contain: send JSON with 'inputs'"),
    ],
)
def test_a_refusal_of_csv_names_the_place(pairs: dict[str, Pair], model: str, body: str, message: str) -> None:
    with pytest.raises(Refusal) as refused:
        pairs[model].decoder.decode(body.encode(), "text/csv")
    assert refused.value.message == message
    compare(pairs[model], Request("", body.encode(), CSV))


def test_parquet_is_refused_where_it_would_wrap(pairs: dict[str, Pair]) -> None:
    large = pd.DataFrame({"x": [1, 2**40]}).to_parquet()
    assert pairs["column"].mlflow(Request("", large, PARQUET)).status == 200, "otherwise this test checks nothing"
    with pytest.raises(Refusal, match=r"row 1, column 'x': 1099511627776 does not fit into int32"):
        pairs["column"].decoder.decode(large, PARQUET)
    with pytest.raises(Refusal, match=r"row 0, column 'i': 1099511627776 does not fit into integer"):
        pairs["dates"].decoder.decode(pd.DataFrame({"i": [2**40], "t": pd.to_datetime(["2024-02-29"]), "s": ["x"]}).to_parquet(), PARQUET)


def test_a_small_body_creates_no_large_table(pairs: dict[str, Pair]) -> None:
    """For 20,000 rows and 20,000 columns pandas would allocate 3 GiB."""
    few = [{f"c{number}": 1} for number in range(20_000)]
    tables = [json.dumps({form: few}).encode() for form in ("dataframe_records", "inputs", "instances")]
    splits = [json.dumps({"dataframe_split": {"data": data}}).encode() for data in (few, [[1] * 20_000, *[[1]] * 20_000])]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for pair in pairs.values():
        assert {pair.ours(Request("", body)).status for body in tables} <= {200, 400}
        assert {pair.ours(Request("", body)).status for body in splits} == {400}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 << 10, "KiB"


def test_no_message_contains_the_whole_body(pairs: dict[str, Pair]) -> None:
    rows = [["x" * 10_000, "y", "z"]] * 50
    for pair in pairs.values():
        for document in (
            {"dataframe_split": {"columns": [str(number) for number in range(300)], "data": [["x" * 10_000] * 300]}},
            {"dataframe_split": {**SPLIT, "data": rows}},
            {"inputs": rows},
            {"instances": [dict(zip("abc", row, strict=True)) for row in rows]},
            {"x" * 5000: 1},
        ):
            message = ""
            try:
                pair.decoder.decode(json.dumps(document).encode(), JSON)
            except Refusal as refused:
                message = refused.message
            assert len(message) <= 700


NUMBER = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-1000, 1000))
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("1.5"), st.lists(NUMBER, max_size=2), st.just({})
)
CELL: st.SearchStrategy[Any] = st.integers(0, 9).flatmap(lambda chance: ODD if chance == 0 else NUMBER)


@st.composite
def tables(draw: st.DrawFn, names: list[str], cells: Callable[[str], st.SearchStrategy[Any]]) -> dict[str, Any]:
    """A body in any form for these columns; some have a missing column, an extra column, or unusual values."""
    chosen = draw(st.permutations(names))
    chance = draw(st.integers(0, 9))
    chosen = chosen[:-1] if chance == 0 else [*chosen, "extra"] if chance == 1 else chosen
    rows = [[draw(cells(name)) for name in chosen] for _ in range(draw(st.integers(0, 3)))]
    form = draw(st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs"]))
    records = [dict(zip(chosen, row, strict=True)) for row in rows]
    bodies: dict[str, Any] = {
        "dataframe_split": {"columns": chosen, "data": rows},
        "dataframe_records": records,
        "instances": records,
        "inputs": {name: [row[position] for row in rows] for position, name in enumerate(chosen)},
    }
    return {form: bodies[form]}


MIXED_CELLS: dict[str, st.SearchStrategy[Any]] = {
    "d": NUMBER,
    "i": st.integers(-(2**31), 2**31 - 1),
    "l": st.integers(-(2**50), 2**50),
    "o": st.booleans(),
    "s": st.text(max_size=4),
    "x": NUMBER,
}


def mixed_cell(name: str) -> st.SearchStrategy[Any]:
    usual = MIXED_CELLS.get(name, NUMBER)
    return st.integers(0, 19).flatmap(lambda chance: ODD if chance == 0 else usual)


DATES_CELLS: dict[str, st.SearchStrategy[Any]] = {
    "i": st.one_of(st.integers(-(2**31), 2**31 - 1), st.integers(-(2**40), 2**40)),
    "t": st.datetimes(min_value=datetime.datetime(1700, 1, 1), max_value=datetime.datetime(2200, 1, 1)).map(datetime.datetime.isoformat),
    "s": st.text(max_size=4),
}


def dates_cell(name: str) -> st.SearchStrategy[Any]:
    usual = DATES_CELLS.get(name, NUMBER)
    return st.integers(0, 29).flatmap(lambda chance: ODD if chance == 0 else usual)


UNNAMED_ROWS = st.lists(st.lists(st.one_of(CELL, st.integers(-(2**65), 2**65)), min_size=1, max_size=3), max_size=3)
UNNAMED = st.one_of(
    st.builds(lambda rows: {"dataframe_split": {"data": rows}}, UNNAMED_ROWS),
    st.builds(lambda rows: {"dataframe_records": [dict(zip("abc", row, strict=False)) for row in rows]}, UNNAMED_ROWS),
    st.builds(lambda form, rows: {form: rows}, st.sampled_from(["inputs", "instances"]), UNNAMED_ROWS),
)
REQUESTS = st.one_of(
    st.tuples(st.just("floats"), tables(["a", "b", "c"], lambda _: CELL)),
    st.tuples(st.just("mixed"), tables(list(MIXED_CELLS), mixed_cell)),
    st.tuples(st.just("dates"), tables(list(DATES_CELLS), dates_cell)),
    st.tuples(st.just("unnamed"), UNNAMED),
    st.tuples(
        st.just("tensor"),
        st.builds(
            lambda form, rows: {form: rows},
            st.sampled_from(["inputs", "instances"]),
            st.lists(st.lists(CELL, min_size=2, max_size=3), max_size=3),
        ),
    ),
    st.tuples(
        st.just("whole"),
        st.builds(
            lambda rows: {"inputs": rows}, st.lists(st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=2, max_size=2), max_size=2)
        ),
    ),
    st.tuples(
        st.just("floats"),
        st.recursive(
            ODD,
            lambda inner: st.dictionaries(st.sampled_from(["inputs", "params", "data", "columns", "dataframe_split"]), inner, max_size=3),
        ),
    ),
)


@pytest.mark.parametrize("examples", [300, pytest.param(800, marks=pytest.mark.slow)])
def test_generated_requests(pairs: dict[str, Pair], examples: int) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(REQUESTS)
    def ask(request: tuple[str, Any]) -> None:
        model, body = request
        status, why = compare(pairs[model], Request("", json.dumps(body).encode()))
        seen["the same"] += not why
        seen[str(status)] += 1

    ask()
    # The comparison is meaningful only if there are many requests, both accepted and refused.
    assert seen["the same"] >= examples * 5 // 8, seen
    assert seen["200"] >= examples // 8, seen
    assert seen["400"] >= examples // 8, seen


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(NUMBER, min_size=3, max_size=3), min_size=1, max_size=6))
def test_a_batch_gives_the_same_answers_as_single_requests(pairs: dict[str, Pair], rows: list[list[float]]) -> None:
    pair = pairs["floats"]
    decoded = [pair.decoder.decode(json.dumps({"dataframe_split": {**SPLIT, "data": [row]}}).encode(), JSON) for row in rows]
    assert pair.predictor.predict(decoded) == [pair.predictor.predict([request])[0] for request in decoded]


def test_the_model_gets_the_same_frame_as_from_mlflow(pairs: dict[str, Pair]) -> None:
    body = json.dumps({"dataframe_split": {**SPLIT, "data": [[1, 2.5, 3]]}}).encode()
    (answer,) = pairs["floats"].predictor.predict([pairs["floats"].decoder.decode(body, JSON)])
    assert pd.DataFrame(answer).to_dict("list") == {"a": [1.0], "b": [2.5], "c": [3.0]}
