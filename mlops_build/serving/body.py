"""The body of one request, read within bounds: of its own size, and of what all that are being read take together."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mlops_build.serving.batcher import Full, Gone
from mlops_build.serving.refusal import too_large

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class Bodies:
    """Guards the memory that bodies take which are being read. most: bytes, all together."""

    def __init__(self, most: int) -> None:
        self.most, self.held = most, 0


class Held:
    """What one request has of it, until it is read."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._bytes = bodies, 0

    def add(self, size: int) -> None:
        """Raises Full."""
        self._bytes += size
        self._bodies.held += size
        if self._bodies.held > self._bodies.most:
            raise Full(1.0)

    def __enter__(self) -> "Held":
        return self

    def __exit__(self, *_: object) -> None:
        self._bodies.held -= self._bytes


async def read_body(receive: Receive, length: int | None, limit: int, held: Held) -> bytes:
    """length: what is announced, in bytes; limit: what it may be. Raises Refusal (413) as soon as it is known to be too large, Gone, and
    Full where too much is held for others."""
    if length is not None and length > limit:
        raise too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    held.add(len(body))
    if message.get("more_body"):
        parts, size = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            parts.append(message.get("body", b""))
            held.add(len(parts[-1]))
            size += len(parts[-1])
            if size > limit:
                raise too_large(limit)
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        raise Gone
    if len(body) > limit:
        raise too_large(limit)
    return body
