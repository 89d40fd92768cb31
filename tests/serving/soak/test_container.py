"""The image at the memory limit of the template, with hostile callers, and normal ones whose answers are checked (`make soak`).

There are two rounds of all attacks, each attack alone and then all at once, in SOAK_MINUTES (30) together. The figures are printed, and
appended to the file SOAK_RECORD; docs/reference/benchmarks.md has the latest. SOAK_IMAGE: an image that an earlier run has built.
"""

import os
import random
import resource
import secrets
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from mlops_build.quantity import parse_bytes
from mlops_build.serving.app import CHECK_SECONDS
from mlops_build.serving.http import body
from tests.ci.conftest import answer, client, engine
from tests.ci.test_image import container
from tests.serving.conftest import free_port
from tests.serving.soak import hostile, served
from tests.serving.soak.callers import Address, Caller, Prober, Tally
from tests.serving.test_soak import record

__all__ = ["engine"]
pytestmark = [pytest.mark.soak, pytest.mark.docker, pytest.mark.real_python]

MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
ROUNDS = 2
TEMPLATE = Path(__file__).parents[3] / "template/service.yaml.jinja"
CALLERS, ENEMIES = 4, 4
# After the first round, memory is flat: the allocator has the blocks of each kind of body. MORE_BYTES is the noise of a minute.
MORE_BYTES = 32 << 20
# In the first round, the process may keep this part of the memory limit.
KEPT_PART = 0.65
# Threads that start with their first work: those for bodies, one that returns memory, three of pyarrow (for columns, for files, of its
# allocator), and PyTorch's for the cores of this machine.
MORE_THREADS = body.THREADS + 1 + 3 + (os.cpu_count() or 1)
# A single probe may be refused while hundreds of connections are opened at once.
FAILED_PROBES = 2
# Connections that the kernel has not closed yet.
MORE_FILES = 20
# Open files of the container, and of this process. No more than this machine allows.
_, HARD = resource.getrlimit(resource.RLIMIT_NOFILE)
FILES = 65_536 if HARD == resource.RLIM_INFINITY else min(65_536, HARD)
PHASES = {name: [attack] for name, attack in hostile.ATTACKS.items()} | {"all": list(hostile.ATTACKS.values())}


@dataclass
class Watched:
    """The process of the container. pid: on this machine."""

    name: str
    pid: int
    address: Address

    def memory(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def threads(self) -> int:
        return psutil.Process(self.pid).num_threads()

    def files(self) -> int:
        return psutil.Process(self.pid).num_fds()

    def most_memory(self) -> int:
        """The highest resident memory since the start, in bytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) << 10

    def state(self) -> str:
        return client("inspect", "--format", "{{.State.Pid}} {{.State.Running}} {{.State.OOMKilled}} {{.RestartCount}}", self.name)


def memory_limit() -> int:
    """The memory of an environment in the template's service.yaml, in bytes."""
    return parse_bytes(next(line for line in TEMPLATE.read_text().splitlines() if "memory:" in line and "GiB" in line).split()[1])


@pytest.fixture(scope="module")
def image(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    del engine
    if name := os.environ.get("SOAK_IMAGE"):
        yield name
        return
    name = f"mlops-build-soak:{secrets.token_hex(4)}"
    served.build(served.context(tmp_path_factory.mktemp("soak")), name)
    yield name
    client("image", "rm", "--force", name)


@pytest.fixture
def watched(image: str) -> Iterator[Watched]:
    port = free_port()
    limit = str(memory_limit())
    strict = ["--user", "10001:10001", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
    limits = ["--memory", limit, "--memory-swap", limit, "--ulimit", f"nofile={FILES}:{FILES}"]
    with container(*strict, *limits, image, "--port", str(port), "--host", "127.0.0.1") as name:
        try:
            answer(f"http://127.0.0.1:{port}/health")
            yield Watched(name, int(client("inspect", "--format", "{{.State.Pid}}", name)), ("127.0.0.1", port))
        finally:
            done = subprocess.run([os.environ["DOCKER_CLI"], "logs", name], capture_output=True, text=True, timeout=60, check=False)
            lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
            print("\n".join(lines[-60:]))  # pytest shows it after a failure


def attack(watched: Watched, attacks: list[hostile.Attack], end: float, seed: int, received: "Counter[str]") -> None:
    dice = random.Random(seed)  # noqa: S311
    while time.monotonic() < end:
        with suppress(OSError):  # the container may be gone, which the test reports
            received.update(dice.choice(attacks)(watched.address, dice))


@dataclass(frozen=True)
class Size:
    """What a process holds. memory: bytes."""

    memory: int
    threads: int
    files: int


class Soak:
    """One container and its callers. sizes: after each phase, by round and name."""

    def __init__(self, watched: Watched) -> None:
        self.watched, self.tally, self.stop = watched, Tally(), threading.Event()
        self.state = watched.state()
        self.sizes: dict[tuple[int, str], Size] = {}
        self._callers: list[threading.Thread] = [Caller(watched.address, number, self.stop, self.tally) for number in range(CALLERS)]
        self._callers.append(Prober(watched.address, self.stop, self.tally))
        for thread in self._callers:
            thread.start()

    def phase(self, number: int, name: str, attacks: list[hostile.Attack], seconds: float) -> None:
        """Run these attacks for some seconds beside the normal callers, then measure the process."""
        received: Counter[str] = Counter()
        before = Counter(self.tally.statuses)
        end = time.monotonic() + seconds
        enemies = [
            threading.Thread(target=attack, args=(self.watched, attacks, end, seed, received), daemon=True)
            for seed in range(ENEMIES if attacks else 0)
        ]
        for thread in enemies:
            thread.start()
        time.sleep(max(0.0, end - time.monotonic()))
        for thread in enemies:
            thread.join(timeout=90)
        assert self.watched.state() == self.state, f"{name}: {self.watched.state()}"
        self._settle()
        size = self.sizes[number, name] = Size(self.watched.memory(), self.watched.threads(), self.watched.files())
        record(
            f"soak {number}: {name}",
            hostile=dict(received),
            normal=dict(self.tally.statuses - before),
            memory_mib=size.memory >> 20,
            most_mib=self.watched.most_memory() >> 20,
            slowest_health_s=round(self.tally.slowest_probe, 2),
            threads=size.threads,
            files=size.files,
        )

    def _settle(self) -> None:
        """Wait until the connections of the attack are closed: at most until a request must have arrived and its answer must be read."""
        most = next(iter(self.sizes.values())).files + MORE_FILES if self.sizes else FILES
        end = time.monotonic() + 75
        while self.watched.files() > most and time.monotonic() < end:
            time.sleep(0.5)
        time.sleep(3 * CHECK_SECONDS)  # for the memory that the service returns

    def finish(self) -> None:
        self.stop.set()
        for thread in self._callers:
            thread.join(timeout=70)
        tally = self.tally
        requests = max(1, sum(tally.statuses.values()))
        memory = [size.memory >> 20 for size in self.sizes.values()]
        record(
            "soak",
            minutes=MINUTES,
            limit_mib=memory_limit() >> 20,
            requests=requests,
            by_status=dict(tally.statuses),
            refused_part=round((tally.statuses["429"] + tally.statuses["503"]) / requests, 4),
            wrong=tally.wrong[:5],
            lost=dict(tally.lost),
            probes=dict(tally.probes),
            failed_probes_in_a_row=tally.failed_in_a_row,
            slowest_health_s=round(tally.slowest_probe, 2),
            memory_mib={"start": memory[:1], "least": min(memory, default=0), "most": max(memory, default=0), "end": memory[-1:]},
        )


def test_hostile_and_normal_traffic(watched: Watched) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, HARD))
    hostile.prepare()
    seconds = MINUTES * 60 / (ROUNDS * len(PHASES) + 1)
    soak = Soak(watched)
    try:
        soak.phase(0, "normal callers only", [], seconds)
        for number in range(1, ROUNDS + 1):
            for name, attacks in PHASES.items():
                soak.phase(number, name, attacks, seconds)
    finally:
        soak.finish()
    tally = soak.tally
    assert not tally.wrong, "\n".join(tally.wrong)
    assert tally.without_retry == 0
    # The kubelet restarts a pod after six failed probes in a row, and sends it no requests after three.
    assert tally.failed_in_a_row < FAILED_PROBES, tally.probes
    assert tally.statuses["200"] > 100
    start, *later = soak.sizes.values()
    assert max(size.threads for size in later) <= start.threads + MORE_THREADS, soak.sizes
    assert max(size.files for size in later) <= start.files + MORE_FILES, soak.sizes
    by_round = [max(size.memory for (number, _), size in soak.sizes.items() if number == wanted) for wanted in range(1, ROUNDS + 1)]
    assert by_round[0] <= KEPT_PART * memory_limit(), soak.sizes
    assert by_round[-1] <= by_round[0] + MORE_BYTES, soak.sizes
