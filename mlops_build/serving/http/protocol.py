"""HTTP/1.1 on one connection, for uvicorn's server.

uvicorn's own protocol classes accept any number of header bytes and pipelined requests, and wait forever for a caller that sends or reads
slowly. At their limit of connections they refuse requests on existing connections, and probes. On a connection of this class

* a request must arrive completely within a time limit, and its response must be read within the same limit;
* the size of the headers and the number of pipelined requests are limited;
* a request for a full queue is refused after its headers, before a task exists for it; if the caller retries at once on the same
  connection, the retry is read a little later;
* a request to upgrade to another protocol, as Java's clients send for HTTP/2, is answered as HTTP/1.1, including its body;
* a small request goes to the app without a task, and its response to the socket in one write;
* if a caller disconnects, its request is cancelled.

connections.py has the state that all connections share.
"""

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import httptools

from mlops_build.serving.http.answer import Answer
from mlops_build.serving.http.exchange import CLOSE, PLAIN, App, Exchange, http_head

# The largest body that is collected without pausing the caller.
SMALL_BYTES = 64 * 1024
HEAD_BYTES = 64 * 1024
# Lines of a head: each is an object of 200 bytes, and may be 5 bytes long.
HEADERS = 200
PIPELINED = 64
# Longer than the 60 s of nginx and most ingresses: if this side closed first, a request sent at that moment would be lost.
KEEP_ALIVE_SECONDS = 75
# How long a refused caller that is still sending may read the response: closing at once would reset the connection and lose the response.
LINGER_SECONDS = 1.0
# After a refusal for a full queue, the connection is not read for this time. Otherwise a few callers that retry at once, ignoring
# Retry-After, would use all the time that other requests need.
RETRY_PAUSE_SECONDS = 0.1

# Headers of a request to upgrade to HTTP/2 or a WebSocket.
UPGRADE_HEADERS = (b"upgrade", b"http2-settings")


def _closing(status: int, message: bytes, *headers: bytes) -> bytes:
    """A plain-text response after which the connection is closed."""
    return http_head(Answer(status, message, PLAIN), CLOSE, *headers) + message


TOO_MANY = _closing(503, b"too many connections: retry later", b"retry-after: 1")
HEAD_TOO_LARGE = _closing(431, b"the request has more than %d headers, or they are larger than %d bytes" % (HEADERS, HEAD_BYTES))
INVALID = _closing(400, b"invalid HTTP, or too many pipelined requests on one connection")


class Shared(Protocol):
    """What the connections of a server share (connections.py). seconds: the time limit of a request and of its response."""

    app: App
    seconds: float
    loop: asyncio.AbstractEventLoop
    probes: frozenset[bytes]
    now: Callable[[], float]

    def add(self, connection: "Connection", /) -> None: ...
    def remove(self, connection: "Connection", /) -> None: ...
    def may_linger(self) -> bool: ...
    def run(self, exchange: Exchange, /) -> None: ...


class Connection(asyncio.Protocol):
    """One connection. close_at, abort_at: times of the event loop's clock, in seconds. reserved: only for a probe."""

    transport: Any

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._unsent: list[Callable[[], None]] = []
        self._parser: Any = httptools.HttpRequestParser(self)
        self._queue: deque[Exchange] = deque()  # the requests without a response, of which the first has been started
        self._arriving: Exchange | None = None  # the request whose body is being received
        self._in_head = False  # a head is being received
        self._head_bytes = 0  # size of its complete headers
        self._progress = False  # the data that is being parsed contains the end of a head or of a request, or a part of a body
        self._overhead = 0  # size of the data since those: of an incomplete head, a trailer, or the header of a chunk
        self._refused = False  # further data is ignored
        self._reading, self._writable, self._retry_paused = True, True, False
        self.reserved = False
        self.close_at = self.abort_at = math.inf

    # -- the transport --

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.close_at = self._shared.now() + self._shared.seconds
        self._shared.add(self)

    def connection_lost(self, _: Exception | None) -> None:
        self._shared.remove(self)
        self._set_writable()
        self._refused = True
        if self._queue:
            self._queue[0].disconnect()
        self._queue.clear()
        self._parser = None  # the parser refers to this object

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._progress = False
        try:
            self._parse(data)
        except httptools.HttpParserError:
            self.reject(INVALID)
        self._overhead = 0 if self._progress else self._overhead + len(data)
        if self._overhead > HEAD_BYTES:
            self.reject(HEAD_TOO_LARGE)

    def pause_writing(self) -> None:
        self._writable = False
        self.abort_at = self._shared.now() + self._shared.seconds

    def resume_writing(self) -> None:
        self._set_writable()
        if not self.transport.is_closing():
            self.abort_at = math.inf
            self._start()

    def when_sent(self, function: Callable[[], None]) -> None:
        """Call a function once the responses are sent, except for what the transport buffers, or the connection is lost."""
        self._unsent.append(function)
        if self._writable:
            self._set_writable()

    def _set_writable(self) -> None:
        self._writable = True
        while self._unsent:
            self._unsent.pop()()

    def shutdown(self) -> None:
        """Close the connection after the response to the last request. uvicorn calls this when the server stops."""
        if self._queue:
            self._queue[-1].keep_alive = False
        else:
            self.close()

    def close(self) -> None:
        """Close the connection. The transport waits until the caller has read all data; after the time limit it is aborted."""
        self.close_at = math.inf
        self.abort_at = min(self.abort_at, self._shared.now() + self._shared.seconds)
        self.transport.close()

    def expire(self) -> None:
        """close_at has passed."""
        if self.reserved and not self._refused:
            self.reject(TOO_MANY)
        elif self._reading:
            self.close()
        else:  # the server does not read what the caller has sent
            self.close_at = self._shared.now() + self._shared.seconds

    def pause_or_read(self) -> None:
        """Read from the socket only if there is room for what may arrive."""
        unread = 0 if self._arriving is None else self._arriving.unread
        reading = self._refused or (len(self._queue) < 2 and unread <= SMALL_BYTES and not self._retry_paused)
        if reading != self._reading and not self.transport.is_closing():
            self._reading = reading
            if reading:
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()

    # -- the parser --

    def _parse(self, data: bytes) -> None:
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                # Upgrades are not supported, so the request continues as HTTP/1.1. The parser would drop its body; therefore a new parser
                # reads the headers again, without those for the upgrade.
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
                self._parser = httptools.HttpRequestParser(self)

    def _head_without_upgrade(self) -> bytes:
        method = self._parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("this server is not a proxy")
        lines = [method + b" " + self._target + b" HTTP/" + self._parser.get_http_version().encode()]
        for name, value in self._headers:
            if name == b"connection":
                value = b", ".join(option for option in value.split(b",") if option.strip().lower() not in UPGRADE_HEADERS)
            if name not in UPGRADE_HEADERS:
                lines.append(name + b": " + value)
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._expects = False
        self._in_head, self._head_bytes = True, 0
        if not self.reserved:
            self.close_at = self._shared.now() + self._shared.seconds

    def on_url(self, part: bytes) -> None:
        self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:  # a trailer, which is ignored
            return
        name = name.lower()
        self._head_bytes += len(name) + len(value) + 4
        if name == b"expect":
            self._expects = value.lower() == b"100-continue"
        self._headers.append((name, value))
        if len(self._headers) > HEADERS:
            self.reject(HEAD_TOO_LARGE)
            raise ValueError("too many headers")  # which ends the parsing

    def on_headers_complete(self) -> None:
        parser, self._progress, self._in_head = self._parser, True, False
        if parser.should_upgrade():
            return
        if len(self._target) + self._head_bytes > HEAD_BYTES:
            self.reject(HEAD_TOO_LARGE)
        if self.reserved and self._target.partition(b"?")[0] not in self._shared.probes:
            self.reject(TOO_MANY)
        if self._refused or len(self._queue) >= PIPELINED:
            raise ValueError("too many requests wait on this connection")
        kept = parser.get_http_version() == "1.1" and parser.should_keep_alive() and not self.reserved
        self._arriving = Exchange(self, parser.get_method(), self._target, self._headers, kept, self._expects)
        self._queue.append(self._arriving)
        if len(self._queue) == 1:
            self._start()
        else:
            self.pause_or_read()

    def on_body(self, part: bytes) -> None:
        self._progress = True
        if self._arriving is not None:
            self._arriving.add(part)
            if self._arriving.unread > SMALL_BYTES:
                self.pause_or_read()

    def on_message_complete(self) -> None:
        exchange, self._arriving = self._arriving, None
        self._progress = True
        if exchange is None:  # a request to upgrade, which is parsed again
            return
        self.close_at = math.inf
        exchange.finish()
        self._wait_if_idle()
        self.pause_or_read()

    # -- requests and responses --

    def _start(self) -> None:
        """Start the first request of the queue."""
        if not self._queue or self._queue[0].started or not self._writable:
            return
        exchange = self._queue[0]
        exchange.started = True
        submit = self._shared.app.begin(exchange)
        exchange.submit = None if exchange.expects else submit
        if exchange.answered:  # the queue is full
            self._retry_paused = True
            self.pause_or_read()
            self._shared.loop.call_later(RETRY_PAUSE_SECONDS, self._end_retry_pause)
        elif exchange.submit is None:
            self._shared.run(exchange)
        else:
            exchange.submit_if_complete()

    def respond(self, *response: bytes | bytearray) -> None:
        """Send the response to the first request of the queue, and start the next."""
        exchange = self._queue.popleft()
        if self.transport.is_closing():
            return
        self.transport.writelines(response)
        if not exchange.keep_alive:
            self._end(linger=self._refused or not exchange.complete)
        elif self._queue:
            self._shared.loop.call_soon(self._start)  # a direct call would be a recursion as deep as the queue
        else:
            self._wait_if_idle()
        self.pause_or_read()

    def reject(self, response: bytes) -> None:
        """Send a response to what is arriving, and ignore everything after it. A complete request before it is still answered."""
        if self._refused:
            return
        self._refused = True
        self.close_at = math.inf
        first = self._queue[0] if self._queue else None
        self._queue.clear()
        if first is not None and first.complete:
            first.keep_alive = False
            self._queue.append(first)
            return
        if first is not None:
            first.disconnect()
        if self._arriving is None or not self._arriving.answered or self._arriving is first:
            self.transport.write(response)
        self._end(linger=True)

    def _end(self, *, linger: bool) -> None:
        """Close the connection after a response. linger: the caller may be sending."""
        self._refused = True
        if linger and self._shared.may_linger():
            with contextlib.suppress(RuntimeError, OSError):
                self.transport.write_eof()
            self.close_at = self._shared.now() + LINGER_SECONDS
            self.pause_or_read()
        else:
            self.close()

    def _wait_if_idle(self) -> None:
        if not self._queue and self._is_between_requests() and not self._refused:
            self.close_at = self._shared.now() + KEEP_ALIVE_SECONDS

    def _is_between_requests(self) -> bool:
        return self._arriving is None and not self._in_head

    def _end_retry_pause(self) -> None:
        self._retry_paused = False
        self.pause_or_read()
