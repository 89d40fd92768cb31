"""A running simulated service, as its parent process sees it."""

import json
import os
import select
import subprocess
import time
from typing import Any

from mlops_build.errors import Failed


class SimulatedService(subprocess.Popen[str]):
    """A process started by `Node.start`: a Popen that can wait for the service's events."""

    def wait_for(self, event: str, *, timeout: float = 20.0) -> dict[str, Any]:
        """Wait for the event ("started", "loaded", "grown" or "out of memory"), and return its JSON line. timeout: seconds. Raises Failed
        if the service ends, or after the timeout."""
        deadline = time.monotonic() + timeout
        while line := self._line(event, deadline):
            document: dict[str, Any] = json.loads(line)
            if document["event"] == event:
                return document
        self.wait(max(0.1, deadline - time.monotonic()))
        raise Failed(
            f"the simulated service {self.pid} ended with exit code {self.returncode} before the event {event!r}: "
            f"{self.stderr.read().strip() if self.stderr else ''}"
        )

    def _line(self, event: str, deadline: float) -> bytes:
        """The next line; b"" at the end. Reads single bytes without Python's buffer, so that select works."""
        assert self.stdout  # noqa: S101  (Node.start opens it)
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise Failed(f"the simulated service {self.pid} did not report {event!r} in time")
            byte = os.read(self.stdout.fileno(), 1)
            if not byte:
                return line
            line += byte
        return line
