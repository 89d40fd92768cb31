"""One line of JSON on stderr for each request; nothing of what was sent or answered."""

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import orjson


class AccessLog:
    """Guards the lines of one turn of the event loop, which are written together: a write for each would cost as much as its request."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Called in the loop."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._write)
        self._lines.append(orjson.dumps(line))

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        sys.stderr.write(b"\n".join([*lines, b""]).decode())
