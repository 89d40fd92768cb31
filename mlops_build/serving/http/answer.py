"""The response to a request, for every protocol."""

from dataclasses import dataclass

JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. kind: the content type. headers: all except Content-Type and Content-Length."""

    status: int
    body: bytes | bytearray
    kind: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
