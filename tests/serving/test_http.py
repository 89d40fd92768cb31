"""What callers receive for their requests, and for errors of the model. Uses real sockets and a real process."""

import gzip
import http.client
import json
import re
import signal
import socket
import threading
import time
import zlib
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from schemathesis.cli import schemathesis

from mlops_build.serving.http.head import read_head
from tests.serving.conftest import FAILS, FATAL, HELD, OOM, SET, Server, serving

RUNNING, WAITING = 'mlops_build_requests_in_progress{model="model"}', 'mlops_build_queue_rows{model="model"}'


@pytest.fixture
def server(strict: Server) -> Server:
    return strict


def address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def body(*values: float, seconds: float = 0.0, size: int = 0) -> bytes:
    """A row for each value. seconds: how long the prediction takes. size: of the answer to each row, in characters."""
    return json.dumps({"dataframe_split": {"columns": ["a", "b", "c"], "data": [[value, seconds, size] for value in values]}}).encode()


def ask(
    server: Server, content: bytes, method: str = "POST", path: str = "/invocations", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    with closing(http.client.HTTPConnection(*address(server), timeout=30)) as connection:
        sent = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
        connection.request(method, path, content, sent)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def alive(server: Server) -> None:
    assert ask(server, body(1.5))[2] == b'{"predictions":[1.5]}'


def metric(server: Server, name: str) -> float:
    lines = ask(server, b"", "GET", "/metrics")[2].decode().splitlines()
    return float(next(line for line in lines if line.startswith(name)).split()[-1])


def wait_for_metric(server: Server, name: str, value: float) -> None:
    end = time.monotonic() + 20
    while (current := metric(server, name)) != value:
        assert time.monotonic() < end, (name, value, current)
        time.sleep(0.01)


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_the_callers_request_id_and_trace_are_logged(server: Server) -> None:
    traceparent = f"00-{TRACE}-{SPAN}-01"
    status, headers, _ = ask(server, body(1.5), X_Request_Id="call-1/a", traceparent=traceparent, tracestate="secret=1", Cookie="secret")
    assert (status, headers["x-request-id"]) == (200, "call-1/a")
    line = json.loads(server.wait_for(r'\{.*"call-1/a".*\}')[0])
    assert (line["status"], line["rows"], line["model"], line["trace_id"], line["parent_id"]) == (200, 1, "model", TRACE, SPAN)
    ask(server, body(1.5), X_Request_Id="untraced", traceparent=f"00-{TRACE}-{SPAN}-zz")
    line = json.loads(server.wait_for(r'\{.*"untraced".*\}')[0])
    assert set(line) == {"time", "request_id", "model", "version", "status", "rows", "bytes", "ms"}  # and nothing that was sent
    assert "secret" not in server.log.read_text().partition("call-1/a")[2].partition("\n")[0]
    invalid = ask(server, body(1.5), X_Request_Id='"} {"status": 200')[1]["x-request-id"]
    assert re.fullmatch("[0-9a-f]{16}", invalid)


ID = f"{TRACE}-{SPAN}"


@pytest.mark.parametrize("value", [f"00-{ID}-00", f" 00-{ID}-01\t", f"cc-{ID}-01", f"cc-{ID}-01-what-the-future-brings"])
def test_a_valid_traceparent_counts_once(value: str) -> None:
    header = (b"traceparent", value.encode())
    assert read_head([header]).trace == (TRACE.encode(), SPAN.encode())
    assert read_head([header, header]).trace == ()


@pytest.mark.parametrize(
    "value",
    [
        f"cc-{ID}-01.what-the-future-brings", f"00-{ID}-01-more", f"00-{ID}-01-", f"ff-{ID}-01", f"0-{ID}-01", f"00-{ID.upper()}-01",
        f"00-{ID[1:]}-01", f"00-{ID}0-01", f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{ID}-1", f"00_{ID}-01", "",
    ],
)  # fmt: skip
def test_an_invalid_traceparent_does_not_count(value: str) -> None:
    assert read_head([(b"traceparent", value.encode())]).trace == ()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/invocations", 405), ("PUT", "/invocations", 405), ("HEAD", "/health", 405), ("POST", "/health", 405),
        ("POST", "/invocations/", 307), ("GET", "/", 404), ("GET", "/%00/../x", 404), ("POST", "/models/nobody/invocations", 404),
    ],
)  # fmt: skip
def test_other_methods_and_paths(server: Server, method: str, path: str, status: int) -> None:
    actual, headers, _ = ask(server, b"" if method in ("GET", "HEAD") else body(1.5), method, path)
    assert actual == status
    assert headers.get("location") == ("/invocations" if status == 307 else None)


def test_gzip_is_read_and_its_decompressed_size_is_limited(server: Server) -> None:
    assert ask(server, gzip.compress(body(1.5)), Content_Encoding="gzip")[0] == 200
    assert ask(server, zlib.compress(body(1.5)), Content_Encoding="deflate")[0] == 200
    halves = [gzip.compress(part) for part in (body(1.5)[:30], b"", body(1.5)[30:])]
    assert ask(server, b"".join(halves) + bytes(512), Content_Encoding="gzip")[2] == b'{"predictions":[1.5]}'
    assert ask(server, halves[0] + b"x" + halves[2], Content_Encoding="gzip")[0] == 400
    assert ask(server, gzip.compress(b"") * 10_001, Content_Encoding="gzip")[0] == 413
    bomb = gzip.compress(b" " * (64 << 20))
    assert len(bomb) < 1 << 20
    status, _, answer = ask(server, bomb, Content_Encoding="gzip")
    assert status == 413
    assert b"or raise --body-limit of `mlops-build serve` (serving.body_limit in service.yaml)" in answer
    assert ask(server, gzip.compress(body(1.5))[:-9], Content_Encoding="gzip")[0] == 400
    assert ask(server, body(1.5), Content_Encoding="gzip")[0] == 400
    assert ask(server, body(1.5), Content_Encoding="br")[0] == 415
    alive(server)


def test_a_body_above_the_limit_is_refused_before_it_is_read(server: Server) -> None:
    head = b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    with socket.create_connection(address(server), timeout=10) as connection:
        connection.sendall(head + b"Content-Length: 99999999999\r\n\r\n")
        assert b" 413 " in connection.recv(4096).splitlines()[0]
    chunk = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    with socket.create_connection(address(server), timeout=10) as connection:
        connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            try:
                connection.sendall(chunk)
            except OSError:  # the server has answered and closed the connection
                break
        assert b" 413 " in connection.recv(4096).splitlines()[0]
    alive(server)


def test_the_response_to_an_error_of_the_model(server: Server) -> None:
    status, _, text = ask(server, body(FAILS))
    assert (status, json.loads(text)["error_code"]) == (400, "BAD_REQUEST")
    assert b"secret" not in text
    server.wait_for("a secret of the model")
    status, _, text = ask(server, body(SET))
    assert (status, "builtins.set" in json.loads(text)["message"]) == (500, True)
    refused = 'mlops_build_refused_total{model="model",why="out of memory"}'
    before = metric(server, refused)
    status, headers, text = ask(server, body(OOM))
    assert (status, headers["retry-after"], json.loads(text)["error_code"]) == (503, "1", "RESOURCE_EXHAUSTED")
    assert metric(server, refused) == before + 1
    alive(server)


def test_a_deadline_ends_the_wait(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(folder), "--deadline", "0.2", "--access-log", "false") as server:
        assert server.url
        with server.holding():
            status, headers, text = ask(server, body(HELD))
        assert (status, headers["retry-after"]) == (504, "1")
        assert "0.2 s" in json.loads(text)["message"]
        end = time.monotonic() + 20  # the first prediction imports torch, which may take longer than the deadline
        while ask(server, body(1.5))[0] != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        assert '"request_id"' not in server.log.read_text()


def test_a_lost_card_ends_the_process(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(folder)) as server:
        assert ask(server, body(FATAL))[0] == 503
        assert server.process.wait(timeout=30) == 1
        assert "can no longer use its card" in server.log.read_text()


def test_running_requests_are_finished_on_sigterm(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(folder)) as server:
        assert server.url
        statuses: list[int] = []
        thread = threading.Thread(target=lambda: statuses.append(ask(server, body(HELD))[0]))
        with server.holding():
            thread.start()
            wait_for_metric(server, RUNNING, 1)
            server.process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
            assert server.process.poll() is None
        assert server.process.wait(timeout=30) == 0
        thread.join()
        assert statuses == [200]


@pytest.mark.parametrize("padding", [0, 100_000, 200_000])  # small, and larger than the 64 KiB at which uvicorn pauses reading
def test_the_request_of_a_disconnected_caller_leaves_the_queue(server: Server, padding: int) -> None:
    disconnected, predicted = 'mlops_build_refused_total{model="model",why="caller gone"}', 'mlops_build_batch_rows_sum{model="model"}'
    wait_for_metric(server, RUNNING, 0)
    before = metric(server, disconnected), metric(server, predicted)
    status: list[int] = []
    thread = threading.Thread(target=lambda: status.append(ask(server, body(HELD))[0]))
    content = body(1.0) + b" " * padding
    head = f"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
    leaving = [socket.create_connection(address(server), timeout=10) for _ in range(3)]
    with server.holding():
        thread.start()
        wait_for_metric(server, RUNNING, 1)
        time.sleep(0.5)  # until its prediction has begun: otherwise the next rows join its batch
        for connection in leaving:
            connection.sendall(head)
        if padding:  # a small request counts when its body has arrived
            wait_for_metric(server, RUNNING, 4)
        for connection in leaving:
            connection.sendall(content)
        wait_for_metric(server, WAITING, 3)
        for connection in leaving:
            connection.close()
        wait_for_metric(server, WAITING, 0)
    thread.join()
    wait_for_metric(server, RUNNING, 0)
    assert status == [200]
    assert metric(server, disconnected) == before[0] + 3
    assert metric(server, predicted) == before[1] + 1  # without the rows of the disconnected callers


@pytest.mark.parametrize("examples", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_openapi_json_is_served_and_generated_requests_find_no_error(server: Server, examples: int) -> None:
    status, headers, text = ask(server, b"", "GET", "/openapi.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    kept, added = {"Error", "model.request", "model.response"}, {"inference.Error", "model.inference", "model.inferred"}
    assert set(json.loads(text)["components"]["schemas"]) == kept | added
    arguments = ["run", f"{server.url}/openapi.json", "--phases", "fuzzing", "--max-examples", str(examples), "--seed", "1", "--no-color"]
    arguments += ["--checks", "not_a_server_error,status_code_conformance", "--generation-database", "none"]
    done = CliRunner().invoke(schemathesis, arguments)
    assert done.exit_code == 0, done.output[-3000:]
    alive(server)


def test_the_docs_page_shows_each_model_and_loads_nothing_from_other_hosts(server: Server) -> None:
    status, headers, text = ask(server, b"", "GET", "/docs")
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    page = text.decode()
    for path in ("/invocations", "/models/model/invocations", "/v2/models/model/infer"):
        assert f'data-path=".{path}"' in page
    assert not re.search(r"(?:src|href)=[\"'](?!\./)|https?://|@import|url\(", page)
