"""The headers of a request that the service uses."""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

# Request IDs only distinguish requests and protect nothing: os.urandom would cost a system call for each.
NUMBERS = random.Random()  # noqa: S311
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
# W3C trace context: version, trace id, id of the caller's span, flags. Only a later version than 00 may have more fields.
TRACEPARENT = re.compile(rb"(?!ff|00-.{53})[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")
# Digits of a Content-Length: more are leading zeros, and int() refuses thousands of digits.
DIGITS = 20
# The number of bytes of JSON before binary tensors, in requests and responses of the Open Inference Protocol.
INFERENCE_LENGTH = b"inference-header-content-length"


class Head(NamedTuple):
    """The headers that matter.

    kind: Content-Type. encoding: Content-Encoding, b"" for none. request_id: the caller's X-Request-Id if it is valid, otherwise a new one.
    length: Content-Length in bytes, None if it is missing or invalid. json_bytes: Inference-Header-Content-Length. trace: the trace id and
    the caller's span id from `traceparent`; empty if there is none, or not one that is valid.
    """

    kind: str | None
    encoding: bytes
    request_id: bytes
    length: int | None
    json_bytes: bytes | None
    trace: tuple[bytes, ...] = ()


def read_head(headers: Sequence[tuple[bytes, bytes]]) -> Head:
    """Read the headers of a request. headers: pairs with the name in lower case."""
    kind, encoding, request_id, length, json_bytes = None, b"", b"", None, None
    trace: tuple[bytes, ...] | None = None
    for name, value in headers:
        if name == b"content-type":
            kind = value.decode("latin-1")
        elif name == b"content-length":
            length = int(value) if value.isdigit() and len(value) <= DIGITS else None
        elif name == b"content-encoding":
            encoding = value.strip().lower()
        elif name == b"x-request-id":
            request_id = value if REQUEST_ID.fullmatch(value) else b""
        elif name == b"traceparent":
            match = TRACEPARENT.fullmatch(value.strip())
            trace = match.group(1, 2) if match and trace is None else ()
        elif name == INFERENCE_LENGTH:
            json_bytes = value.strip()
    encoding = b"" if encoding == b"identity" else encoding
    return Head(kind, encoding, request_id or b"%016x" % NUMBERS.getrandbits(64), length, json_bytes, trace or ())
