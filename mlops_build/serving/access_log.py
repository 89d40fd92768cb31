"""The access log: one line of JSON on stderr for each request, without the content of requests and responses."""

import asyncio
import sys
from collections.abc import Mapping
from typing import Any

import orjson


class AccessLog:
    """Writes the lines of one event loop iteration together: one write per line would cost as much as a request."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line. Call this in the event loop."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._write)
        self._lines.append(orjson.dumps(line))

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        sys.stderr.write(b"\n".join([*lines, b""]).decode())
