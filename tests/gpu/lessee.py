"""Processes that hold leases, for the tests of leases."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pytest

# A process that leases, says what it got, and then does one line at a time what it is told.
LESSEE = """
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


class Lessee(subprocess.Popen[str]):
    """A process with a lease, or what it was refused with: `said`."""

    said: dict

    def do(self, line: str) -> dict:
        """Have it run a line of Python; what it said first."""
        self.stdin.write(line + "\n")
        self.stdin.flush()
        said = json.loads(self.stdout.readline())
        if "done" not in said and "error" not in said:
            assert "done" in json.loads(self.stdout.readline())
        return said

    def end(self) -> str:
        """What it wrote on stderr."""
        return self.communicate()[1]


@pytest.fixture
def lease() -> Iterator[Callable[..., Lessee]]:
    """Starts a process that leases: lease(environment, memory="4GiB", …). `before`: a command that runs it."""
    started = []

    def start(
        environment: Mapping[str, str], *, script: str = LESSEE, asked: str = "", before: Sequence[str] = (), **arguments: object
    ) -> Lessee:
        said = "{**" + repr(arguments) + (f", **{asked}" if asked else "") + "}"
        pipe = subprocess.PIPE
        lessee = Lessee([*before, sys.executable, "-c", script, said], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        started.append(lessee)
        line = lessee.stdout.readline()
        assert line, lessee.communicate()[1]
        lessee.said = json.loads(line)
        return lessee

    yield start
    for lessee in started:
        if lessee.poll() is None:
            lessee.kill()
            lessee.communicate()


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """For what another process does in its own time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.02)
