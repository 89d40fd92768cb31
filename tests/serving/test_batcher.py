"""The queue of one model, with a prediction that runs until the test ends it."""

import asyncio
import ctypes
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from mlops_build.serving.batcher import Batcher, DeadlinePassed, Disconnected, QueueFull
from mlops_build.serving.input.rows import Rows


class BlockedPrediction:
    """A prediction that signals its start, and ends when the test allows it."""

    def __init__(self) -> None:
        self.started, self.may_end = threading.Semaphore(0), threading.Semaphore(0)
        self.batches: list[list[Any]] = []

    def __call__(self, requests: Sequence[Rows]) -> Sequence[Any]:
        self.batches.append([rows.data for rows in requests])
        self.started.release()
        assert self.may_end.acquire(timeout=30)
        return [rows.data for rows in requests]


async def started(prediction: BlockedPrediction) -> None:
    assert await asyncio.to_thread(prediction.started.acquire, timeout=30)


def test_a_disconnected_request_leaves_the_queue_and_the_running_batch_continues() -> None:
    async def main() -> None:
        prediction = BlockedPrediction()
        batcher = Batcher(prediction, max_queue=4)
        first = batcher.put(Rows("tensor", "first", 1), 30)
        await started(prediction)
        futures = {name: batcher.put(Rows("tensor", name, 1), 30) for name in ("second", "third", "fourth")}
        late = batcher.put(Rows("tensor", "late", 1), 0.01)
        with pytest.raises(DeadlinePassed):
            await late
        assert batcher.queued == 3
        futures["third"].set_exception(Disconnected())
        await asyncio.sleep(0)
        with pytest.raises(Disconnected):
            await futures["third"]
        assert batcher.queued == 2
        fifth = batcher.put(Rows("tensor", "fifth", 2), 30)  # there is room again
        assert batcher.queued == 4
        with pytest.raises(QueueFull):
            batcher.admit()
        first.set_exception(Disconnected())  # its prediction is running: the answer is dropped
        with pytest.raises(Disconnected):
            await first
        prediction.may_end.release(2)
        assert await asyncio.gather(futures["second"], futures["fourth"], fifth) == ["second", "fourth", "fifth"]
        assert prediction.batches == [["first"], ["second", "fourth", "fifth"]]
        assert batcher.queued == 0

    asyncio.run(main())


def test_the_thread_continues_after_an_exception_between_predictions() -> None:
    async def main() -> None:
        before = set(threading.enumerate())
        batcher = Batcher(lambda requests: [rows.data for rows in requests])
        (thread,) = set(threading.enumerate()) - before
        for number in range(3):
            assert await batcher.put(Rows("tensor", number, 1), 30) == number
            # As packages for timeouts do. The thread receives it once it wakes.
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(SystemExit))

    asyncio.run(main())
