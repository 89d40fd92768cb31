"""The Open Inference Protocol v2: the same answers as /invocations for the same rows, and a 4xx for any malformed request."""

import base64
import contextlib
import json
import math
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
from mlflow.types.schema import Array

from mlops_build.serving.encode import encode
from mlops_build.serving.input.decode import Decoder
from mlops_build.serving.predictor import Predictor
from mlops_build.serving.refusal import Refusal
from mlops_build.serving.v2.model import V2
from mlops_build.serving.v2.tensors import DTYPES
from tests.serving import models
from tests.serving.conftest import Server
from tests.serving.kinds import KINDS_OF_MODELS
from tests.serving.test_http import ask as send
from tests.serving.test_http import metric

# Returns text, so that a wrong type gives a wrong answer.
SHOWN = """
    def predict(self, context, data, params=None):
        if isinstance(data, dict):
            return [repr([name, str(array.dtype), array.tolist()]) for name, array in data.items()]
        if hasattr(data, "columns"):
            return [repr([*row, *map(str, data.dtypes), params]) for row in data.to_numpy(dtype=object)]
        return [repr([str(data.dtype), row.tolist()]) for row in data]
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
PARAMS = ParamSchema([ParamSpec("depth", DataType.long, 3)])
LISTS = ModelSignature(inputs=Schema([ColSpec(Array(DataType.double), "xs"), ColSpec(DataType.datetime, "at")]))
MODELS: dict[str, tuple[ModelSignature | None, str]] = {
    **{name: (kind.signature, SHOWN) for name, kind in KINDS_OF_MODELS.items()},
    "records": (models.FLOATS, models.ECHO),
    "answers": (models.FLOATS, ANSWERS),
    "params": (models.columns(("s", "string"), ("b", "binary"), params=PARAMS), SHOWN),
    "lists": (LISTS, models.KINDS),
    "tensor": (models.tensor("float32", (-1, 2, 2)), models.ECHO),
    "whole": (models.tensor("uint8", (-1, 2)), models.ECHO),
    "single": (models.columns(("a", "float")), models.ECHO),
    "free": (None, models.ECHO),
}


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


Served = Callable[[str], Protocols]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("models")
    return cache(lambda name: Protocols(models.save(folder / name, *MODELS[name])))


@pytest.mark.parametrize("way", ["flat", "nested", "binary"])
@pytest.mark.parametrize(
    "model", ["floats", "mixed", "dates", "optional", "text", "vector", "matrix", "integers", "bytes", "image", "flags", "words", "tensors"]
)
def test_the_same_values_have_the_same_answers_as_in_invocations(served: Served, model: str, way: str) -> None:
    kind, protocols = KINDS_OF_MODELS[model], served(model)
    columns = {name: [row[name] for row in kind.rows] for name in list(kind.types)[: 1 if model == "optional" else None]}
    values = columns or (kind.tensor if isinstance(kind.tensor, dict) else {"input-0": kind.tensor})
    split = {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
    expected = protocols.invocations({"dataframe_split": split} if columns else {"inputs": kind.tensor})
    inputs, octets = [], []
    for described in protocols.v2.metadata["inputs"]:
        name, datatype = described["name"], described["datatype"]
        if name not in values:
            continue
        array = np.array(values[name], DTYPES.get(datatype, object))
        shape = [*array.shape, 1] if way == "nested" and columns else list(array.shape)
        if way != "binary":
            inputs.append(tensor(name, datatype, shape, (array.ravel() if way == "flat" else array.reshape(shape)).tolist()))
            continue
        as_bytes = base64.b64decode if kind.types.get(name) == "binary" else str.encode
        octets.append(packed(*map(as_bytes, array.flat)) if datatype == "BYTES" else array.tobytes())
        inputs.append(sized(name, datatype, shape, len(octets[-1])))
    (out,) = protocols.infer({"inputs": inputs[::-1]}, *octets[::-1])["outputs"]
    assert (out["name"], out["data"]) == ("output-0", expected)


def test_columns_of_floats_may_be_one_tensor_and_outputs_binary(served: Served) -> None:
    block = np.array([[0.5, 1, 2], [3, 4, 5]], "<f4")
    for x, octets in ((tensor("x", "FP32", [2, 3], block.tolist()), []), (sized("x", "FP32", [2, 3], block.nbytes), [block.tobytes()])):
        answer = served("records").infer({"inputs": [x], "parameters": {"binary_data_output": bool(octets)}}, *octets)
        assert {output["name"]: output["data"] for output in answer["outputs"]} == dict(zip("abc", block.T.tolist(), strict=True))


def test_params_are_parameters(served: Served) -> None:
    inputs = [tensor("s", "BYTES", [1], ["x"]), tensor("b", "BYTES", [1], ["YQ=="])]
    (out,) = served("params").infer({"inputs": inputs, "parameters": {"depth": 7, "other": 1}})["outputs"]
    assert "{'depth': 7}" in out["data"][0]
    with pytest.raises(Refusal, match="input 's', element 0 is not UTF-8"):
        served("params").infer({"inputs": [sized("s", "BYTES", [1], 5), inputs[1]]}, packed(b"\xff"))
    with pytest.raises(Refusal, match="input 'b', element 0: expected base64"):
        served("params").infer({"inputs": [inputs[0], tensor("b", "BYTES", [1], ["a"])]})


def test_lists_are_numbers_or_json(served: Served) -> None:
    split = {"columns": ["xs", "at"], "data": [[[1.0, 2.0], "2020-01-02"], [[3.0, 4.0], "2021-01-02"]]}
    expected = served("lists").invocations({"dataframe_split": split})
    at = tensor("at", "BYTES", [2], ["2020-01-02", "2021-01-02"])
    for xs in (tensor("xs", "FP64", [2, 2], [1, 2, 3, 4]), tensor("xs", "BYTES", [2], ["[1.0, 2.0]", "[3.0, 4.0]"])):
        outputs = {output["name"]: output["data"] for output in served("lists").infer({"inputs": [xs, at]})["outputs"]}
        assert outputs["values"] == [text for record in expected for text in record["values"]]
    with pytest.raises(Refusal, match="expected JSON"):
        served("lists").infer({"inputs": [tensor("xs", "BYTES", [2], ["[1.0", "x"]), at]})


@pytest.mark.parametrize(("name", "shape"), [("a", [2]), ("a", [2, 1]), ("whatever", [2]), ("whatever", [2, 1])])
def test_a_model_of_one_column_takes_one_input(served: Served, name: str, shape: list[int]) -> None:
    (out,) = served("single").infer({"inputs": [tensor(name, "FP32", shape, [1.5, 2.5])]})["outputs"]
    assert (out["name"], out["shape"], out["data"]) == ("a", [2], [1.5, 2.5])


def test_a_model_without_a_signature_accepts_any_tensor(served: Served) -> None:
    (out,) = served("free").infer({"inputs": [tensor("x", "FP64", [1, 2], [1, 2])]})["outputs"]
    assert (out["shape"], out["data"]) == ([1, 2], [1.0, 2.0])


def test_outputs_that_are_not_numbers_are_bytes(served: Served) -> None:
    ask = {"inputs": [tensor("x", "FP32", [2, 3], [0] * 6)]}
    outputs = {output["name"]: output for output in served("answers").infer(ask)["outputs"]}
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
    outputs = {output["name"]: output for output in served("answers").infer({**ask, "outputs": wanted})["outputs"]}
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
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1], [1, 2])]}, r"2 values; the shape \[1\] needs 1"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1], ["1"])]}, "element 0: expected FP32, got '1'"),
        ("floats", {"inputs": [A, B, tensor("c", "BYTES", [1], ["1"])]}, "expected FP32, got BYTES"),
        ("floats", {"inputs": [A, B, tensor("c", "FLOAT", [1], [1])]}, r"2.datatype: Input should be 'BOOL', .*; got 'FLOAT'"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [-1], [1])]}, r"2.shape.0: Input should be greater .* 0; got -1"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1] * 40, [1])]}, "inputs.2.shape: .* at most 32 items"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [0, 2**30, 2**30, 2**30], [])]}, "cannot be created"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1])]}, "either 'data' or"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1], [1], parameters={"binary_data_size": 4})]}, "either 'data' or"),
        ("floats", {"inputs": [A, B, sized("c", "FP32", [1], 4)]}, "binary_data_size is 4; 0 bytes are left"),
        ("floats", {"inputs": [A, B, tensor("c", "FP32", [1], parameters={"shared_memory_region": "r"})]}, "either 'data' or"),
        ("floats", {"inputs": [A, B, C], "id": 3}, "id: Input should be a valid string; got 3"),
        ("floats", {"inputs": [A, B, C], "outputs": [{"name": "z"}]}, "no output 'z'"),
        ("floats", {"inputs": [A, B, C], "outputs": [{"name": "a"}, {"name": "a"}]}, "twice"),
        ("floats", {"inputs": [A, B, C], "outputs": [{"name": "a", "parameters": {"classification": 2}}]}, "extension"),
        ("floats", {"inputs": [tensor("x", "FP32", [1, 2], [1, 2])]}, r"shape \[1, 2\]; expected \[-1, 3\]"),
        ("tensor", {"inputs": [tensor("x", "FP32", [1, 2, 2], [[[1, 2], [3]]])]}, "not nested like the shape"),
        ("tensor", {"inputs": [tensor("x", "FP32", [1, 2, 2], [[1, 2], [3, 4]])]}, "not nested like the shape"),
        ("tensor", {"inputs": [tensor("x", "INT8", [1, 2, 2], [1, 2, 3, 128])]}, r"element \[3\]: 128 does not fit into int8"),
        ("tensor", {"inputs": [tensor("x", "UINT64", [1, 2, 2], [1, 2, 3, -1])]}, r"element \[3\]: -1 does not fit into uint64"),
        ("tensor", {"inputs": [tensor("x", "FP64", [1, 2, 2], [1, 2, 3, 10**400])]}, r"element \[3\]: expected float64"),
        ("tensor", {"inputs": [A, B]}, "takes one input; got 2"),
        ("tensors", {"inputs": [*(tensor(name, "FP32", [1], [1]) for name in "nw"), tensor("x", "FP32", [1, 2], [1, 2])]}, "INT64"),
        ("whole", {"inputs": [tensor("x", "INT64", [1, 2], [1, 256])]}, "element 1: 256 does not fit into UINT8"),
        ("whole", {"inputs": [tensor("x", "FP32", [1, 2], [1, 2])]}, "expected UINT8, got FP32"),
        ("whole", {"inputs": [tensor("x", "UINT8", [1, 2], [1.5, 2])]}, "expected UINT8, got 1.5"),
    ],
)  # fmt: skip
def test_an_invalid_request_is_refused_with_the_reason(served: Served, model: str, document: Any, message: str) -> None:
    with pytest.raises(Refusal, match=message) as refused:
        served(model).infer(document)
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
def test_the_sizes_of_binary_tensors_are_checked(served: Served, spec: dict[str, Any], octets: bytes, message: str) -> None:
    with pytest.raises(Refusal, match=message):
        served("tensor").infer({"inputs": [spec]}, octets)


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    model=st.sampled_from(["records", "mixed", "tensor", "whole", "tensors", "lists", "free"]),
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
def test_any_body_is_decoded_or_refused(served: Served, model: str, fields: Any, more: Any, tail: bytes, length: bytes | None) -> None:
    head = json.dumps({"inputs": fields, **more}).encode()
    for announced in (length, str(len(head)).encode()):
        with contextlib.suppress(Refusal):  # a 4xx; any other exception would be a 500
            rows, _ = served(model).v2.read(head + tail, None, announced)
            assert rows.count >= 0


def test_very_deep_nesting_is_refused(served: Served) -> None:
    with pytest.raises(Refusal):
        served("tensor").v2.read(b'{"inputs":' + b"[" * 100_000, None, None)
    with pytest.raises(Refusal, match="JSON"):
        served("tensor").v2.read(b"", None, None)


def test_the_metadata_describes_the_inputs(served: Served) -> None:
    described = list(zip(KINDS_OF_MODELS["mixed"].types, ["FP64", "INT32", "INT64", "FP32", "BOOL", "BYTES"], strict=True))
    assert served("mixed").v2.metadata == {
        "name": "m", "versions": ["7"], "platform": "mlflow_pyfunc", "outputs": [],
        "inputs": [{"name": name, "datatype": datatype, "shape": [-1]} for name, datatype in described],
    }  # fmt: skip
    assert served("tensor").v2.metadata["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, 2, 2]}]
    assert [spec["name"] for spec in served("tensors").v2.metadata["inputs"]] == ["x", "n", "w"]
    assert [(spec["datatype"], spec["shape"]) for spec in served("lists").v2.metadata["inputs"]] == [("FP64", [-1, -1]), ("BYTES", [-1])]


def ask(server: Server, method: str, path: str, body: Any = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    return send(server, json.dumps(body).encode() if isinstance(body, dict) else body, method, path, **headers)


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
    status, headers, text = ask(
        server, "POST", "/v2/models/lines/versions/2/infer", octets, Content_Type="", Inference_Header_Content_Length=str(len(head))
    )
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    length = int(headers["inference-header-content-length"])
    sizes = [output["parameters"]["binary_data_size"] for output in json.loads(text[:length])["outputs"]]
    assert len(text) == length + sum(sizes)

    for body, more, expect in (
        (b"{", {}, 400), (document, {"Content_Type": "text/csv"}, 415), (document, {"Content_Encoding": "br"}, 415),
        (octets, {"Inference_Header_Content_Length": "x"}, 400), (octets, {"Inference_Header_Content_Length": "9" * 18}, 400),
        (octets, {}, 400), (b" " * (17 << 20), {}, 413),
    ):  # fmt: skip
        status, _, text = ask(server, "POST", "/v2/models/lines/infer", body, **more)
        assert (status, list(json.loads(text))) == (expect, ["error"])


def test_the_example_in_openapi_json_is_answered(server: Server) -> None:
    document = json.loads(ask(server, "GET", "/openapi.json")[2])
    for name in ("points", "lines"):
        content = document["paths"][f"/v2/models/{name}/infer"]["post"]["requestBody"]["content"]["application/json"]
        assert ask(server, "POST", f"/v2/models/{name}/infer", content["example"])[0] == 200
        inputs = document["components"]["schemas"][f"{name}.inference"]["properties"]["inputs"]
        assert inputs["items"]["properties"]["datatype"]["enum"] == [*DTYPES, "BYTES"]
        assert "Inputs of this model: " in inputs["description"]


def test_requests_are_counted_and_logged_like_those_of_invocations(server: Server) -> None:
    counted = 'mlops_build_requests_total{model="lines",status="400"}'
    ask(server, "POST", "/v2/models/lines/infer", b"{")
    before = metric(server, counted)
    ask(server, "POST", "/v2/models/lines/infer", b"{", X_Request_Id="v2-call")
    assert metric(server, counted) == before + 1
    line = json.loads(server.wait_for(r'\{.*"v2-call".*\}')[0])
    assert (line["model"], line["status"]) == ("lines", 400)


@pytest.mark.parametrize(
    ("model", "sent", "tensors"),
    [
        ("floats", {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1, 2, 3]]}}, 3),
        ("params", {"dataframe_split": {"columns": ["s", "b"], "data": [["x", "YQ=="]]}}, 2),
        ("image", {"inputs": np.zeros((1000, 3, 2, 2)).tolist()}, 1),
        ("image", {"inputs": [2**70]}, None),
    ],
)
def test_the_recorded_example_in_this_protocol(served: Served, model: str, sent: Any, tensors: int | None) -> None:
    example = served(model).v2.example({"input": sent})
    assert (example and len(example["inputs"])) == tensors
    assert model != "image" or not example or json.dumps(example["inputs"][0]["data"]).count("0.0") == 12_000
