"""The Open Inference Protocol v2: the same answers as /invocations for the same rows, and a 4xx for any malformed request."""

import base64
import contextlib
import http.client
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.types.schema import Array

from mlops_build.serving.encode import encode
from mlops_build.serving.input.decode import Decoder
from mlops_build.serving.predictor import Predictor
from mlops_build.serving.refusal import Refusal
from mlops_build.serving.v2.model import V2
from mlops_build.serving.v2.tensors import DTYPES
from tests.serving import models
from tests.serving.conftest import Server, wait_for_log

ALL = models.columns(
    ("d", "double"), ("i", "integer"), ("l", "long"), ("o", "boolean"), ("s", "string"), ("b", "binary"),
    params=ParamSchema([ParamSpec("depth", DataType.long, 3)]),
)  # fmt: skip
# Returns strings, so that a wrong type gives a wrong answer.
STRINGS = """
    def predict(self, context, data, params=None):
        kinds = [str(kind) for kind in data.dtypes]
        return [" ".join(map(repr, [*row, *kinds, params])) for row in data.to_numpy(dtype=object)]
"""
ANSWERS = """
    def predict(self, context, data, params=None):
        import datetime

        import numpy as np
        import pandas as pd

        n = len(data)
        return {
            "ragged": [[1.0] * (row % 3) for row in range(n)],
            "words": [["a", "é"]] * n,
            "bytes": [b"\\x00\\xff"] * n,
            "days": [datetime.date(2020, 1, 2)] * n,
            "gaps": [None, *[1.5] * (n - 1)],
            "mixed": ["a", *[None] * (n - 1)],
            "half": np.ones((n, 2), dtype="float16"),
            "yes": np.ones(n, dtype=bool),
        }
"""
NAMED = ModelSignature(inputs=Schema([TensorSpec(np.dtype("float32"), (-1, 2), "x"), TensorSpec(np.dtype("int64"), (-1,), "n")]))
NAMED_ANSWER = """
    def predict(self, context, data, params=None):
        return (data["x"].sum(axis=1) + data["n"]).astype("float64")
"""
LISTS = ModelSignature(inputs=Schema([ColSpec(Array(DataType.double), "xs"), ColSpec(DataType.datetime, "at")]))


class Protocols:
    """One model behind both protocols, in this process."""

    def __init__(self, model: Any) -> None:
        self.decoder, self.predictor = Decoder(model), Predictor(model)
        self.v2 = V2("m", 7, self.decoder, model.metadata.signature)

    def invocations(self, document: Any) -> Any:
        (answer,) = self.predictor.predict([self.decoder.decode(json.dumps(document).encode(), "application/json")])
        assert not isinstance(answer, Exception), answer
        return json.loads(encode(answer))["predictions"]

    def infer(self, document: Any, *octets: bytes) -> dict[str, Any]:
        """The JSON object of the response, with the data of each output decoded into `data`."""
        head = json.dumps(document).encode()
        rows, options = self.v2.read(head + b"".join(octets), "application/json", str(len(head)).encode() if octets else None)
        (answer,) = self.predictor.predict([rows])
        if isinstance(answer, Exception):
            raise answer
        return opened(self.v2.write(answer, options))


def opened(answer: Any) -> dict[str, Any]:
    length = next((int(value) for name, value in answer.headers if name == b"inference-header-content-length"), None)
    document: dict[str, Any] = json.loads(answer.body[:length])
    tail = answer.body[length:] if length is not None else b""
    for output in document["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            assert len(output["data"]) == math.prod(output["shape"])
            continue
        octets, tail = tail[:size], tail[size:]
        output["data"] = strings(octets) if output["datatype"] == "BYTES" else np.frombuffer(octets, DTYPES[output["datatype"]]).tolist()
        assert len(output["data"]) == math.prod(output["shape"])
    assert tail == b""
    return document


def strings(octets: bytes) -> list[bytes]:
    texts = []
    while octets:
        size = int.from_bytes(octets[:4], "little")
        texts.append(octets[4 : 4 + size])
        octets = octets[4 + size :]
    return texts


def packed(*values: bytes) -> bytes:
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def tensor(name: str, datatype: str, shape: list[int], data: Any = None, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, **({} if data is None else {"data": data}), **more}


def sized(name: str, datatype: str, shape: list[int], size: int) -> dict[str, Any]:
    return tensor(name, datatype, shape, parameters={"binary_data_size": size})


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Protocols]:
    folder = tmp_path_factory.mktemp("models")
    return {
        "floats": Protocols(models.save(folder / "floats", models.FLOATS)),
        "all": Protocols(models.save(folder / "all", ALL, STRINGS)),
        "optional": Protocols(models.save(folder / "optional", models.columns(("a", "double"), ("x", "float", False)), models.KINDS)),
        "tensor": Protocols(models.save(folder / "tensor", models.tensor("float32", (-1, 2, 2)))),
        "whole": Protocols(models.save(folder / "whole", models.tensor("uint8", (-1, 2)))),
        "named": Protocols(models.save(folder / "named", NAMED, NAMED_ANSWER)),
        "lists": Protocols(models.save(folder / "lists", LISTS, models.KINDS)),
        "answers": Protocols(models.save(folder / "answers", models.FLOATS, ANSWERS)),
        "single": Protocols(models.save(folder / "single", models.columns(("a", "float")))),
        "free": Protocols(models.save(folder / "free", None)),
    }


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
row = st.tuples(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**63), 2**63 - 1), st.booleans(),
    words, st.binary(max_size=8),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(row, min_size=1, max_size=5), binary=st.booleans(), nested=st.booleans(), depth=st.none() | st.integers(0, 9))
def test_mixed_columns_are_answered_as_by_invocations(
    served: dict[str, Protocols], rows: list[Any], binary: bool, nested: bool, depth: int | None
) -> None:
    json_rows = [[*cells[:5], base64.b64encode(cells[5]).decode()] for cells in rows]
    params = {} if depth is None else {"depth": depth}
    expected = served["all"].invocations({"dataframe_split": {"columns": list("dilosb"), "data": json_rows}, "params": params})
    inputs, octets = [], []
    for position, (name, datatype) in enumerate(zip("dilosb", ["FP64", "INT32", "INT64", "BOOL", "BYTES", "BYTES"], strict=True)):
        shape = [len(rows), 1] if nested else [len(rows)]
        if binary:
            values = [cells[position] for cells in rows]
            raw = (
                np.array(values, DTYPES[datatype]).tobytes()
                if datatype != "BYTES"
                else packed(*(value.encode() if isinstance(value, str) else value for value in values))
            )
            octets.append(raw)
            inputs.append(sized(name, datatype, shape, len(raw)))
        else:
            inputs.append(tensor(name, datatype, shape, [[cells[position]] if nested else cells[position] for cells in json_rows]))
    answer = served["all"].infer({"inputs": inputs[::-1], "parameters": params}, *octets[::-1])
    assert [output["data"] for output in answer["outputs"]] == [expected]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(finite, finite, finite), min_size=1, max_size=5), way=st.sampled_from(["columns", "block", "octets"]))
def test_columns_of_floats_are_answered_as_by_invocations(served: dict[str, Protocols], rows: list[Any], way: str) -> None:
    expected = served["floats"].invocations({"dataframe_split": {"columns": list("abc"), "data": rows}})
    block = np.array(rows, dtype="<f4")
    inputs = {
        "columns": [tensor(name, "FP64", [len(rows)], list(column)) for name, column in zip("abc", zip(*rows, strict=True), strict=True)],
        "block": [tensor("whatever", "FP32", [len(rows), 3], rows)],
        "octets": [sized("input-0", "FP32", [len(rows), 3], block.nbytes)],
    }[way]
    binary = {"binary_data_output": True} if way == "octets" else {}
    answer = served["floats"].infer({"inputs": inputs, "parameters": binary}, *([block.tobytes()] if way == "octets" else []))
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs == {name: [record[name] for record in expected] for name in "abc"}


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.lists(finite, min_size=4, max_size=4), min_size=1, max_size=5), flat=st.booleans(), binary=st.booleans())
def test_a_tensor_is_answered_as_by_invocations(served: dict[str, Protocols], rows: list[Any], flat: bool, binary: bool) -> None:
    array = np.array(rows, dtype="<f4").reshape(-1, 2, 2)
    expected = served["tensor"].invocations({"inputs": array.tolist()})
    shape = list(array.shape)
    x = sized("x", "FP32", shape, array.nbytes) if binary else tensor("x", "FP32", shape, (array.ravel() if flat else array).tolist())
    (out,) = served["tensor"].infer({"inputs": [x]}, *([array.tobytes()] if binary else []))["outputs"]
    assert out["shape"] == shape
    assert out["data"] == np.array(expected).ravel().tolist()


def test_named_tensors_go_through_mlflow(served: dict[str, Protocols]) -> None:
    x, n = [[1.5, 2.0], [3.0, 4.0]], [10, 20]
    expected = served["named"].invocations({"inputs": {"x": x, "n": n}})
    (out,) = served["named"].infer({"inputs": [tensor("n", "INT32", [2], n), tensor("x", "FP64", [2, 2], x)]})["outputs"]
    assert (out["name"], out["datatype"], out["data"]) == ("output-0", "FP64", expected)
    for inputs in ([tensor("x", "FP32", [2, 2], x)], [tensor("x", "FP32", [2, 2], x), tensor("n", "FP32", [2], n)]):
        with pytest.raises(Refusal, match=r"missing|expected INT64"):
            served["named"].infer({"inputs": inputs})


def test_optional_columns_lists_and_dates_go_through_mlflow(served: dict[str, Protocols]) -> None:
    expected = served["optional"].invocations({"dataframe_split": {"columns": ["a"], "data": [[1.5], [2.0]]}})
    (out,) = [
        output
        for output in served["optional"].infer({"inputs": [tensor("a", "FP64", [2], [1.5, 2])]})["outputs"]
        if output["name"] == "values"
    ]
    assert out["data"] == [text for record in expected for text in record["values"]]
    split = {"columns": ["xs", "at"], "data": [[[1.0, 2.0], "2020-01-02"], [[3.0, 4.0], "2021-01-02"]]}
    expected = served["lists"].invocations({"dataframe_split": split})
    at = tensor("at", "BYTES", [2], ["2020-01-02", "2021-01-02"])
    for xs in (tensor("xs", "FP64", [2, 2], [1, 2, 3, 4]), tensor("xs", "BYTES", [2], ["[1.0, 2.0]", "[3.0, 4.0]"])):
        outputs = {output["name"]: output["data"] for output in served["lists"].infer({"inputs": [xs, at]})["outputs"]}
        assert outputs["values"] == [text for record in expected for text in record["values"]]
    with pytest.raises(Refusal, match="expected JSON"):
        served["lists"].infer({"inputs": [tensor("xs", "BYTES", [2], ["[1.0", "x"]), at]})


@pytest.mark.parametrize(("name", "shape"), [("a", [2]), ("a", [2, 1]), ("whatever", [2]), ("whatever", [2, 1])])
def test_a_model_of_one_column_takes_one_input(served: dict[str, Protocols], name: str, shape: list[int]) -> None:
    (out,) = served["single"].infer({"inputs": [tensor(name, "FP32", shape, [1.5, 2.5])]})["outputs"]
    assert (out["name"], out["shape"], out["data"]) == ("a", [2], [1.5, 2.5])


def test_a_model_without_a_signature_accepts_any_tensor(served: dict[str, Protocols]) -> None:
    expected = served["free"].invocations({"inputs": [[1.0, 2.0]]})
    (out,) = served["free"].infer({"inputs": [tensor("x", "FP64", [1, 2], [1, 2])]})["outputs"]
    assert (out["shape"], out["data"]) == ([1, 2], expected[0])


def test_outputs_that_are_not_numbers_are_bytes(served: dict[str, Protocols]) -> None:
    ask = {"inputs": [tensor("x", "FP32", [2, 3], [0] * 6)]}
    outputs = {output["name"]: output for output in served["answers"].infer(ask)["outputs"]}
    assert {name: (output["datatype"], output["shape"]) for name, output in outputs.items()} == {
        "ragged": ("BYTES", [2]), "words": ("BYTES", [2, 2]), "bytes": ("BYTES", [2]), "days": ("BYTES", [2]), "gaps": ("FP64", [2]),
        "mixed": ("BYTES", [2]), "half": ("FP64", [2, 2]), "yes": ("BOOL", [2]),
    }  # fmt: skip
    assert outputs["ragged"]["data"] == ["[]", "[1.0]"]
    assert outputs["mixed"]["data"] == ['"a"', "null"]
    assert outputs["ragged"]["parameters"] == outputs["mixed"]["parameters"] == {"content_type": "json"}
    assert outputs["words"]["data"] == ["a", "é", "a", "é"]
    assert outputs["bytes"]["data"] == [base64.b64encode(b"\x00\xff").decode()] * 2
    assert outputs["days"]["data"] == ["2020-01-02"] * 2
    assert outputs["gaps"]["data"] == [None, 1.5]
    wanted = [
        {"name": "bytes", "parameters": {"binary_data": True}},
        {"name": "yes"},
        {"name": "words", "parameters": {"binary_data": True}},
    ]
    outputs = {output["name"]: output for output in served["answers"].infer({**ask, "outputs": wanted})["outputs"]}
    assert list(outputs) == ["bytes", "yes", "words"]
    assert outputs["bytes"]["data"] == [b"\x00\xff"] * 2
    assert outputs["yes"]["data"] == [True, True]
    assert outputs["words"]["data"] == [b"a", "é".encode()] * 2


A, B, C = (tensor(name, "FP32", [1], [0.5]) for name in "abc")


@pytest.mark.parametrize(
    ("model", "document", "message"),
    [
        ("floats", [], "the request: Input should be a valid dictionary"),
        ("floats", {}, "inputs: Field required"),
        ("floats", {"inputs": []}, "inputs: List should have at least 1 item"),
        ("floats", {"inputs": [A, B]}, "the input 'c' is missing"),
        ("floats", {"inputs": [A, A, B, C]}, "twice"),
        ("floats", {"inputs": [A, B, C, tensor("d", "FP32", [1], [1])]}, "no input 'd'"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [2], [1, 2])]}, "different numbers of rows: 1, 2"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1, 2], [1, 2])]}, r"\[N\] or \[N, 1\]"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [], [1])]}, r"\[N\] or \[N, 1\]"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1], [1, 2])]}, r"2 values; the shape \[1\] needs 1"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1], ["1"])]}, "element 0: expected FP32, got '1'"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1], [True])]}, "expected FP32, got true"),
        ("floats", {"inputs": [A, B, tensor("c", "BYTES", [1], ["1"])]}, "expected FP32, got BYTES"),
        ("floats", {"inputs": [A, B, tensor("c", "FLOAT", [1], [1])]}, r"2.datatype: Input should be 'BOOL', .*; got 'FLOAT'"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [-1], [1])]}, r"2.shape.0: Input should be greater .* 0; got -1"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1.0], [1])]}, "inputs.2.shape.0: Input should be a valid integer; got 1.0"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1] * 40, [1])]}, "inputs.2.shape: .* at most 32 items"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [0, 2**30, 2**30, 2**30], [])]}, "cannot be created"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1])]}, "either 'data' or"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1], [1], parameters={"binary_data_size": 4})]}, "either 'data' or"),
        ("floats", {"inputs": [A, B, sized("c", "FP32", [1], 4)]}, "binary_data_size is 4; 0 bytes are left"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1], parameters={"shared_memory_region": "r"})]}, "either 'data' or"),
        ("floats", {"inputs": [A, B, C], "id": 3}, "id: Input should be a valid string; got 3"),
        ("floats", {"inputs": [A, B, C], "parameters": 3}, "parameters: Input should be a valid dictionary; got 3"),
        ("floats", {"inputs": [A, B, C], "parameters": {"binary_data_output": 1}}, "binary_data_output: Input should be a valid boolean"),
        ("floats", {"inputs": [A, B, C], "outputs": ["a"]}, "outputs.0: Input should be a valid dictionary; got 'a'"),
        ("floats", {"inputs": [A, B, C], "outputs": [{"name": "z"}]}, "no output 'z'"),
        ("floats", {"inputs": [A, B, C], "outputs": [{"name": "a"}, {"name": "a"}]}, "twice"),
        ("floats", {"inputs": [A, B, C], "outputs": [{"name": "a", "parameters": {"classification": 2}}]}, "extension"),
        ("floats", {"inputs": [tensor("x", "FP32", [1, 2], [1, 2])]}, r"shape \[1, 2\]; expected \[-1, 3\]"),
        ("tensor", {"inputs": [tensor("x", "FP32", [1, 2, 2], [[[1, 2], [3]]])]}, "not nested like the shape"),
        ("tensor", {"inputs": [tensor("x", "FP32", [1, 2, 2], [[1, 2], [3, 4]])]}, "not nested like the shape"),
        ("tensor", {"inputs": [tensor("x", "FP32", [1, 2, 2], [[[[1, 2], [3, 4]]]])]}, "got \\[|values|nested"),
        ("tensor", {"inputs": [tensor("x", "INT8", [1, 2, 2], [1, 2, 3, 128])]}, r"element \[3\]: 128 does not fit into int8"),
        ("tensor", {"inputs": [tensor("x", "UINT64", [1, 2, 2], [1, 2, 3, -1])]}, r"element \[3\]: -1 does not fit into uint64"),
        ("tensor", {"inputs": [tensor("x", "FP64", [1, 2, 2], [1, 2, 3, 10**400])]}, r"element \[3\]: expected float64"),
        ("tensor", {"inputs": [A, B]}, "takes one input; got 2"),
        ("whole", {"inputs": [tensor("x", "INT64", [1, 2], [1, 256])]}, "element 1: 256 does not fit into UINT8"),
        ("whole", {"inputs": [tensor("x", "FP32", [1, 2], [1, 2])]}, "expected UINT8, got FP32"),
        ("whole", {"inputs": [tensor("x", "BOOL", [1, 2], [True, False])]}, "expected UINT8, got BOOL"),
        ("whole", {"inputs": [tensor("x", "UINT8", [1, 2], [1.5, 2])]}, "expected UINT8, got 1.5"),
    ],
)  # fmt: skip
def test_an_invalid_request_is_refused_with_the_reason(served: dict[str, Protocols], model: str, document: Any, message: str) -> None:
    with pytest.raises(Refusal, match=message) as refused:
        served[model].infer(document)
    assert refused.value.status == 400


@pytest.mark.parametrize(
    ("spec", "octets", "message"),
    [
        (sized("x", "FP32", [1, 2, 2], 16), bytes(15), "binary_data_size is 16; 15 bytes are left"),
        (sized("x", "FP32", [1, 2, 2], 16), bytes(17), "1 bytes follow the last tensor"),
        (sized("x", "FP32", [1, 2, 2], 8), bytes(8), "has 8 bytes; FP32 of the shape"),
        (sized("x", "FP32", [1, 2, 2], -16), bytes(16), "binary_data_size: Input should be greater than or equal to 0; got -16"),
        (sized("x", "BOOL", [1, 2, 2], 4), b"\x00\x01\x02\x00", "0 or 1"),
        (sized("x", "BYTES", [1], 4), b"\xff\xff\xff\xff", "extends beyond"),
        (sized("x", "BYTES", [1], 3), b"\x00\x00\x00", "extends beyond"),
        (sized("x", "BYTES", [2], 5), packed(b"a"), "needs 2 elements, the bytes contain 1"),
        (sized("x", "BYTES", [1], 10), packed(b"a", b"b"), "contain more"),
        (sized("x", "BYTES", [0], 5), packed(b"a"), "contain more"),
    ],
)
def test_the_sizes_of_binary_tensors_are_checked(served: dict[str, Protocols], spec: dict[str, Any], octets: bytes, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        served["tensor"].infer({"inputs": [spec]}, octets)


def test_text_must_be_utf8_and_base64_be_base64(served: dict[str, Protocols]) -> None:
    good = [
        tensor("d", "FP64", [1], [0.5]), tensor("i", "INT32", [1], [1]), tensor("l", "INT64", [1], [1]), tensor("o", "BOOL", [1], [True])
    ]  # fmt: skip
    with pytest.raises(Refusal, match="input 's', element 0 is not UTF-8"):
        served["all"].infer({"inputs": [*good, sized("s", "BYTES", [1], 5), tensor("b", "BYTES", [1], [""])]}, packed(b"\xff"))
    with pytest.raises(Refusal, match="input 'b', element 0: expected base64"):
        served["all"].infer({"inputs": [*good, tensor("s", "BYTES", [1], [""]), tensor("b", "BYTES", [1], ["a"])]})


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    model=st.sampled_from(["floats", "all", "tensor", "whole", "named", "lists", "free"]),
    fields=st.lists(
        st.fixed_dictionaries(
            {"name": st.sampled_from(["a", "b", "c", "x", "n", "xs", "at", "s"])},
            optional={
                "datatype": st.sampled_from([*DTYPES, "BYTES", "", 3, None]),
                "shape": st.lists(st.integers(-1, 3), max_size=3) | st.none() | st.just([2**31 - 1, 0]),
                "data": st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | words, st.lists, max_leaves=6),
                "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 20) | st.none()}) | st.integers(),
            },
        ),
        max_size=3,
    ),
    more=st.dictionaries(
        st.sampled_from(["id", "parameters", "outputs"]), st.none() | st.integers() | words | st.lists(st.none()), max_size=2
    ),
    tail=st.binary(max_size=20),
    length=st.none() | st.binary(max_size=3),
)
def test_any_body_is_decoded_or_refused(
    served: dict[str, Protocols], model: str, fields: Any, more: Any, tail: bytes, length: bytes | None
) -> None:
    head = json.dumps({"inputs": fields, **more}).encode()
    for announced in (length, str(len(head)).encode()):
        with contextlib.suppress(Refusal):  # a 4xx; any other exception would be a 500
            rows, _ = served[model].v2.read(head + tail, None, announced)
            assert rows.count >= 0


def test_very_deep_nesting_is_refused(served: dict[str, Protocols]) -> None:
    with pytest.raises(Refusal):
        served["tensor"].v2.read(b'{"inputs":' + b"[" * 100_000, None, None)
    with pytest.raises(Refusal, match="JSON"):
        served["tensor"].v2.read(b"", None, None)


def test_the_metadata_describes_the_inputs(served: dict[str, Protocols]) -> None:
    assert served["all"].v2.metadata == {
        "name": "m", "versions": ["7"], "platform": "mlflow_pyfunc", "outputs": [],
        "inputs": [
            {"name": name, "datatype": datatype, "shape": [-1]}
            for name, datatype in zip("dilosb", ["FP64", "INT32", "INT64", "BOOL", "BYTES", "BYTES"], strict=True)
        ],
    }  # fmt: skip
    assert served["tensor"].v2.metadata["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, 2, 2]}]
    assert [spec["name"] for spec in served["named"].v2.metadata["inputs"]] == ["x", "n"]
    assert served["lists"].v2.metadata["inputs"] == [
        {"name": "xs", "datatype": "FP64", "shape": [-1, -1]}, {"name": "at", "datatype": "BYTES", "shape": [-1]}
    ]  # fmt: skip


def ask(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
    host, port = server.url.removeprefix("http://").split(":")
    with contextlib.closing(http.client.HTTPConnection(host, int(port), timeout=30)) as connection:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, json.dumps(body) if isinstance(body, dict) else body, sent)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_the_paths_of_the_protocol(server: Server) -> None:
    def get(path: str) -> Any:
        status, headers, text = ask(server, "GET", path)
        assert (status, headers["content-type"]) == (200, "application/json")
        return json.loads(text)

    assert get("/v2")["extensions"] == ["binary_tensor_data"]
    assert get("/v2/health/live") == get("/v2/health/ready") == {"live": True}
    assert get("/v2/models/lines/ready") == get("/v2/models/lines/versions/2/ready") == {"name": "lines", "ready": True}
    metadata = get("/v2/models/lines")
    assert metadata == get("/v2/models/lines/versions/2")
    assert metadata["versions"] == ["2"]
    assert [spec["name"] for spec in metadata["inputs"]] == ["x", "y"]
    for method, path, status in (
        ("GET", "/v2/models/nobody", 404), ("GET", "/v2/models/lines/versions/1", 404), ("GET", "/v2/repository/index", 404),
        ("POST", "/v2/models/nobody/infer", 404), ("GET", "/v2/models/lines/infer", 405), ("POST", "/v2/health/live", 405),
    ):  # fmt: skip
        actual, _, text = ask(server, method, path)
        assert (actual, list(json.loads(text))) == (status, ["error"]), path


def test_inference_over_http(server: Server) -> None:
    x, y = np.array([1.0, -2.0], dtype="<f8"), np.array([0.5, 0.25], dtype="<f8")
    split = {"dataframe_split": {"columns": ["x", "y"], "data": [[1.0, 0.5], [-2.0, 0.25]]}}
    expected = json.loads(ask(server, "POST", "/models/lines/invocations", split, Content_Type="application/json")[2])["predictions"]
    document: dict[str, Any] = {"id": "one", "inputs": [tensor("x", "FP64", [2], x.tolist()), tensor("y", "FP64", [2], y.tolist())]}
    status, headers, text = ask(server, "POST", "/v2/models/lines/infer", document)
    answer = json.loads(text)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("lines", "2", "one")
    assert {output["name"]: output["data"] for output in answer["outputs"]} == {
        name: [row[name] for row in expected] for name in expected[0]
    }
    declared = {output["name"]: output["datatype"] for output in json.loads(ask(server, "GET", "/v2/models/lines")[2])["outputs"]}
    assert {output["name"]: output["datatype"] for output in answer["outputs"]} == declared

    head = json.dumps(
        {"inputs": [sized("x", "FP64", [2], 16), sized("y", "FP64", [2], 16)], "parameters": {"binary_data_output": True}}
    ).encode()
    octets = head + x.tobytes() + y.tobytes()
    status, headers, text = ask(server, "POST", "/v2/models/lines/versions/2/infer", octets, Inference_Header_Content_Length=str(len(head)))
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    length = int(headers["inference-header-content-length"])
    sizes = [output["parameters"]["binary_data_size"] for output in json.loads(text[:length])["outputs"]]
    assert len(text) == length + sum(sizes)

    for body, more, expect in (
        ("{", {}, 400), (document, {"Content_Type": "text/csv"}, 415), (document, {"Content_Encoding": "br"}, 415),
        (octets, {"Inference_Header_Content_Length": "x"}, 400), (octets, {"Inference_Header_Content_Length": "9" * 18}, 400),
        (octets, {}, 400), (b" " * (17 << 20), {}, 413),
    ):  # fmt: skip
        status, _, text = ask(server, "POST", "/v2/models/lines/infer", body, **more)
        assert (status, list(json.loads(text))) == (expect, ["error"])


def test_an_example_may_be_a_large_tensor(tmp_path: Path) -> None:
    model = models.save(tmp_path / "model", models.tensor("float32", (-1, 3, 64, 64)))
    sent = {"inputs": np.zeros((1, 3, 64, 64)).tolist()}
    example = V2("model", 1, Decoder(model), model.metadata.signature).example({"input": sent})
    assert example is not None
    assert json.dumps(example["inputs"][0]["data"]).count("0.0") == 3 * 64 * 64
    assert V2("model", 1, Decoder(model), model.metadata.signature).example({"input": {"inputs": [2**70]}}) is None


def test_the_example_in_openapi_json_is_answered(server: Server) -> None:
    document = json.loads(ask(server, "GET", "/openapi.json")[2])
    for name in ("points", "lines"):
        content = document["paths"][f"/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]
        assert ask(server, "POST", f"/v2/models/{name}/infer", content["example"])[0] == 200
        inputs = document["components"]["schemas"][f"{name}.inference"]["properties"]["inputs"]
        assert inputs["items"]["properties"]["datatype"]["enum"] == [*DTYPES, "BYTES"]
        assert "Inputs of this model: " in inputs["description"]


def test_requests_are_counted_and_logged_like_those_of_invocations(server: Server) -> None:
    def answered() -> float:
        lines = ask(server, "GET", "/metrics")[2].decode().splitlines()
        return float(next(line for line in lines if line.startswith('mlops_build_requests_total{model="lines",status="400"}')).split()[-1])

    ask(server, "POST", "/v2/models/lines/infer", "{")
    before = answered()
    ask(server, "POST", "/v2/models/lines/infer", "{", X_Request_Id="v2-call")
    assert answered() == before + 1
    line = json.loads(wait_for_log(Path(server.log), r'\{.*"v2-call".*\}')[0])
    assert (line["model"], line["status"]) == ("lines", 400)


@pytest.mark.parametrize(
    ("signature", "sent", "tensors"),
    [
        (models.FLOATS, {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}}, 3),
        (models.columns(("a", "long"), ("b", "string")), {"dataframe_split": {"columns": ["a", "b"], "data": [[1, "x"]]}}, 2),
        (models.tensor("float32", (-1, 2)), {"inputs": [[1, 2]]}, 1),
    ],
)
def test_the_recorded_example_in_this_protocol(tmp_path: Path, signature: ModelSignature, sent: Any, tensors: int) -> None:
    model = V2("m", 1, Decoder(models.save(tmp_path / "saved", signature)), signature)
    example = model.example({"input": sent})
    assert example is not None
    assert len(example["inputs"]) == tensors
