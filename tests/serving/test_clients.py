"""The clients of docs/how-to/call-a-model-from-go-and-php.md, run by Go and PHP against a real service."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.packaging.world import World, answered
from tests.serving.conftest import Server

CLIENTS = Path(__file__).parents[2] / "docs/how-to/clients"
ROWS = [{"x": 1.0, "y": 0.5}, {"x": -2.0, "y": 0.25}]
ANSWER = {"predictions": [{"label": "plus", "score": 2.0}]}
Ask = Callable[..., "subprocess.CompletedProcess[str]"]


def program(variable: str) -> str:
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} is not set (scripts/debian-tools.sh)")
    return path


@pytest.fixture(scope="module")
def go_client(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("go")
    go = program("MLOPS_TEST_GO")
    environment = {**os.environ, "GOCACHE": str(folder / "cache"), "GO111MODULE": "off", "GOPATH": str(folder / "path"), "GOFLAGS": ""}
    for command in (["vet", str(CLIENTS / "client.go")], ["build", "-o", str(folder / "client"), str(CLIENTS / "client.go")]):
        done = subprocess.run([go, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
    return [str(folder / "client")]


@pytest.fixture(params=["go", "php"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """Runs the client, which sends each list of rows to the service at a URL."""
    php = request.param == "php"
    command = [program("MLOPS_TEST_PHP"), str(CLIENTS / "client.php")] if php else request.getfixturevalue("go_client")

    def run(url: str, *lists: object) -> "subprocess.CompletedProcess[str]":
        text = "".join(json.dumps(rows) + "\n" for rows in lists)
        return subprocess.run([*command, url], input=text, capture_output=True, text=True, timeout=60, check=False)

    return run


class Faulty(ThreadingHTTPServer):
    """A service with fixed responses: (status, headers, body). Records the requests, their times and the number of connections."""

    def __init__(self, answers: Sequence[tuple[int, dict[str, str], bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = list(answers)
        self.bodies: list[object] = []
        self.times: list[float] = []
        self.connections = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Faulty

    def setup(self) -> None:
        super().setup()
        self.server.connections += 1

    def do_POST(self) -> None:
        self.server.times.append(time.monotonic())
        self.server.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status, headers, body = self.server.answers.pop(0)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def faulty(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[Faulty]:
    with Faulty(answers) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


GOOD = (200, {}, json.dumps(ANSWER).encode())


@pytest.mark.slow
def test_a_client_gets_the_predictions(ask: Ask, server: Server, world: World) -> None:
    done = ask(server.url, ROWS, ROWS[:1])
    assert done.returncode == 0, done.stderr
    both, first = map(json.loads, done.stdout.splitlines())
    assert both == answered(world.folder / "one")
    assert first == both[:1]


@pytest.mark.slow
def test_nan_is_null_in_requests_and_responses(ask: Ask, server: Server) -> None:
    done = ask(server.url, [{"x": None, "y": 0.5}])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"label": "minus", "score": None}]


@pytest.mark.slow
def test_a_refusal_shows_the_services_message_and_is_not_retried(ask: Ask) -> None:
    body = b'{"error_code":"BAD_REQUEST","message":"row 0, column \'x\': text"}'
    with faulty((400, {"X-Request-Id": "abc"}, body), GOOD) as server:
        done = ask(server.url, ROWS)
    assert (done.returncode, len(server.bodies)) == (1, 1)
    assert done.stderr.strip() == "400 BAD_REQUEST: row 0, column 'x': text (request abc)"


@pytest.mark.slow
def test_a_refusal_of_the_real_service_is_shown(ask: Ask, server: Server) -> None:
    done = ask(f"{server.url}/nowhere", ROWS)
    assert done.returncode == 1
    assert done.stderr.startswith("404 ")


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 503, 504])
def test_it_retries_after_the_time_in_retry_after(ask: Ask, status: int) -> None:
    with faulty((status, {"Retry-After": "2"}, b'{"error_code":"X","message":"later"}'), GOOD) as server:
        done = ask(server.url, ROWS)
    assert json.loads(done.stdout) == ANSWER["predictions"]
    assert server.times[1] - server.times[0] >= 1.9
    assert server.bodies[0] == server.bodies[1] == {"dataframe_records": ROWS}


@pytest.mark.slow
def test_it_gives_up_after_three_attempts(ask: Ask) -> None:
    with faulty(*[(503, {"Retry-After": "1"}, b"<html>a proxy says no</html>")] * 3, GOOD) as server:
        done = ask(server.url, ROWS)
    assert (done.returncode, len(server.bodies)) == (1, 3)
    assert "503" in done.stderr
    assert "a proxy says no" in done.stderr


@pytest.mark.slow
def test_it_keeps_its_connection(ask: Ask) -> None:
    with faulty(GOOD, GOOD) as server:
        ask(server.url, ROWS, ROWS)
    assert (len(server.bodies), server.connections) == (2, 1)


@pytest.mark.parametrize("name", ["client.go", "client.php"])
def test_the_page_shows_the_files_that_are_tested(name: str) -> None:
    page = (CLIENTS.parent / "call-a-model-from-go-and-php.md").read_text()
    assert f"```{name.partition('.')[2]}\n{(CLIENTS / name).read_text()}```\n" in page
