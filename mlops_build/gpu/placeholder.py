"""Memory held by a child process while this one is still getting ready, where there is no lease directory to promise it in.

What a card really holds is the only thing that others can see there. The child speaks to libcuda itself, under the mask of the chosen
cards, so that this process starts no CUDA; it lets go when it is told to, and when its parent dies (its standard input ends).
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

# A driver needs up to some seconds for its first context (persistence mode off); then it is given up as missing.
START_SECONDS = 15.0
LETTING_GO_SECONDS = 5.0
_CUDA_ERROR_OUT_OF_MEMORY = 2


@dataclass(slots=True)
class Placeholder:
    """A child that holds memory. Guards the process."""

    process: "subprocess.Popen[bytes]"

    def let_go(self) -> None:
        """Free the memory; when this returns, it is free."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        try:
            self.process.wait(LETTING_GO_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


class Full(Exception):
    """The card did not have the memory after all. uuid: which of them."""

    def __init__(self, uuid: str) -> None:
        super().__init__(uuid)
        self.uuid = uuid


def hold(uuids: Sequence[str], size: int) -> Placeholder | None:
    """Hold `size` bytes of each card, the child's own context included. None where libcuda is missing or does not start.

    Raises Full where a card has not so much.
    """
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ",".join(uuids), "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mlops_build.gpu.placeholder", str(len(uuids)), str(max(0, size - CONTEXT_BYTES))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,  # a Ctrl-C is for the parent, which then lets go
    )
    placeholder = Placeholder(process)
    assert process.stdout is not None  # noqa: S101 -- for the type checker
    ready, _, _ = select.select([process.stdout], [], [], START_SECONDS)
    said = process.stdout.readline().split() if ready else []
    if said == [b"held"]:
        return placeholder
    if not ready:
        process.kill()
    placeholder.let_go()
    if said[:1] == [b"full"]:
        raise Full(uuids[int(said[1])])
    return None


def main(count: int, size: int) -> int:
    """In the child: take the memory, say so, wait for the end of standard input."""
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
