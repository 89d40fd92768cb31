"""The queue of one model, with a prediction that is held until the test lets it go on."""

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from mlops_build.serving.batcher import Batcher, DeadlinePassed, Full, Gone
from mlops_build.serving.decode import Rows


class Held:
    """A prediction that says when it has begun, and ends when it may."""

    def __init__(self) -> None:
        self.begun, self.may_end = threading.Semaphore(0), threading.Semaphore(0)
        self.asked: list[list[Any]] = []

    def __call__(self, requests: Sequence[Rows]) -> Sequence[Any]:
        self.asked.append([one.data for one in requests])
        self.begun.release()
        assert self.may_end.acquire(timeout=30)
        return [one.data for one in requests]


async def begun(held: Held) -> None:
    assert await asyncio.to_thread(held.begun.acquire, timeout=30)


def test_who_goes_away_leaves_the_queue_and_the_running_batch_goes_on() -> None:
    async def main() -> None:
        held = Held()
        batcher = Batcher(held, max_queue=4)
        first = batcher.put(Rows("tensor", "first", 1), 30)
        await begun(held)
        waits = {name: batcher.put(Rows("tensor", name, 1), 30) for name in ("second", "third", "fourth")}
        late = batcher.put(Rows("tensor", "late", 1), 0.01)
        with pytest.raises(DeadlinePassed):
            await late
        assert batcher.queued == 3
        waits["third"].set_exception(Gone())
        await asyncio.sleep(0)
        with pytest.raises(Gone):
            await waits["third"]
        assert batcher.queued == 2
        fifth = batcher.put(Rows("tensor", "fifth", 2), 30)  # there is room again
        assert batcher.queued == 4
        with pytest.raises(Full):
            batcher.admit()
        first.set_exception(Gone())  # too late to leave: its answer goes nowhere
        with pytest.raises(Gone):
            await first
        held.may_end.release(2)
        assert await asyncio.gather(waits["second"], waits["fourth"], fifth) == ["second", "fourth", "fifth"]
        assert held.asked == [["first"], ["second", "fourth", "fifth"]]
        assert batcher.queued == 0
        batcher.close()

    asyncio.run(main())
