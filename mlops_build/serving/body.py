"""Read the body of a request, with a limit for its size and for the memory of all bodies that are being read."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from mlops_build.serving.batcher import Disconnected, QueueFull
from mlops_build.serving.refusal import too_large

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]


class BodyMemory:
    """The memory of all bodies that are being read. limit: bytes."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0


class Reservation:
    """The part of this memory that one request uses until its body is parsed."""

    def __init__(self, memory: BodyMemory) -> None:
        self._memory, self._bytes = memory, 0

    def add(self, size: int) -> None:
        """Reserve `size` more bytes. Raises QueueFull if the limit is exceeded."""
        self._bytes += size
        self._memory.used += size
        if self._memory.used > self._memory.limit:
            raise QueueFull(1.0)

    def __enter__(self) -> "Reservation":
        return self

    def __exit__(self, *_: object) -> None:
        self._memory.used -= self._bytes


async def read_body(receive: Receive, length: int | None, limit: int, reservation: Reservation) -> bytes:
    """The body of a request. length: its Content-Length in bytes, if known. limit: bytes.

    Raises Refusal (413) as soon as the body is known to be too large, Disconnected, and QueueFull if all bodies use too much memory.
    """
    if length is not None and length > limit:
        raise too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    reservation.add(len(body))
    if message.get("more_body"):
        parts, size = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Disconnected
            parts.append(message.get("body", b""))
            reservation.add(len(parts[-1]))
            size += len(parts[-1])
            if size > limit:
                raise too_large(limit)
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        raise Disconnected
    if len(body) > limit:
        raise too_large(limit)
    return body
