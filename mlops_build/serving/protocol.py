"""HTTP/1.1 for one connection: uvicorn's protocol class with limits.

uvicorn closes only connections that are idle *after* a response. It accepts any number of header bytes and pipelined requests, waits
forever for a caller that does not read, and at its connection limit refuses requests on existing connections too. Refusing a request when
the queue is full costs it as much as answering. In this class

* a request must arrive completely within a time limit, and its response must be read within the same limit;
* the size of the headers and the number of pipelined requests are limited;
* a connection above the limit receives 503 at once; existing connections continue;
* a request for a full queue is refused after its headers, before a task exists for it; if the caller retries at once on the same
  connection, the retry is read a little later;
* a request to upgrade to another protocol, as Java's clients send for HTTP/2, is answered as HTTP/1.1, including its body;
* a small request goes to the app without a task, and its response to the socket in one write;
* if a caller disconnects, its request is cancelled.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HIGH_WATER_LIMIT, STATUS_LINE, HttpToolsProtocol

from mlops_build.serving.answer import Answer

# The largest body that is collected without pausing the caller.
SMALL_BYTES: int = HIGH_WATER_LIMIT
HEAD_BYTES = 64 * 1024
PIPELINED = 64
# Longer than the 60 s of nginx and most ingresses: if this side closed first, a request sent at that moment would be lost.
KEEP_ALIVE_SECONDS = 75
# How long a refused caller that is still sending may read the response: closing at once would reset the connection and lose the response.
LINGER_SECONDS = 1.0
# The limit of connections in this state; further ones are reset.
LINGERING = 512
# Refusals for a full queue are sent together at this interval. Sent one by one, each would wake a caller, which retries before the next is
# sent.
REFUSAL_INTERVAL_SECONDS = 0.002
# After a refusal for a full queue, the connection is not read for this time. Otherwise a few callers that retry at once, ignoring
# Retry-After, would use all the time that other requests need.
RETRY_PAUSE_SECONDS = 0.1

# Headers of a request to upgrade to HTTP/2 or a WebSocket.
UPGRADE_HEADERS = (b"upgrade", b"http2-settings")

# Keys of a request's scope. When the connection is lost, DISCONNECTED is set, and the function that the app stored under ON_DISCONNECT is
# called. Waiting with `receive` would cost a task per request.
DISCONNECTED = "mlops_build.disconnected"
ON_DISCONNECT = "mlops_build.on_disconnect"

# Sends the response to a request; takes the response and the request's id.
Respond = Callable[[Answer, bytes], None]
# Submits a request by its body; returns the function to call if the caller disconnects.
Submit = Callable[[bytes, Respond], Callable[[], None] | None]
# Takes method, target and headers of a request. Returns the whole response if the request is refused unread, a function that submits it if
# it is small, None if it needs a task.
Begin = Callable[[bytes, bytes, Sequence[tuple[bytes, bytes]]], bytes | Submit | None]


class _Taskless:
    """Takes the place of uvicorn's cycle for a request without a task. submit: None if the request was refused unread."""

    disconnected = False
    message_event = asyncio.Event()  # uvicorn sets it; nothing waits for it

    def __init__(self, submit: Submit | None) -> None:
        self.submit = submit
        self.response_complete = submit is None
        self.keep_alive = self.more_body = True
        self.body = bytearray()
        self.scope: dict[str, Any] = {}


def http_response(answer: Answer, *headers: bytes) -> bytes:
    """An answer as an HTTP/1.1 response. headers: additional header lines."""
    head = [
        STATUS_LINE[answer.status] + b"content-type: " + answer.kind,
        b"content-length: %d" % len(answer.body),
        *(name + b": " + value for name, value in answer.headers),
        *headers,
    ]
    return b"\r\n".join([*head, b"", answer.body])


def _closing(status: int, message: bytes, *headers: bytes) -> bytes:
    """A plain-text response after which the connection is closed."""
    return http_response(Answer(status, message, b"text/plain; charset=utf-8"), CLOSE, *headers)


CLOSE = b"connection: close"
TOO_MANY = _closing(503, b"too many connections: retry later", b"retry-after: 1")
HEAD_TOO_LARGE = _closing(431, b"the headers of the request are larger than %d bytes" % HEAD_BYTES)
INVALID = _closing(400, b"invalid HTTP, or too many pipelined requests on one connection")


def bounded(seconds: float, connections: int, begin: Begin) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn.

    seconds: time limit for a request to arrive, and for its response to be read. connections: limit at one time. begin: handles the
    headers of each request.
    """

    refusals: list[tuple[Any, bytes]] = []

    def send_refusals() -> None:
        pending = refusals[:]
        refusals.clear()
        for connection, answer in pending:
            connection._send_refusal(answer)

    class Bounded(HttpToolsProtocol):  # type: ignore[misc]
        parser: Any
        _read_timer: asyncio.TimerHandle | None = None
        _write_timer: asyncio.TimerHandle | None = None
        _running: Any = None
        _head_bytes: int | None = None  # size so far of the headers that are being read
        _received = 0  # size of the data that is being parsed; 0 after the end of a request in it
        _arriving = False  # a part of a request has arrived; a request that arrives in one piece needs no timer, which would cost time
        _refused = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > connections:
                self._refuse(TOO_MANY)
            else:
                self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop()
            self._unset_keepalive_if_required()
            if self._write_timer is not None:
                self._write_timer.cancel()
            super().connection_lost(exc)
            self.pipeline.clear()
            self._abandon()

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            self._received = len(data)
            try:
                self._parse(data)
            except httptools.HttpParserError:
                self._refuse(INVALID)
            if self._head_bytes is not None:
                self._head_bytes += self._received
                if self._head_bytes > HEAD_BYTES:
                    self._refuse(HEAD_TOO_LARGE)
            if self._arriving and self._read_timer is None and not self._refused:
                self._wait()

        def _parse(self, data: bytes) -> None:
            while True:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    # Upgrades are not supported, so the request continues as HTTP/1.1. The parser would drop its body; therefore a new
                    # parser reads the headers again, without those for the upgrade.
                    data = self._head_without_upgrade() + data[upgrade.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)

        def _head_without_upgrade(self) -> bytes:
            method = self.parser.get_method()
            if method == b"CONNECT":
                raise httptools.HttpParserError("this server is not a proxy")
            lines = [method + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
            for name, value in self.headers:
                if name == b"connection":
                    value = b", ".join(option for option in value.split(b",") if option.strip().lower() not in UPGRADE_HEADERS)
                if name not in UPGRADE_HEADERS:
                    lines.append(name + b": " + value)
            return b"\r\n".join([*lines, b"", b""])

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._unset_keepalive_if_required()
            self._head_bytes = 0
            self._arriving = True

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._head_bytes is not None:  # otherwise it is a trailer, which is ignored
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            bound, self._head_bytes = (self._head_bytes or 0) + self._received, None  # the last piece may also contain the body
            if self.parser.should_upgrade():
                return
            if bound > HEAD_BYTES and sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers) > HEAD_BYTES:
                self._refuse(HEAD_TOO_LARGE)
            if self._refused or len(self.pipeline) >= PIPELINED:
                raise ValueError("too many requests wait on this connection")
            decision = begin(self.parser.get_method(), self.url, self.headers) if self._is_idle() else None
            if isinstance(decision, bytes):
                self.cycle = _Taskless(None)
                self.server_state.total_requests += 1
                self._refused = not self._is_kept()
                if not refusals:
                    self.loop.call_later(REFUSAL_INTERVAL_SECONDS, send_refusals)
                refusals.append((self, decision))
            elif decision is not None and self._is_kept() and not self.expect_100_continue and not self.flow.write_paused:
                self.cycle = _Taskless(decision)
            else:
                super().on_headers_complete()
            if not self.pipeline:
                self._running = self.cycle

        def on_message_complete(self) -> None:
            if self.parser.should_upgrade():
                return
            self._arriving = False
            self._received = 0
            self._stop()
            super().on_message_complete()
            cycle = self.cycle
            if not isinstance(cycle, _Taskless) and not self.pipeline:
                # A large last part pauses reading, and nobody calls `receive` again: the end of the connection would go unnoticed.
                self.flow.resume_reading()
            if isinstance(cycle, _Taskless) and cycle.submit is not None:
                cycle.scope[ON_DISCONNECT] = cycle.submit(bytes(cycle.body), partial(self._respond, cycle))
            elif self._is_idle() and not self.transport.is_closing():
                self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

        def on_response_complete(self) -> None:
            if self.pipeline:
                self._running = self.pipeline[-1][0]  # which uvicorn starts now
            super().on_response_complete()
            if self._read_timer is not None:
                self._unset_keepalive_if_required()  # the response came before the end of the request: wait for the rest

        def pause_writing(self) -> None:
            super().pause_writing()
            self._abort_later(seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._write_timer is not None and not self.transport.is_closing():
                self._write_timer.cancel()
                self._write_timer = None

        def _respond(self, cycle: _Taskless, answer: Answer, request_id: bytes) -> None:
            cycle.response_complete = True
            if self.transport.is_closing():
                return
            self.transport.write(http_response(answer, b"x-request-id: " + request_id, *([] if cycle.keep_alive else [CLOSE])))
            if not cycle.keep_alive:
                self.transport.close()
            self.on_response_complete()

        def _is_kept(self) -> bool:
            """Whether the connection stays open after this request."""
            return bool(self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive())

        def _is_idle(self) -> bool:
            return (self.cycle is None or self.cycle.response_complete) and not self.pipeline

        def _wait(self) -> None:
            self._read_timer = self.loop.call_later(seconds, self._close)

        def _stop(self) -> None:
            if self._read_timer is not None:
                self._read_timer.cancel()
                self._read_timer = None

        def _refuse(self, answer: bytes) -> None:
            if self._refused:
                return
            self._refused = True
            self._stop()
            self.pipeline.clear()
            running = self._running
            if running is not None and not running.response_complete and not running.more_body:
                running.keep_alive = False  # the previous request is answered, then the connection is closed
                return
            self._abandon()
            self.transport.write(answer)
            self._linger()

        def _abandon(self) -> None:
            """Cancel the running request: its caller has disconnected."""
            running, self._running = self._running, None
            if running is not None and not running.response_complete:
                running.disconnected = True
                running.message_event.set()
                running.scope[DISCONNECTED] = True
                if on_disconnect := running.scope.get(ON_DISCONNECT):
                    on_disconnect()

        def _send_refusal(self, answer: bytes) -> None:
            if self.transport.is_closing():
                return
            self.transport.write(answer)
            if self._refused:
                self._linger()
            else:
                self.flow.pause_reading()
                self.loop.call_later(RETRY_PAUSE_SECONDS, self._resume_reading)

        def _resume_reading(self) -> None:
            if not self.transport.is_closing():
                self.flow.resume_reading()

        def _linger(self) -> None:
            if len(self.connections) > connections + LINGERING:
                self._close()
                return
            with contextlib.suppress(RuntimeError, OSError):
                self.transport.write_eof()
            self._read_timer = self.loop.call_later(LINGER_SECONDS, self._close)

        def _close(self) -> None:
            """Close the connection. The transport waits until the caller has read all data; after the time limit it is aborted."""
            self.transport.close()
            self._abort_later(seconds)

        def _abort_later(self, wait: float) -> None:
            if self._write_timer is None:
                self._write_timer = self.loop.call_later(wait, self.transport.abort)

    return Bounded
