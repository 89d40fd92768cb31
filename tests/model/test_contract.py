"""Which changes break callers: each kind of change, and a comparison with MLflow's own enforcement."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.models import ModelSignature
from mlflow.models.utils import _enforce_schema
from mlflow.pyfunc.scoring_server import infer_and_parse_data
from mlflow.types import Schema

from mlops_build.model import openapi
from mlops_build.model.contract import BadContract, BreaksCallers, Contract, breaks, check, of_document, of_folder, of_text, of_version

Part = list[dict[str, Any]]


def column(name: str, kind: str = "double", required: bool = True) -> dict[str, Any]:
    return {"type": kind, "name": name, "required": required}


def tensor(dtype: str, shape: list[int], name: str | None = None) -> dict[str, Any]:
    return {"type": "tensor", "tensor-spec": {"dtype": dtype, "shape": shape}, **({"name": name} if name else {})}


def param(name: str, kind: str = "long", shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "type": kind, "default": 1, "shape": shape}


def contract(inputs: Part | None = None, outputs: Part | None = None, params: Part | None = None, *, name: str = "m") -> Contract:
    return Contract(1, {name: {"inputs": inputs or [], "outputs": outputs or [], "params": params or []}})


def whys(before: Contract, after: Contract) -> list[str]:
    return [finding.why.removeprefix("m: ") for finding in breaks(before, after)]


A, B = column("a"), column("b", "string")


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ([A, B], [A], "input column b (string) is gone"),
        ([A, B], [A, column("c", "string")], "input column b (string) is gone; renamed to c?"),
        ([A], [A, B], "input column b (string) is new, and required"),
        ([column("a", required=False)], [A], "input column a was optional, and is required"),
        ([A], [column("a", "float")], "input column a was double, and is float"),
        ([column("a", "long")], [column("a", "integer")], "input column a was long, and is integer"),
        ([column("a", "long")], [column("a", "double")], "input column a was long, and is double"),
        ([column("a", "float")], [column("a", "long")], "input column a was float, and is long"),
        ([A], [B | {"name": "a"}], "input column a was double, and is string"),
        ([{"type": "double"}], [{"type": "double"}, {"type": "double"}], "input column 1 (double) is new, and required"),
        ([A], [{"type": "double"}], "input: was columns with names, and is columns without names"),
        ([A], [tensor("float32", [-1, 2])], "input: was columns with names, and is tensors"),
        ([A], [], "input: was columns with names, and is without a signature"),
        ([], [A], "input: any input was accepted, and now only columns with names"),
        ([tensor("float32", [-1, 2])], [tensor("float64", [-1, 2])], "input tensor was float32, and is float64"),
        ([tensor("float32", [-1, 2])], [tensor("float32", [-1, 3])], "input tensor had the shape (-1, 2), and has (-1, 3)"),
        ([tensor("float32", [-1, 2])], [tensor("float32", [-1, 2, 2])], "input tensor had the shape (-1, 2), and has (-1, 2, 2)"),
        ([tensor("float32", [-1, -1])], [tensor("float32", [-1, 2])], "input tensor had the shape (-1, -1), and has (-1, 2)"),
        ([tensor("int64", [-1], "x")], [tensor("int64", [-1], "y")], "input tensor x is gone"),
        (
            [{"type": "array", "items": {"type": "double"}, "name": "a"}],
            [{"type": "array", "items": {"type": "long"}, "name": "a"}],
            "input column a[] was double, and is long",
        ),
        (
            [{"type": "object", "properties": {"x": {"type": "long"}}, "name": "a"}],
            [{"type": "object", "properties": {"x": {"type": "long"}, "y": {"type": "long"}}, "name": "a"}],
            "input column a.y (long) is new, and required",
        ),
    ],
)
def test_changes_of_the_inputs_that_break_callers(before: Part, after: Part, why: str) -> None:
    assert whys(contract(before), contract(after))[0] == why


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ([A, B], [A], "output column b (string) is gone"),
        ([column("a", "float")], [A], "output column a was float, and is double"),
        ([column("a", "integer")], [column("a", "long")], "output column a was integer, and is long"),
        ([A], [column("a", required=False)], "output column a was always there, and may be missing"),
        ([A], [tensor("float32", [-1, 2])], "output: was columns with names, and is tensors"),
        ([A], [], "output: was columns with names, and is without a signature"),
        ([tensor("float32", [-1, 2])], [tensor("float32", [-1, -1])], "output tensor had the shape (-1, 2), and has (-1, -1)"),
    ],
)
def test_changes_of_the_outputs_that_break_callers(before: Part, after: Part, why: str) -> None:
    assert whys(contract(outputs=before), contract(outputs=after)) == [why]


def test_a_param_that_is_removed_or_changes_its_type() -> None:
    before = contract(params=[param("depth"), param("top")])
    assert whys(before, contract(params=[param("top", shape=[-1])])) == [
        "param depth is gone",
        "param top was long, and is a list of long",
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (contract([A]), contract([A, column("b", required=False)])),
        (contract([A, B]), contract([B, A])),
        (contract([A]), contract([column("a", required=False)])),
        (contract([column("a", "integer")]), contract([column("a", "long")])),
        (contract([column("a", "float")]), contract([A])),
        (contract([tensor("float32", [-1, 2])]), contract([tensor("float32", [-1, -1])])),
        (contract(outputs=[A]), contract(outputs=[A, B])),
        (contract(outputs=[A]), contract(outputs=[column("a", "float")])),
        (contract(outputs=[tensor("float32", [-1, -1])]), contract(outputs=[tensor("float32", [-1, 2])])),
        (contract(), contract(outputs=[A])),
        (contract(params=[param("a")]), contract(params=[param("a"), param("b")])),
    ],
)
def test_changes_that_break_no_caller(before: Contract, after: Contract) -> None:
    assert breaks(before, after) == []


def test_removing_a_model_or_changing_the_first_breaks_callers() -> None:
    first, second = contract([A]).models["m"], contract([B]).models["m"]
    before = Contract(1, {"m": first, "n": second})
    assert breaks(before, Contract(1, {"m": first, "n": second, "o": first})) == []
    assert [finding.why for finding in breaks(before, Contract(1, {"m": first}))] == ["n: the model is gone"]
    assert [finding.why for finding in breaks(before, Contract(1, {"n": second, "m": first}))] == [
        "m: /invocations was answered by m, and is by n"
    ]


def test_a_higher_major_version_allows_breaking_changes_and_lists_them() -> None:
    before, after = contract([A]), contract([B])
    with pytest.raises(BreaksCallers, match=r"input column a .* is gone") as refused:
        check("m 2", before, after)
    assert "`contract: 2`" in (refused.value.remedy or "")
    lines = check("m 2", before, Contract(2, after.models))
    assert lines[0] == "m: input column a (double) is gone (contract 1 → 2)"
    with pytest.raises(BreaksCallers, match="goes from 3 to 2"):
        check("m 2", Contract(3, before.models), Contract(2, after.models))
    assert check("m 2", before, contract([A])) == []


def test_the_contract_comes_from_openapi_json_otherwise_from_mlmodel(tmp_path: Path) -> None:
    signature = {"inputs": json.dumps([A]), "outputs": None, "params": None}
    (tmp_path / "MLmodel").write_text(json.dumps({"signature": signature, "mlflow_version": "3.18.0"}))
    assert of_folder("m", tmp_path) == contract([A])
    document = openapi.openapi("service", [openapi.describe("m", None, tmp_path)], 4)
    assert document["info"]["version"] == "4"
    (tmp_path / "openapi.json").write_text(openapi.as_text(document))
    assert of_folder("m", tmp_path) == Contract(4, contract([A]).models)
    assert openapi.describe("m", 3, tmp_path).contract == 4
    assert openapi.parse(document)[0].mlflow == "3.18.0"
    # A file from before openapi.json contained signatures.
    assert of_document({"openapi": "3.1.0"}) is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[",
        b"[]",
        b"3",
        b"\xff",
        b"[" * 100_000,
        b'{"x-mlops-build": 3}',
        b'{"x-mlops-build": {"contract": "1", "models": []}}',
        b'{"x-mlops-build": {"contract": 1, "models": [{"name": "m", "signature": 3}]}}',
    ],
    ids=range(9),
)
def test_a_file_without_a_contract_is_refused(text: bytes) -> None:
    with pytest.raises(BadContract):
        of_text(text)


def test_an_invalid_mlmodel_is_refused() -> None:
    for text in (b"- [", b"signature: 3", b"signature: {inputs: '['}"):
        with pytest.raises(BadContract):
            of_version("m", lambda path, text=text: text if path == "MLmodel" else None)


# Values that fit each type of MLflow's signatures.
SCALARS: Mapping[str, st.SearchStrategy[Any]] = {
    "boolean": st.booleans(),
    "integer": st.integers(-(2**31), 2**31 - 1),
    "long": st.integers(-(2**53), 2**53),
    "float": st.floats(-1e3, 1e3, width=32),
    "double": st.floats(-1e3, 1e3),
    "string": st.text(max_size=5),
}
NAMES = st.sampled_from(["a", "b", "c", "d"])
kinds = st.sampled_from(sorted(SCALARS))
columns = st.dictionaries(NAMES, st.tuples(kinds, st.booleans()), min_size=1, max_size=4).map(
    lambda drawn: [column(name, kind, required) for name, (kind, required) in drawn.items()]
)


@st.composite
def changed(draw: st.DrawFn) -> tuple[Part, Part]:
    """Columns, and the same with a few changes, so that many pairs are compatible."""
    before = draw(columns)
    after = [dict(spec) for spec in before]
    for spec in after:
        if draw(st.integers(0, 3)) == 0:
            spec["type"] = draw(kinds)
        if draw(st.integers(0, 3)) == 0:
            spec["required"] = draw(st.booleans())
    if draw(st.integers(0, 3)) == 0:
        after.pop()
    if draw(st.integers(0, 2)) == 0:
        after.append(column("e", draw(kinds), draw(st.booleans())))
    return before, draw(st.permutations(after)) if after else before


@given(st.data())
def test_mlflow_accepts_old_requests_after_a_change_that_breaks_no_caller(data: st.DataObject) -> None:
    before, after = data.draw(changed())
    if breaks(contract(before), contract(after)):
        return
    row = {spec["name"]: data.draw(SCALARS[spec["type"]]) for spec in before if spec["required"] or data.draw(st.booleans())}
    if not row:
        return
    schema = Schema.from_json(json.dumps(after))
    for body in ({"dataframe_records": [row]}, {"dataframe_split": {"columns": list(row), "data": [list(row.values())]}}):
        _enforce_schema(infer_and_parse_data(body, schema), schema)


@given(changed())
def test_removed_and_newly_required_columns_are_reported_among_other_changes(pair: tuple[Part, Part]) -> None:
    before, after = pair
    was, now = ({spec["name"]: spec for spec in part} for part in pair)
    reported = whys(contract(before), contract(after))
    broken = set(was) - set(now) | {name for name, spec in now.items() if spec["required"] and not was.get(name, {}).get("required")}
    for name in broken:
        assert any(f"column {name} " in why for why in reported), name


@given(columns, columns, st.lists(st.builds(param, NAMES), max_size=2))
def test_the_same_contract_breaks_no_caller(inputs: Part, outputs: Part, params: Part) -> None:
    same = contract(inputs, outputs, params)
    assert breaks(same, same) == []
    # Neither does the same signature, written by MLflow and read back.
    signature = ModelSignature(Schema.from_json(json.dumps(inputs)), Schema.from_json(json.dumps(outputs)))
    described = openapi.Described("m", 1, signature.to_dict(), None)
    assert breaks(contract(inputs, outputs), of_document(openapi.openapi("s", [described])) or same) == []
