"""A simulated service that runs, as the one who started it sees it."""

import json
import os
import select
import subprocess
import time
from typing import Any

from mlops_build.errors import Failed


class SimulatedService(subprocess.Popen[str]):
    """A process that `Node.start` started: a Popen that knows what the service says."""

    def wait_for(self, event: str, *, timeout: float = 20.0) -> dict[str, Any]:
        """Reads what the service says until it says `event` ("started", "loaded", "grown", "out of memory"), and returns that line.
        timeout in seconds. Raises Failed if the service ends or the time is over."""
        deadline = time.monotonic() + timeout
        while line := self._line(event, deadline):
            said: dict[str, Any] = json.loads(line)
            if said["event"] == event:
                return said
        self.wait(max(0.1, deadline - time.monotonic()))
        raise Failed(
            f"the simulated service {self.pid} ended with exit code {self.returncode} before it said {event!r}: "
            f"{self.stderr.read().strip() if self.stderr else ''}"
        )

    def _line(self, event: str, deadline: float) -> bytes:
        """The next line; b"" at the end. Byte by byte past Python's buffers, so that what select says is true."""
        assert self.stdout  # noqa: S101  (Node.start opens it)
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Failed(f"the simulated service {self.pid} did not say {event!r} in time")
            byte = os.read(self.stdout.fileno(), 1)
            if not byte:
                return line
            line += byte
        return line
