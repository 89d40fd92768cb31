"""Write to stdout and stderr without waiting for their reader.

If nobody reads a pipe, it is full after 64 KiB, and the next write blocks: in the event loop it would block every request, and at the end
of the process its exit. Therefore a thread writes, from a queue of limited size.
"""

import contextlib
import io
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

QUEUE_BYTES = 4 << 20
WRITE_BYTES = 64 << 10
# Lines are collected for this long: waking the thread for each line would cost as much as a request.
COLLECT_SECONDS = 0.01
FLUSH_SECONDS = 1.0


class Output(io.RawIOBase):
    """A stream whose `write` never blocks. If the queue is full, data is dropped and its lines are counted.

    It writes to a copy of the descriptor, and `close` does nothing, so that a model cannot close it.
    """

    def __init__(self, descriptor: int) -> None:
        self.on_drop: Callable[[int], None] = lambda _: None
        self._missing = 0  # dropped lines that have not been reported
        self._descriptor = os.dup(descriptor)
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._bytes = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._work, name=f"output {descriptor}", daemon=True).start()

    def write(self, data: Any) -> int:
        with self._lock:
            if fits := self._bytes + len(data) <= QUEUE_BYTES:
                self._bytes += len(data)
        if fits:
            self._queue.put(bytes(data))
        else:
            self._drop(bytes(data))
        return len(data)

    def wait(self, seconds: float = FLUSH_SECONDS) -> None:
        """Wait until everything is written, for a limited time."""
        end = time.monotonic() + seconds
        while self._bytes and time.monotonic() < end:
            time.sleep(COLLECT_SECONDS)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def close(self) -> None:
        pass

    def _drop(self, data: bytes) -> None:
        lines = data.count(b"\n")
        self.on_drop(lines)
        with self._lock:
            self._missing += lines

    def _work(self) -> None:
        while True:
            data = self._queue.get()
            if self._queue.empty():
                time.sleep(COLLECT_SECONDS)
            while not self._queue.empty() and len(data) < WRITE_BYTES:
                data += self._queue.get()
            self._write(data)
            with self._lock:
                self._bytes -= len(data)
            if self._queue.empty() and (missing := self._missing):
                self._missing = 0
                self._write(b"%d lines of this log were dropped: its reader was too slow\n" % missing)

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # another process has made this pipe non-blocking
                time.sleep(COLLECT_SECONDS)
            except OSError:  # its reader has closed it, or the disk is full
                self._drop(data)
                return


@contextlib.contextmanager
def without_blocking() -> Iterator[Output]:
    """Replace sys.stdout and sys.stderr, also for the log of this package and of asyncio. Yields the Output for stderr.

    At the end everything is written, for at most FLUSH_SECONDS.
    """
    before = sys.stdout, sys.stderr
    outputs: Any = Output(1), Output(2)
    streams = [io.TextIOWrapper(output, "utf-8", "backslashreplace", line_buffering=True) for output in outputs]

    def restore() -> None:
        if sys.stderr is streams[1]:
            sys.stdout, sys.stderr = before

    sys.stdout, sys.stderr = streams
    os.register_at_fork(after_in_child=restore)  # a child of the model has no thread that writes
    handler = logging.StreamHandler(sys.stderr)
    loggers = [logging.getLogger(name) for name in ("mlops_build", "asyncio")]
    for logger in loggers:
        logger.addHandler(handler)
        logger.propagate = False  # a handler that the model adds may block
    try:
        yield outputs[1]
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
            logger.propagate = True
        for stream, output in zip(streams, outputs, strict=True):
            stream.flush()
            output.wait()
        restore()
