"""MLflow's own server as a process, and a proxy before it that loses responses."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tests import servers

START_SECONDS = 300


@contextlib.contextmanager
def mlflow_server(folder: Path, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of a new `mlflow server`. Its database and its log are in `folder`; by default its artifacts too, behind its proxy."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += list(options) or ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **(environment or {})}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            with contextlib.suppress(urllib.error.URLError, ConnectionError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            assert server.poll() is None, (folder / "server.log").read_text()[-2000:]
            time.sleep(0.1)
        else:
            raise AssertionError(f"mlflow server did not answer within {START_SECONDS} s")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


class Proxy:
    """Forwards requests to a server. What `lose` says is answered with its status after the server has handled it; 0 closes the connection.

    lose: the end of a path → statuses of its next requests. late: the end of a path → seconds from the caller's 504 until
    the server receives the request. content: replaces the content of each response. requests: method and path of all, in order. headers: of
    the last one.
    """

    def __init__(self, server: str) -> None:
        self.lose: dict[str, list[int]] = {}
        self.late: dict[str, float] = {}
        self.content: bytes | None = None
        self.requests: list[str] = []
        self.headers: dict[str, str] = {}
        self._server = urlsplit(server).netloc
        proxy = self

        class Handler(servers.Handler):
            def handle_any(self) -> None:
                proxy._handle(self)

            do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = handle_any

        self._handler = Handler

    @contextlib.contextmanager
    def serve(self) -> Iterator["Proxy"]:
        """Listen, at `uri`."""
        with servers.serve(self._handler) as host:
            self.uri = f"http://{host}"
            yield self

    def _handle(self, request: servers.Handler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        path = request.path.partition("?")[0]
        self.requests.append(f"{request.command} {path}")
        self.headers = dict(request.headers)
        seconds = next((seconds for end, seconds in self.late.items() if path.endswith(end)), None)
        if seconds is not None:
            timer = threading.Timer(seconds, self._forward, (request, body))
            timer.daemon = True
            timer.start()
            request.reply(504)
            return
        response, content = self._forward(request, body)
        status = response.status
        statuses = next((statuses for end, statuses in self.lose.items() if path.endswith(end) and statuses), None)
        if statuses is not None:
            status, content = statuses.pop(0), b"<html>Bad Gateway</html>"
        if self.content is not None:
            status, content = 200, self.content
        if status == 0:
            request.close_connection = True
            return
        request.reply(status, content, {"Content-Type": response.headers.get("Content-Type", "application/json")})

    def _forward(self, request: servers.Handler, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self._server, timeout=30)
        headers = {name: value for name, value in request.headers.items() if name.lower() not in ("host", "connection")}
        connection.request(request.command, request.path, body, headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content
