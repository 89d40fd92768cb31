"""Images, texts and forms: the same answers as for the same values in JSON. httpx creates the forms."""

import base64
import contextlib
import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.types import DataType, ParamSchema, ParamSpec

from mlops_build.serving.encode import encode, plain
from mlops_build.serving.refusal import Refusal
from tests.serving import models
from tests.serving.conftest import serving
from tests.serving.differences import Verdict
from tests.serving.forms import Request
from tests.serving.test_differential import Pair

TYPES_AND_VALUES = """
    def predict(self, context, data, params=None):
        return [" ".join(map(repr, [*row, params])) for row in data.to_numpy(dtype=object)]
"""
PARAMS = ParamSchema([ParamSpec("depth", DataType.long, 3)])
NAMES = ["image", "title", "width", "scale", "keep"]
SIGNATURES = {
    "picture": models.columns(("image", "binary"), params=PARAMS),
    "text": models.columns(("text", "string")),
    "mixed": models.columns(*zip(NAMES, ("binary", "string", "integer", "double", "boolean"), strict=True), params=PARAMS),
    "floats": models.FLOATS,
    "optional": models.columns(("image", "binary"), ("title", "string", False)),
}
PICTURES = [b"\x89PNG\r\n\x1a\n\x00--\r\n", b"\xff\xd8\xff" + bytes(range(256)), b""]
FORM = "multipart/form-data; boundary=b"
Pairs = Callable[[str], Pair]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("raw")


@pytest.fixture(scope="module")
def pair_of(folder: Path) -> Pairs:
    return cache(lambda name: Pair(models.save(folder / name, SIGNATURES[name], TYPES_AND_VALUES)))


def form(fields: Any) -> Request:
    request = httpx.Request("POST", "http://x", files=fields)
    return Request("", request.read(), request.headers["content-type"])


def by_json(pair: Pair, columns: list[str], rows: list[list[Any]], params: Any = None) -> Verdict:
    shown = [[base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell for cell in row] for row in rows]
    answer = pair.ours(Request("", json.dumps({"dataframe_split": {"columns": columns, "data": shown}, "params": params}).encode()))
    assert answer.status == 200
    return answer


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "IMAGE/WebP; q=1"])
def test_an_image_is_the_value_of_one_row(pair_of: Pairs, kind: str) -> None:
    pair = pair_of("picture")
    for sent in (PICTURES[0], os.urandom(300_000)):
        assert pair.ours(Request("", sent, kind)) == by_json(pair, ["image"], [[sent]])
    assert pair.ours(Request("", b"", kind)).status == 400


def test_each_file_is_a_row(pair_of: Pairs) -> None:
    pair = pair_of("picture")
    for names in (["image"] * 3, ["file1", "file2", "file3"]):
        files = [(name, (f"{row}.png", content, "image/png")) for row, (name, content) in enumerate(zip(names, PICTURES, strict=True))]
        assert pair.ours(form(files)) == by_json(pair, ["image"], [[content] for content in PICTURES])
    with_params = form({"image": ("a.png", PICTURES[0]), "params": (None, '{"depth": 7}')})
    assert pair.ours(with_params) == by_json(pair, ["image"], [[PICTURES[0]]], {"depth": 7})


def test_the_fields_of_a_form_are_columns(pair_of: Pairs) -> None:
    rows = [[PICTURES[0], "ein Titel, é", 3, 0.1, True], [PICTURES[1], "", -7, -2e3, False]]
    fields = [(name, ("x", cell) if name == "image" else (None, str(cell))) for row in rows for name, cell in zip(NAMES, row, strict=True)]
    assert pair_of("mixed").ours(form([*fields, ("button", (None, "send"))])) == by_json(pair_of("mixed"), NAMES, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": ["3.5"]}, "row 0, field 'width': expected integer, got '3.5'"),
        ({"width": ["2147483648"]}, "does not fit into integer"),
        ({"width": ["1_0"]}, "expected integer"),
        ({"scale": ["nan"]}, "expected double"),
        ({"scale": [""]}, "expected double"),
        ({"keep": ["1"]}, "expected boolean"),
        ({"title": [b"\xff"]}, "row 0, field 'title' is not UTF-8"),
        ({"title": []}, "no field 'title'"),
        ({"title": ["t", "u"]}, "2 of 'title'"),
        ({"params": ["{"]}, "'params' is not valid JSON"),
        ({"params": ['{"depth": "x"}']}, "depth"),
    ],
)
def test_an_invalid_field_is_named(pair_of: Pairs, change: dict[str, Any], message: str) -> None:
    fields = {"image": [PICTURES[0]], "title": ["t"], "width": ["3"], "scale": ["1"], "keep": ["true"], **change}
    answer = pair_of("mixed").ours(form([(name, (None, value)) for name, values in fields.items() for value in values]))
    assert (answer.status, message in answer.content) == (400, True), answer


def part(*headers: bytes, content: bytes = b"x") -> bytes:
    return b"\r\n".join([b"--b", *headers, b"", content, b""])


NAMED = b"Content-Disposition: form-data; name=image"
ENCODED = b"Content-Transfer-Encoding: base"


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", FORM, 400), (part(NAMED), FORM, 400), (part(NAMED) + b"--b\r\nContent-Disp", FORM, 400), (part() + b"--b--\r\n", FORM, 400),
        (part(b"Content-Disposition: form-data") + b"--b--\r\n", FORM, 400), (b"--c\r\n\r\nx\r\n--c--\r\n", FORM, 400),
        (part(NAMED, ENCODED, content=b"eA==") + b"--b--\r\n", FORM, 400), (part(NAMED.replace(b"image", b"z")) * 10_002, FORM, 413),
        (b"x", "multipart/form-data", 415), (b"x", "multipart/form-data; boundary=" + "b" * 71, 415),
        (b"x", "multipart/mixed; boundary=b", 415), (b"x", "text/plain", 415),
    ],
)  # fmt: skip
def test_an_invalid_form_is_refused(pair_of: Pairs, body: bytes, kind: str, status: int) -> None:
    assert pair_of("picture").ours(Request("", body, kind)).status == status


def test_an_encoded_part_is_decoded(pair_of: Pairs) -> None:
    body = part(NAMED, ENCODED + b"64", content=b"eA==") + b"--b--\r\n"
    assert pair_of("picture").ours(Request("", body, FORM)) == by_json(pair_of("picture"), ["image"], [[b"x"]])


def test_a_text_is_one_row(pair_of: Pairs) -> None:
    pair = pair_of("text")
    for kind in ("text/plain", "text/plain; charset=UTF-8"):
        assert pair.ours(Request("", "äb\n".encode(), kind)) == by_json(pair, ["text"], [["äb\n"]])
    assert pair.ours(Request("", b"\xff", "text/plain")).status == 400
    assert pair.ours(Request("", b"x", "text/plain; charset=latin-1")).status == 415


def test_ragged_tensors_are_lists() -> None:
    import torch

    for layout in (torch.strided, torch.jagged):
        ragged = torch.nested.nested_tensor([torch.tensor([1.5]), torch.tensor([2.0, 3.0])], layout=layout)
        assert json.loads(encode(plain(ragged))) == {"predictions": [[1.5], [2.0, 3.0]]}


def test_a_model_with_other_columns_refuses_these_bodies(pair_of: Pairs) -> None:
    floats = pair_of("floats")
    for kind, which in (("image/png", "one binary column"), ("text/plain", "one column of text")):
        assert f"which only a model with {which} accepts" in floats.ours(Request("", b"x", kind)).content
    request = form([(name, (None, value)) for name, value in (("a", "1"), ("b", "2.5"), ("c", "-3e1"))])
    rows = floats.decoder.decode(request.body, request.kind)
    assert (rows.kind, rows.data.tolist(), rows.data.dtype.name) == ("block", [[1.0, 2.5, -30.0]], "float32")
    request = form([("image", (None, "x"))])
    optional = pair_of("optional").decoder.decode(request.body, request.kind)
    assert (optional.kind, optional.data["image"].tolist()) == ("whole", [b"x"])


PIECES = [
    b"--b", b"--", b"\r\n", b"\r", b"\n", b'Content-Disposition: form-data; name="', b"a", b'"', b"; filename*=x''%zz", b":",
    b"\x00\xff", b"1",
]  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    body=st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join) | st.binary(max_size=80),
    kind=st.sampled_from([FORM, 'multipart/form-data; boundary="b"', "image/", "text/plain; charset=\xff"]),
)
def test_any_body_is_decoded_or_refused(pair_of: Pairs, body: bytes, kind: str) -> None:
    for name in ("picture", "mixed", "floats", "text"):
        with contextlib.suppress(Refusal):  # a 4xx; anything else that is raised would be a 500
            pair_of(name).decoder.decode(body, kind)


def test_the_service_takes_and_describes_these_bodies(pair_of: Pairs, folder: Path, tmp_path: Path) -> None:
    expected = by_json(pair_of("picture"), ["image"], [[PICTURES[0]]]).content
    saved = {name: folder / name / "model" for name in ("picture", "text") if pair_of(name)}
    with serving(tmp_path, str(models.context(tmp_path / "context", **saved))) as server, httpx.Client(base_url=server.url) as client:
        assert client.post("/invocations", files={"image": ("a.png", PICTURES[0])}).json() == expected
        assert client.post("/invocations", content=PICTURES[0], headers={"Content-Type": "image/png"}).json() == expected
        paths = client.get("/openapi.json").json()["paths"]
    content = paths["/invocations"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "image/*", "multipart/form-data"}
    assert content["multipart/form-data"]["schema"]["required"] == ["image"]
    assert set(paths["/models/text/invocations"]["post"]["requestBody"]["content"]) == {
        "application/json", "multipart/form-data", "text/plain"
    }  # fmt: skip
