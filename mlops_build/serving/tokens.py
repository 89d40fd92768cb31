"""Who may ask: a mounted file of hashes of bearer tokens, `NAME sha256:HEX` on each line, read anew when it changes.

The tokens themselves are with their callers only. They are long and random (docs/how-to/protect-a-model-with-tokens.md), so that their
SHA-256 tells nothing about them, without salt or stretching.
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
LARGEST = 1 << 20  # bytes of the file
LOOK_SECONDS = 1.0  # between two looks whether it has changed

log = logging.getLogger("mlops_build.serving")


class BadTokens(UsageError):
    """The file cannot be read, or holds something else than names and hashes."""


class Tokens:
    """Guards what the file said when it was last in order.

    path: the file. clock: seconds, for tests. Raises BadTokens; later a file that is broken or gone is logged, and what was known holds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._stamp = _stamp(path)
        self._known = _read(path)
        self._looked = clock()

    def caller(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """The name of the token that a request bears; None for none, several, or one that is not known."""
        self._look()
        said = [value for name, value in headers if name == b"authorization"]
        found = BEARER.fullmatch(said[0].strip()) if len(said) == 1 else None
        if found is None:
            return None
        digest = hashlib.sha256(found[1]).digest()
        caller = None
        for name, known in self._known:  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                caller = name
        return caller

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        stamp = _stamp(self._path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known = _read(self._path)
        except BadTokens as error:
            log.error("%s; what was known before still holds (tokens: %d)", error.message, len(self._known))
        else:
            log.warning("%s has changed; tokens known now: %d", self._path, len(self._known))


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with the file, and with the link that a cluster replaces; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> tuple[tuple[str, bytes], ...]:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise BadTokens(f"{path}, the file of tokens, cannot be read: {error.strerror}", remedy="is the secret mounted there?") from None
    if len(content) > LARGEST:
        raise BadTokens(f"{path}, the file of tokens, is larger than {LARGEST} bytes", remedy="is it the right file?")
    known: list[tuple[str, bytes]] = []
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        found = LINE.fullmatch(text)
        if found is None:  # the line is not shown: it may be a token
            raise BadTokens(f"{path}, line {number}: expected `NAME sha256:HEX`, with 64 lowercase hexadecimal digits", remedy=REMEDY)
        digest = bytes.fromhex(found["digest"])
        if any(digest == other for _, other in known):
            raise BadTokens(f"{path}, line {number}: the same hash stands there twice", remedy="give each caller a token of its own")
        known.append((found["name"], digest))
    if not known:
        raise BadTokens(f"{path}, the file of tokens, holds none: nobody could ask", remedy=REMEDY)
    return tuple(known)
