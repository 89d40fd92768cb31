"""Errors of requests, for responses. Needs only the standard library, since the stub uses it too."""

import zlib
from collections.abc import Callable

BAD_REQUEST, INVALID = "BAD_REQUEST", "INVALID_PARAMETER_VALUE"
MORE_MEMORY = "send fewer rows per request, or raise environments.NAME.memory in service.yaml"
# Compressed bodies are read and decompressed in pieces of at most this size.
PIECE = 64 * 1024
MEMBERS = 10_000  # of a gzip file: each takes a microsecond, and may be only 20 bytes long


class Unanswered(Exception):
    """Why a request receives an error; its text is the message.

    status, code: of the response; code is MLflow's error_code. why: for the metric of refused requests, empty for none. retry: seconds,
    for Retry-After; 0 for none.
    """

    status, code, why, retry = 503, "RESOURCE_EXHAUSTED", "", 1


class Refusal(Unanswered):
    """An error in the request. status: 400, 413 or 415."""

    retry = 0

    def __init__(self, message: str, *, status: int = 400, code: str = BAD_REQUEST) -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code


def too_large(limit: int) -> Refusal:
    """The refusal of a body that is larger than `limit` bytes."""
    return Refusal(
        f"the body is larger than {limit} bytes: send fewer rows per request, or raise --body-limit of `mlops-build serve` "
        "(serving.body_limit in service.yaml)",
        status=413,
    )


def no_memory(body: bytes) -> Refusal:
    """The refusal of a body for which the system has no memory."""
    return Refusal(f"the service has no memory to parse this body of {len(body)} bytes: {MORE_MEMORY}", status=413)


def inflated(body: bytes, encoding: bytes, limit: int, reserve: Callable[[int], None] = lambda _: None) -> bytes:
    """Decompress a body: all members of a gzip file, which zeros may follow. Raises Refusal, and what `reserve` raises.

    encoding: its Content-Encoding, in lower case. limit: for the decompressed body, in bytes. reserve: called before that many more bytes
    of memory are used, and with a negative number when they are free.
    """
    name = encoding.decode("latin-1")[:40]
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise Refusal(f"Content-Encoding is {name!r}; this service reads gzip and deflate", status=415)
    pieces: list[bytes] = []
    at = size = members = 0
    reserve(PIECE)
    while not members or body[at : at + 1].strip(b"\0"):
        members += 1
        if members > MEMBERS:
            raise Refusal(f"the body has more than {MEMBERS} members: compress it as one", status=413)
        inflate, fed, piece = zlib.decompressobj(wbits=47), b"", b""  # detects gzip or zlib from the first bytes
        while not inflate.eof:
            if not fed and len(piece) < PIECE:  # after a full piece, more output may follow without more input
                fed = body[at : at + PIECE]
                at += len(fed)
                if not fed:
                    raise Refusal(f"the body ends before the end of its {name} stream")
            try:
                piece = inflate.decompress(fed, PIECE)
            except zlib.error as error:
                raise Refusal(f"the body is not {name}: {error}") from None
            fed = inflate.unconsumed_tail
            size += len(piece)
            if size > limit:
                raise too_large(limit)
            reserve(len(piece))
            pieces.append(piece)
        at -= len(inflate.unused_data)
    if body[at:].strip(b"\0"):
        raise Refusal(f"other data follows the {name} stream")
    reserve(size)
    whole = b"".join(pieces)
    reserve(-size)  # of the pieces
    return whole
