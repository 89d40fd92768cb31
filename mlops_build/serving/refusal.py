"""What a caller did wrong, as the answer says it. With Python's standard library alone, since the stub answers by it too."""

import zlib

BAD_REQUEST, INVALID = "BAD_REQUEST", "INVALID_PARAMETER_VALUE"


class Refusal(Exception):
    """The caller's fault. status: 400, 413 or 415. code: MLflow's error_code."""

    def __init__(self, message: str, *, status: int = 400, code: str = BAD_REQUEST) -> None:
        super().__init__(message)
        self.message, self.status, self.code = message, status, code


def too_large(limit: int) -> Refusal:
    """limit: bytes."""
    return Refusal(f"the body is larger than {limit} bytes: send fewer rows at once", status=413)


def inflated(body: bytes, encoding: bytes, limit: int) -> bytes:
    """The body without its Content-Encoding, which is in small letters. limit: bytes that it may be then. Raises Refusal."""
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise Refusal(f"Content-Encoding is {encoding.decode('latin-1')[:40]!r}; this service reads gzip and deflate", status=415)
    inflate = zlib.decompressobj(wbits=47)  # gzip or zlib, as the first bytes say
    try:
        found = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal(f"the body is not {encoding.decode('latin-1')}: {error}") from None
    if len(found) > limit:
        raise too_large(limit)
    if not inflate.eof:
        raise Refusal(f"the body ends in the midst of its {encoding.decode('latin-1')} stream")
    return found
