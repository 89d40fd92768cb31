"""What is sent back for a request, whichever door it came in by."""

from dataclasses import dataclass

JSON = b"application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one request. headers: beside the content's type and length."""

    status: int
    body: bytes
    kind: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
