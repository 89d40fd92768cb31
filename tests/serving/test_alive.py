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
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.serving import models
from tests.serving.conftest import Server, free_port, serving
from tests.serving.test_http import RUNNING, address, alive, ask, body, metric, wait_for_metric

# The first column selects the behaviour. `Panic` is what pyo3's PanicException is: an exception outside Exception.
MODEL = """
    def predict(self, context, data, params=None):
        import asyncio
        import os
        import sys
        import time

        class Panic(BaseException):
            pass

        first = data["a"].to_numpy()
        raised = (
            asyncio.CancelledError(), GeneratorExit(), KeyboardInterrupt(), SystemExit(0), StopIteration(1), Panic("panicked"),
            asyncio.TimeoutError(), BaseExceptionGroup("several", [KeyboardInterrupt()]),
        )
        for number, error in enumerate(raised, 1):
            if (first == -number).any():
                raise error
        while (first == -20).any() and os.path.exists(os.environ["HOLD"]):
            time.sleep(0.005)
        if (first == -21).any():
            return asyncio.CancelledError()
        if (first == -22).any():
            sys.stderr.close()
        if (first == -23).any():
            os.chdir("/")
        if (first == -25).any():
            print("line\\n" * 2**20)
            print("line\\n" * 2**20, file=sys.stderr)
        if (first == -24).any():
            asyncio.run(asyncio.sleep(0))
        return [float(value) for value in first]
"""
RAISED = range(-8, 0)
HELD, RETURNS_ERROR, CLOSES_STDERR, CHANGES_FOLDER, RUNS_LOOP, PRINTS = -20, -21, -22, -23, -24, -25


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alive") / "saved"
    models.save(folder, models.FLOATS, MODEL)
    return folder / "model"


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("served"), str(folder), "--port", "0", "--device", "cpu", "--deadline", "20") as started:
        assert started.url
        yield started
        assert started.stop() == 0


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
    answers = together(server, 1.0, *RAISED, RETURNS_ERROR, 2.0)
    assert {value: status for value, (status, _) in answers.items()} == {
        HELD: 200, 1.0: 200, 2.0: 200, RETURNS_ERROR: 400, **dict.fromkeys(RAISED, 400)
    }  # fmt: skip
    assert (answers[1.0][1], answers[2.0][1]) == (b'{"predictions":[1.0]}', b'{"predictions":[2.0]}')
    for name in ("CancelledError", "GeneratorExit", "KeyboardInterrupt", "SystemExit", "StopIteration", "Panic: panicked"):
        server.wait_for(rf"(?m)^\S*{name}")
    assert json.loads(ask(server, body(-1))[2])["error_code"] == "BAD_REQUEST"
    alive(server)


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
    folder = tmp_path / "saved/model"
    (folder / "examples").mkdir()
    recorded = {"schema": 1, "input": {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1.0, 2.0, 3.0]]}}, "predictions": [1.0]}
    (folder / "examples/recorded.json").write_text(json.dumps(recorded))
    with serving(tmp_path, str(folder), "--port", "0", "--device", "cpu") as server:
        assert server.process.wait(timeout=60) == 1
    assert re.search(r"(?m)^mlops-build serve: .*SystemExit", server.log.read_text())


# -- output that nobody reads --

DROPPED = "mlops_build_log_lines_dropped_total"


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
    with serving(tmp_path, str(folder), "--port", str(port), "--device", "cpu") as server:
        wait_until_ready(running)
        requests(running, 100)  # whose lines are longer than what the pipe holds
        assert ask(running, body(PRINTS))[0] == 200
        alive(running)
        assert metric(running, "mlops_build_log_lines_dropped_total") >= 1
        text = b""
        while b"lines of this log are missing" not in text:  # which is written once there is room
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
