"""Requests that arrive together are predicted together.

One thread predicts, so there is one copy of the model and one prediction at a time. While it predicts, requests gather, and are the next
batch: nobody waits for company, and the batches grow with the load by themselves.
"""

import asyncio
import collections
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlops_build.serving.decode import Rows

Predict = Callable[[Sequence[Rows]], Sequence[Any]]


class Full(Exception):
    """The queue is at its bound. seconds: when to ask again, as far as can be told from what was predicted lately."""

    def __init__(self, seconds: float) -> None:
        super().__init__("the queue is full")
        self.seconds = seconds


class DeadlinePassed(Exception):
    """The request waited or ran longer than it may."""


class Gone(Exception):
    """The caller went away."""


@dataclass(slots=True, eq=False)
class _Waiting:
    rows: Rows
    future: "asyncio.Future[Any]"
    loop: asyncio.AbstractEventLoop
    timer: asyncio.TimerHandle
    queued: bool = True


class Batcher:
    """Guards the queue of one model, and the thread that predicts. For one event loop.

    predict: one answer, or one exception, for each of its requests; called in a thread of this batcher's own. max_rows: of one batch; a
    larger request goes alone. max_delay: seconds that a batch may wait for company after one that was not alone; an idle server never
    waits. max_queue: rows that may wait.
    """

    def __init__(self, predict: Predict, *, max_rows: int = 128, max_delay: float = 0.0, max_queue: int = 4096) -> None:
        self._predict, self._max_rows, self._max_delay, self._max_queue = predict, max_rows, max_delay, max_queue
        self._waiting: collections.OrderedDict[_Waiting, None] = collections.OrderedDict()  # who goes away leaves from its midst
        self._lock = threading.Lock()
        self._idle = True
        self._wake = threading.Semaphore(0)
        self._closed = False
        self._rate = 0.0  # rows a second, lately
        self._coming = 0  # requests admitted in this turn of the loop
        self.queued = 0  # rows
        self.on_batch: Callable[[int, float], None] | None = None  # told the rows and the seconds of each batch
        self._thread = threading.Thread(target=self._work, name="predict", daemon=True)
        self._thread.start()

    def put(self, rows: Rows, seconds: float) -> "asyncio.Future[Any]":
        """The future answer to these rows: what the prediction gave or raised, or DeadlinePassed.

        seconds: how long that may take. An exception set to the future (Gone) takes the rows out of the queue, while what is being
        predicted goes on. Raises Full.
        """
        self.admit(rows.count)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        one = _Waiting(rows, future, loop, loop.call_later(seconds, _expire, future))
        future.add_done_callback(partial(self._end, one))
        with self._lock:
            self._waiting[one] = None
            self.queued += rows.count
            begin, self._idle = self._idle, False
        if begin:
            loop.call_soon(self._wake.release)  # what other sockets bring in this turn of the loop comes along
        return future

    def admit(self, rows: int = 1) -> None:
        """Whether so many rows would be taken now. Raises Full. Asked before a body is read, too, since reading it costs more than
        refusing."""
        if (self._waiting or self._coming) and self.queued + rows > self._max_queue:
            raise Full(min(60.0, max(1.0, self.queued / self._rate)) if self._rate else 1.0)

    def expect(self) -> None:
        """Admit a request of which only the head has come. Raises Full.

        What other sockets brought in the same turn of the loop is in no queue yet, and would all be admitted to its last place: so they
        count until the turn ends.
        """
        self.admit(1 + self._coming)
        if not self._coming:
            asyncio.get_running_loop().call_soon(self._turn_ends)
        self._coming += 1

    def close(self) -> None:
        """End the thread, once what it predicts is done. What waits is not answered."""
        self._closed = True
        self._wake.release()
        self._thread.join(timeout=60)

    def _end(self, one: _Waiting, _: object) -> None:
        one.timer.cancel()
        if one.queued:
            with self._lock:
                if one.queued:  # the thread may have taken it meanwhile
                    self._take(one)

    def _take(self, one: _Waiting) -> None:
        del self._waiting[one]
        one.queued = False
        self.queued -= one.rows.count

    def _turn_ends(self) -> None:
        self._coming = 0

    # -- in the thread --

    def _work(self) -> None:
        # The thread takes the next batch by itself: were it handed over by the loop, a loop that is busy with refusing would keep it idle.
        while True:
            batch, rows = self._next()
            if not batch:
                self._wake.acquire()
                if self._closed:
                    return
                continue
            began = time.perf_counter()
            try:
                answers = self._predict([one.rows for one in batch])
            except BaseException as error:
                answers = [error] * len(batch)
            seconds = max(time.perf_counter() - began, 1e-6)
            self._rate = 0.8 * self._rate + 0.2 * rows / seconds if self._rate else rows / seconds
            if self.on_batch:
                self.on_batch(rows, seconds)
            with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits for these answers
                batch[0].loop.call_soon_threadsafe(_settle, batch, answers)
            if self._closed:
                return
            if self._max_delay and len(batch) > 1 and self.queued < self._max_rows:
                time.sleep(self._max_delay)

    def _next(self) -> tuple[list[_Waiting], int]:
        batch: list[_Waiting] = []
        rows = 0
        with self._lock:
            while self._waiting:
                one = next(iter(self._waiting))
                if batch and (rows + one.rows.count > self._max_rows or one.loop is not batch[0].loop):
                    break
                self._take(one)
                if one.future.done():  # its caller went away, or it waited too long
                    continue
                batch.append(one)
                rows += one.rows.count
            self._idle = not batch
        return batch, rows


def _settle(batch: Sequence[_Waiting], answers: Sequence[Any]) -> None:
    for one, answer in zip(batch, answers, strict=True):
        if one.future.done():
            continue
        if isinstance(answer, BaseException):
            one.future.set_exception(answer)
        else:
            one.future.set_result(answer)


def _expire(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(DeadlinePassed())
