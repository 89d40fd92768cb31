"""The service answers under any model: exceptions of every kind, predictions that hang, output that nobody reads, large answers."""

import contextlib
import fcntl
import http.client
import json
import os
import re
import select
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.serving import models
from tests.serving.conftest import (
    CHANGES_FOLDER,
    CLOSES_STDERR,
    HELD,
    OOM,
    PRINTS,
    RETURNS_ERROR,
    RUNS_LOOP,
    Server,
    free_port,
    serving,
)
from tests.serving.test_http import RUNNING, address, alive, ask, body, metric, wait_for_metric

RAISED = range(-9, 0)


@pytest.fixture
def server(strict: Server) -> Server:
    return strict


# -- exceptions --


def together(server: Server, *values: float) -> dict[float, tuple[int, bytes]]:
    """The answers to requests that are predicted in one batch."""
    answers: dict[float, tuple[int, bytes]] = {}

    def send(value: float) -> None:
        status, _, text = ask(server, body(value))
        answers[value] = status, text

    threads = [threading.Thread(target=send, args=(value,)) for value in (HELD, *values)]
    wait_for_metric(server, RUNNING, 0)
    with server.holding():
        for running, thread in enumerate(threads, 1):
            thread.start()
            wait_for_metric(server, RUNNING, running)
    for thread in threads:
        thread.join()
    return answers


def test_an_exception_outside_exception_fails_its_request_only(server: Server) -> None:
    answers = together(server, 1.0, *RAISED, RETURNS_ERROR, OOM, 2.0)
    assert {value: status for value, (status, _) in answers.items()} == {
        HELD: 200, 1.0: 200, 2.0: 200, RETURNS_ERROR: 400, OOM: 503, **dict.fromkeys(RAISED, 400)
    }  # fmt: skip
    assert (answers[1.0][1], answers[2.0][1]) == (b'{"predictions":[1.0]}', b'{"predictions":[2.0]}')
    for name in ("CancelledError", "GeneratorExit", "KeyboardInterrupt", "SystemExit", "StopIteration", "Panic: panicked"):
        server.wait_for(rf"(?m)^\S*{name}")


@pytest.mark.parametrize("behaviour", [CLOSES_STDERR, CHANGES_FOLDER, RUNS_LOOP])
def test_what_a_model_does_to_the_process_does_not_end_the_service(server: Server, behaviour: float) -> None:
    assert ask(server, body(behaviour))[0] == 200
    status, _, _ = ask(server, body(-1), X_Request_Id=f"after{behaviour}")
    assert status == 400
    server.wait_for(rf'"after{behaviour}"')
    alive(server)


@pytest.mark.parametrize("method", ["load_context", "predict"])
def test_a_model_that_ends_the_process_during_the_start_is_an_error(tmp_path: Path, method: str) -> None:
    methods = {
        "load_context": "def load_context(self, context):\n    pass",
        "predict": "def predict(self, context, data):\n    return data",
    }
    # $HOLD exists in the server only, and not where the model is saved.
    methods[method] = methods[method].replace("\n", "\n    import os\n    if 'HOLD' in os.environ: raise SystemExit(0)\n")
    models.save(tmp_path / "saved", models.FLOATS, "\n\n".join(methods.values()))
    folder = models.record(tmp_path / "saved/model", [[1.0, 2.0, 3.0]])
    with serving(tmp_path, str(folder)) as server:
        assert server.process.wait(timeout=60) == 1
    assert re.search(r"(?m)^mlops-build serve: .*SystemExit", server.log.read_text())


# -- output that nobody reads --


def requests(server: Any, number: int) -> None:
    with closing(http.client.HTTPConnection(*address(server), timeout=30)) as connection:
        for _ in range(number):
            connection.request("POST", "/invocations", body(1.5), {"Content-Type": "application/json"})
            assert connection.getresponse().read() == b'{"predictions":[1.5]}'


def test_output_that_nobody_reads_blocks_neither_requests_nor_the_exit(folder: Path, tmp_path: Path) -> None:
    pipes = []
    for name in ("serve.log", "serve.out"):
        os.mkfifo(tmp_path / name)
        pipes.append(os.open(tmp_path / name, os.O_RDONLY | os.O_NONBLOCK))
        fcntl.fcntl(pipes[-1], fcntl.F_SETPIPE_SZ, 4096)
    port = free_port()
    running: Any = SimpleNamespace(url=f"http://127.0.0.1:{port}")
    with serving(tmp_path, str(folder), "--port", str(port)) as server:
        wait_until_ready(running)
        requests(running, 100)  # whose lines are longer than what the pipe holds
        assert ask(running, body(PRINTS))[0] == 200
        alive(running)
        assert metric(running, "mlops_build_log_lines_dropped_total") >= 1
        text = b""
        while b"lines of this log were dropped" not in text:  # which is written once there is room
            select.select(pipes[:1], [], [], 20)
            text += os.read(pipes[0], 1 << 20)
        assert text.count(b'"status":200') >= 100
        requests(running, 100)
        assert ask(running, b"", "GET", "/health")[0] == 200
        assert server.stop() == 0
    for pipe in pipes:
        os.close(pipe)


def wait_until_ready(server: Any) -> None:
    end = time.monotonic() + 180
    while True:
        with contextlib.suppress(OSError):
            assert ask(server, b"", "GET", "/health")[0] == 200
            return
        assert time.monotonic() < end
        time.sleep(0.05)


# -- predictions that hang --

# Longer than a prediction's limit, to show that the watchdog ignores the start. With -1 in the first column, the model keeps Python's lock.
HANGING = """
    def load_context(self, context):
        import os
        import time

        time.sleep(2.5 if "HOLD" in os.environ else 0)

    def predict(self, context, data, params=None):
        import ctypes
        import os
        import time

        if (data["a"] == -1).any():
            ctypes.PyDLL(None).sleep(120)
        while (data["a"] == -20).any() and os.path.exists(os.environ["HOLD"]):
            time.sleep(0.005)
        return [float(value) for value in data["a"]]
"""
KEEPS_LOCK = -1
LIMITS = ("--deadline", "0.3", "--stuck", "1.2")
GENERAL = ("/health", "/ping", "/v2/health/live", "/v2/health/ready")


def of_model(name: str) -> list[str]:
    return [f"/models/{name}/health", f"/models/{name}/ping", f"/v2/models/{name}/ready", f"/v2/models/{name}/versions/1/ready"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build context with the models hanging and echo."""
    base = tmp_path_factory.mktemp("two")
    for name, code in (("hanging", HANGING), ("echo", models.ECHO)):
        models.save(base / name, models.FLOATS, code)
    return models.context(base / "context", hanging=base / "hanging/model", echo=base / "echo/model")


def get(server: Server, path: str) -> tuple[int, bytes]:
    status, _, text = ask(server, b"", "GET", path)
    return status, text


def wait_until(server: Server, path: str, status: int) -> None:
    end = time.monotonic() + 60
    while get(server, path)[0] != status:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stuck_prediction_turns_the_probes_off_until_it_ends(two: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(two), *LIMITS) as server:
        assert server.url
        with server.holding():
            assert ask(server, body(HELD))[0] == 504
            wait_until(server, "/health", 503)
            for path in (*GENERAL, *of_model("hanging")):
                status, text = get(server, path)
                assert status == 503, path
                assert b"a prediction of hanging has not ended within 1.5 s" in text
            for padding in (0, 100_000):
                status, headers, text = ask(server, body(1.0) + b" " * padding)
                assert (status, headers["retry-after"]) == (503, "10")
                assert json.loads(text)["error_code"] == "TEMPORARILY_UNAVAILABLE"
            assert ask(server, b"{}", path="/v2/models/hanging/infer")[0] == 503
            assert {get(server, path)[0] for path in of_model("echo")} == {200}
            assert ask(server, body(1.0), path="/models/echo/invocations")[0] == 200
            assert metric(server, 'mlops_build_stuck{model="hanging"}') == 1
            assert metric(server, 'mlops_build_stuck{model="echo"}') == 0
            assert metric(server, 'mlops_build_refused_total{model="hanging",why="stuck"}') == 3
            server.wait_for(r"(?s)a prediction of hanging has not ended .*?in predict\n\s+(?:while|time.sleep)")
            server.wait_for("Thread MainThread:")
        wait_until(server, "/health", 200)
        server.wait_for("the stuck prediction of hanging has ended: the service is healthy again")
        assert {get(server, path)[0] for path in (*GENERAL, *of_model("hanging"))} == {200}
        alive(server)
        with server.holding():
            assert ask(server, body(HELD))[0] == 504
            wait_until(server, "/health", 503)
            assert server.stop() == 1
        assert server.log.read_text().count("has not ended within 1.5 s; until") == 2


def test_the_probes_of_our_manifests_and_images_are_among_those(context: Path) -> None:
    root = Path(__file__).parents[2]
    manifest = (root / "template/deploy/base/deployment.yaml.jinja").read_text()
    assert set(re.findall(r"httpGet:\s+path: (\S+)", manifest)) <= set(GENERAL)
    assert set(re.findall(r"127\.0\.0\.1:8080(/\w+)'", (context / "Dockerfile").read_text())) == {"/health"}


def test_a_model_that_hangs_with_pythons_lock_ends_the_process(two: Path, tmp_path: Path) -> None:
    with serving(tmp_path, str(two), *LIMITS) as server:
        assert server.url
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(server, body(KEEPS_LOCK))
        assert server.process.wait(timeout=30) == 1
        assert re.search(r"Timeout \(.*\)!\n(?s:.*)in predict\n", server.log.read_text())


@pytest.mark.slow
def test_a_full_pipe_does_not_keep_a_hanging_process_alive(two: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "serve.log")
    pipe = os.open(tmp_path / "serve.log", os.O_RDONLY | os.O_NONBLOCK)
    fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, 4096)
    running: Any = SimpleNamespace(url=f"http://127.0.0.1:{(port := free_port())}")
    with serving(tmp_path, str(two), *LIMITS, "--port", str(port)) as server:
        wait_until_ready(running)
        requests(running, 100)
        with pytest.raises((ConnectionError, http.client.HTTPException)):
            ask(running, body(KEEPS_LOCK))
        assert server.process.wait(timeout=30) == 1
    os.close(pipe)


def test_the_deadline_includes_parsing(folder: Path, tmp_path: Path) -> None:
    rows = ",".join('{"a": 1, "b": "2", "c": 3}' for _ in range(20_000))
    content = f'{{"dataframe_records": [{rows}]}}'.encode()
    with serving(tmp_path, str(folder), "--deadline", "0.02") as server:
        assert server.url
        statuses = []
        threads = [threading.Thread(target=lambda: statuses.append(ask(server, content)[0])) for _ in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {504}


@pytest.mark.slow
def test_a_thread_of_the_model_does_not_prevent_the_exit(tmp_path: Path) -> None:
    code = """
        def load_context(self, context):
            import os, threading, time
            if "HOLD" in os.environ:
                threading.Thread(target=time.sleep, args=(600,)).start()

        def predict(self, context, data, params=None):
            return data
    """
    models.save(tmp_path / "saved", models.FLOATS, code)
    with serving(tmp_path, str(tmp_path / "saved/model")) as server:
        assert server.url
        assert server.stop() == 1
        assert "Timeout (0:00:05)!" in server.log.read_text()
