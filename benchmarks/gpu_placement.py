"""Many services choose cards on a simulated node: how many fail to start, how many old services fail because of it, how even the use is.

    .venv/bin/python benchmarks/gpu_placement.py [SEEDS] [--scenario NAME] [--policy NAME] [--scale 20] [--draw]

Every service is a process: it chooses a card (with our policy through `gpu.lease`), waits as long as imports and reading weights take, and
allocates through libcuda. NVML and libcuda are the simulated ones of mlops_build.gpu.testing; locks, leases, signals and out-of-memory
errors are real. Time runs SCALE times faster than on a real node, where 2 to 20 s pass between the choice and the allocation. Processes are
forked from one that has imported everything, because 40 Python starts at once would measure Python.

Compared policies: hardcoded cuda:0; RANDOM, WORST_FIT and BEST_FIT of gpu-utilities, written from its description (cards with more free
memory than requested; any, the emptiest, the fullest of them); nvitop's select_devices. Their results are used as UUIDs, which favours
gpu-utilities, whose indices mean other cards in a container.
"""

import argparse
import contextlib
import ctypes
import json
import os
import random
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULT = Path(__file__).with_suffix(".json")
PICTURE = ROOT / "docs/reference/gpu-placement.svg"
GIB = 1 << 30
CONTEXT = 300 << 20  # what the simulated CUDA context takes on a card, as a real one does; a service's need includes it
LOOK = [sys.executable, "-m", "mlops_build", "gpu", "list"]
POLICIES = ("cuda:0", "RANDOM", "WORST_FIT", "BEST_FIT", "nvitop", "ours without a directory", "ours")


# ── a service: runs in a process of its own, forked from the zygote below ──


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
        os.write(1, (json.dumps({"number": service.number, "event": event, "why": str(why)[:300]}) + "\n").encode())

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


def zygote(policy: str) -> None:
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


# ── a run: one scenario, one policy, one seed, one node ──


@dataclass
class Run:
    """What happened to every service, and the orders to them."""

    node: "testing.Node"  # noqa: F821
    policy: str
    environment: dict[str, str]
    zygote: "subprocess.Popen[bytes]"
    services: dict[int, Service] = field(default_factory=dict)
    state: dict[int, str] = field(default_factory=dict)
    why: dict[int, str] = field(default_factory=dict)
    lost: int | None = None  # a card
    rest: bytes = b""

    def start(self, services: Sequence[Service]) -> None:
        """All of them at once; returns when each has loaded, or has not."""
        for service in services:
            self.services[service.number] = service
            self._order(vars(service))
        self._wait([service.number for service in services], {"loaded", "failed", "refused"})

    def tell(self, what: str, numbers: Sequence[int]) -> None:
        """Grow ("g") or shrink ("s"), one after the other's order, not one after the other."""
        told = [number for number in numbers if number in self.alive()]
        for number in told:
            self.state[number] = "told"
            self._order({"tell": what, "number": number})
        self._wait(told, {"grown", "shrunk", "crashed"})

    def alive(self) -> list[int]:
        return [number for number, state in self.state.items() if state in ("loaded", "grown", "shrunk")]

    def count(self, state: str) -> int:
        return list(self.state.values()).count(state)

    def _order(self, order: dict[str, object]) -> None:
        assert self.zygote.stdin
        self.zygote.stdin.write((json.dumps(order) + "\n").encode())
        self.zygote.stdin.flush()

    def _wait(self, numbers: Sequence[int], events: set[str]) -> None:
        assert self.zygote.stdout
        deadline = time.monotonic() + 120
        while any(self.state.get(number) not in events for number in numbers):
            if not select.select([self.zygote.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"{self.policy}: no word from {[n for n in numbers if self.state.get(n) not in events]}")
            read = os.read(self.zygote.stdout.fileno(), 65536)
            if not read:
                raise RuntimeError(f"{self.policy}: the zygote ended with {self.zygote.wait()}")
            *lines, self.rest = (self.rest + read).split(b"\n")
            for line in lines:
                said = json.loads(line)
                self.state[said["number"]], self.why[said["number"]] = said["event"], said["why"]


# ── the scenarios of a node with eight cards ──


@dataclass(frozen=True)
class Scenario:
    """`fits`: a placement of every service exists, so a refusal is a failed start."""

    name: str
    about: str
    fits: bool
    cards: tuple[tuple[str, int, tuple[int, int]], ...]
    play: Callable[[Run, random.Random, float], None]


L4, T4, A40 = ("NVIDIA L4", 24 * GIB, (8, 9)), ("Tesla T4", 16 * GIB, (7, 5)), ("NVIDIA A40", 48 * GIB, (8, 6))
LIKE = (L4,) * 8
MIXED = (T4, L4, A40, L4, T4, L4, A40, L4)


def newcomers(number: int, dice: random.Random, scale: float, first: int = 0, share: float = 1.0) -> list[Service]:
    """Services of 1 to 6 GiB that take 2 to 20 s between choosing and having allocated."""
    return [Service(first + n, int(dice.uniform(1, 6) * GIB), dice.uniform(2, 20) / scale, share) for n in range(number)]


def fits(services: Sequence[Service], cards: Sequence[int]) -> bool:
    """Is there a placement of all of them? Largest first into the emptiest card finds one, or we do not claim that there is."""
    left = list(cards)
    for service in sorted(services, key=lambda one: -one.need):
        place = max(range(len(left)), key=lambda card: left[card])
        left[place] -= service.need
    return min(left) >= 0


def bursts(run: Run, dice: random.Random, scale: float) -> None:
    services = newcomers(40, dice, scale)
    while not fits(services, [int(card.total) for number, card in enumerate(run.node.cards) if number != run.lost]):
        services = newcomers(40, dice, scale)
    run.start(services[:20])
    run.start(services[20:])


def lost_card(run: Run, dice: random.Random, scale: float) -> None:
    run.lost = 3
    run.node.lose(run.lost)
    bursts(run, dice, scale)


def growth(run: Run, dice: random.Random, scale: float) -> None:
    """Four waves load half of what they will need; each grows before the next comes."""
    services = newcomers(56, dice, scale, share=0.5)
    for wave in range(0, 56, 14):
        run.start(services[wave : wave + 14])
        run.tell("g", range(wave, wave + 14))


def unleased(known: str) -> Callable[[Run, random.Random, float], None]:
    """24 old services, every other one without a lease, were at their peak and are at half; 32 come; the old ones go back to their peak."""

    def play(run: Run, dice: random.Random, scale: float) -> None:
        old = [
            replace(one, card=str(run.node.cards[n % 8].uuid), leased=n % 2 == 0, uid=20000 + n if n % 2 else 0)
            for n, one in enumerate(newcomers(24, dice, scale, share=0.5))
        ]
        if known == "declared":
            rules = [f'[[neighbour]]\nname = "old-{one.number}"\nuid = {one.uid}\nmemory = "{one.need}"\n' for one in old if one.uid]
            Path(run.node.environment["MLOPS_GPU_CONFIG"]).write_text("\n".join(rules))
        run.start(old)
        run.tell("g", range(24))
        if known == "peak" and run.policy.startswith("ours"):  # somebody looked at the node while they were at their peak
            for pause in (5.1, 5.1, 0):  # as an exporter does: only what stays for some seconds, from one look to the next, is a peak
                subprocess.run(LOOK, env=run.environment, stdout=subprocess.DEVNULL, check=True)
                time.sleep(pause)
        run.tell("s", range(24))
        services = newcomers(32, dice, scale, first=24, share=0.5)
        run.start(services[:16])
        run.start(services[16:])
        run.tell("g", range(24))
        run.tell("g", range(24, 56))

    return play


SCENARIOS = (
    Scenario("bursts", "8 × 24 GiB, 40 services in two bursts of 20", True, LIKE, bursts),
    Scenario("mixed node", "the same on 2 × 16, 4 × 24 and 2 × 48 GiB", True, MIXED, bursts),
    Scenario("lost card", "the mixed node, one of its cards lost", True, MIXED, lost_card),
    Scenario("growth", "56 services load half of what they will need, in four waves; more than fits", False, LIKE, growth),
    Scenario("growth, half unleased, peaks seen", "24 old services, half of them unleased; 32 come", False, LIKE, unleased("peak")),
    Scenario("growth, half unleased, declared", "the same, never seen at their peak but declared", False, LIKE, unleased("declared")),
)


def once(scenario: Scenario, policy: str, seed: int, scale: float) -> dict[str, object]:
    from mlops_build.gpu import testing

    with tempfile.TemporaryDirectory() as scratch:
        cards = [testing.SimulatedCard(total=total, name=name, compute_capability=capability) for name, total, capability in scenario.cards]
        with testing.Node(cards, directory=Path(scratch)) as node, (Path(scratch) / "stderr").open("wb") as log:
            environment = {**os.environ, **node.environment, "PYTHONPATH": str(ROOT)}
            if policy == "ours without a directory":
                environment["MLOPS_GPU_LEASE_DIR"] = f"{scratch}/nowhere"
            command = [sys.executable, __file__, "--zygote", policy]
            Path(scratch).chmod(0o755)  # for the old services, each of a user of its own
            (Path(scratch) / "node.state").chmod(0o666)
            with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process:
                try:
                    run = Run(node, policy, environment, process)
                    scenario.play(run, random.Random(seed), scale)  # noqa: S311
                    filled = [node.used(card) / total for card, (_, total, _) in enumerate(scenario.cards) if card != run.lost]
                finally:
                    assert process.stdin
                    process.stdin.close()  # the end of everybody
    refused = run.count("refused")
    return {
        "failed": run.count("failed") + (refused if scenario.fits else 0),
        "refused": 0 if scenario.fits else refused,
        "crashed": run.count("crashed"),
        "alive": len(run.alive()),
        "max_mean": max(filled) / statistics.mean(filled) if any(filled) else 0.0,
        "why": sorted({why for number, why in run.why.items() if run.state[number] in ("failed", "refused", "crashed")})[:3],
    }


# ── the result ──


def table(document: dict[str, object]) -> Iterator[str]:
    for scenario, policies in document["scenarios"].items():  # type: ignore[attr-defined]
        yield f"\n{scenario}"
        yield f"{'':<28}{'failed starts':>14}{'crashed old':>13}{'refused':>9}{'alive':>7}{'max/mean':>10}"
        for policy, one in policies.items():
            yield (
                f"{policy:<28}{one['failed']:>14.1f}{one['crashed']:>13.1f}{one['refused']:>9.1f}{one['alive']:>7.1f}"
                f"{one['max_mean']:>10.2f}"
            )


def draw(document: dict[str, object]) -> None:
    """Two bars a policy: services that could not start though there was room, and old services that died."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "gpu-placement", "font.size": 9, "font.family": "sans-serif", "svg.fonttype": "none"})
    from matplotlib import pyplot

    scenarios: dict[str, dict[str, dict[str, float]]] = document["scenarios"]  # type: ignore[assignment]
    figure, axes = pyplot.subplots(2, 3, figsize=(11, 5.6), sharex=True, sharey=True)
    for axis, (scenario, policies) in zip(axes.flat, scenarios.items(), strict=False):
        names = list(policies)[::-1]
        failed, crashed = ([policies[name][what] for name in names] for what in ("failed", "crashed"))
        axis.barh(names, failed, color="#d98c3f", label="could not start")
        axis.barh(names, crashed, left=failed, color="#a8323e", label="old services that crashed")
        for row, total in enumerate(map(sum, zip(failed, crashed, strict=True))):
            axis.text(total + 0.5, row, f"{total:.1f}".removesuffix(".0"), va="center", fontsize=8)
        axis.set_title(scenario, fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].set_xlim(0, 58)
    axes.flat[0].legend(loc="lower right", frameon=False, fontsize=8)
    figure.supxlabel("services, mean of the seeds", fontsize=9)
    figure.tight_layout()
    figure.savefig(PICTURE, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", nargs="?", type=int, default=3)
    parser.add_argument("--scenario", action="append", choices=[scenario.name for scenario in SCENARIOS])
    parser.add_argument("--policy", action="append", choices=POLICIES)
    parser.add_argument("--scale", type=float, default=20.0, help="how many times faster than on a node")
    parser.add_argument("--jobs", type=int, default=3, help="nodes at once; they mostly wait")
    parser.add_argument("--draw", action="store_true", help="only the picture, from the last result")
    parser.add_argument("--zygote", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.zygote:
        zygote(arguments.zygote)
        return
    if arguments.draw:
        draw(json.loads(RESULT.read_text()))
        return
    asked = [
        (scenario, policy)
        for scenario in SCENARIOS
        for policy in POLICIES
        if scenario.name in (arguments.scenario or [scenario.name]) and policy in (arguments.policy or POLICIES)
    ]
    began = time.monotonic()
    document: dict[str, object] = {"seeds": arguments.seeds, "scale": arguments.scale, "python": sys.version.split()[0], "scenarios": {}}
    with ThreadPoolExecutor(arguments.jobs) as pool:
        waiting = {
            (scenario.name, policy): [pool.submit(once, scenario, policy, seed, arguments.scale) for seed in range(arguments.seeds)]
            for scenario, policy in asked
        }
        for (scenario, policy), futures in waiting.items():
            runs = [future.result() for future in futures]
            means = {name: round(statistics.mean(run[name] for run in runs), 2) for name in runs[0] if name != "why"}  # type: ignore[type-var]
            document["scenarios"].setdefault(scenario, {})[policy] = {**means, "why": runs[0]["why"]}  # type: ignore[attr-defined]
            print(f"{scenario}: {policy}: {means}", file=sys.stderr)
    print("\n".join(table(document)))
    if not arguments.scenario and not arguments.policy:
        RESULT.write_text(json.dumps(document, indent=2) + "\n")
        draw(document)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
