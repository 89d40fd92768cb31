"""Predict several requests in one batch.

One thread predicts, so there is one copy of the model and one prediction at a time. The requests that arrive during a prediction are the
next batch: no request waits for a batch to fill, and batches grow with the load.
"""

import asyncio
import collections
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mlops_build.serving.input.rows import Rows
from mlops_build.serving.refusal import Unanswered

Predict = Callable[[Sequence[Rows]], Sequence[Any]]

log = logging.getLogger("mlops_build.serving")


class QueueFull(Unanswered):
    """The queue is full. seconds: when to retry, estimated from the recent rate of predictions."""

    status, code, why = 429, "REQUEST_LIMIT_EXCEEDED", "queue full"

    def __init__(self, seconds: float) -> None:
        super().__init__("too many requests are waiting: retry later")
        self.retry = max(1, round(seconds))


class DeadlinePassed(TimeoutError):
    """The request was not answered within its deadline."""


class Stuck(Unanswered):
    """The current prediction does not end."""

    code, why, retry = "TEMPORARILY_UNAVAILABLE", "stuck", 10


class Disconnected(Unanswered):
    """The caller closed its connection."""

    status, code, why, retry = 499, "CANCELLED", "caller gone", 0


@dataclass(slots=True, eq=False)
class _Waiting:
    rows: Rows
    future: "asyncio.Future[Any]"
    timer: asyncio.TimerHandle
    queued: bool = True


class Batcher:
    """The queue of one model, and the thread that predicts. For one event loop.

    predict: returns one answer or exception per request; called in this batcher's thread. max_rows: rows per batch; a larger request is a
    batch of its own. max_delay: seconds to wait for more requests after a batch of several; an idle server never waits. max_queue: rows
    that may wait. joins: whether a batch may have several requests at this time; the answers of a batch are sent at its end.
    """

    def __init__(
        self,
        predict: Predict,
        *,
        max_rows: int = 128,
        max_delay: float = 0.0,
        max_queue: int = 4096,
        joins: Callable[[], bool] = lambda: True,
    ) -> None:
        self._predict, self._max_rows, self._max_delay, self._max_queue = predict, max_rows, max_delay, max_queue
        self._joins = joins
        self._waiting: collections.OrderedDict[_Waiting, None] = (
            collections.OrderedDict()
        )  # in order; a disconnected request is removed from any position
        self._lock = threading.Lock()
        self._idle = True
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()  # threading's classes are in Python, and take ten times as long
        self._rate = 0.0  # rows per second, moving average
        self._began: float | None = None  # when the running prediction began
        self.stuck = ""
        self.queued = 0  # rows
        self.on_batch: Callable[[int, float], None] = lambda *_: None  # called with the rows and the seconds of each batch
        self.on_idle: Callable[[], bool] = lambda: False  # called in the thread while the queue is empty, until it returns False
        threading.Thread(target=self._run, name="predict", daemon=True).start()

    def put(self, rows: Rows, seconds: float) -> "asyncio.Future[Any]":
        """Queue these rows. Returns the future of their answer: the result or exception of the prediction, or DeadlinePassed.

        seconds: the deadline. Setting an exception (Disconnected) on the future removes the rows from the queue; a prediction that has
        started continues. Raises QueueFull.
        """
        self.admit(rows.count)
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        entry = _Waiting(rows, future, loop.call_later(seconds, _expire, future))
        future.add_done_callback(partial(self._end, entry))
        with self._lock:
            self._waiting[entry] = None
            self.queued += rows.count
            was_idle, self._idle = self._idle, False
        if was_idle:
            loop.call_soon(self._wake.put, None)  # after the other sockets of this iteration, so that their requests join the batch
        return future

    def admit(self, rows: int = 1) -> None:
        """Raise Stuck, or QueueFull if the queue has no room for this many rows.

        Also called before a body is parsed, since parsing costs more than refusing.
        """
        if self.stuck:
            raise Stuck(self.stuck)
        if self._waiting and self.queued + rows > self._max_queue:
            raise QueueFull(min(60.0, self.queued / self._rate) if self._rate else 1.0)

    @property
    def busy_seconds(self) -> float:
        """The seconds since the current prediction began; 0 without one."""
        began = self._began
        return 0.0 if began is None else time.perf_counter() - began

    def set_stuck(self, why: str) -> None:
        """Refuse all requests, including waiting ones, because the current prediction does not end. "": accept them again."""
        self.stuck = why
        for entry in list(self._waiting) if why else []:
            if not entry.future.done():
                entry.future.set_exception(Stuck(why))

    def _end(self, entry: _Waiting, _: object) -> None:
        entry.timer.cancel()
        if entry.queued:
            with self._lock:
                if entry.queued:  # the thread may have taken it in the meantime
                    self._take(entry)

    def _take(self, entry: _Waiting) -> None:
        del self._waiting[entry]
        entry.queued = False
        self.queued -= entry.rows.count

    # -- in the thread --

    def _run(self) -> None:
        while True:
            try:
                self._work()
            except BaseException:  # which a timeout of the model may raise in this thread after the prediction
                log.exception("the thread that predicts was interrupted, and continues")
                self._began = None

    def _work(self) -> None:
        # The thread fetches the next batch itself. If the event loop handed batches over, a loop busy with refusals would keep it idle.
        while True:
            batch, rows = self._next()
            if not batch:
                if not self._used_idle_moment():
                    self._wake.get()
                continue
            began = self._began = time.perf_counter()
            try:
                answered = list(zip(batch, self._predict([entry.rows for entry in batch]), strict=True))
            except BaseException as error:
                failure = RuntimeError("the predictor failed")  # futures do not accept every exception
                failure.__cause__ = error
                answered = [(entry, failure) for entry in batch]
            self._began = None
            seconds = max(time.perf_counter() - began, 1e-6)
            self._rate = 0.8 * self._rate + 0.2 * rows / seconds if self._rate else rows / seconds
            self.on_batch(rows, seconds)
            with contextlib.suppress(RuntimeError):  # the loop is closed: no request waits for these answers
                batch[0].future.get_loop().call_soon_threadsafe(_settle, answered)
            if self._max_delay and len(batch) > 1 and self.queued < self._max_rows:
                time.sleep(self._max_delay)

    def _used_idle_moment(self) -> bool:
        self._began = time.perf_counter()
        try:
            return self.on_idle()
        except BaseException:  # of the model
            log.exception("a check between predictions failed")
            return False
        finally:
            self._began = None

    def _next(self) -> tuple[list[_Waiting], int]:
        batch: list[_Waiting] = []
        rows = 0
        with self._lock:
            while self._waiting:
                entry = next(iter(self._waiting))
                if batch and (not self._joins() or rows + entry.rows.count > self._max_rows):
                    break
                self._take(entry)
                if entry.future.done():  # its caller disconnected, or its deadline passed
                    continue
                batch.append(entry)
                rows += entry.rows.count
            self._idle = not batch
        return batch, rows


def _settle(answered: Sequence[tuple[_Waiting, Any]]) -> None:
    for entry, answer in answered:
        if entry.future.done():
            continue
        if isinstance(answer, Exception):
            entry.future.set_exception(answer)
        else:
            entry.future.set_result(answer)


def _expire(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(DeadlinePassed())
