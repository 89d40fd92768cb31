"""The same numbers for Graphite: its plaintext protocol (`PATH VALUE TIME` a line) over TCP.

    PREFIX.HOST.imbalance_ratio
    PREFIX.HOST.card.UUID.memory_used_bytes
    PREFIX.HOST.card.UUID.service.NAME.promised_bytes

https://graphite.readthedocs.io/en/latest/feeding-carbon.html
"""

import re
import socket
from collections import deque
from collections.abc import Iterator

from mlops_build.errors import Unreachable, UsageError
from mlops_build.watch.metrics import Sample, samples
from mlops_build.watch.node import Seen

SECONDS = 5.0  # for connecting, and for sending one look
# Looks that are kept while Graphite is away: the newest. Graphite takes values of the past.
KEPT = 60


def lines(seen: Seen, prefix: str) -> Iterator[str]:
    """One look as lines with their ends. prefix: `mlops.gpu.NODE`."""
    for sample in samples(seen):
        value = f"{sample.value:.6f}".rstrip("0").rstrip(".")
        yield f"{prefix}.{_path(sample)} {value} {int(seen.at)}\n"


def word(text: str) -> str:
    """Text as one part of a path: a dot would begin another one, a space end it."""
    return re.sub(r"[^A-Za-z0-9_-]+", "_", text)[:100] or "_"


def _path(sample: Sample) -> str:
    name = re.sub(r"^mlops_gpu_(service_|neighbour_)?|_total$", "", sample.metric.name)
    parts = ["card", word(sample.labels["uuid"])] if "uuid" in sample.labels else []
    for label in sample.metric.labels:
        if label not in ("index", "uuid", "name"):
            parts += [label, word(sample.labels[label])]
    return ".".join([*parts, name])


def address(text: str) -> tuple[str, int]:
    """HOST:PORT or [IPv6]:PORT. Raises UsageError."""
    match = re.fullmatch(r"(?:\[([^\]]+)\]|([^:\s]+)):([0-9]{1,5})", text)
    if not match or not 0 < int(match[3]) < 65536:
        raise UsageError(f"{text!r} is not HOST:PORT", remedy="such as graphite.example.com:2003 ([::1]:2003 for IPv6)")
    return match[1] or match[2], int(match[3])


class Sender:
    """A connection to Graphite that is made again when it is lost. Guards the socket, and the looks that could not be sent yet."""

    def __init__(self, host: str, port: int) -> None:
        self._place = (host, port)
        self._socket: socket.socket | None = None
        self._waiting: deque[bytes] = deque(maxlen=KEPT)

    def send(self, content: bytes) -> None:
        """Send this look after those that wait. Raises Unreachable; it then waits, too, and the oldest is dropped when too many do."""
        self._waiting.append(content)
        try:
            connection = self._connected()
            while self._waiting:
                connection.sendall(self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            self.close()
            host, port = self._place
            raise Unreachable(
                f"Graphite at {host}:{port} does not take what is sent: {error}", remedy="is it carbon's plaintext port (usually 2003)?"
            ) from None

    def _connected(self) -> socket.socket:
        if self._socket is not None and not self._open(self._socket):
            self.close()
        if self._socket is None:
            self._socket = socket.create_connection(self._place, timeout=SECONDS)
            self._socket.settimeout(SECONDS)
        return self._socket

    def _open(self, connection: socket.socket) -> bool:
        """Graphite never answers: what can be read is its end of the connection, and what is sent after that would be lost unnoticed."""
        connection.setblocking(False)
        try:
            return bool(connection.recv(1))
        except BlockingIOError:
            return True
        except OSError:
            return False
        finally:
            connection.settimeout(SECONDS)

    def close(self) -> None:
        """End the connection, after what was sent has left."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
