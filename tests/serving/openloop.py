"""Callers that send at a fixed rate without waiting for responses, to create an overload. Callers that wait slow down with the server, and
hide the overload."""

import asyncio
import re
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Outcome:
    """statuses: of the responses. unsent: requests for which no connection was free. lost: connections that closed before the response."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    without_retry: int = 0
    unsent: int = 0
    lost: int = 0
    took: float = 0.0

    def add(self, status: int, seconds: float, head: bytes) -> None:
        self.statuses[status] += 1
        self.seconds.setdefault(status, []).append(seconds)
        self.without_retry += status in (429, 503) and not re.search(rb"(?i)\r\nretry-after: [1-9]", head)

    def percentile(self, status: int, part: float) -> float:
        """A percentile of the response time, in seconds. part: 0 to 1."""
        seconds = sorted(self.seconds.get(status, [0.0]))
        return seconds[min(len(seconds) - 1, int(part * len(seconds)))]


class Connection(asyncio.Protocol):
    def __init__(self, outcome: Outcome, free: "deque[Connection]") -> None:
        self.outcome, self.free = outcome, free
        self.transport: Any = None
        self.began: float | None = None
        self.got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.free.append(self)

    def ask(self, request: bytes) -> None:
        self.began, self.got = time.perf_counter(), b""
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.got += data
        head, split, rest = self.got.partition(b"\r\n\r\n")
        if not split or self.began is None:
            return
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
        if length and len(rest) >= int(length[1]):
            self.outcome.add(int(head[9:12]), time.perf_counter() - self.began, head)
            self.began = None
            self.free.append(self)

    def connection_lost(self, _: Exception | None) -> None:
        self.outcome.lost += self.began is not None
        self.began = None
        if self in self.free:
            self.free.remove(self)


async def _offer(host: str, port: int, request: bytes, rate: float, seconds: float, connections: int) -> Outcome:
    outcome, free = Outcome(), deque[Connection]()
    loop = asyncio.get_running_loop()
    transports = [(await loop.create_connection(lambda: Connection(outcome, free), host, port))[0] for _ in range(connections)]
    began, sent = time.perf_counter(), 0
    while (now := time.perf_counter() - began) < seconds:
        for _ in range(int(now * rate) - sent):
            sent += 1
            if free:
                free.popleft().ask(request)  # the connection that has been free for the longest time
            else:
                outcome.unsent += 1
        await asyncio.sleep(0.001)
    outcome.took = time.perf_counter() - began
    for _ in range(100):
        if len(free) == connections:
            break
        await asyncio.sleep(0.05)
    for transport in transports:
        transport.abort()
    return outcome


def offer(address: tuple[str, int], request: bytes, rate: float, seconds: float, connections: int = 256) -> Outcome:
    """Send `rate` requests per second for `seconds`, on kept connections, each used again as late as possible."""
    return asyncio.run(_offer(*address, request, rate, seconds, connections))
