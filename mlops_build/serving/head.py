"""What of a request's headers matters to the service."""

import random
import re
from collections.abc import Sequence
from typing import NamedTuple

from mlops_build.serving import v2

# Requests are told apart by these, nothing is kept safe by them: os.urandom would be a system call for each.
NUMBERS = random.Random()  # noqa: S311
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
# Of a length; what has more is leading zeros, and Python reads no more than some thousands of digits.
DIGITS = 20


class Head(NamedTuple):
    """kind: Content-Type. encoding: Content-Encoding, b"" for none. request_id: the caller's, if it may stand in a log. length: of the
    body in bytes, where it is announced. json_bytes: of its JSON, where binary tensors follow."""

    kind: str | None
    encoding: bytes
    request_id: bytes
    length: int | None
    json_bytes: bytes | None


def read_head(headers: Sequence[tuple[bytes, bytes]]) -> Head:
    """headers: with their names in small letters."""
    kind, encoding, request_id, length, json_bytes = None, b"", b"", None, None
    for name, value in headers:
        if name == b"content-type":
            kind = value.decode("latin-1")
        elif name == b"content-length":
            length = int(value) if value.isdigit() and len(value) <= DIGITS else None
        elif name == b"content-encoding":
            encoding = value.strip().lower()
        elif name == b"x-request-id":
            request_id = value if REQUEST_ID.fullmatch(value) else b""
        elif name == v2.LENGTH:
            json_bytes = value.strip()
    encoding = b"" if encoding == b"identity" else encoding
    return Head(kind, encoding, request_id or b"%016x" % NUMBERS.getrandbits(64), length, json_bytes)
