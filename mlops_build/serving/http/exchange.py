"""One request and its response, on a connection (protocol.py)."""

import asyncio
import http
import logging
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import httptools

from mlops_build.serving.batcher import Disconnected
from mlops_build.serving.http.answer import Answer

Headers = Sequence[tuple[bytes, bytes]]
# Submits a request with this body.
Submit = Callable[["Exchange", bytes], None]

CLOSE = b"connection: close"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS_LINE = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in http.HTTPStatus}
PLAIN = b"text/plain; charset=utf-8"

log = logging.getLogger("mlops_build.serving")


def http_head(answer: Answer, *headers: bytes) -> bytes:
    """The head of an HTTP/1.1 response. headers: additional header lines."""
    head = [
        STATUS_LINE[answer.status],
        b"content-type: " + answer.kind,
        b"content-length: %d" % len(answer.body),
        *(name + b": " + value for name, value in answer.headers),
        *headers,
    ]
    return b"\r\n".join([*head, b"", b""])


class App(Protocol):
    """What handles requests. probes: the paths that are also answered at the limit of connections."""

    probes: frozenset[bytes]

    def begin(self, exchange: "Exchange", /) -> Submit | None:
        """How the body of a small request is submitted; None if the request needs a task."""

    async def __call__(self, exchange: "Exchange", /) -> None:
        """Handle a request in a task."""


class Connection(Protocol):
    """What a request needs of its connection."""

    transport: Any

    def respond(self, head: bytes, body: bytes | bytearray, /) -> None: ...
    def when_sent(self, function: Callable[[], None], /) -> None: ...
    def pause_or_read(self) -> None: ...


class Exchange:
    """A request whose headers have arrived, and its response.

    keep_alive: whether the connection stays open afterwards. expects: the caller waits for "100 Continue" before it sends the body.
    complete: the whole request has arrived. submit: called with the body of a small request; any other runs in a task. unread: bytes of
    the body that have arrived, but have not been read by the app. path: without escapes; only in a task. answer: the future that the app
    waits for; it receives the exception Disconnected if the caller disconnects.
    """

    def __init__(self, connection: Connection, method: bytes, target: bytes, headers: Headers, keep_alive: bool, expects: bool) -> None:
        self._connection = connection
        self.method, self.target, self.headers = method, target, headers
        self.keep_alive, self.expects = keep_alive, expects
        self.started = self.complete = self.answered = False
        self.submit: Submit | None = None
        self.unread = 0
        self.path = ""
        self.answer: asyncio.Future[Any] | None = None
        self._parts: list[bytes] = []
        self._changed = asyncio.Event()

    def add(self, body: bytes) -> None:
        """Add a part of the body."""
        if not self.answered:
            self._parts.append(body)
            self.unread += len(body)
            self._notify()

    def finish(self) -> None:
        """The whole request has arrived."""
        self.complete = True
        self._notify()
        self.submit_if_complete()

    def submit_if_complete(self) -> None:
        if self.complete and self.submit is not None:
            self.submit(self, self._take())

    async def run(self, app: App) -> None:
        """Handle the request in a task."""
        try:
            self.path = urllib.parse.unquote((httptools.parse_url(self.target).path or b"").decode("ascii"))
        except (httptools.HttpParserError, UnicodeError):
            self.respond(Answer(400, b"invalid target", PLAIN))
            return
        try:
            await app(self)
        except Exception:
            log.exception("a request failed")
            self.keep_alive = False
            self.respond(Answer(500, b"internal error: the service's log has the traceback", PLAIN))

    def respond(self, answer: Answer, request_id: bytes = b"") -> None:
        if self.answered:  # the caller has disconnected
            return
        if self.expects and not self.complete:
            self.keep_alive = False  # the caller may send the body, or the next request (RFC 9110, 10.1.1)
        headers = [b"x-request-id: " + request_id] if request_id else []
        if not self.keep_alive:
            headers.append(CLOSE)
        self.end()
        self._connection.respond(http_head(answer, *headers), b"" if self.method == b"HEAD" else answer.body)

    def when_sent(self, function: Callable[[], None]) -> None:
        """Call a function once the response is sent, except for the last few KiB, or the connection is lost."""
        self._connection.when_sent(function)

    def end(self) -> None:
        """Drop the rest of the request."""
        self.answered = True
        self._take()
        self._notify()

    def disconnect(self) -> None:
        """Cancel the request, since its caller has disconnected."""
        if not self.answered:
            self.end()
            if self.answer and not self.answer.done():
                self.answer.set_exception(Disconnected())

    async def receive(self) -> bytes:
        """The next part of the body; b"" after the last. Raises Disconnected."""
        if self.expects and not self._parts:
            self._connection.transport.write(CONTINUE)
        self.expects = False
        while not (self._parts or self.complete or self.answered):
            self._changed.clear()
            await self._changed.wait()
        if self.answered:
            raise Disconnected
        body = self._take()
        self._connection.pause_or_read()
        return body

    def _take(self) -> bytes:
        body = b"".join(self._parts)
        self._parts.clear()
        self.unread = 0
        return body

    def _notify(self) -> None:
        self._changed.set()
