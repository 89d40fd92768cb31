"""A simulated service: it loads a "model" onto cuda:0 without a lease, and keeps running.

    python -m mlops_build.gpu.testing.service --memory 4GiB --load-seconds 2 --grow-to 6GiB --grow-after 10

It uses libcuda.so.1 like a real program (cuInit, a primary context, cuMemAlloc), so CUDA_VISIBLE_DEVICES has effect. It prints each event
as a JSON line on stdout: "started" (with the card's uuid), "loaded", "grown", "out of memory". Exit codes: 0 after SIGTERM or SIGINT, 77
out of memory, 1 without a driver or card. It can be run by its path without the package, and then starts in a few milliseconds.
"""

import argparse
import ctypes
import json
import os
import signal
import sys

OUT_OF_MEMORY = 77
_CUDA_OUT_OF_MEMORY = 2
_ENDING = {signal.SIGTERM, signal.SIGINT}


class _CudaError(Exception):
    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} failed with code {code}")
        self.code = code


class _Cuda:
    """The primary context of a card."""

    def __init__(self, ordinal: int) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")
        self._library.cuMemAlloc_v2.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        self._library.cuCtxSetCurrent.argtypes = [ctypes.c_void_p]
        self.device = ctypes.c_int()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", ctypes.byref(self.device), ordinal)

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code:
            raise _CudaError(name, code)

    def uuid(self) -> str:
        buffer = (ctypes.c_ubyte * 16)()
        self._call("cuDeviceGetUuid_v2", buffer, self.device)
        digits = bytes(buffer).hex()
        return "-".join([digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]])

    def start(self) -> int:
        """Create the context and return its size in bytes; 0 with a real driver, which does not report it."""
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self._call("cuCtxSetCurrent", context)
        size = ctypes.c_uint64()
        if hasattr(self._library, "simulatedContextBytes"):
            self._call("simulatedContextBytes", ctypes.byref(size))
        return size.value

    def allocate(self, amount: int) -> None:
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), amount)


def _say(event: str, **details: object) -> None:
    print(json.dumps({"event": event, "pid": os.getpid(), **details}), flush=True)


def _pause(seconds: float | None) -> None:
    """Wait for this time, or for a signal to end; None: without a time limit."""
    ended = signal.sigwait(_ENDING) if seconds is None else signal.sigtimedwait(_ENDING, max(0.0, seconds))
    if ended:
        raise SystemExit(0)


def _bytes(text: str) -> int:
    if text.isdigit():
        return int(text)
    from mlops_build.quantity import parse_bytes  # not importable when run by path; sizes are then bytes

    return parse_bytes(text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m mlops_build.gpu.testing.service", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--memory", type=_bytes, required=True, help="memory once loaded, including the context, such as 4GiB")
    parser.add_argument("--load-seconds", type=float, default=0.0, help="duration of loading")
    parser.add_argument("--steps", type=int, default=4, help="number of allocations while it loads")
    parser.add_argument("--grow-to", type=_bytes, help="memory after it has grown")
    parser.add_argument("--grow-after", type=float, default=0.0, help="seconds from loading to growing")
    parser.add_argument("--ordinal", type=int, default=0, help="the N of the hardcoded cuda:N")
    parser.add_argument("--name", default="service", help="a name, visible in the command line")
    return parser.parse_args()


def main() -> int:
    arguments = _arguments()
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)  # _pause receives them
    held = 0
    try:
        cuda = _Cuda(arguments.ordinal)
        _say("started", uuid=cuda.uuid())
        held = cuda.start()
        steps = max(1, arguments.steps)
        to_load = max(0, arguments.memory - held)
        for step in range(steps):
            _pause(arguments.load_seconds / steps)
            amount = to_load * (step + 1) // steps - to_load * step // steps
            if amount:
                cuda.allocate(amount)
                held += amount
        _say("loaded", held_bytes=held)
        if arguments.grow_to is not None:
            _pause(arguments.grow_after)
            if arguments.grow_to > held:
                cuda.allocate(arguments.grow_to - held)
                held = arguments.grow_to
            _say("grown", held_bytes=held)
        _pause(None)
    except _CudaError as error:
        if error.code != _CUDA_OUT_OF_MEMORY:
            print(f"simulated service: {error}", file=sys.stderr)
            return 1
        _say("out of memory", held_bytes=held)
        print(f"simulated service: CUDA out of memory with {held} bytes held: {error}", file=sys.stderr)
        return OUT_OF_MEMORY
    except OSError as error:
        print(f"simulated service: no CUDA driver: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
