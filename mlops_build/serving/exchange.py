"""One request and its response, on a connection (protocol.py)."""

import asyncio
import http
import logging
import urllib.parse
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import httptools

from mlops_build.serving.answer import Answer

if TYPE_CHECKING:
    from mlops_build.serving.protocol import Connection

# Keys of a request's scope. When the connection is lost, DISCONNECTED is set, and the function that the app stored under ON_DISCONNECT is
# called. Waiting with `receive` would cost a task per request.
DISCONNECTED = "mlops_build.disconnected"
ON_DISCONNECT = "mlops_build.on_disconnect"

Headers = Sequence[tuple[bytes, bytes]]
# Sends the response to a request; takes the response and the request's id (b"" for none).
Respond = Callable[[Answer, bytes], None]
# Submits a request by its body; returns the function to call if the caller disconnects.
Submit = Callable[[bytes, Respond], Callable[[], None] | None]
# Handles a request in a task. The first two arguments are those of an ASGI application.
App = Callable[[MutableMapping[str, Any], Callable[[], Awaitable[MutableMapping[str, Any]]], Respond], Awaitable[None]]

# A larger body is written separately from the head of its response.
LARGE_BYTES = 64 * 1024
CLOSE = b"connection: close"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
STATUS_LINE = {status.value: f"HTTP/1.1 {status.value} {status.phrase}".encode() for status in http.HTTPStatus}
PLAIN = b"text/plain; charset=utf-8"

# Of the requests without a task, where nothing waits for it.
_CHANGED = asyncio.Event()

log = logging.getLogger("mlops_build.serving")


def http_response(answer: Answer, *headers: bytes, body: bool = True) -> bytes:
    """An answer as an HTTP/1.1 response. headers: additional header lines. body: False in the response to HEAD."""
    head = [
        STATUS_LINE[answer.status],
        b"content-type: " + answer.kind,
        b"content-length: %d" % len(answer.body),
        *(name + b": " + value for name, value in answer.headers),
        *headers,
    ]
    return b"\r\n".join([*head, b"", answer.body if body else b""])


class Exchange:
    """A request whose headers have arrived, and its response.

    keep_alive: whether the connection stays open afterwards. expects: the caller waits for "100 Continue" before it sends the body.
    complete: the whole request has arrived. submit: called with the body of a small request; any other runs in a task. unread: bytes of
    the body that have arrived, but have not been read by the app.
    """

    def __init__(self, connection: "Connection", method: bytes, target: bytes, headers: Headers, keep_alive: bool, expects: bool) -> None:
        self._connection = connection
        self.method, self.target, self.headers = method, target, headers
        self.keep_alive, self.expects = keep_alive, expects
        self.started = self.complete = self.answered = False
        self.submit: Submit | None = None
        self.unread = 0
        self._scope: dict[str, Any] = {}
        self._parts: list[bytes] = []
        self._changed = _CHANGED

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
            self._scope[ON_DISCONNECT] = self.submit(self._take(), self.respond)

    async def run(self, app: App) -> None:
        """Handle the request in a task."""
        self._changed = asyncio.Event()
        try:
            path = (httptools.parse_url(self.target).path or b"").decode("ascii")
        except (httptools.HttpParserError, UnicodeError):
            self.respond(Answer(400, b"invalid target", PLAIN), b"")
            return
        self._scope |= {"method": self.method.decode("ascii"), "path": urllib.parse.unquote(path), "headers": self.headers}
        try:
            await app(self._scope, self._receive, self.respond)
        except Exception:
            log.exception("a request failed")
        finally:
            if not self.answered:
                self.keep_alive = False
                self.respond(Answer(500, b"internal error: the service's log has the traceback", PLAIN), b"")

    def respond(self, answer: Answer, request_id: bytes) -> None:
        if self.answered:  # the caller has disconnected
            return
        headers = [b"x-request-id: " + request_id] if request_id else []
        if not self.keep_alive:
            headers.append(CLOSE)
        self.end()
        small = len(answer.body) <= LARGE_BYTES
        parts = [] if small or self.method == b"HEAD" else [answer.body]  # a copy of a large body would take long
        self._connection.respond(http_response(answer, *headers, body=small and self.method != b"HEAD"), *parts)

    def end(self) -> None:
        """Drop the rest of the request."""
        self.answered = True
        self._take()
        self._notify()

    def disconnect(self) -> None:
        """Cancel the request, since its caller has disconnected."""
        if not self.answered:
            self.end()
            self._scope[DISCONNECTED] = True
            if on_disconnect := self._scope.get(ON_DISCONNECT):
                on_disconnect()

    async def _receive(self) -> dict[str, Any]:
        if self.expects and not self._parts:
            self._connection.transport.write(CONTINUE)
        self.expects = False
        while not (self._parts or self.complete or self.answered):
            self._changed.clear()
            await self._changed.wait()
        if self.answered:
            return {"type": "http.disconnect"}
        body = self._take()
        self._connection.pause_or_read()
        return {"type": "http.request", "body": body, "more_body": not self.complete}

    def _take(self) -> bytes:
        body = b"".join(self._parts)
        self._parts.clear()
        self.unread = 0
        return body

    def _notify(self) -> None:
        self._changed.set()
