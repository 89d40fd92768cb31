"""`compare` with two servers that answer as old and new services do."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mlops_build import compare
from mlops_build.__main__ import main
from mlops_build.errors import UsageError
from mlops_build.model.answers import differences
from tests import servers

Start = Callable[[Callable[[str, str, bytes, dict[str, str]], tuple[int, Any]]], str]
Run = Callable[..., tuple[int, dict[str, Any], str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """start(answer): the address of a service; answer(method, path, body, headers) is its status and its JSON, or bytes."""
    with ExitStack() as started:

        def one(answer: Callable[[str, str, bytes, dict[str, str]], tuple[int, Any]]) -> str:
            class Service(servers.Handler):
                def do_POST(self) -> None:
                    body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                    status, document = answer(self.command, self.path, body, {k.lower(): v for k, v in self.headers.items()})
                    content = document if isinstance(document, bytes) else json.dumps(document).encode()
                    self.reply(status, content, {"Location": "http://127.0.0.1:1/"} if status == 302 else None)

                do_GET = do_POST

            return f"http://{started.enter_context(servers.serve(Service))}"

        yield one


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """run(url1, url2, requests, options…): the exit code, the document, and stderr."""

    def one(first: str, second: str, requests: Any, *options: str) -> tuple[int, dict[str, Any], str]:
        file = tmp_path / "requests"
        file.write_text(requests if isinstance(requests, str) else "\n".join(map(json.dumps, requests)))
        code = main(["compare", first, second, "--requests", str(file), "--json", *options])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return one


def test_an_old_service_and_its_replacement(start: Start, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def old(_: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        assert (path, headers["content-type"]) == ("/predict?v=1", "application/json")
        return 200, {"result": {"scores": [json.loads(body)["x"], 1.0]}}

    def new(_: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        assert path == "/invocations"
        value = json.loads(body)["inputs"][0]
        return 200, {"predictions": [{"score": value * 1.00001 if value < 5 else value + 1}, {"score": 1}]}

    urls = (f"{start(old)}/predict?v=1", start(new))
    picks = ("--pick1", "result.scores", "--pick2", "predictions[*].score")
    requests = [{"body": {"inputs": [value]}, "first": {"body": {"x": value}}} for value in range(1, 9)]
    code, document, _ = run(*urls, requests, *picks, "--show", "2", "--at-once", "3")
    assert (code, document["equal"], document["different"], document["failed"], document["unanswered"]) == (4, 4, 4, 0, 0)
    assert document["requests"][0] == {"number": 5, "state": "different", "differences": ["result.scores[0]: first 5, second 6"]}
    assert len(document["requests"]) == 2
    assert all(0 < each["median_ms"] <= each["p95_ms"] for each in document["services"])
    code, document, err = run(*urls, requests, *picks, "--most", "4")
    assert (code, document["equal"], document["not_sent"]) == (0, 4, 4)
    assert "4 more requests" in err
    assert run(*urls, requests, *picks, "--most", "4", "--tolerance", "0", "--absolute-tolerance", "0")[0] == 4
    assert run(*urls, requests, *picks, "--tolerance", "0", "--absolute-tolerance", "1")[0] == 0
    assert main(["compare", *urls, "--requests", str(tmp_path / "requests"), *picks]) == 4
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "4 equal, 4 different, 0 failed, 0 unanswered"
    assert shown[3:5] == ["request 5: different", "    result.scores[0]: first 5, second 6"]


def echo(method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
    return 200, [method, path, body.decode(), headers.get("content-type"), headers.get("x-a")]


def test_forms_of_requests(start: Start, run: Run) -> None:
    received: list[Any] = []

    def note(*request: Any) -> tuple[int, Any]:
        received.append(echo(*request)[1])
        return echo(*request)

    urls = (start(note), start(echo))
    lines = [
        {"body": "a,b\n", "headers": {"Content-Type": "text/csv", "X-A": "1"}},
        {"body": "text"},
        {"method": "GET", "path": "/version"},
        {"body": 1, "path": "//evil.example.com/@x"},  # http.server removes a slash,
    ]
    assert run(*urls, lines)[0] == 0
    assert received == [
        ["POST", "/invocations", "a,b\n", "text/csv", "1"],
        ["POST", "/invocations", '"text"', "application/json", None],
        ["GET", "/version", "", None, None],
        ["POST", "/evil.example.com/@x", "1", "application/json", None],
    ]
    received.clear()
    assert run(*urls, '[{"inputs": [1]}, {"inputs": [2]}]')[0] == 0
    assert run(*urls, '{"input": {"inputs": [3]},\n "predictions": [4]}')[0] == 0
    assert run(*urls, '{"body": {"inputs": [4]}}')[0] == 0
    assert [json.loads(request[2]) for request in received] == [{"inputs": [number]} for number in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("status", "document", "said"),
    [
        (500, b"\x1b[31mbroken", "status 500"),
        (302, b"", "status 302"),
        (200, b"<html>", "not JSON"),
        (200, b"[" * 100_000, "not JSON"),
        (200, {"other": 1}, "has no predictions[0].score"),
        (200, {"predictions": []}, "has no predictions[0].score"),
        (200, [1], "has no predictions[0].score"),
    ],
)
def test_an_answer_that_cannot_be_compared(start: Start, run: Run, status: int, document: Any, said: str) -> None:
    good, bad = start(lambda *_: (200, {"predictions": [{"score": 1}]})), start(lambda *_: (status, document))
    code, printed, _ = run(good, bad, [{"body": 1}], "--pick1", "predictions[0].score", "--pick2", "predictions[0].score")
    assert (code, printed["failed"]) == (4, 1)
    (line,) = printed["requests"][0]["differences"]
    assert line.startswith("second: ")
    assert said in line


def test_control_characters_do_not_reach_the_terminal(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "requests").write_text('{"body": 1}')
    urls = start(lambda *_: (200, {"\x1b[31m\nrequest 7": "\x9b"})), start(lambda *_: (200, {"\x1b[31m\nrequest 7": "\x1b]0;"}))
    assert main(["compare", *urls, "--requests", str(tmp_path / "requests")]) == 4
    shown = capsys.readouterr().out
    assert "\\x1b[31m\\nrequest 7" in shown
    assert not set(shown) & {"\x1b", "\x9b"}


def test_half_of_a_character_is_printed_as_an_escape(start: Start, run: Run) -> None:
    urls = start(lambda *_: (200, b'"\\ud800"')), start(lambda *_: (200, b'"\\udfff"'))
    code, document, _ = run(*urls, [{"body": 1}])
    assert (code, document["requests"][0]["differences"]) == (4, ["answer: first \ud800, second \udfff"])


def test_a_service_that_does_not_answer_ends_the_comparison(start: Start, run: Run) -> None:
    asked = []

    def count(*_: Any) -> tuple[int, Any]:
        asked.append(1)
        return 200, 1

    code, document, err = run(start(count), "http://127.0.0.1:1", [{"body": 1}] * 50)
    assert (code, document["unanswered"], document["not_sent"], len(asked)) == (5, 3, 47, 3)
    assert document["services"][1]["median_ms"] is None
    assert "47 requests were not sent" in err

    def slow(*_: Any) -> tuple[int, Any]:
        time.sleep(3)
        return 200, 1

    began = time.monotonic()
    assert run(start(count), start(slow), [{"body": 1}], "--seconds", "1")[0] == 5
    assert time.monotonic() - began < 2.5


def test_an_answer_of_limited_size(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare, "MOST_ANSWER", 100)
    code, document, _ = run(start(lambda *_: (200, 1)), start(lambda *_: (200, [0] * 200)), [{"body": 1}])
    assert code == 4
    assert "more than" in document["requests"][0]["differences"][0]


def test_a_token_reaches_only_its_service(start: Start, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    received = {}

    def noting(name: str) -> Callable[..., tuple[int, Any]]:
        def answer(*request: Any) -> tuple[int, Any]:
            received[name] = request[3].get("authorization")
            return 200, 1

        return answer

    monkeypatch.setenv("MLOPS_COMPARE_TOKEN2", "secret")
    assert run(start(noting("first")), start(noting("second")), [{"body": 1}])[0] == 0
    assert received == {"first": None, "second": "Bearer secret"}


@pytest.mark.parametrize(
    "requests",
    [
        "",
        "{",
        "1",
        '{"body": 1, "url": "http://x"}',
        '{"body": 1, "path": "predict"}',
        '{"body": 1, "path": "/a b"}',
        '{"body": 1, "path": "/a\\r\\nX: y"}',
        '{"body": 1, "method": "DELETE"}',
        '{"path": "/a"}',
        '{"body": 1, "method": "GET"}',
        '{"body": 1, "first": 1}',
        '{"body": 1, "headers": {"Authorization": "Bearer x"}}',
        '{"body": 1, "headers": {"X-A": "a\\r\\nb: c"}}',
        '{"body": 1, "headers": {"X-A": 1}}',
    ],
)
def test_requests_that_are_refused(run: Run, requests: str) -> None:
    code, document, _ = run("http://127.0.0.1:1", "http://127.0.0.1:1", requests)
    assert code == 2
    assert document["remedy"]


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://a",
        "127.0.0.1:1",
        "http://",
        "http://user:pass@host/",
        "http://a:99999",
        "http://[:::::]",
        "http://a/#b",
        "http://a b/",
    ],
)
def test_addresses_that_are_refused(run: Run, url: str) -> None:
    code, document, _ = run(url, "http://127.0.0.1:1", [{"body": 1}])
    assert (code, "pass@" in json.dumps(document)) == (2, False)


@pytest.mark.parametrize("pick", [".a", "a.", "a..b", "a[", "a[-1]", "a[x]", "a b", "[0]b", "a['b']", "*"])
def test_parts_that_are_refused(pick: str) -> None:
    with pytest.raises(UsageError):
        compare.Pick.parse(pick)


def test_parts_of_an_answer() -> None:
    answer = {"a": [{"b": [1, 2]}, {"b": [3, 4]}], "c-d": {"0": 5}}
    wanted = (("", answer), ("a[1].b", [3, 4]), ("a[*].b[0]", [1, 3]), ("a[*].b[*]", [[1, 2], [3, 4]]), ("c-d.0", 5))
    for text, part in wanted:
        assert compare.Pick.parse(text).of(answer) == part, text
    assert compare.Pick.parse("[0][1]").of([[1, 2]]) == 2


def test_infinity_is_close_to_no_number() -> None:
    infinity, nan = float("inf"), float("nan")
    assert [len(differences(*pair)) for pair in ((infinity, 5), (5, infinity), (infinity, -infinity), (nan, 1))] == [1, 1, 1, 1]
    assert [differences(*pair) for pair in ((infinity, infinity), (nan, nan), (1000.0, 1000.05), (0, 0.00005))] == [[]] * 4
    assert differences(1, 1.5, relative=0.0, absolute=0.5) == []
    assert differences(10**400, 10**400) == []
    assert [len(differences(*pair)) for pair in ((10**400, infinity), (-infinity, -(10**400)), (10**400, 10**401))] == [1, 1, 1]
