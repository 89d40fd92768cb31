"""Notice a prediction that does not end, and tell the probes, so that the cluster starts a new pod.

A model may also hang without releasing Python's lock (the GIL), in code in C. Then the event loop stops too, and only faulthandler's thread
runs, which needs no lock: it logs the stacks and ends the process.
"""

import asyncio
import faulthandler
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Mapping

from mlops_build.serving.answer import Answer
from mlops_build.serving.batcher import Batcher

CHECK_SECONDS = 1.0
# How long the process may need to end after its last response: a thread of the model, or a C library, could prevent it.
EXIT_SECONDS = 5.0
PROBE = re.compile(r"(/v2)?(/models/(?P<model>[^/]+)(/versions/[^/]+)?)?/(ping|health|ready|health/live|health/ready)")

log = logging.getLogger("mlops_build.serving")


class Liveness:
    """Watches the predictions of all models.

    limit: a prediction that takes longer is stuck; seconds. static: the service's responses to GET by path; those to probes are replaced
    while a prediction is stuck. A probe with a model's name in its path fails for this model only. unavailable: creates the response to a
    probe from its path and the reason.
    """

    def __init__(
        self, batchers: Mapping[str, Batcher], limit: float, static: dict[str, Answer], unavailable: Callable[[str, str], Answer]
    ) -> None:
        self._batchers, self._limit, self._static, self._unavailable = batchers, limit, static, unavailable
        self._probes = {path: (match["model"], static[path]) for path in static if (match := PROBE.fullmatch(path))}

    def watch(self) -> None:
        """Check now, and from now on regularly. Call this in the event loop."""
        faulthandler.dump_traceback_later(self._limit, exit=True)
        for name, batcher in self._batchers.items():
            if (batcher.busy_seconds > self._limit) != bool(batcher.stuck):
                self._changed(name, batcher)
        asyncio.get_running_loop().call_later(min(CHECK_SECONDS, self._limit / 4), self.watch)

    def end(self) -> None:
        """End the process within EXIT_SECONDS: later, the stacks are logged, and the exit code is 1."""
        faulthandler.dump_traceback_later(EXIT_SECONDS, exit=True)

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
        for path, (model, answer) in self._probes.items():
            why = self.why(model)
            self._static[path] = self._unavailable(path, why) if why else answer


def _stacks() -> str:
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in sys._current_frames().items()
    )
