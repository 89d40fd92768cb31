"""Hold memory with a child process until this process is ready to load, if there is no lease directory.

Without a lease directory, used memory is all that other processes can see. The child calls libcuda under the mask of the chosen cards, so
that CUDA is not started in this process. The child ends when its standard input ends: on request, or when its parent ends.
"""

import contextlib
import ctypes
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from mlops_build.gpu.budget import CONTEXT_BYTES

# The first context takes the driver up to some seconds (persistence mode off). After this time CUDA counts as missing.
START_SECONDS = 15.0
RELEASE_SECONDS = 5.0
_CUDA_ERROR_OUT_OF_MEMORY = 2


@dataclass(slots=True)
class Placeholder:
    """A child process that holds memory."""

    process: "subprocess.Popen[bytes]"

    def release(self) -> None:
        """Free the memory, and wait until it is free."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(RELEASE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Full(Exception):
    """The memory could not be allocated. uuid: the card."""

    def __init__(self, uuid: str) -> None:
        super().__init__(uuid)
        self.uuid = uuid


def hold(uuids: Sequence[str], size: int) -> Placeholder | None:
    """Hold `size` bytes of each card, including the child's CUDA context. None if libcuda is missing or does not start.

    Raises Full if a card does not have the memory.
    """
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(uuids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_build.gpu.placeholder", str(len(uuids)), str(max(0, size - CONTEXT_BYTES))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # Ctrl-C goes to the parent only, which then releases the memory
    )
    placeholder = Placeholder(process)
    assert process.stdout is not None  # noqa: S101 -- for the type checker
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    answer = process.stdout.readline().split() if ready else []
    if answer == [b"held"]:
        return placeholder
    if not ready:
        process.kill()
    placeholder.release()
    if answer[:1] == [b"full"]:
        raise Full(uuids[int(answer[1])])
    return None


def main(count: int, size: int) -> int:
    """The child: allocate the memory, print "held", and wait for the end of standard input."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 1
    if cuda.cuInit(0) != 0:
        return 1
    for ordinal in range(count):
        device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
        if cuda.cuDeviceGet(ctypes.byref(device), ordinal) != 0:
            return 1
        failed = cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) or cuda.cuCtxSetCurrent(context)
        if not failed and size:
            failed = cuda.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size))
        if failed == _CUDA_ERROR_OUT_OF_MEMORY:
            print("full", ordinal, flush=True)
            return 1
        if failed:
            return 1
    print("held", flush=True)
    sys.stdin.read()
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
