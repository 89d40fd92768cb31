"""A service that shares a card: it leases through the public API, allocates with libcuda and prints events.

    python -m tests.gpu.tenant '{"memory": "4GiB"}' [BYTES [SECONDS]]

The first argument is what `gpu.lease` gets; then how much it allocates and how long that takes. One JSON line each: `leased`, `loaded`
(or `full`), `refused`, `released`; warnings go to stderr. After loading it ends when its stdin does.
"""

import ctypes
import json
import os
import sys
import time

from mlops_build import gpu
from mlops_build.errors import MlopsBuildError


def say(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, "pid": os.getpid(), **facts}), flush=True)


def allocate(size: int) -> int:
    """CUDA's error code, 0 for success: the memory stays taken until the process ends."""
    library = ctypes.CDLL("libcuda.so.1")
    device, context, pointer = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    return (
        library.cuInit(0)
        or library.cuDeviceGet(ctypes.byref(device), 0)
        or library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
        or library.cuCtxSetCurrent(context)
        or library.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size))
    )


def main(wishes: str, size: str = "0", seconds: str = "0") -> int:
    try:
        with gpu.lease(**json.loads(wishes)) as lease:
            say("leased", uuids=list(lease.uuids), mask=os.environ.get("CUDA_VISIBLE_DEVICES"), cpu=lease.cpu)
            if int(size):
                with lease.loading():
                    time.sleep(float(seconds))
                    code = allocate(int(size))
                say("full" if code else "loaded", code=code)
            sys.stdin.read()
        say("released")
    except MlopsBuildError as error:
        say("refused", error=type(error).__name__, message=error.message, remedy=error.remedy)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
