"""Many services choose cards on a simulated node: how many fail to start, how many old services fail because of it, how even the use is.

    .venv/bin/python benchmarks/gpu_placement.py [SEEDS] [--scenario NAME] [--policy NAME] [--scale 20] [--hide-pids] [--draw]

Every service is a process: it chooses a card (with our policy through `gpu.lease`), waits as long as imports and reading weights take, and
allocates through libcuda. NVML and libcuda are the simulated ones of mlops_build.gpu.testing; locks, leases, signals and out-of-memory
errors are real. Time runs SCALE times faster than on a real node, where 2 to 20 s pass between the choice and the allocation. --hide-pids
shows no processes in NVML, as in containers; it and a choice of scenarios or policies write no result.

Compared policies: hardcoded cuda:0; RANDOM, WORST_FIT and BEST_FIT of gpu-utilities, written from its description (cards with more free
memory than requested; any, the emptiest, the fullest of them); nvitop's select_devices. Their results are used as UUIDs, which favours
gpu-utilities, whose indices mean other cards in a container.
"""

import argparse
import json
import os
import random
import select
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gpu_placement_services import POLICIES, ROOT, Service

if TYPE_CHECKING:
    from mlops_build.gpu import testing

RESULT = Path(__file__).with_suffix(".json")
SERVICES = Path(__file__).with_name("gpu_placement_services.py")
PICTURE = ROOT / "docs/reference/gpu-placement.svg"
GIB = 1 << 30
LOOK = [sys.executable, "-m", "mlops_build", "gpu", "list"]


# ── a run: one scenario, one policy, one seed, one node ──


@dataclass
class Run:
    """What happened to every service, and the orders to them."""

    node: "testing.Node"
    policy: str
    environment: dict[str, str]
    zygote: "subprocess.Popen[bytes]"
    services: dict[int, Service] = field(default_factory=dict)
    state: dict[int, str] = field(default_factory=dict)
    why: dict[int, str] = field(default_factory=dict)
    began: dict[int, float] = field(default_factory=dict)  # monotonic s
    waited: list[float] = field(default_factory=list)  # s from the start of a service until it has loaded, without its own seconds
    lost: int | None = None  # a card
    rest: bytes = b""

    def start(self, services: Sequence[Service]) -> None:
        """All of them at once; returns when each has loaded, or has not."""
        for service in services:
            self.services[service.number] = service
            self.began[service.number] = time.monotonic()
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
                number = said["number"]
                self.state[number], self.why[number] = said["event"], said["why"]
                if said["event"] == "loaded":
                    self.waited.append(said["time"] - self.began[number] - self.services[number].seconds)


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


def once(scenario: Scenario, policy: str, seed: int, scale: float, hide_pids: bool = False) -> dict[str, object]:
    from mlops_build.gpu import testing

    with tempfile.TemporaryDirectory() as scratch:
        cards = [testing.SimulatedCard(total=total, name=name, compute_capability=capability) for name, total, capability in scenario.cards]
        with testing.Node(cards, directory=Path(scratch)) as node, (Path(scratch) / "stderr").open("wb") as log:
            environment = {**os.environ, **node.view(hide_pids=hide_pids), "PYTHONPATH": str(ROOT)}
            if policy.startswith("ours without a directory"):
                environment["MLOPS_GPU_LEASE_DIR"] = f"{scratch}/nowhere"
            command = [sys.executable, str(SERVICES), policy]
            Path(scratch).chmod(0o755)  # for the old services, each of a user of its own
            (Path(scratch) / "node.state").chmod(0o666)
            with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log) as process:
                try:
                    run = Run(node, policy, environment, process)
                    scenario.play(run, random.Random(seed), scale)  # noqa: S311
                    filled = [node.used(card) / total for card, (_, total, _) in enumerate(scenario.cards) if card != run.lost]
                finally:
                    assert process.stdin
                    assert process.stdout
                    process.stdin.close()  # every service ends
                    process.stdout.read()  # until the last one has ended
    refused = run.count("refused")
    return {
        "failed": run.count("failed") + (refused if scenario.fits else 0),
        "refused": 0 if scenario.fits else refused,
        "crashed": run.count("crashed"),
        "alive": len(run.alive()),
        "max_mean": max(filled) / statistics.mean(filled) if any(filled) else 0.0,
        "waited_p50": statistics.median(run.waited or [0.0]),
        "waited_p90": sorted(run.waited or [0.0])[int(len(run.waited) * 0.9)],
        "why": sorted({why for number, why in run.why.items() if run.state[number] in ("failed", "refused", "crashed")})[:3],
    }


# ── the result ──


def table(document: dict[str, object]) -> Iterator[str]:
    for scenario, policies in document["scenarios"].items():  # type: ignore[attr-defined]
        yield f"\n{scenario}"
        yield f"{'':<28}{'failed starts':>14}{'crashed old':>13}{'refused':>9}{'alive':>7}{'max/mean':>10}{'wait p50, p90':>15}"
        for policy, one in policies.items():
            yield (
                f"{policy:<28}{one['failed']:>14.1f}{one['crashed']:>13.1f}{one['refused']:>9.1f}{one['alive']:>7.1f}"
                f"{one['max_mean']:>10.2f}{one['waited_p50']:>8.2f}{one['waited_p90']:>7.2f}"
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
    parser.add_argument("--hide-pids", action="store_true", help="NVML shows no processes, as in containers")
    parser.add_argument("--draw", action="store_true", help="only the picture, from the last result")
    arguments = parser.parse_args()
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
            (scenario.name, policy): [
                pool.submit(once, scenario, policy, seed, arguments.scale, arguments.hide_pids) for seed in range(arguments.seeds)
            ]
            for scenario, policy in asked
        }
        for (scenario, policy), futures in waiting.items():
            runs = [future.result() for future in futures]
            means = {name: round(statistics.mean(run[name] for run in runs), 2) for name in runs[0] if name != "why"}  # type: ignore[type-var]
            document["scenarios"].setdefault(scenario, {})[policy] = {**means, "why": runs[0]["why"]}  # type: ignore[attr-defined]
            print(f"{scenario}: {policy}: {means}", file=sys.stderr)
    print("\n".join(table(document)))
    if not arguments.scenario and not arguments.policy and not arguments.hide_pids:
        RESULT.write_text(json.dumps(document, indent=2) + "\n")
        draw(document)
        print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
