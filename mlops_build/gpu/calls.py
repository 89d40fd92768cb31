"""Calls in daemon threads, with a time limit: a call to the driver can hang in the kernel for minutes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any, Self


class Call:
    """A call that another thread makes, and its result. The end of the process does not wait for it."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: Exception | None = None
        self._function = function
        self._ended = threading.Lock()
        self._ended.acquire()

    def start(self) -> Self:
        """Run in a new thread."""
        start_thread(self.run)
        return self

    def run(self) -> None:
        """Run in this thread."""
        try:
            self.value = self._function()
        except Exception as error:
            self.error = error  # any error is a fault of the card, for example a name that is not valid UTF-8
        self._ended.release()

    def done(self) -> bool:
        """Whether the call has ended."""
        return not self._ended.locked()

    def wait(self, deadline: float) -> bool:
        """Wait until `deadline` (time.monotonic); whether the call has ended."""
        if not self._ended.acquire(timeout=max(0.0, deadline - time.monotonic())):
            return False
        self._ended.release()
        return True


class Worker:
    """A thread that waits for work. On a busy node, starting a thread would wait for a processor while the decision's lock is held."""

    def __init__(self) -> None:
        self.busy = False
        self._work: list[Callable[[], None] | None] = []
        self._queued = threading.Semaphore(0)
        threading.Thread(target=self._run, daemon=True).start()

    def do(self, work: Callable[[], None] | None) -> None:
        """Queue work. None: end the thread."""
        self._work.append(work)
        self._queued.release()

    def end(self) -> None:
        """End the thread after the queued work."""
        self.do(None)

    def _run(self) -> None:
        while True:
            self._queued.acquire()
            work = self._work.pop(0)
            if work is None:
                return
            self.busy = True
            work()
            self.busy = False


def start_thread(work: Callable[[], None]) -> None:
    """Run in a new daemon thread."""
    try:
        threading.Thread(target=work, daemon=True).start()
    except RuntimeError:  # no thread can be started (a container's process limit): call here, without a time limit
        work()
