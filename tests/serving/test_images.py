"""Images, texts and forms: the same answers as for the same values in JSON. Over HTTP, with a client that creates the forms."""

import base64
import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.types import DataType, ParamSchema, ParamSpec

from mlops_build.serving.encode import encode, plain
from mlops_build.serving.input.decode import Decoder
from mlops_build.serving.refusal import Refusal
from tests.serving import models
from tests.serving.conftest import Server, serving

TYPES_AND_VALUES = """
    def predict(self, context, data, params=None):
        return [" ".join(map(repr, [*row, params])) for row in data.to_numpy(dtype=object)]
"""
RAGGED = """
    def predict(self, context, data, params=None):
        return [list(range(len(text))) for text in data["text"]]
"""
PARAMS = ParamSchema([ParamSpec("depth", DataType.long, 3)])
SIGNATURES = {
    "picture": models.columns(("image", "binary"), params=PARAMS),
    "text": models.columns(("text", "string")),
    "mixed": models.columns(
        ("image", "binary"), ("title", "string"), ("width", "integer"), ("scale", "double"), ("keep", "boolean"), params=PARAMS
    ),
    "floats": models.FLOATS,
    "optional": models.columns(("image", "binary"), ("title", "string", False)),
}
PICTURES = [b"\x89PNG\r\n\x1a\n\x00--\r\n", b"\xff\xd8\xff" + bytes(range(256)), b""]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    folder = tmp_path_factory.mktemp("raw")
    bodies = {"text": RAGGED}
    loaded = {name: models.save(folder / name, signature, bodies.get(name, TYPES_AND_VALUES)) for name, signature in SIGNATURES.items()}
    return {name: (folder / name / "model", model) for name, model in loaded.items()}


@contextlib.contextmanager
def served(saved: dict[str, tuple[Path, Any]], name: str, folder: Path) -> Iterator[tuple[Server, httpx.Client]]:
    with serving(folder, str(saved[name][0]), "--port", "0", "--device", "cpu") as server, httpx.Client(base_url=server.url) as client:
        yield server, client


@pytest.fixture(scope="module")
def picture(saved: dict[str, tuple[Path, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(saved, "picture", tmp_path_factory.mktemp("picture")) as (_, client):
        yield client


@pytest.fixture(scope="module")
def mixed(saved: dict[str, tuple[Path, Any]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with served(saved, "mixed", tmp_path_factory.mktemp("mixed")) as (_, client):
        yield client


def by_json(client: httpx.Client, columns: list[str], rows: list[list[Any]], params: Any = None) -> Any:
    shown = [[base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell for cell in row] for row in rows]
    document = {"dataframe_split": {"columns": columns, "data": shown}, **({} if params is None else {"params": params})}
    answer = client.post("/invocations", json=document)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"]


@pytest.mark.parametrize("kind", ["image/png", "image/jpeg", "IMAGE/WebP; q=1"])
def test_an_image_is_the_value_of_one_row(picture: httpx.Client, kind: str) -> None:
    for sent in (PICTURES[0], os.urandom(300_000)):
        answer = picture.post("/invocations", content=sent, headers={"Content-Type": kind})
        assert answer.json()["predictions"] == by_json(picture, ["image"], [[sent]])
    assert picture.post("/invocations", content=b"", headers={"Content-Type": kind}).status_code == 400


def test_each_file_is_a_row(picture: httpx.Client) -> None:
    expected = by_json(picture, ["image"], [[picture_bytes] for picture_bytes in PICTURES])
    for names in (["image"] * 3, ["file1", "file2", "file3"]):
        files = [(name, (f"{row}.png", content, "image/png")) for row, (name, content) in enumerate(zip(names, PICTURES, strict=True))]
        assert picture.post("/invocations", files=files).json()["predictions"] == expected
    expected = by_json(picture, ["image"], [[PICTURES[0]]], {"depth": 7})
    files = {"image": ("a.png", PICTURES[0]), "params": (None, '{"depth": 7}')}
    assert picture.post("/invocations", files=files).json()["predictions"] == expected


def test_the_fields_of_a_form_are_columns(mixed: httpx.Client) -> None:
    rows = [[PICTURES[0], "ein Titel, é", 3, 0.1, True], [PICTURES[1], "", -7, -2e3, False]]
    names = ["image", "title", "width", "scale", "keep"]
    fields = [(name, ("x" if name == "image" else None, row[place] if name == "image" else str(row[place]))) for row in rows
              for place, name in enumerate(names)]  # fmt: skip
    answer = mixed.post("/invocations", files=[*fields, ("button", (None, "send"))])
    assert answer.json()["predictions"] == by_json(mixed, names, rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": "3.5"}, "row 0, field 'width': expected integer, got '3.5'"),
        ({"width": "2147483648"}, "does not fit into integer"),
        ({"width": "1_0"}, "expected integer"),
        ({"scale": "nan"}, "expected double"),
        ({"scale": ""}, "expected double"),
        ({"keep": "1"}, "expected boolean"),
        ({"title": b"\xff"}, "row 0, field 'title' is not UTF-8"),
        ({"title": None}, "no field 'title'"),
        ({"params": "{"}, "'params' is not valid JSON"),
        ({"params": '{"depth": "x"}'}, "depth"),
    ],
)
def test_an_invalid_field_is_named(mixed: httpx.Client, change: dict[str, Any], message: str) -> None:
    fields: dict[str, Any] = {"image": PICTURES[0], "title": "t", "width": "3", "scale": "1", "keep": "true", **change}
    answer = mixed.post("/invocations", files=[(name, (None, value)) for name, value in fields.items() if value is not None])
    assert (answer.status_code, message in answer.json()["message"]) == (400, True), answer.text


def test_different_numbers_of_fields_are_refused(mixed: httpx.Client) -> None:
    fields = [("image", b"x"), ("title", "t"), ("title", "u"), ("width", "3"), ("scale", "1"), ("keep", "true")]
    answer = mixed.post("/invocations", files=[(name, (None, value)) for name, value in fields])
    assert (answer.status_code, "2 of 'title'" in answer.text) == (400, True)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nContent-Disposition: form-data; name=image\r\n\r\nx\r\n", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nContent-Disposition: form-data; name=image\r\n\r\nx\r\n--b\r\nContent-Disp", "multipart/form-data; boundary=b", 400),
        (b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 400),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 400),
        (b"--c\r\n\r\nx\r\n--c--\r\n", "multipart/form-data; boundary=b", 400),
        (
            b"--b\r\nContent-Disposition: form-data; name=image\r\nContent-Transfer-Encoding: base\r\n\r\neA==\r\n--b--\r\n",
            "multipart/form-data; boundary=b", 400,
        ),
        (b"--b\r\nContent-Disposition: form-data; name=z\r\n\r\n\r\n" * 10_002, "multipart/form-data; boundary=b", 413),
        (b"x", "multipart/form-data", 415),
        (b"x", "multipart/form-data; boundary=" + "b" * 71, 415),
        (b"x", "multipart/mixed; boundary=b", 415),
        (b"x", "text/plain", 415),
    ],
)  # fmt: skip
def test_an_invalid_form_is_refused(picture: httpx.Client, body: bytes, kind: str, status: int) -> None:
    answer = picture.post("/invocations", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text


def test_an_encoded_part_is_decoded(picture: httpx.Client) -> None:
    body = b"--b\r\nContent-Disposition: form-data; name=image\r\nContent-Transfer-Encoding: base64\r\n\r\neA==\r\n--b--\r\n"
    answer = picture.post("/invocations", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.json()["predictions"] == by_json(picture, ["image"], [[b"x"]])


def test_a_text_is_one_row_and_ragged_answers_are_lists(saved: dict[str, tuple[Path, Any]], tmp_path: Path) -> None:
    with served(saved, "text", tmp_path) as (_, client):
        for kind, status in (
            ("text/plain", 200),
            ("text/plain; charset=UTF-8", 200),
            ("text/plain; charset=latin-1", 415),
            ("image/png", 415),
        ):
            answer = client.post("/invocations", content="äb\n".encode(), headers={"Content-Type": kind})
            assert answer.status_code == status, kind
            if status == 200:
                assert answer.json() == {"predictions": [[0, 1, 2]]}
        assert client.post("/invocations", content=b"\xff", headers={"Content-Type": "text/plain"}).status_code == 400
        assert client.post("/invocations", json={"inputs": {"text": ["", "abc"]}}).json() == {"predictions": [[], [0, 1, 2]]}
        document = client.get("/openapi.json").json()
    assert list(document["paths"]["/invocations"]["post"]["requestBody"]["content"]) == [
        "application/json",
        "multipart/form-data",
        "text/plain",
    ]


def test_ragged_tensors_are_lists() -> None:
    import torch

    for layout in (torch.strided, torch.jagged):
        ragged = torch.nested.nested_tensor([torch.tensor([1.5]), torch.tensor([2.0, 3.0])], layout=layout)
        assert json.loads(encode(plain(ragged))) == {"predictions": [[1.5], [2.0, 3.0]]}


def test_a_model_with_other_columns_refuses_these_bodies(saved: dict[str, tuple[Path, Any]]) -> None:
    floats = Decoder(saved["floats"][1])
    for kind, which in (("image/png", "one binary column"), ("text/plain", "one column of text")):
        with pytest.raises(Refusal, match=f"which only a model with {which} accepts"):
            floats.decode(b"x", kind)
    rows = floats.decode(form([("a", "1"), ("b", "2.5"), ("c", "-3e1")]), "multipart/form-data; boundary=b")
    assert (rows.kind, rows.data.tolist(), rows.data.dtype.name) == ("block", [[1.0, 2.5, -30.0]], "float32")
    optional = Decoder(saved["optional"][1]).decode(form([("image", "x")]), "multipart/form-data; boundary=b")
    assert (optional.kind, optional.data["image"].tolist()) == ("whole", [b"x"])


def form(fields: list[tuple[str, str]]) -> bytes:
    parts = "".join(f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields)
    return f"{parts}--b--\r\n".encode()


PIECES = [
    b"--b",
    b"--",
    b"\r\n",
    b"\r",
    b"\n",
    b'Content-Disposition: form-data; name="',
    b"a",
    b'"',
    b"; filename*=x''%zz",
    b":",
    b"\x00\xff",
    b"1",
]


@settings(max_examples=300, deadline=None)
@given(
    body=st.lists(st.sampled_from(PIECES), max_size=30).map(b"".join) | st.binary(max_size=80),
    kind=st.sampled_from(["multipart/form-data; boundary=b", 'multipart/form-data; boundary="b', "image/", "text/plain; charset=\xff"]),
)
def test_any_body_is_decoded_or_refused(saved: dict[str, tuple[Path, Any]], body: bytes, kind: str) -> None:
    for name in ("picture", "mixed", "floats", "text"):
        with contextlib.suppress(Refusal):  # a 4xx; anything else that is raised would be a 500
            Decoder(saved[name][1]).decode(body, kind)


def test_the_docs_page_and_the_contract_describe_these_bodies(picture: httpx.Client) -> None:
    content = picture.get("/openapi.json").json()["paths"]["/invocations"]["post"]["requestBody"]["content"]
    assert set(content) == {"application/json", "image/*", "multipart/form-data"}
    assert json.dumps(content["multipart/form-data"]["schema"]["required"]) == '["image"]'
