"""The server around the model: limits, overload, slow and broken callers, and errors of the model. Uses real sockets and a real process."""

import gzip
import http.client
import json
import re
import signal
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from schemathesis.cli import schemathesis

from mlops_build.serving.http.head import read_head
from tests.serving import models
from tests.serving.conftest import Server, serving

# The first column selects the model's behaviour.
MODEL = """
    def predict(self, context, data, params=None):
        import os
        import time

        import torch

        first = data["a"].to_numpy()
        if (first == -1).any():
            raise ValueError("a secret of the model")
        while (first == -2).any() and os.path.exists(os.environ["HOLD"]):
            time.sleep(0.005)
        if (first == -3).any():
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        if (first == -4).any():
            raise RuntimeError("CUDA error: device-side assert triggered")
        if (first == -5).any():
            return [{1, 2}] * len(data)
        return [float(value) for value in first]
"""
FAILS, HELD, OOM, FATAL, SET = -1, -2, -3, -4, -5
RUNNING, WAITING = 'mlops_build_requests_in_progress{model="model"}', 'mlops_build_queue_rows{model="model"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("http") / "saved"
    models.save(folder, models.FLOATS, MODEL)
    return folder / "model"


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ["--body-limit", "1MiB", "--max-queue", "8", "--max-batch", "4", "--read", "2"]
    options += ["--rows-independent", "a function of each row"]
    with serving(tmp_path_factory.mktemp("served"), str(folder), "--port", "0", "--device", "cpu", *options) as started:
        assert started.url
        yield started


def address(server: Server) -> tuple[str, int]:
    host, port = server.url.removeprefix("http://").split(":")
    return host, int(port)


def body(*values: float) -> bytes:
    return json.dumps({"dataframe_split": {"columns": ["a", "b", "c"], "data": [[value, 0.0, 0.0] for value in values]}}).encode()


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


def test_the_callers_request_id_is_returned_and_logged(server: Server) -> None:
    status, headers, _ = ask(server, body(1.5), X_Request_Id="call-1/a")
    assert (status, headers["x-request-id"]) == (200, "call-1/a")
    line = json.loads(server.wait_for(r'\{.*"call-1/a".*\}')[0])
    assert (line["status"], line["rows"], line["model"]) == (200, 1, "model")
    assert set(line) == {"time", "request_id", "model", "version", "status", "rows", "bytes", "ms"}  # and nothing that was sent


TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_the_callers_trace_is_logged(server: Server) -> None:
    ask(server, body(1.5), X_Request_Id="traced", traceparent=f"00-{TRACE}-{SPAN}-01", tracestate="secret=1", Cookie="secret")
    line = json.loads(server.wait_for(r'\{.*"traced".*\}')[0])
    assert (line["trace_id"], line["parent_id"]) == (TRACE, SPAN)
    assert "secret" not in str(line)
    ask(server, body(1.5), X_Request_Id="untraced", traceparent=f"00-{TRACE}-{SPAN}-zz")
    assert "trace_id" not in json.loads(server.wait_for(r'\{.*"untraced".*\}')[0])


@pytest.mark.parametrize(
    ("values", "valid"),
    [
        ((f"00-{TRACE}-{SPAN}-00",), True),
        ((f" 00-{TRACE}-{SPAN}-01\t",), True),
        ((f"cc-{TRACE}-{SPAN}-01",), True),
        ((f"cc-{TRACE}-{SPAN}-01-what-the-future-brings",), True),
        ((f"cc-{TRACE}-{SPAN}-01.what-the-future-brings",), False),
        ((f"00-{TRACE}-{SPAN}-01-more",), False),
        ((f"00-{TRACE}-{SPAN}-01-",), False),
        ((f"ff-{TRACE}-{SPAN}-01",), False),
        ((f"0-{TRACE}-{SPAN}-01",), False),
        ((f"00-{TRACE.upper()}-{SPAN}-01",), False),
        ((f"00-{TRACE[1:]}-{SPAN}-01",), False),
        ((f"00-{TRACE}-{SPAN}0-01",), False),
        ((f"00-{'0' * 32}-{SPAN}-01",), False),
        ((f"00-{TRACE}-{'0' * 16}-01",), False),
        ((f"00-{TRACE}-{SPAN}-1",), False),
        ((f"00_{TRACE}-{SPAN}-01",), False),
        (("",), False),
        ((f"00-{TRACE}-{SPAN}-01",) * 2, False),
    ],
)
def test_only_a_valid_traceparent_counts(values: tuple[str, ...], valid: bool) -> None:
    head = read_head([(b"traceparent", value.encode()) for value in values])
    assert head.trace == ((TRACE.encode(), SPAN.encode()) if valid else ())


def test_an_invalid_request_id_is_replaced(server: Server) -> None:
    _, headers, _ = ask(server, body(1.5), X_Request_Id='"} {"status": 200')
    assert re.fullmatch("[0-9a-f]{16}", headers["x-request-id"])


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/invocations", 405),
        ("PUT", "/invocations", 405),
        ("HEAD", "/health", 405),
        ("POST", "/health", 405),
        ("POST", "/invocations/", 307),
        ("GET", "/", 404),
        ("GET", "/%00/../x", 404),
        ("POST", "/models/nobody/invocations", 404),
    ],
)
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


def test_the_response_of_a_failing_model_has_no_traceback(server: Server) -> None:
    status, _, text = ask(server, body(FAILS))
    assert status == 400
    assert json.loads(text)["error_code"] == "BAD_REQUEST"
    assert b"secret" not in text
    server.wait_for("a secret of the model")


def test_a_bad_request_does_not_fail_the_others_of_its_batch(server: Server) -> None:
    answered: Counter[tuple[float, int]] = Counter()

    def send(value: float) -> None:
        answered[value, ask(server, body(value))[0]] += 1

    # The first request keeps the model busy, so that the others form one batch.
    threads = [threading.Thread(target=send, args=(value,)) for value in (HELD, 1.0, FAILS, 2.0, OOM)]
    wait_for_metric(server, RUNNING, 0)
    with server.holding():
        for running, thread in enumerate(threads, 1):
            thread.start()
            wait_for_metric(server, RUNNING, running)
    for thread in threads:
        thread.join()
    assert answered == {(HELD, 200): 1, (1.0, 200): 1, (FAILS, 400): 1, (2.0, 200): 1, (OOM, 503): 1}


def test_out_of_memory_is_503_and_counted(server: Server) -> None:
    status, headers, text = ask(server, body(OOM))
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(text)["error_code"] == "RESOURCE_EXHAUSTED"
    metrics = ask(server, b"", "GET", "/metrics")[2].decode()
    assert re.search(r'mlops_build_refused_total\{model="model",why="out of memory"\} [1-9]', metrics)
    alive(server)


def test_the_error_for_an_output_that_is_not_json_names_its_type(server: Server) -> None:
    status, _, text = ask(server, body(SET))
    assert status == 500
    assert "builtins.set" in json.loads(text)["message"]


def test_a_full_queue_is_refused_at_once_with_retry_after(server: Server) -> None:
    answers: list[tuple[int, str | None]] = []

    def send() -> None:
        status, headers, _ = ask(server, body(HELD, HELD))
        answers.append((status, headers.get("retry-after")))

    threads = [threading.Thread(target=send) for _ in range(24)]
    with server.holding():
        for thread in threads:
            thread.start()
        end = time.monotonic() + 20
        while len(answers) < 24 - 2 - 8 // 2:  # at most 4 rows are predicted, and 8 rows wait
            assert time.monotonic() < end, answers
            time.sleep(0.01)
        assert {status for status, _ in answers} == {429}
        assert all(retry and int(retry) >= 1 for _, retry in answers)
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200, 429}
    alive(server)


def test_a_deadline_ends_the_wait(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(folder), "--port", "0", "--device", "cpu", "--deadline", "0.2", "--access-log", "false") as server:
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
    with serving(tmp_path, str(folder), "--port", "0", "--device", "cpu") as server:
        assert ask(server, body(FATAL))[0] == 503
        assert server.process.wait(timeout=30) == 1
        assert "can no longer use its card" in server.log.read_text()


def test_slow_callers_are_disconnected_and_do_not_block_others(server: Server) -> None:
    slow = [socket.create_connection(address(server), timeout=20) for _ in range(200)]
    try:
        for number, connection in enumerate(slow):
            if number % 3:  # a third sends nothing
                connection.sendall(b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n")
            if number % 3 == 2:
                connection.sendall(b"\r\n{")
        alive(server)
        for connection in slow:
            # Closed after --read, with a 4xx or without a response.
            assert not (answer := connection.recv(4096)) or b" 4" in answer.splitlines()[0], answer
    finally:
        for connection in slow:
            connection.close()
    alive(server)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"POST /invocations HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
        b"A" * 100_000,
    ],
)
def test_invalid_bytes_do_not_affect_others(server: Server, sent: bytes) -> None:
    with socket.create_connection(address(server), timeout=10) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        try:
            answer: Any = connection.recv(4096)
        except ConnectionResetError:
            answer = b""
        assert not answer or b" 4" in answer.splitlines()[0], answer
    alive(server)


def test_running_requests_are_finished_on_sigterm(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(folder), "--port", "0", "--device", "cpu") as server:
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


def test_batches_grow_with_the_load(server: Server) -> None:
    def batches() -> tuple[float, ...]:
        return tuple(metric(server, f'mlops_build_batch_rows_{name}{{model="model"}}') for name in ("sum", "count"))

    rows, count = batches()
    threads = [threading.Thread(target=ask, args=(server, body(HELD if number == 0 else 1.0))) for number in range(5)]
    with server.holding():
        for running, thread in enumerate(threads, 1):
            thread.start()
            wait_for_metric(server, RUNNING, running)
    for thread in threads:
        thread.join()
    assert batches() == (rows + 5, count + 2)


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
    assert 'data-path="./invocations"' in page
    assert 'data-path="./models/model/invocations"' in page
    assert 'data-path="./v2/models/model/infer"' in page
    assert not re.search(r"(?:src|href)=[\"'](?!\./)|https?://|@import|url\(", page)
