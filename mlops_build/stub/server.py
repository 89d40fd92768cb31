"""The stub of a service on a port."""

from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from mlops_build.errors import Failed
from mlops_build.serving.http.answer import Answer, mlflow_error
from mlops_build.serving.refusal import Refusal, too_large
from mlops_build.stub.answer import BODY_LIMIT, Stub

IDLE_SECONDS = 60


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: "Server"

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body = self._body(headers)
        except Refusal as error:
            self.close_connection = True  # the rest of the body would be read as the next request
            answer = mlflow_error(error.status, error.code, error.message)
        else:
            answer = self.server.stub.answer(self.command, self.path.partition("?")[0], headers, body)
        self._send(answer, headers.get("x-request-id"))

    # The base class looks up the handler by the method's name.
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _handle

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if "transfer-encoding" in headers:
            return b"".join(self._chunks())
        size = headers.get("content-length", "0")
        if not size.isdecimal() or len(size) > 15:
            raise Refusal("Content-Length is not a number")
        if int(size) > BODY_LIMIT:
            raise too_large(BODY_LIMIT)
        body = self.rfile.read(int(size))
        if len(body) < int(size):
            raise Refusal("the body ends before its Content-Length")
        return body

    def _chunks(self) -> Sequence[bytes]:
        chunks, size = [], 0
        while True:
            head = self.rfile.readline(100).partition(b";")[0].strip()
            try:
                length = int(head, 16)
            except ValueError:
                raise Refusal("the body's chunks cannot be read") from None
            size += length
            if length < 0 or size > BODY_LIMIT:
                raise too_large(BODY_LIMIT)
            chunks.append(self.rfile.read(length))
            if not length:
                break
            if self.rfile.readline(10).strip():
                raise Refusal("a chunk is longer than its size")
        for _ in range(100):  # trailers are ignored
            if not self.rfile.readline(1000).strip():
                return chunks
        raise Refusal("the body has too many trailers")

    def _send(self, answer: Answer, request_id: str | None) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind.decode())
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name.decode(), value.decode())
        if request_id and request_id.isascii() and request_id.isprintable():
            self.send_header("X-Request-Id", request_id[:128])
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        return "mlops-build-stub"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class's name)
        """Log nothing, since the caller's tests have their own log."""


class Server(ThreadingHTTPServer):
    """The stub on a port; 0 chooses a free port. Raises Failed if the port is in use."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, stub: Stub, host: str, port: int) -> None:
        self.stub = stub
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise Failed(
                f"cannot listen on {host} port {port}: {error.strerror}",
                remedy="choose another port with --port, or a free one with --port 0",
            ) from None

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore errors of connections: a caller may disconnect at any time."""
