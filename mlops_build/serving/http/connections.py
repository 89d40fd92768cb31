"""The state that all connections of a server share: their limit, the reserve for probes, and the timer."""

import asyncio
from collections.abc import MutableSet
from typing import Any

from mlops_build.serving.http.exchange import App, Exchange
from mlops_build.serving.http.protocol import TOO_MANY, Connection

# Connections above the limit that are accepted for probes: otherwise idle connections would make Kubernetes restart the pod. Each must send
# the request at once. If all are in use, a new one replaces the oldest, so that idle ones cannot occupy the reserve.
RESERVED = 64
RESERVED_SECONDS = 1.0
# The limit of refused connections that are still open (protocol.py, LINGER_SECONDS); further ones are reset.
LINGERING = 512
# How often the time limits are checked. A timer for each request would cost more.
CHECK_SECONDS = 0.25


class Connections:
    """The open connections.

    seconds: time limit for a request to arrive, and for its response to be read. limit: of open connections. connections, tasks: the
    sets of uvicorn's server, which waits for both when it stops.
    """

    loop: asyncio.AbstractEventLoop

    def __init__(self, app: App, seconds: float, limit: int) -> None:
        self.app, self.seconds, self._limit = app, seconds, limit
        self.probes = app.probes
        self.connections: MutableSet[Connection] = set()
        self.tasks: MutableSet[asyncio.Task[None]] = set()
        self._reserved: dict[Connection, None] = {}  # in order

    def start(self, connections: MutableSet[Connection], tasks: MutableSet[asyncio.Task[None]]) -> None:
        """Use these sets, and begin to check the time limits. Call this in the event loop."""
        self.connections, self.tasks = connections, tasks
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self._check()

    def protocol(self, **_: Any) -> Connection:
        """The protocol of a new connection, for uvicorn."""
        return Connection(self)

    def add(self, connection: Connection) -> None:
        self.connections.add(connection)
        if len(self.connections) > self._limit:
            connection.reserved = True
            connection.close_at = self.now() + RESERVED_SECONDS
            self._reserved[connection] = None
            if len(self._reserved) > RESERVED:
                oldest = next(iter(self._reserved))
                del self._reserved[oldest]
                oldest.reject(TOO_MANY)

    def remove(self, connection: Connection) -> None:
        self.connections.discard(connection)
        self._reserved.pop(connection, None)

    def may_linger(self) -> bool:
        return len(self.connections) <= self._limit + RESERVED + LINGERING

    def run(self, exchange: Exchange) -> None:
        """Handle a request in a task."""
        task = self.loop.create_task(exchange.run(self.app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def _check(self) -> None:
        self.loop.call_later(CHECK_SECONDS, self._check)
        now = self.now()
        for connection in tuple(self.connections):
            if connection.abort_at <= now:
                connection.transport.abort()
            elif connection.close_at <= now:
                connection.expire()
