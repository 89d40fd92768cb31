"""Ours beside MLflow's own scoring functions: the same verdict, the same answer, for recorded and for generated requests.

Where ours differs on purpose, the case is named in `justified`, and in docs/reference/http-contract.md.
"""

import gzip
import json
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from mlops_build.serving.decode import Decoder, Refusal
from mlops_build.serving.encode import encode
from mlops_build.serving.predictor import Predictor
from tests.serving import models

JSON = "application/json"
Verdict = tuple[int, str | None, Any]


class Pair:
    """One model, behind MLflow's server and behind ours."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.decoder, self.predictor = Decoder(model), Predictor(model)

    def mlflow(self, body: bytes, kind: str) -> Verdict:
        try:
            answer = scoring_server.invocations(body, kind, self.model, self.model.metadata.get_input_schema())
        except MlflowException as error:
            return error.get_http_status_code(), error.error_code, None
        except Exception:
            return 500, None, None
        return answer.status, None, json.loads(answer.response) if answer.status == 200 else None

    def ours(self, body: bytes, kind: str) -> Verdict:
        try:
            rows = self.decoder.decode(body, kind)
        except Refusal as error:
            return error.status, None if error.status == 415 else error.code, None
        (answer,) = self.predictor.predict([rows])
        if isinstance(answer, Refusal):
            return answer.status, answer.code, None
        assert not isinstance(answer, Exception), answer
        return 200, None, json.loads(encode(answer, bare=rows.bare))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "floats": Pair(models.save(folder / "floats", models.FLOATS)),
        "mixed": Pair(models.save(folder / "mixed", models.MIXED, models.KINDS)),
        "tensor": Pair(models.save(folder / "tensor", models.tensor("float32", (-1, 3)))),
        "whole": Pair(models.save(folder / "whole", models.tensor("int64", (-1, 2, 2)))),
        "free": Pair(models.save(folder / "free", None)),
    }


def same(one: Any, other: Any) -> bool:
    """Equal JSON, but for NaN, which ours writes as null."""
    if isinstance(one, float) and not math.isfinite(one):
        return other is None
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def justified(body: bytes, ours: Verdict, theirs: Verdict) -> str | None:
    """Why ours may differ here; None: it may not."""
    if theirs[0] == 500 and 400 <= ours[0] < 500:
        return "a server error there is the caller's error here"
    if theirs[0] == 200 and ours[0] == 400 and overflows(body):
        return "whole numbers beyond their column's type are refused, not wrapped"
    if theirs[0] == 200 and ours[0] == 400 and is_ragged(body):
        return "ragged rows are refused, not padded"
    return None


def document(body: bytes) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None


def overflows(body: bytes) -> bool:
    def big(value: Any) -> bool:
        if isinstance(value, dict):
            return any(map(big, value.values()))
        if isinstance(value, list):
            return any(map(big, value))
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) > 2**31 - 1

    return big(document(body))


def is_ragged(body: bytes) -> bool:
    found = document(body)
    if not isinstance(found, dict):
        return False
    rows = found.get("dataframe_split", {}).get("data") if isinstance(found.get("dataframe_split"), dict) else None
    records = found.get("dataframe_records")
    lengths = {len(row) for row in rows if isinstance(row, list)} if isinstance(rows, list) else set()
    keys = {frozenset(one) for one in records if isinstance(one, dict)} if isinstance(records, list) else set()
    return len(lengths) > 1 or len(keys) > 1


def compare(pair: Pair, body: bytes, kind: str = JSON) -> str | None:
    ours, theirs = pair.ours(body, kind), pair.mlflow(body, kind)
    if ours[0] == theirs[0] and (ours[0] == 415 or ours[1] == theirs[1]) and same(theirs[2], ours[2]):
        return None
    why = justified(body, ours, theirs)
    assert why, f"{body[:300]!r} ({kind}): ours {ours}, MLflow {theirs}"
    return why


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
    "no signature, split": ("free", {"dataframe_split": SPLIT}),
    "no signature, inputs": ("free", {"inputs": [ROW]}),
    "no signature, dict": ("free", {"inputs": {"x": [1, 2], "y": [3, 4]}}),
    "no signature, ragged": ("free", {"inputs": [[1], [1, 2]]}),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_cases(pairs: dict[str, Pair], name: str) -> None:
    model, body = WRITTEN[name]
    differs = compare(pairs[model], json.dumps(body).encode())
    # Named here, so that a new difference shows.
    assert (differs is None) == (name not in {"ragged rows", "ragged records", "mixed, overflow"}), differs


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b'{"dataframe_split": ', JSON),
        (b"", JSON),
        (b'{"dataframe_split": "\xff\xfe"}', JSON),
        ("\ufeff".encode() + json.dumps({"dataframe_split": SPLIT}).encode(), JSON),
        (json.dumps({"dataframe_split": {**SPLIT, "data": [[math.nan, math.inf, -math.inf]]}}).encode(), JSON),
        (b'{"dataframe_split": 1, "dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}}', JSON),
        (json.dumps({"dataframe_split": SPLIT}).encode(), "application/json; charset=utf-8"),
        (json.dumps({"dataframe_split": SPLIT}).encode(), "application/json;charset=UTF-8"),
        (json.dumps({"dataframe_split": SPLIT}).encode(), "application/json; charset=latin1"),
        (json.dumps({"dataframe_split": SPLIT}).encode(), "application/json; format=pandas-split"),
        (json.dumps({"dataframe_split": SPLIT}).encode(), ""),
        (json.dumps({"dataframe_split": SPLIT}).encode(), "text/plain"),
        (b"a,b,c\n1,2,3\n", "text/csv"),
        (b"a,b,c\n1,2,3\n", "text/csv; charset=utf-8"),
        (b"a,b\n1,2\n", "text/csv"),
        (b"a,b,c\nabc,2,3\n", "text/csv"),
        (b"", "text/csv"),
        (b"\xff\xfe", "text/csv"),
        (b"not parquet", "application/vnd.apache.parquet"),
        (models.FRAME.to_parquet(), "application/vnd.apache.parquet"),
        (gzip.compress(b"{}", mtime=0), JSON),
    ],
)
def test_written_bodies(pairs: dict[str, Pair], body: bytes, kind: str) -> None:
    assert compare(pairs["floats"], body, kind) is None


def test_what_mlflow_fails_at_is_the_callers_error_here(pairs: dict[str, Pair]) -> None:
    deep = b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    for pair in pairs.values():
        assert pair.ours(deep, JSON)[0] == 400
    with pytest.raises(Refusal) as refused:
        pairs["floats"].decoder.decode(b"{}", None)
    assert refused.value.status == 415


@pytest.mark.parametrize(
    ("model", "body", "said"),
    [
        ("floats", {"dataframe_split": {**SPLIT, "data": [ROW, ["abc", 1, 2]]}}, r"row 1, column 'a': expected float.*, got 'abc'"),
        ("floats", {"dataframe_split": {**SPLIT, "data": [ROW, [1.0]]}}, r"row 1 has 1 values; expected 3"),
        ("floats", {"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2]]}}, r"missing inputs \['c'\]"),
        (
            "mixed",
            {"dataframe_records": [{"d": 1, "i": 2**40, "l": 3, "o": True, "s": "x"}]},
            r"row 0, column 'i': 1099511627776 does not fit",
        ),
        ("tensor", {"inputs": [ROW, [1.0, 2.0]]}, r"element \[1\] has not as many values"),
        ("tensor", {"inputs": [ROW, [1.0, "x", 2.0]]}, r"element \[1\]\[1\]: expected float32, got 'x'"),
        ("tensor", {"inputs": [[1.0, 2.0]]}, r"shape \(1, 2\); expected \(any, 3\)"),
        ("floats", [1], r"got a list"),
        ("floats", {"a": 1}, r"exactly one of dataframe_split"),
    ],
)
def test_a_refusal_says_where(pairs: dict[str, Pair], model: str, body: Any, said: str) -> None:
    with pytest.raises(Refusal, match=said):
        pairs[model].decoder.decode(json.dumps(body).encode(), JSON)


NUMBER = st.one_of(st.floats(width=32, allow_nan=False, allow_infinity=False), st.integers(-1000, 1000))
ODD: st.SearchStrategy[Any] = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just("1.5"), st.lists(NUMBER, max_size=2), st.just({})
)
CELL: st.SearchStrategy[Any] = st.integers(0, 9).flatmap(lambda chance: ODD if chance == 0 else NUMBER)


@st.composite
def tables(draw: st.DrawFn, names: list[str], cells: Callable[[str], st.SearchStrategy[Any]]) -> dict[str, Any]:
    """A body in any form for these columns; some lack a column, have one more, or odd cells."""
    chosen = draw(st.permutations(names))
    chance = draw(st.integers(0, 9))
    chosen = chosen[:-1] if chance == 0 else [*chosen, "extra"] if chance == 1 else chosen
    rows = [[draw(cells(name)) for name in chosen] for _ in range(draw(st.integers(0, 3)))]
    form = draw(st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs"]))
    records = [dict(zip(chosen, row, strict=True)) for row in rows]
    made: dict[str, Any] = {
        "dataframe_split": {"columns": chosen, "data": rows},
        "dataframe_records": records,
        "instances": records,
        "inputs": {name: [row[place] for row in rows] for place, name in enumerate(chosen)},
    }
    return {form: made[form]}


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


REQUESTS = st.one_of(
    st.tuples(st.just("floats"), tables(["a", "b", "c"], lambda _: CELL)),
    st.tuples(st.just("mixed"), tables(list(MIXED_CELLS), mixed_cell)),
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


def test_generated_requests(pairs: dict[str, Pair]) -> None:
    seen: Counter[str] = Counter()

    @settings(max_examples=800, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(REQUESTS)
    def ask(request: tuple[str, Any]) -> None:
        model, body = request
        text = json.dumps(body).encode()
        seen[compare(pairs[model], text) or "the same"] += 1
        seen[str(pairs[model].ours(text, JSON)[0])] += 1

    ask()
    # The corpus is worth something only if it is large and holds both verdicts.
    assert seen["the same"] >= 500, seen
    assert seen["200"] >= 100, seen
    assert seen["400"] >= 100, seen


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(NUMBER, min_size=3, max_size=3), min_size=1, max_size=6))
def test_together_and_alone_are_the_same(pairs: dict[str, Pair], rows: list[list[float]]) -> None:
    pair = pairs["floats"]
    decoded = [pair.decoder.decode(json.dumps({"dataframe_split": {**SPLIT, "data": [row]}}).encode(), JSON) for row in rows]
    assert pair.predictor.predict(decoded) == [pair.predictor.predict([one])[0] for one in decoded]


def test_frames_are_handed_over_as_mlflow_does(pairs: dict[str, Pair]) -> None:
    body = json.dumps({"dataframe_split": {**SPLIT, "data": [[1, 2.5, 3]]}}).encode()
    (answer,) = pairs["floats"].predictor.predict([pairs["floats"].decoder.decode(body, JSON)])
    assert pd.DataFrame(answer).to_dict("list") == {"a": [1.0], "b": [2.5], "c": [3.0]}
