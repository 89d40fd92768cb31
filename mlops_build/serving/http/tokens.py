"""Authenticate callers with a mounted file of hashes of bearer tokens: `NAME sha256:HEX` on each line. The file is read again when it
changes.

Only the callers have the tokens themselves. Tokens are long and random (docs/how-to/protect-a-model-with-tokens.md), so their SHA-256
reveals nothing about them, even without salt or stretching.
"""

import hashlib
import hmac
import logging
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mlops_build.errors import UsageError

LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]{0,63}) sha256:(?P<digest>[0-9a-f]{64})")
BEARER = re.compile(rb"(?i:bearer) +([!-~]{1,4096})")
REMEDY = 'make a hash with: printf %s "$token" | sha256sum'
LARGEST = 1 << 20  # limit for the file, in bytes
CHECK_SECONDS = 1.0  # how often to check whether the file has changed

log = logging.getLogger("mlops_build.serving")


class BadTokens(UsageError):
    """The file cannot be read, or its content is not valid."""


class Tokens:
    """The valid tokens.

    path: the file. clock: returns seconds; for tests. Raises BadTokens. If a later version of the file is missing or not valid, an error is
    logged and the previous tokens stay valid.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._stamp = _stamp(path)
        self._known = _read(path)
        self._checked = clock()

    def caller(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """The name of the token in a request's headers; None if there is no token, several, or one that is not valid."""
        self._reload()
        values = [value for name, value in headers if name == b"authorization"]
        match = BEARER.fullmatch(values[0].strip()) if len(values) == 1 else None
        if match is None:
            return None
        digest = hashlib.sha256(match[1]).digest()
        caller = None
        for name, known in self._known:  # compare with all of them, so that the time reveals nothing
            if hmac.compare_digest(known, digest):
                caller = name
        return caller

    def _reload(self) -> None:
        now = self._clock()
        if now - self._checked < CHECK_SECONDS:
            return
        self._checked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known = _read(self._path)
        except BadTokens as error:
            log.error("%s; the previous tokens stay valid (tokens: %d)", error.message, len(self._known))
        else:
            log.warning("%s has changed; valid tokens: %d", self._path, len(self._known))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Values that change with the file, or with the symbolic link that a cluster replaces; None without a file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read(path: Path) -> tuple[tuple[str, bytes], ...]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise BadTokens(
            f"the token file {path} cannot be read: {error.strerror}", remedy="check that the secret is mounted there"
        ) from None
    if len(content) > LARGEST:
        raise BadTokens(f"the token file {path} is larger than {LARGEST} bytes", remedy="check that it is the right file")
    known: list[tuple[str, bytes]] = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        match = LINE.fullmatch(text)
        if match is None:  # the line is not shown: it may be a token
            raise BadTokens(f"{path}, line {number}: expected `NAME sha256:HEX`, with 64 lowercase hexadecimal digits", remedy=REMEDY)
        digest = bytes.fromhex(match["digest"])
        if any(digest == other for _, other in known):
            raise BadTokens(f"{path}, line {number}: the hash occurs twice", remedy="give each caller its own token")
        known.append((match["name"], digest))
    if not known:
        raise BadTokens(f"the token file {path} contains no hash, so every request would be refused", remedy=REMEDY)
    return tuple(known)
