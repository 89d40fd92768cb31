"""File locks: try without waiting, wait in the kernel's queue, release."""

from __future__ import annotations

import _thread
import fcntl
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any


def locks(descriptor: int, kind: int) -> bool:
    """Try to take the lock (LOCK_SH or LOCK_EX) without waiting; whether it was taken."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Release the lock and close the file. Closing alone is not enough, since a child process may have inherited the descriptor."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


class QueuedWork:
    """Work that waits for the lock in the kernel's queue, in a thread, since flock has no timeout. `_settled` decides whether the thread
    does the work, or the caller gives up.

    The thread that gets the lock does the work itself. On a busy machine, waking another thread would keep the lock until that thread gets
    a processor. Polling instead of queueing would delay the other processes as well.
    """

    def __init__(self, is_lock: Callable[[int], bool], descriptor: int, work: Callable[[], Any]) -> None:
        self._is_lock, self._descriptor, self._work = is_lock, descriptor, work
        self._settled, self._ended = _thread.allocate_lock(), _thread.allocate_lock()
        self._ended.acquire()
        self._results: list[Any] = []
        self._error: BaseException | None = None
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # no thread can be started (a container's process limit): the caller tries again soon
            self._settled.acquire()
            self._ended.release()
            os.close(descriptor)
            time.sleep(0.005)

    def wait(self, deadline: float) -> bool:
        """Wait until `deadline` (time.monotonic), or until work that has begun ends. Whether the work was done."""
        try:
            if not self._ended.acquire(timeout=max(0.0, deadline - time.monotonic())):
                if self._settled.acquire(blocking=False):
                    return False
                self._ended.acquire()
        except BaseException:  # an interrupt: wait for work that has begun, so that the caller can undo it
            if not self._settled.acquire(blocking=False):
                self._ended.acquire()
            raise
        return bool(self._results) or self._error is not None

    def result(self) -> Any:
        """Returns or raises what the work returned or raised."""
        if self._error is not None:
            raise self._error
        return self._results[0]

    def _run(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)
            if self._settled.acquire(blocking=False) and self._is_lock(self._descriptor):
                self._results.append(self._work())
        except BaseException as error:
            self._error = error
        finally:
            unlock(self._descriptor)
            self._ended.release()
