"""The stub as a caller's test uses it; its validation compared with jsonschema, and its responses compared with the real server."""

import gzip
import http.client
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.errors import NotFound
from mlops_build.model import openapi
from mlops_build.stub.answer import NoContract, Stub, document_of
from mlops_build.stub.json_schema import UnknownSchema, check_schema, problem
from mlops_build.stub.server import Server
from tests.serving.conftest import Server as RealServer
from tests.serving.forms import requests
from tests.serving.kinds import KINDS_OF_MODELS
from tests.serving.test_differential import Pair

JSON = {"Content-Type": "application/json"}
COLUMNS = [{"type": "double", "name": name, "required": name != "c"} for name in "abc"]
TENSOR = [{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}}]
SPLIT = {"columns": ["a", "b"], "data": [[1.0, 2.0], [3.0, 4.0]]}
ANSWERS = [{"label": "x"}, {"label": "y"}]


def described(name: str, inputs: list[dict[str, Any]], recorded: Any = None) -> openapi.Described:
    return openapi.Described(name, None, {"inputs": json.dumps(inputs)}, recorded, "3.18.0")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    table = described("digits", COLUMNS, {"input": {"dataframe_split": SPLIT}, "predictions": ANSWERS})
    picture = described("pictures", TENSOR, {"input": {"inputs": [[1, 2]]}, "predictions": [[0.5]]})
    return openapi.openapi("digits", [table, picture, described("quiet", COLUMNS)])


class Caller:
    """A client with one kept connection."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)

    def ask(
        self, body: Any = None, path: str = "/invocations", method: str = "POST", headers: Mapping[str, str] = JSON
    ) -> tuple[int, Any, Mapping[str, str]]:
        sent = body if isinstance(body, bytes) or body is None or hasattr(body, "__next__") else json.dumps(body).encode()
        self.connection.request(method, path, sent, dict(headers))
        response = self.connection.getresponse()
        content: Any = response.read()
        with suppress(ValueError):  # the real server calls its version JSON, too
            content = json.loads(content) if content[:1] in b"{[" else content
        return response.status, content, response.headers


@contextmanager
def running(stub: Stub) -> Iterator[Caller]:
    with Server(stub, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        caller = Caller(server.url)
        try:
            yield caller
        finally:
            caller.connection.close()
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def caller(document: dict[str, Any]) -> Iterator[Caller]:
    with running(Stub(document)) as client:
        yield client


def test_a_recorded_prediction_for_each_row(caller: Caller) -> None:
    assert caller.ask({"dataframe_split": SPLIT})[:2] == (200, {"predictions": ANSWERS})
    row = {"a": 1, "b": 2.5, "more": "ignored"}
    for body in ({"dataframe_records": [row] * 3}, {"instances": [row] * 3}, {"inputs": {"a": [1, 2, 3], "b": [1, 2, 3]}, "params": None}):
        assert caller.ask(body)[:2] == (200, {"predictions": [*ANSWERS, ANSWERS[0]]}), body
    assert caller.ask({"dataframe_split": {**SPLIT, "data": []}})[:2] == (200, {"predictions": []})
    assert caller.ask({"inputs": [[1, 2], [3, 4]]}, "/models/pictures/invocations")[1] == {"predictions": [[0.5], [0.5]]}
    assert caller.ask(b"a,b\n1,2\n", headers={"Content-Type": "text/csv; charset=utf-8"})[1] == {"predictions": ANSWERS[:1]}
    assert (
        caller.ask(gzip.compress(json.dumps({"dataframe_split": SPLIT}).encode()), headers={**JSON, "Content-Encoding": "gzip"})[0] == 200
    )
    assert caller.ask((part for part in (b'{"dataframe_records":', b' [{"a": 1, "b": 2}]}')), headers=JSON)[0] == 200  # in chunks


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ({"dataframe_records": [{"a": 1}]}, "INVALID_PARAMETER_VALUE", "dataframe_records[0]: b is missing"),
        ({"dataframe_records": [{"a": 1, "b": "x"}]}, "BAD_REQUEST", "dataframe_records[0].b: expected number or null, got 'x'"),
        ({"dataframe_split": {"columns": ["a"], "data": [[1]]}}, "INVALID_PARAMETER_VALUE", "'b' is missing"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1, 2], [1, "x"]]}}, "BAD_REQUEST", "row 1.b: expected number"),
        ({"dataframe_split": {"columns": ["a", "b"], "data": [[1]]}}, "INVALID_PARAMETER_VALUE", "1 values for 2 columns"),
        ({"inputs": {"a": [1, 2], "b": [1]}}, "INVALID_PARAMETER_VALUE", "the columns have different lengths"),
        ({"dataframe_split": {**SPLIT, "index": "x"}}, "BAD_REQUEST", "dataframe_split.index: expected array"),
        ({"instances": [{"a": 1, "b": 2}], "inputs": {}}, "BAD_REQUEST", "exactly one of"),
        ({}, "BAD_REQUEST", "it contains none"),
        ([1], "BAD_REQUEST", "must be a JSON object"),
        (b"{", "BAD_REQUEST", "not JSON"),
        (b"[" * 100_000, "BAD_REQUEST", "not JSON"),
        (b'{"inputs": "\xff"}', "BAD_REQUEST", "not UTF-8"),
    ],
    ids=range(13),
)
def test_a_body_that_breaks_the_contract_is_400_and_names_the_place(caller: Caller, body: Any, code: str, message: str) -> None:
    status, answer, _ = caller.ask(body)
    assert (status, answer["error_code"]) == (400, code)
    assert message in answer["message"]


def test_paths_methods_and_headers_are_those_of_the_service(caller: Caller, document: dict[str, Any]) -> None:
    for path in ("/ping", "/health", "/models/pictures/health"):
        assert caller.ask(path=path, method="GET")[:2] == (200, b"\n")
    assert caller.ask(path="/version", method="GET")[1] == b"3.18.0"
    assert caller.ask(path="/openapi.json", method="GET")[1] == document
    assert caller.ask(path="/invocations", method="GET")[0] == 405
    assert caller.ask(path="/ping", method="HEAD")[0] == 405
    assert caller.ask(path="/nowhere", method="GET")[:2] == (404, {"detail": "Not Found"})
    status, _, headers = caller.ask({}, path="/invocations/")
    assert (status, headers["Location"]) == (307, "/invocations")
    for kind in ({}, {"Content-Type": "text/plain"}, {"Content-Type": "application/json; charset=latin1"}):
        status, answer, _ = caller.ask({"dataframe_split": SPLIT}, headers=kind)
        assert status == 415, kind
        assert isinstance(answer, bytes)
    assert caller.ask({"dataframe_split": SPLIT}, headers={**JSON, "X-Request-Id": "abc"})[2]["X-Request-Id"] == "abc"
    assert caller.ask({"dataframe_split": SPLIT}, "/models/quiet/invocations")[0] == 501


def test_a_body_above_the_limit_is_413_and_closes_the_connection(document: dict[str, Any]) -> None:
    with running(Stub(document)) as caller:
        caller.connection.putrequest("POST", "/invocations")
        caller.connection.putheader("Content-Length", str(2**30))
        caller.connection.endheaders()
        response = caller.connection.getresponse()
        assert (response.status, response.headers["Connection"]) == (413, "close")
        response.read()
        assert caller.ask({"dataframe_split": SPLIT})[0] == 200  # on a new connection


def test_a_disconnect_prints_nothing(document: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with running(Stub(document)) as caller:
        assert caller.ask(path="/ping", method="GET")[0] == 200
        threads = threading.active_count()
        with socket.create_connection((caller.connection.host, caller.connection.port), timeout=10) as connection:
            connection.sendall(b"POST /invocations HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
            while threading.active_count() == threads:
                time.sleep(0.005)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        end = time.monotonic() + 20
        while threading.active_count() > threads:
            assert time.monotonic() < end
            time.sleep(0.005)
    assert capsys.readouterr().err == ""


def test_faults_on_request(caller: Caller) -> None:
    body = {"dataframe_split": SPLIT}
    for status in (429, 503, 504):
        answered, answer, headers = caller.ask(body, headers={**JSON, "X-Stub-Status": str(status)})
        assert (answered, headers["Retry-After"]) == (status, "1")
        assert set(answer) == {"error_code", "message"}
    assert caller.ask(body, headers={**JSON, "X-Stub-Status": "500"})[0] == 500
    began = time.monotonic()
    assert caller.ask(body, headers={**JSON, "X-Stub-Delay-Ms": "300"})[0] == 200
    assert time.monotonic() - began >= 0.3
    for wrong in ({"X-Stub-Status": "200"}, {"X-Stub-Status": "x"}, {"X-Stub-Delay-Ms": "-1"}, {"X-Stub-Delay-Ms": "9" * 50}):
        assert caller.ask(body, headers={**JSON, **wrong})[0] == 400, wrong


@pytest.mark.real_python
def test_the_command_needs_only_python(document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(openapi.as_text(document))
    # Only the standard library and mlops_build can be imported, whatever is installed.
    (tmp_path / "bare.py").write_text(
        "import runpy, sys\n"
        "class OnlyStandardLibrary:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] not in {*sys.stdlib_module_names, 'mlops_build'}:\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, OnlyStandardLibrary())\n"
        "sys.argv = ['mlops-build', *sys.argv[1:]]\n"
        "runpy.run_module('mlops_build', run_name='__main__', alter_sys=True)\n"
    )
    command = [sys.executable, "bare.py", "stub", ".", "--port", "0", "--json", "--fail-every", "2", "--status", "429"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            output = "".join(iter(process.stdout.readline, "}\n")) + "}"
            started = json.loads(output)
            assert started["models"] == ["digits", "pictures", "quiet"]
            caller = Caller(started["url"])
            assert [caller.ask({"dataframe_split": SPLIT})[0] for _ in range(4)] == [200, 429, 200, 429]
            caller.connection.close()
        finally:
            process.terminate()
            process.wait(timeout=30)
    assert process.returncode == 0


def test_the_stub_starts_from_a_file_a_folder_or_a_context(document: dict[str, Any], context: Path, tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(openapi.as_text(document))
    assert document_of(tmp_path) == document_of(tmp_path / "openapi.json") == document
    assert [model.name for model in Stub(document_of(context)).models] == ["points", "lines"]
    assert Stub(document_of(context / "models" / "points")).models[0].name == "points"
    with pytest.raises(NotFound):
        document_of(tmp_path / "nowhere")
    (tmp_path / "openapi.json").write_text("{")
    with pytest.raises(NoContract):
        document_of(tmp_path)
    for other in ({}, {"openapi": "3.1.0", "paths": {}}, {"x-mlops-build": {"models": [{"name": "m"}]}, "paths": {}}):
        with pytest.raises(NoContract):
            Stub(other)


# -- comparison with the real server --


@pytest.mark.parametrize("name", ["floats", "mixed", "dates", "matrix", "integers"])
def test_the_service_accepts_what_the_stub_accepts(tmp_path: Path, name: str) -> None:
    """The stub validates by the schema. It may be stricter than the service, but not the reverse."""
    kind = KINDS_OF_MODELS[name]
    pair = Pair(kind.save(tmp_path / name))
    signature = {} if kind.signature is None else kind.signature.to_dict()
    stub = Stub(openapi.openapi("m", [openapi.Described("m", None, signature, {"input": {}, "predictions": [1]})]))
    seen: Counter[tuple[int, int]] = Counter()
    for request in islice(requests(kind), 0, None, 3):
        # pandas cannot keep the half of a surrogate pair; a schema has no words for it.
        if request.encoding is None and request.kind in ("application/json", "text/csv") and b"\\ud800" not in request.body:
            ours = stub.answer("POST", "/invocations", {"content-type": request.kind}, request.body).status
            theirs = pair.ours(request).status
            assert ours == 400 or (ours, theirs) == (200, 200), request
            seen[ours, theirs] += 1
    assert seen[200, 200] >= 10, seen
    assert seen[400, 400] >= 50, seen


def test_the_stub_answers_like_the_real_server(context: Path, server: RealServer) -> None:
    document = document_of(context)
    example = openapi.parse(document)[0].recorded
    assert example is not None
    bodies = [example["input"], {"dataframe_split": {"columns": ["nothing"], "data": [[1]]}}, {}, [1], {"inputs": 3}]
    with running(Stub(document)) as stub:
        real = Caller(server.url)
        for path in ("/invocations", "/models/lines/invocations", "/nowhere", "/ping", "/version"):
            for method in ("GET", "POST", "HEAD"):
                for body in bodies:
                    real_answer, stub_answer = (caller.ask(body, path, method) for caller in (real, stub))
                    assert real_answer[0] == stub_answer[0], (path, method, body)
        assert [caller.ask(example["input"])[1].keys() for caller in (real, stub)] == [{"predictions"}] * 2
        assert real.ask(path="/version", method="GET")[1] == stub.ask(path="/version", method="GET")[1]
        real.connection.close()


# -- comparison with jsonschema --

NAMES = st.sampled_from(["a", "b", "c"])
scalars = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-3, 3) | st.sampled_from(["", "a", "b"])
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3), max_leaves=8)
types = st.sampled_from(["boolean", "integer", "number", "string", "null", "array", "object"])


def optional(**keywords: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=keywords)


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return optional(
        type=types | st.lists(types, min_size=1, max_size=2, unique=True),
        minimum=st.integers(-2, 2),
        maximum=st.integers(-2, 2),
        properties=st.dictionaries(NAMES, inner, max_size=2),
        required=st.lists(NAMES, max_size=2, unique=True),
        additionalProperties=inner,
        items=inner,
        prefixItems=st.lists(inner, min_size=1, max_size=2),
        minItems=st.integers(0, 2),
        maxItems=st.integers(0, 2),
        contains=st.fixed_dictionaries({"const": scalars}),
        anyOf=st.lists(inner, min_size=1, max_size=2),
        allOf=st.lists(inner, min_size=1, max_size=2),
    )


schemas = st.recursive(st.booleans() | optional(type=types, const=scalars), grown, max_leaves=6)


@given(schemas, values)
def test_validation_agrees_with_jsonschema(schema: Any, value: Any) -> None:
    check_schema(schema, {})
    assert (problem(value, schema, {}) is None) == jsonschema.Draft202012Validator(schema).is_valid(value)


def test_keywords_do_not_hide_each_other() -> None:
    schema = {"type": ["number", "null"], "maximum": 3, "anyOf": [{"minimum": 5}, {"type": "null"}], "allOf": [{"type": "number"}]}
    assert problem(2, schema, {}) is not None
    assert problem(None, schema, {}) is not None
    assert problem(2, {**schema, "anyOf": [{"minimum": 1}]}, {}) is None


def test_a_schema_with_unknown_parts_is_refused() -> None:
    for schema in ({"pattern": "a"}, {"anyOf": [{"not": {}}]}, {"$ref": "#/nowhere"}, {"$ref": "http://example.com"}, 3):
        with pytest.raises(UnknownSchema):
            check_schema(schema, {})
    with pytest.raises(UnknownSchema):
        check_schema({"$ref": "#/a"}, {"a": {"$ref": "#/a"}})
    assert problem({"x": 1}, {"$ref": "#/a~1b"}, {"a/b": {"required": ["y"]}}) is not None
