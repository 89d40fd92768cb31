"""Carbon's plaintext port: a TCP connection that is opened again when it is lost."""

import socket
from collections import deque

from mlops_build.errors import Unreachable

TIMEOUT_SECONDS = 5.0
# Snapshots that are kept while Graphite is unreachable, the newest ones; Graphite accepts values with past timestamps.
MAX_QUEUED = 60


class Sender:
    """A connection to Graphite that reconnects when it is lost. Owns the socket and the queue of unsent snapshots."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._socket: socket.socket | None = None
        self._queue: deque[bytes] = deque(maxlen=MAX_QUEUED)

    def send(self, content: bytes) -> None:
        """Send the queued snapshots, then this one.

        Raises Unreachable; then this one is queued too, and the oldest is dropped if the queue is full.
        """
        self._queue.append(content)
        try:
            connection = self._connected()
            while self._queue:
                connection.sendall(self._queue[0])
                self._queue.popleft()
        except OSError as error:
            self.close()
            host, port = self._address
            raise Unreachable(
                f"Graphite at {host}:{port} does not accept the metrics: {error}",
                remedy="check that this is carbon's plaintext port (usually 2003)",
            ) from None

    def _connected(self) -> socket.socket:
        if self._socket is not None and not self._is_open(self._socket):
            self.close()
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=TIMEOUT_SECONDS)
            self._socket.settimeout(TIMEOUT_SECONDS)
        return self._socket

    def _is_open(self, connection: socket.socket) -> bool:
        """Whether the connection is open. Graphite never sends data, so a readable socket means that it closed the connection."""
        connection.setblocking(False)
        try:
            return bool(connection.recv(1))
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            connection.settimeout(TIMEOUT_SECONDS)

    def close(self) -> None:
        """Close the connection."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
