"""Detect a prediction that does not end, and let the probes fail, so that the cluster restarts the pod.

A model may also hang without releasing Python's lock (the GIL), in code in C. Then the event loop stops too, and only faulthandler's thread
runs, which needs no lock: it logs the stacks and ends the process.
"""

import faulthandler
import logging
import os
import sys
import threading
import traceback
from collections.abc import Mapping

from mlops_build.serving.batcher import Batcher

# How long the process may need to end after its last response: a thread of the model, or a C library, could prevent it.
EXIT_SECONDS = 5.0

log = logging.getLogger("mlops_build.serving")


class Liveness:
    """Watches the predictions of all models. limit: a prediction that takes longer is stuck; seconds."""

    def __init__(self, batchers: Mapping[str, Batcher], limit: float) -> None:
        self._batchers, self._limit = batchers, limit
        self._stderr = _nonblocking_stderr()

    def check(self) -> None:
        """Call this regularly in the event loop, more often than the limit."""
        faulthandler.dump_traceback_later(self._limit, exit=True, file=self._stderr)
        for name, batcher in self._batchers.items():
            if (batcher.busy_seconds > self._limit) != bool(batcher.stuck):
                self._changed(name, batcher)

    def end(self) -> None:
        """End the process within EXIT_SECONDS: later, the stacks are logged, and the exit code is 1."""
        faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True, file=self._stderr)

    def why(self, model: str | None = None) -> str:
        """Why a model, or any model, does not answer; "" if it does."""
        return "; ".join(batcher.stuck for name, batcher in self._batchers.items() if batcher.stuck and model in (None, name))

    def _changed(self, name: str, batcher: Batcher) -> None:
        if batcher.stuck:
            batcher.set_stuck("")
            log.warning("the stuck prediction of %s has ended: the service is healthy again", name)
        else:
            batcher.set_stuck(f"a prediction of {name} has not ended within {self._limit:g} s")
            log.error("%s; until it ends, probes and requests to %s receive 503\n%s", batcher.stuck, name, _stacks())


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in sys._current_frames().items()
    )


def _nonblocking_stderr() -> int:
    """A descriptor of stderr for faulthandler, which would wait indefinitely for the reader of a full pipe."""
    try:
        return os.open("/proc/self/fd/2", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
    except OSError:  # a socket, or a pipe of another user
        return 2
