"""Read the body of a request, within a limit for its size and a budget of memory for all requests.

Memory for everything that is built from a body is reserved before it is used, until the response is written: the body, the
decompressed body, the parsed values, the rows in the queue, and the answer. The sum of the reservations never exceeds the budget. Estimates
are upper bounds. Only a body of at most INLINE_BYTES is parsed without a reservation, one at a time, in the event loop.
"""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from mlops_build.quantity import show_bytes
from mlops_build.serving.input.json_text import INLINE_BYTES
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.refusal import MORE_MEMORY, Refusal, Unanswered, too_large

T = TypeVar("T")
# Python's lock lets one thread work at a time. More threads would only use more memory.
THREADS = 4
_threads = ThreadPoolExecutor(THREADS, "bodies")


class MemoryFull(Unanswered):
    """The budget has no room now."""

    why = "memory of requests"


class Budget:
    """The memory for all requests. limit, used: bytes. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0
        self._lock = threading.Lock()

    def change(self, before: int, after: int) -> None:
        """Change a reservation of `before` bytes to `after` bytes. Raises Refusal (413) if it can never fit, and MemoryFull."""
        # Large requests leave an eighth of the budget to small ones.
        limit = self.limit if after <= INLINE_BYTES else self.limit - self.limit // 8
        if after > max(limit, before):
            raise Refusal(
                f"the request needs about {show_bytes(after)} of memory, and the service has {show_bytes(limit)} for a request: "
                + MORE_MEMORY,
                status=413,
            )
        with self._lock:
            used = self.used + after - before
            if after > before and used > limit:
                raise MemoryFull(f"the service's memory for requests ({show_bytes(self.limit)}) is in use: retry later")
            self.used = used


class Reservation:
    """The part of the budget that one request uses. size: bytes."""

    def __init__(self, budget: Budget) -> None:
        self._budget, self.size = budget, 0
        self._thread: asyncio.Future[Any] | None = None

    def add(self, size: int) -> None:
        """Reserve `size` more bytes. Raises as `Budget.change`."""
        self.keep(self.size + size)

    def keep(self, size: int) -> None:
        """Change the reservation to `size` bytes. Raises as `Budget.change`."""
        self._budget.change(self.size, size)
        self.size = size

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Call a function in a thread. The reservation lasts until the function ends, even if the caller does not wait for it."""
        self._thread = asyncio.get_running_loop().run_in_executor(_threads, function)
        try:
            return await asyncio.shield(self._thread)
        finally:
            # An exception of the thread refers to its data. With a reference from here, this would be a cycle, which is freed late.
            if self._thread.done():
                self._thread = None

    def close(self) -> None:
        """End the reservation, or let it end with its thread."""
        if self._thread is not None:
            self._thread.add_done_callback(self._end)
        else:
            self.keep(0)

    def _end(self, thread: "asyncio.Future[Any]") -> None:
        thread.exception()  # marks it as retrieved, otherwise asyncio logs it
        self.keep(0)


def held(rows: Rows, body: int, reserved: int = 0) -> int:
    """An upper bound of the memory of rows that wait in the queue, in bytes.

    body: the size of the body that they were decoded from. reserved: what was reserved to parse it; 0 for a body of at most INLINE_BYTES.
    """
    if rows.kind in ("block", "tensor"):
        return int(rows.data.nbytes)
    if rows.kind == "columns":  # text takes up to 4 bytes per character; 96: an element of a list and its header
        return 4 * body + 96 * rows.count * len(rows.data)
    return max(reserved, 64 * min(body, INLINE_BYTES))


async def read_body(receive: Callable[[], Awaitable[bytes]], length: int | None, limit: int, reserve: Callable[[int], None]) -> bytes:
    """The body of a request. receive: returns its next part, b"" after the last. length: its Content-Length in bytes, if known. limit:
    bytes. reserve: called before memory is used, and with a negative size when it is free.

    Raises Refusal (413) as soon as the body is known to be too large, and what `receive` and `reserve` raise.
    """
    if length is not None and length > limit:
        raise too_large(limit)
    parts: list[bytes] = []
    size = 0
    while part := await receive():
        size += len(part)
        if size > limit:
            raise too_large(limit)
        reserve(2 * len(part))
        parts.append(part)
    body = b"".join(parts)
    reserve(-size)  # of the parts
    return body
