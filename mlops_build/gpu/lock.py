"""Locks on files: asked for without waiting, waited for in the kernel's queue, let go of for good."""

from __future__ import annotations

import _thread
import fcntl
import os
import time
from collections.abc import Callable

TYPE_CHECKING = False  # without typing's import
if TYPE_CHECKING:
    from typing import Any


def locks(descriptor: int, kind: int) -> bool:
    """Whether the lock (LOCK_SH, LOCK_EX) was to be had without waiting."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(descriptor: int) -> None:
    """Let go, and close. Closing alone would not do: a child that was forked meanwhile has the descriptor, too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


class Turn:
    """Work that waits for the lock in the kernel's queue, in a thread, since that call knows no limit of time. Guards who settles what
    becomes of it: the thread, or who gives up.

    The thread that gets the lock does the work itself. To wake another one for it would, on a busy machine, keep the lock from everybody
    for as long as that one waits for a processor; so would those who ask again and again instead of queueing.
    """

    def __init__(self, is_lock: Callable[[int], bool], descriptor: int, work: Callable[[], Any]) -> None:
        self._is_lock, self._descriptor, self._work = is_lock, descriptor, work
        self._settled, self._ended = _thread.allocate_lock(), _thread.allocate_lock()
        self._ended.acquire()
        self._results: list[Any] = []
        self._error: BaseException | None = None
        try:
            _thread.start_new_thread(self._run, ())
        except RuntimeError:  # no thread is to be had (a container's limit of processes): ask again soon
            self._settled.acquire()
            self._ended.release()
            os.close(descriptor)
            time.sleep(0.005)

    def comes(self, deadline: float) -> bool:
        """Wait for it until then (time.monotonic), or until it is done if it has begun. Whether it was done."""
        try:
            if not self._ended.acquire(timeout=max(0.0, deadline - time.monotonic())):
                if self._settled.acquire(blocking=False):
                    return False
                self._ended.acquire()
        except BaseException:  # an interrupt: what it took can be given back only when it has it
            if not self._settled.acquire(blocking=False):
                self._ended.acquire()
            raise
        return bool(self._results) or self._error is not None

    def result(self) -> Any:
        """What the work returned or raised."""
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
