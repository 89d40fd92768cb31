"""Errors in a request, for 4xx responses. Needs only the standard library, since the stub uses it too."""

import zlib

BAD_REQUEST, INVALID = "BAD_REQUEST", "INVALID_PARAMETER_VALUE"


class Refusal(Exception):
    """An error in the request. status: 400, 413 or 415. code: MLflow's error_code."""

    def __init__(self, message: str, *, status: int = 400, code: str = BAD_REQUEST) -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code


def too_large(limit: int) -> Refusal:
    """The refusal of a body that is larger than `limit` bytes."""
    return Refusal(f"the body is larger than {limit} bytes: send fewer rows per request", status=413)


def inflated(body: bytes, encoding: bytes, limit: int) -> bytes:
    """Decompress a body. encoding: its Content-Encoding, in lower case. limit: for the decompressed body, in bytes. Raises Refusal."""
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise Refusal(f"Content-Encoding is {encoding.decode('latin-1')[:40]!r}; this service reads gzip and deflate", status=415)
    inflate = zlib.decompressobj(wbits=47)  # detects gzip or zlib from the first bytes
    try:
        inflated_body = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal(f"the body is not {encoding.decode('latin-1')}: {error}") from None
    if len(inflated_body) > limit:
        raise too_large(limit)
    if not inflate.eof:
        raise Refusal(f"the body ends before the end of its {encoding.decode('latin-1')} stream")
    return inflated_body
