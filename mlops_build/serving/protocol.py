"""HTTP of one connection: uvicorn's protocol, with bounds that callers cannot stretch.

uvicorn closes only connections that are idle *after* an answer, keeps any number of header bytes and of pipelined requests, waits for
ever for a caller who does not read, and at its limit of connections refuses everybody, old callers too. And what a full queue refuses
costs it as much as an answer. Here

* a request must arrive whole within a time, and its answer be taken within the same time;
* its head, and the requests that wait behind it on the connection, are bounded;
* a connection too many is told 503 at once; those that are there go on;
* a request for a full queue is refused once its head is read, before there is a task for it, and who asks again at once is heard a little
  later;
* a request that would like another protocol, as Java's clients do for HTTP/2, is answered as it stands, body and all;
* a small request goes to the app without a task, and its answer to the socket in one piece;
* a caller who hangs up takes the request along: nothing is computed for nobody.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HIGH_WATER_LIMIT, STATUS_LINE, HttpToolsProtocol

from mlops_build.serving.answer import Answer

# Of a body that is kept until it is here whole, without its caller being slowed down.
SMALL_BYTES: int = HIGH_WATER_LIMIT
HEAD_BYTES = 64 * 1024
PIPELINED = 64
# Longer than the 60 s that nginx and most ingresses keep theirs: who closes first loses the request that is on its way just then.
KEEP_ALIVE_SECONDS = 75
# A refused caller who still sends gets this long to read why: closing at once would reset the connection, and the answer be lost.
LINGER_SECONDS = 1.0
# So many of them at once; more are reset.
LINGERING = 512
# Refusals for a full queue are told together, so often: a caller who is told alone is waked alone, and asks again while the next is told.
TOGETHER_SECONDS = 0.002
# Who asks again at once on the same connection, although told to wait a second or more, is heard again only then. Otherwise a few callers
# without patience take all the time that answers need.
AGAIN_SECONDS = 0.1

# Of the head of a request that would like to go on as HTTP/2 or a WebSocket.
UPGRADING = (b"upgrade", b"http2-settings")

# Keys of a request's scope: GONE is set when its connection is lost, and what the app left under ON_GONE is called. Asking by `receive`
# would cost a task for each request.
GONE = "mlops_build.gone"
ON_GONE = "mlops_build.on_gone"

# Takes the answer to a request, and the request's id.
Tell = Callable[[Answer, bytes], None]
# Asks what a body asks; returns what is called when its caller goes away.
Ask = Callable[[bytes, Tell], Callable[[], None] | None]
# Method, target and headers of a request: the whole answer if it is refused unread; how to ask it if it is small; None for a task.
Begin = Callable[[bytes, bytes, Sequence[tuple[bytes, bytes]]], bytes | Ask | None]


class _Taskless:
    """Stands for the task of a request that has none. Guards whether it is answered. ask: None where it was answered unread."""

    disconnected = False
    message_event = asyncio.Event()  # uvicorn sets it; nobody waits

    def __init__(self, ask: Ask | None) -> None:
        self.ask = ask
        self.response_complete = ask is None
        self.keep_alive = self.more_body = True
        self.body = bytearray()
        self.scope: dict[str, Any] = {}


def whole(answer: Answer, *more: bytes) -> bytes:
    """An answer as HTTP/1.1 has it. more: header lines."""
    head = [
        STATUS_LINE[answer.status] + b"content-type: " + answer.kind,
        b"content-length: %d" % len(answer.body),
        *(name + b": " + value for name, value in answer.headers),
        *more,
    ]
    return b"\r\n".join([*head, b"", answer.body])


def _last(status: int, said: bytes, *more: bytes) -> bytes:
    return whole(Answer(status, said, b"text/plain; charset=utf-8"), CLOSE, *more)


CLOSE = b"connection: close"
TOO_MANY = _last(503, b"too many connections: ask again later", b"retry-after: 1")
HEAD_TOO_LARGE = _last(431, b"the request's head is larger than %d bytes" % HEAD_BYTES)
INVALID = _last(400, b"this is not HTTP, or too many requests at once on one connection")


def bounded(seconds: float, connections: int, begin: Begin) -> type[HttpToolsProtocol]:
    """The class to give to uvicorn. seconds: for a request to arrive, and for its answer to be taken. connections: at most so many."""

    refusals: list[tuple[Any, bytes]] = []

    def tell() -> None:
        told = refusals[:]
        refusals.clear()
        for one, answer in told:
            one._tell(answer)

    class Bounded(HttpToolsProtocol):  # type: ignore[misc]
        parser: Any
        _impatience: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _running: Any = None
        _head_bytes: int | None = None  # of the head that is being read
        _arriving = False  # a part of a request is here; a timer for each that comes in one piece would be a part of its work
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
            if self._unread is not None:
                self._unread.cancel()
            super().connection_lost(exc)
            self.pipeline.clear()
            self._abandon()

        def data_received(self, data: bytes) -> None:
            if self._refused:
                return
            if self._head_bytes is not None:
                self._head_bytes += len(data)
            try:
                self._parse(data)
            except httptools.HttpParserError:
                self._refuse(INVALID)
            if self._head_bytes is not None and self._head_bytes > HEAD_BYTES:
                self._refuse(HEAD_TOO_LARGE)
            elif self._arriving and self._impatience is None and not self._refused:
                self._wait()

        def _parse(self, data: bytes) -> None:
            while True:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as wish:
                    # There is nothing to upgrade to, so the request goes on as HTTP/1.1. The parser would lose its body: it reads the head
                    # again, without the wish.
                    data = self._head_without_upgrade() + data[wish.args[0] :]
                    self.parser = httptools.HttpRequestParser(self)

        def _head_without_upgrade(self) -> bytes:
            method = self.parser.get_method()
            if method == b"CONNECT":
                raise httptools.HttpParserError("this is no proxy")
            lines = [method + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
            for name, value in self.headers:
                if name == b"connection":
                    value = b", ".join(one for one in value.split(b",") if one.strip().lower() not in UPGRADING)
                if name not in UPGRADING:
                    lines.append(name + b": " + value)
            return b"\r\n".join([*lines, b"", b""])

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._unset_keepalive_if_required()
            self._head_bytes = 0
            self._arriving = True

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._head_bytes is not None:  # else a trailer, which nobody here reads
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._head_bytes = None
            if self.parser.should_upgrade():
                return
            if self._refused or len(self.pipeline) >= PIPELINED:
                raise ValueError("too many requests wait on this connection")
            found = begin(self.parser.get_method(), self.url, self.headers) if self._is_idle() else None
            if isinstance(found, bytes):
                self.cycle = _Taskless(None)
                self.server_state.total_requests += 1
                self._refused = not self._is_kept()
                if not refusals:
                    self.loop.call_later(TOGETHER_SECONDS, tell)
                refusals.append((self, found))
            elif found is not None and self._is_kept() and not self.expect_100_continue and not self.flow.write_paused:
                self.cycle = self._running = _Taskless(found)
            else:
                super().on_headers_complete()

        def on_message_complete(self) -> None:
            if self.parser.should_upgrade():
                return
            self._arriving = False
            self._stop()
            super().on_message_complete()
            cycle = self.cycle
            if isinstance(cycle, _Taskless) and cycle.ask is not None:
                cycle.scope[ON_GONE] = cycle.ask(bytes(cycle.body), partial(self._answer, cycle))
            elif self._is_idle() and not self.transport.is_closing():
                self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self._impatience is not None:
                self._unset_keepalive_if_required()  # it was answered before it was whole: the rest is waited for

        def pause_writing(self) -> None:
            super().pause_writing()
            self._abort_later(seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._unread is not None and not self.transport.is_closing():
                self._unread.cancel()
                self._unread = None

        def _start_asgi_task(self, cycle: Any, app: Any) -> None:
            self._running = cycle
            super()._start_asgi_task(cycle, app)

        def _answer(self, cycle: _Taskless, answer: Answer, request_id: bytes) -> None:
            cycle.response_complete = True
            if self.transport.is_closing():
                return
            self.transport.write(whole(answer, b"x-request-id: " + request_id, *([] if cycle.keep_alive else [CLOSE])))
            if not cycle.keep_alive:
                self.transport.close()
            self.on_response_complete()

        def _is_kept(self) -> bool:
            """Whether the connection goes on after this request."""
            return bool(self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive())

        def _is_idle(self) -> bool:
            return (self.cycle is None or self.cycle.response_complete) and not self.pipeline

        def _wait(self) -> None:
            self._impatience = self.loop.call_later(seconds, self._close)

        def _stop(self) -> None:
            if self._impatience is not None:
                self._impatience.cancel()
                self._impatience = None

        def _refuse(self, answer: bytes) -> None:
            if self._refused:
                return
            self._refused = True
            self._stop()
            self.pipeline.clear()
            running = self._running
            if running is not None and not running.response_complete and not running.more_body:
                running.keep_alive = False  # what came before is answered; then the connection is closed
                return
            self._abandon()
            self.transport.write(answer)
            self._linger()

        def _abandon(self) -> None:
            """Nobody waits for the answer any more."""
            running, self._running = self._running, None
            if running is not None and not running.response_complete:
                running.disconnected = True
                running.message_event.set()
                running.scope[GONE] = True
                if on_gone := running.scope.get(ON_GONE):
                    on_gone()

        def _tell(self, answer: bytes) -> None:
            if self.transport.is_closing():
                return
            self.transport.write(answer)
            if self._refused:
                self._linger()
            else:
                self.flow.pause_reading()
                self.loop.call_later(AGAIN_SECONDS, self._hear)

        def _hear(self) -> None:
            if not self.transport.is_closing():
                self.flow.resume_reading()

        def _linger(self) -> None:
            if len(self.connections) > connections + LINGERING:
                self._close()
                return
            with contextlib.suppress(RuntimeError, OSError):
                self.transport.write_eof()
            self._impatience = self.loop.call_later(LINGER_SECONDS, self._close)

        def _close(self) -> None:
            """Closing waits until the caller has read what was written; this does not wait for ever."""
            self.transport.close()
            self._abort_later(seconds)

        def _abort_later(self, wait: float) -> None:
            if self._unread is None:
                self._unread = self.loop.call_later(wait, self.transport.abort)

    return Bounded
