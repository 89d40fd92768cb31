"""HTTP of one connection: uvicorn's protocol, with bounds that callers cannot stretch.

uvicorn closes only connections that are idle *after* an answer, keeps any number of header bytes and of pipelined requests, waits for
ever for a caller who does not read, and at its limit of connections refuses everybody, old callers too. And what a full queue refuses
costs it as much as an answer. Here

* a request must arrive whole within a time, and its answer be taken within the same time;
* its head, and the requests that wait behind it on the connection, are bounded;
* a connection too many is told 503 at once; those that are there go on;
* a request for a full queue is refused once its head is read, before there is a task for it, and who asks again at once is heard a little
  later;
* a caller who hangs up takes the request along: nothing is computed for nobody.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

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

# Keys of a request's scope: GONE is set when its connection is lost, and what the app left under ON_GONE is called. Asking by `receive`
# would cost a task for each request.
GONE = "mlops_build.gone"
ON_GONE = "mlops_build.on_gone"

# Method, target and headers of a request: the whole answer if it is refused unread.
Refuse = Callable[[bytes, bytes, Sequence[tuple[bytes, bytes]]], bytes | None]


class _Answered:
    """Stands for the request of a connection that was answered without a task."""

    response_complete = True
    message_event = asyncio.Event()  # set when the connection is lost; nobody waits


ANSWERED = _Answered()


def _whole(status: bytes, said: bytes, *more: bytes) -> bytes:
    head = [b"HTTP/1.1 " + status, b"content-type: text/plain; charset=utf-8", b"content-length: %d" % len(said), b"connection: close"]
    return b"\r\n".join([*head, *more, b"", said])


TOO_MANY = _whole(b"503 Service Unavailable", b"too many connections: ask again later", b"retry-after: 1")
HEAD_TOO_LARGE = _whole(b"431 Request Header Fields Too Large", b"the request's head is larger than %d bytes" % HEAD_BYTES)
INVALID = _whole(b"400 Bad Request", b"this is not HTTP, or too many requests at once on one connection")


def bounded(seconds: float, connections: int, refuse: Refuse) -> type[HttpToolsProtocol]:
    """The class to give to uvicorn. seconds: for a request to arrive, and for its answer to be taken. connections: at most so many."""

    refusals: list[tuple[Any, bytes]] = []

    def tell() -> None:
        told = refusals[:]
        refusals.clear()
        for one, answer in told:
            one._tell(answer)

    class Bounded(HttpToolsProtocol):  # type: ignore[misc]
        _impatience: asyncio.TimerHandle | None = None
        _unread: asyncio.TimerHandle | None = None
        _running: Any = None
        _head_bytes: int | None = None  # of the head that is being read
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
                self.parser.feed_data(data)
            except httptools.HttpParserError:
                self._refuse(INVALID)
            except httptools.HttpParserUpgrade:
                pass  # there is nothing to upgrade to: it is answered as it stands
            if self._head_bytes is not None and self._head_bytes > HEAD_BYTES:
                self._refuse(HEAD_TOO_LARGE)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._unset_keepalive_if_required()
            self._head_bytes = 0
            if self._impatience is None:
                self._wait()

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._head_bytes is not None:  # else a trailer, which nobody here reads
                super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._head_bytes = None
            if self._refused or len(self.pipeline) >= PIPELINED:
                raise ValueError("too many requests wait on this connection")
            if self._is_idle() and (answer := refuse(self.parser.get_method(), self.url, self.headers)) is not None:
                self.cycle = ANSWERED
                self.server_state.total_requests += 1
                self._refused = self.parser.get_http_version() == "1.0" or not self.parser.should_keep_alive()
                if not refusals:
                    self.loop.call_later(TOGETHER_SECONDS, tell)
                refusals.append((self, answer))
            else:
                super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._stop()
            super().on_message_complete()
            if self._is_idle() and not self.transport.is_closing():
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
