"""A crowd: processes that request memory at once, with random delays at every file operation. test_granted_once.py runs it.

    python -m tests.gpu.crowd '{"seed": 1, "members": 100, "first": 0, "seconds": 60, …}' LOG

Every process is a fork of this one, which has imported everything. LOG gets a JSON line for each event, with a monotonic time: `granted` is
written after `gpu.lease` returned and `ending` before the lease is released or its process ends, so two overlapping intervals prove that
both were promised memory at the same time.
"""

import contextlib
import ctypes
import fcntl
import functools
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from mlops_build import gpu
from mlops_build.errors import NoRoom
from tests.gpu.tenant import allocate

GIB = 1 << 30
CONTEXT = 300 << 20
BUDGETS = (15, 9, 6, 4)
FILES = ("open", "read", "write", "pread", "pwrite", "close", "rename", "replace", "link", "unlink", "scandir", "listdir", "access")
STATES = ("stat", "fstat", "fchmod", "mkdir")
DELAYED = {os: (*FILES, *STATES), fcntl: ("flock", "fcntl", "lockf")}
# Where a delay longer than the lock's waiting time is most dangerous: around the moment in which a promise becomes visible, and the reads.
CRITICAL = ("rename", "link", "unlink", "scandir", "flock", "open", "read", "write")
LOCK_SECONDS = 2.0  # a process that does not get the lock within this time decides without it
write_log = os.write  # not delayed


@dataclass(frozen=True)
class Order:
    """One round. members: the number of processes, which are numbered from `first`. seconds: the longest time for all of them to end.
    cards: the number of cards of the node. stalls: whether operations may take long, some longer than LOCK_SECONDS. whole: each requests
    this many bytes instead, without delays."""

    seed: int
    members: int
    first: int
    seconds: float
    cards: int
    stalls: bool
    whole: int = 0


@dataclass(frozen=True)
class Plan:
    """What one process does. delay: the chance and the longest time of a delay at each operation. stall_at: the operation that takes
    longer than LOCK_SECONDS, a name ("" for any) and its number among those; None: none. ends: "release", "exit" or "kill"."""

    starts_after: float
    budget: int
    count: int
    wait: float
    exclusive: bool
    allocates: bool
    holds: float
    ends: str
    delay: tuple[float, float]
    stall_at: tuple[str, int] | None
    seed: int


def plan(order: Order, dice: random.Random) -> Plan:
    if order.whole:
        return Plan(0.0, order.whole, 1, 10.0, False, False, 0.0, "release", (0.0, 0.0), None, 0)
    allocates = dice.random() < 0.2
    delays = [(0.0, 0.0), (0.0, 0.0), (0.2, 0.005), *([(0.05, 0.05), (0.01, 0.5)] if order.stalls else [])]
    stalls = [
        ("", dice.randrange(5, 120)),
        (dice.choice(CRITICAL), dice.choice([1, 2, dice.randrange(3, 40)])),
        (dice.choice(CRITICAL[:2]), 1),
    ]
    return Plan(
        starts_after=dice.choice([0.0, 0.0, dice.uniform(0, 0.3), dice.uniform(0, 1.0)]),
        budget=dice.choice(BUDGETS) * GIB,
        count=2 if order.cards > 1 and dice.random() < 0.1 else 1,
        wait=dice.choice([0.0, 0.0, 0.0, dice.uniform(0.5, 2.0)]),
        exclusive=dice.random() < 0.03,
        allocates=allocates,
        holds=dice.choice([dice.uniform(0, 0.1), dice.uniform(0.1, 1.0)]),
        ends=dice.choice(["exit", "kill"] if allocates else ["release", "release", "exit", "kill"]),
        delay=dice.choice(delays),
        stall_at=dice.choice([*stalls, *[None] * 17]) if order.stalls else None,
        seed=dice.getrandbits(32),
    )


def delay_operations(member: Plan) -> None:
    """Replace the functions of os and fcntl by such that sleep before or after they do their work."""
    dice = random.Random(member.seed)  # noqa: S311
    calls: Counter[str] = Counter()

    def delayed(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        calls.update(("", name))
        chance, longest = member.delay
        seconds = dice.uniform(0, longest) if dice.random() < chance else 0.0
        if member.stall_at in ((name, calls[name]), ("", calls[""])):
            seconds = dice.choice([1, 1, 2]) * LOCK_SECONDS + dice.uniform(0.1, 0.6)
        before = dice.random() < 0.5
        if seconds and before:
            time.sleep(seconds)
        try:
            return function(*arguments, **options)
        finally:
            if seconds and not before:
                time.sleep(seconds)

    if member.stall_at or member.delay[0]:
        for module, names in DELAYED.items():
            for name in names:
                setattr(module, name, functools.partial(delayed, name, getattr(module, name)))


def live(member: Plan, say: Callable[..., None]) -> None:
    time.sleep(member.starts_after)
    delay_operations(member)
    try:
        lease = gpu.lease(member.budget, count=member.count, wait=member.wait, exclusive=member.exclusive, service="crowd")
    except NoRoom as error:
        say("refused", why=error.message)
        return
    say("granted", cards=lease.uuids, bytes=lease.memory_bytes, exclusive=member.exclusive)
    code = allocate(member.budget - CONTEXT) if member.allocates else 0
    if code:
        say("out of memory", code=code)
    time.sleep(member.holds)
    say("ending")
    if member.ends == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if member.ends == "release":
        lease.release()


class Crowd:
    """The processes of a round, killed and hindered from outside."""

    def __init__(self, order: Order, log: int) -> None:
        self.order, self.log = order, log
        self.dice = random.Random(order.seed)  # noqa: S311
        self.alive: dict[int, int] = {}  # pid: number

    def say(self, number: int, event: str, **facts: object) -> None:
        write_log(self.log, (json.dumps({"at": time.monotonic(), "number": number, "event": event, **facts}) + "\n").encode())

    def fork(self, number: int, member: Plan) -> None:
        pid = os.fork()
        if pid:
            self.alive[pid] = number
            return
        try:
            live(member, functools.partial(self.say, number))
        except BaseException as error:  # whatever is not NoRoom is a failure of the test
            self.say(number, "failed", why=f"{type(error).__name__}: {error}")
        finally:
            os._exit(0)

    def run(self) -> None:
        began = time.monotonic()
        for number in range(self.order.members):
            self.fork(self.order.first + number, plan(self.order, self.dice))
        # Killed at any time, also while it decides.
        kills = sorted(self.dice.uniform(0, 2.0) for _ in range(self.order.members // 10))
        lock = Lock(self.dice, stalls=self.order.stalls)
        while self.alive and time.monotonic() - began < self.order.seconds:
            now = time.monotonic() - began
            while kills and now > kills[0]:
                kills.pop(0)
                pid = self.dice.choice(list(self.alive))
                self.say(self.alive[pid], "killed")
                os.kill(pid, signal.SIGKILL)
            lock.step(now)
            self.reap()
            time.sleep(0.01)
        lock.release()
        for pid, number in self.alive.items():
            self.say(number, "hangs")
            os.kill(pid, signal.SIGKILL)
        self.reap(block=True)

    def reap(self, *, block: bool = False) -> None:
        while self.alive:
            pid, _ = os.waitpid(-1, 0 if block else os.WNOHANG)
            if not pid:
                return
            self.alive.pop(pid)


class Lock:
    """An outside process that holds the lease directory's lock for up to some seconds, in half of the rounds."""

    def __init__(self, dice: random.Random, *, stalls: bool) -> None:
        self.descriptor = -1
        self.begin = dice.uniform(0, 1.0) if dice.random() < 0.5 else 1e9
        self.seconds = dice.uniform(0.1, 3.5 if stalls else 0.3)

    def step(self, now: float) -> None:
        if self.descriptor < 0 and self.begin < now < self.begin + self.seconds:
            path = Path(os.environ["MLOPS_GPU_LEASE_DIR"]) / "lock"
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.descriptor = descriptor
            except BlockingIOError:
                os.close(descriptor)
        elif now > self.begin + self.seconds:
            self.release()

    def release(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def main(order: str, log: str) -> None:
    assert pynvml  # what this process has imported, its forks need not import
    for library in ("libnvidia-ml.so.1", "libcuda.so.1"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(library)
    Crowd(Order(**json.loads(order)), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])
