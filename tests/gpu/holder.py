"""Processes that hold leases, for the tests of leases."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

# A process that takes a lease, prints it, and then executes each line of its input.
HOLDER = """
import contextlib, ctypes, json, os, sys, time
from mlops_build import gpu
from mlops_build.errors import MlopsBuildError
def allocate(size, ordinal=0, kept=[]):
    cuda = ctypes.CDLL("libcuda.so.1")
    device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    kept.append(context)
    assert not cuda.cuInit(0) and not cuda.cuDeviceGet(ctypes.byref(device), ordinal)
    assert not (cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) or cuda.cuCtxSetCurrent(context))
    assert not cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)), "out of memory"
def say(**what): print(json.dumps(what), flush=True)
try:
    lease = gpu.lease(**eval(sys.argv[1]))
except MlopsBuildError as error:
    say(error=type(error).__name__, code=error.exit_code, message=error.message, remedy=error.remedy)
    sys.exit(error.exit_code)
say(uuids=lease.uuids, mask=os.environ.get("CUDA_VISIBLE_DEVICES"), order=os.environ.get("CUDA_DEVICE_ORDER"), cpu=lease.cpu, id=lease.id)
for line in sys.stdin:
    try:
        exec(line)
    except BaseException as error:
        say(error=type(error).__name__, message=str(error), remedy=getattr(error, "remedy", None))
    else:
        say(done=True)
"""


class Holder(subprocess.Popen[str]):
    """A process with a lease. answer: the lease, or the error."""

    answer: dict

    def do(self, line: str) -> dict:
        """Let it run a line of Python, and return its first answer."""
        self.stdin.write(line + "\n")
        self.stdin.flush()
        answer = json.loads(self.stdout.readline())
        if "done" not in answer and "error" not in answer:
            assert "done" in json.loads(self.stdout.readline())
        return answer

    def end(self) -> str:
        """End it, and return its stderr."""
        return self.communicate()[1]


@pytest.fixture
def lease() -> Iterator[Callable[..., Holder]]:
    """Start a process with a lease: lease(environment, memory="4GiB", …). before: a command that runs it."""
    started = []

    def start(
        environment: Mapping[str, str], *, script: str = HOLDER, expression: str = "", before: Sequence[str] = (), **arguments: object
    ) -> Holder:
        options = "{**" + repr(arguments) + (f", **{expression}" if expression else "") + "}"
        pipe = subprocess.PIPE
        holder = Holder([*before, sys.executable, "-c", script, options], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        started.append(holder)
        line = holder.stdout.readline()
        assert line, holder.communicate()[1]
        holder.answer = json.loads(line)
        return holder

    yield start
    for holder in started:
        if holder.poll() is None:
            holder.kill()
            holder.communicate()


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for an effect of another process."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true in time"
        time.sleep(0.02)
