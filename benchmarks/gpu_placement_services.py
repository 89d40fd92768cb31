"""A service of the placement benchmark (gpu_placement.py), its policies, and the process that forks services.

    python benchmarks/gpu_placement_services.py POLICY     # reads orders from standard input, a JSON object per line

Processes are forked from one that has imported everything, because 40 Python starts at once would measure Python.
"""

import contextlib
import ctypes
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
CONTEXT = 300 << 20  # what the simulated CUDA context takes on a card, as a real one does; a service's need includes it
POLICIES = ("cuda:0", "RANDOM", "WORST_FIT", "BEST_FIT", "nvitop", "ours without a directory", "ours")


@dataclass(frozen=True)
class Service:
    """need: its budget, which it never exceeds. It starts with `share` of that, `seconds` after its choice."""

    number: int
    need: int
    seconds: float
    share: float = 1.0
    card: str = ""  # a UUID: where an old service already lives; "" chooses
    leased: bool = True  # with our policy only
    uid: int = 0


class OutOfMemory(Exception):
    pass


class Cuda:
    """libcuda, as far as a service needs it, on ordinal 0: the mask has made that the chosen card."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libcuda.so.1")
        device, context = ctypes.c_int(), ctypes.c_void_p()
        for code in (
            self.library.cuInit(0),
            self.library.cuDeviceGet(ctypes.byref(device), 0),
            self.library.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
            self.library.cuCtxSetCurrent(context),
        ):
            if code:
                raise OutOfMemory(f"CUDA error {code}")

    def allocate(self, size: int) -> ctypes.c_uint64:
        pointer = ctypes.c_uint64()
        if code := self.library.cuMemAlloc_v2(ctypes.byref(pointer), ctypes.c_size_t(size)):
            raise OutOfMemory(f"CUDA error {code} for {size} bytes")
        return pointer

    def free(self, pointer: ctypes.c_uint64) -> None:
        self.library.cuMemFree_v2(pointer)


def free_memory() -> list[tuple[int, str]]:
    """As gpu-utilities looks: one card that cannot be read takes all of them along."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
    cards = [(int(pynvml.nvmlDeviceGetMemoryInfo(handle).free), str(pynvml.nvmlDeviceGetUUID(handle))) for handle in handles]
    pynvml.nvmlShutdown()
    return cards


def nvitop_choice(need: int) -> str:
    from nvitop import select_devices

    return str(select_devices(format="uuid", max_count=1, min_free_memory=need)[0])


BASELINES: dict[str, Callable[[int], str]] = {
    "RANDOM": lambda need: random.choice([card for card in free_memory() if card[0] > need])[1],  # noqa: S311
    "WORST_FIT": lambda need: max((card for card in free_memory() if card[0] > need), key=lambda card: card[0])[1],
    "BEST_FIT": lambda need: min((card for card in free_memory() if card[0] > need), key=lambda card: card[0])[1],
    "nvitop": nvitop_choice,
}


@contextlib.contextmanager
def chosen(policy: str, service: Service) -> Iterator[Callable[[], contextlib.AbstractContextManager[object]]]:
    """The card is chosen and the mask set; gives what stands around loading."""
    if policy.startswith("ours") and service.leased:
        from mlops_build import gpu

        with gpu.lease(service.need, uuids=(service.card,) if service.card else (), service=f"service-{service.number}") as lease:
            yield lease.loading
        return
    uuid = service.card or ("" if policy == "cuda:0" else BASELINES[policy](service.need))
    if uuid:
        os.environ["CUDA_VISIBLE_DEVICES"] = uuid
    yield contextlib.nullcontext


def serve(policy: str, service: Service, orders: int) -> None:
    """Says chosen or refused; loaded or failed; then, as ordered, grown or crashed, shrunk. Ends when the orders end."""

    def say(event: str, why: object = "") -> None:
        line = {"number": service.number, "event": event, "time": time.monotonic(), "why": str(why)[:300]}
        os.write(1, (json.dumps(line) + "\n").encode())

    if service.uid:
        os.setuid(service.uid)
    random.seed()
    with contextlib.ExitStack() as stack:
        try:
            loading = stack.enter_context(chosen(policy, service))
        except Exception as error:  # whatever keeps a service from choosing, it does not start
            say("refused", f"{type(error).__name__}: {error}")
            return
        say("chosen", os.environ.get("CUDA_VISIBLE_DEVICES", ""))
        time.sleep(service.seconds / 2)  # imports, which need no card
        try:
            with loading():
                cuda = Cuda()
                first = int(service.need * service.share) - CONTEXT
                for _ in range(4):
                    time.sleep(service.seconds / 8)
                    cuda.allocate(first // 4)
        except (OutOfMemory, OSError) as error:
            say("failed", error)
            return
        say("loaded")
        grown: list[ctypes.c_uint64] = []
        while order := os.read(orders, 1):
            try:
                if order == b"g" and not grown:
                    grown.append(cuda.allocate(int(service.need * (1 - service.share))))
                if order == b"s" and grown:
                    cuda.free(grown.pop())
            except OutOfMemory as error:
                say("crashed", error)
                return
            say("shrunk" if order == b"s" else "grown")


def main(policy: str) -> None:
    """Forks a service for each order to start one, and passes orders on. What it imports, nobody imports again."""
    import pynvml

    assert pynvml
    for library in ("libnvidia-ml.so.1", "libcuda.so.1"):  # for services of other users, who may not read this one's cache
        ctypes.CDLL(library)
    if policy == "nvitop":
        import nvitop  # noqa: F401
    if policy.startswith("ours"):
        from mlops_build import gpu

        assert gpu.lease
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    orders: dict[int, int] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "tell" in order:
            with contextlib.suppress(BrokenPipeError):  # it has crashed, and has said so
                os.write(orders[order["number"]], order["tell"].encode())
            continue
        service = Service(**order)
        reader, writer = os.pipe()
        if os.fork() == 0:
            try:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                for other in (*orders.values(), writer):  # or no service would notice the end of its orders
                    os.close(other)
                serve(policy, service, reader)
            finally:
                os._exit(0)
        os.close(reader)
        orders[service.number] = writer


if __name__ == "__main__":
    main(sys.argv[1])
