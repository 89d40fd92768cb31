"""The contract as a document: valid OpenAPI that describes the server's requests and responses."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import mlflow
import numpy as np
import pandas as pd
import schemathesis
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array, Map, Object, Property

from mlops_build.model.openapi import Described, as_text, describe, openapi
from mlops_build.serving import docs_page
from tests.serving import models

ROW = {"d": 1.5, "i": 2, "l": 3, "o": True, "s": "x", "x": None}


def described(signature: mlflow.models.ModelSignature, recorded: Any = None) -> Described:
    return Described("m", 3, signature.to_dict(), recorded)


def accepts(document: dict[str, Any], body: Any, part: str = "m.request") -> bool:
    schema = document["components"]["schemas"][part]
    return not list(jsonschema.Draft202012Validator(schema).iter_errors(body))


def test_a_body_in_each_form_is_valid_and_a_wrong_body_is_not() -> None:
    document = openapi("service", [described(models.MIXED)])
    split = {"columns": list(ROW), "data": [list(ROW.values())]}
    for body in (
        {"dataframe_split": split},
        {"dataframe_records": [ROW]},
        {"instances": [ROW]},
        {"inputs": {name: [value] for name, value in ROW.items()}},
        {"dataframe_records": [ROW], "params": {"depth": 4}},
    ):
        assert accepts(document, body), body
    for body in (
        {},
        {"dataframe_records": ROW},
        {"dataframe_records": [{name: value for name, value in ROW.items() if name != "i"}]},
        {"dataframe_records": [{**ROW, "i": "two"}]},
        {"dataframe_records": [{**ROW, "i": 2**31}]},
        {"dataframe_split": {"columns": ["d"], "data": [[1.0]]}},
        {"dataframe_records": [ROW], "params": {"depth": "deep"}},
    ):
        assert not accepts(document, body), body


def test_an_optional_column_may_be_missing() -> None:
    document = openapi("service", [described(models.MIXED)])
    assert accepts(document, {"dataframe_records": [{name: value for name, value in ROW.items() if name != "x"}]})


def test_tensors_have_their_shape() -> None:
    document = openapi("service", [described(models.tensor("float32", (-1, 2, 2)))])
    assert accepts(document, {"inputs": [[[1, 2], [3, 4.5]]]})
    assert not accepts(document, {"inputs": [[[1, 2], [3]]]})
    assert not accepts(document, {"inputs": [[1, 2]]})


def test_nested_columns() -> None:
    inner = Object([Property("a", DataType.long), Property("b", DataType.string, required=False)])
    signature = mlflow.models.ModelSignature(
        Schema([ColSpec(Array(inner), "items"), ColSpec(Map(DataType.double), "weights")]),
        params=ParamSchema([ParamSpec("top", DataType.long, [1, 2], (-1,))]),
    )
    document = openapi("service", [described(signature)])
    assert accepts(
        document, {"dataframe_records": [{"items": [{"a": 1}, {"a": 2, "b": "x"}], "weights": {"k": 0.5}}], "params": {"top": [3]}}
    )
    assert not accepts(document, {"dataframe_records": [{"items": [{"b": "x"}], "weights": {}}]})


def test_the_document_and_its_recorded_example_are_valid() -> None:
    frame = pd.DataFrame({"x": [1.0, 2.0], "n": np.array([1, 2], dtype="int32")})
    signature = mlflow.models.infer_signature(frame, pd.DataFrame({"label": ["a", "b"], "score": [0.5, 0.25]}))
    recorded = {
        "input": {"dataframe_split": frame.to_dict(orient="split", index=False)},
        "predictions": [{"label": "a", "score": 0.5}, {"label": "b", "score": 0.25}],
    }
    other = Described("other", 1, models.tensor("int64", (-1, 2)).to_dict(), None)
    document = openapi("service", [described(signature, recorded), other])
    schemathesis.openapi.from_dict(document).validate()
    content = document["paths"]["/invocations"]["post"]["requestBody"]["content"]["application/json"]
    assert accepts(document, content["example"])
    assert accepts(document, {"predictions": recorded["predictions"]}, "m.response")
    assert set(document["paths"]) == {"/invocations", "/models/m/invocations", "/models/other/invocations", "/ping", "/health", "/version"}
    assert as_text(document) == as_text(json.loads(as_text(document)))


def test_letters_of_every_script_are_shown_as_they_are() -> None:
    frame = pd.DataFrame({"Улица": ["Köln"]})
    signature = mlflow.models.infer_signature(frame, pd.DataFrame({"ответ": ["да"]}))
    recorded = {"input": {"dataframe_split": frame.to_dict(orient="split", index=False)}, "predictions": [{"ответ": "\ud800"}]}
    document = openapi("service", [described(signature, recorded)])
    for text in (as_text(document), docs_page.page(document).decode()):
        assert "Улица" in text
        assert "Köln" in text
        assert "\\u0423" not in text
    assert json.loads(as_text(document)) == json.loads(json.dumps(document)), "a lone surrogate is escaped, since UTF-8 has none"


def test_a_model_without_a_signature_has_a_valid_document(tmp_path: Path) -> None:
    models.save(tmp_path / "saved", None)
    document = openapi("service", [describe("m", None, tmp_path / "saved" / "model")])
    schemathesis.openapi.from_dict(document).validate()
    assert accepts(document, {"inputs": {"whatever": 1}})
