"""nvitop and gpustat, unmodified and as processes, on a simulated node."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_build.gpu import testing
from mlops_build.gpu.testing import SimulatedCard
from tests.gpu.conftest import MakeNode

GIB = 2**30
BIN = Path(sys.executable).parent


def run(program: str, *arguments: str, on: dict[str, str]) -> str:
    if not (BIN / program).exists():
        pytest.skip(f"{program} is not installed")
    done = subprocess.run([str(BIN / program), *arguments], env=on, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Error" not in done.stderr, done.stderr
    return done.stdout


@pytest.fixture
def busy(node: MakeNode) -> testing.Node:
    """Two identical cards: the first with a service of 4 GiB, the second with 1 GiB that belongs to no process."""
    made = node("24GiB", SimulatedCard(used="1GiB", temperature=61, power_watts=55, utilisation=42))
    made.start("4GiB", load_seconds=0, name="recommender").wait_for("loaded")
    return made


def test_nvitop_shows_the_cards_and_their_processes(busy: testing.Node) -> None:
    shown = run("nvitop", "-1", on=busy.environment)
    (pid,) = busy.processes(0)
    assert "4096MiB / 24.00GiB" in shown
    assert "61C" in shown
    assert "42%" in shown
    assert any(str(pid) in line and "4096MiB" in line for line in shown.splitlines())


def test_nvitop_selects_by_free_memory(busy: testing.Node, run_python: Callable[..., str]) -> None:
    first, second = (card.uuid for card in busy.cards)
    assert run("nvisel", "--format", "uuid", "--count", "1", on=busy.environment).strip() == second
    selected = run_python('import nvitop; print(*nvitop.select_devices(format="uuid", sort=True))', busy.environment)
    assert selected.split() == [second, first]


def test_gpustat_shows_the_cards_and_their_processes(busy: testing.Node) -> None:
    first, second = json.loads(run("gpustat", "--json", on=busy.environment))["gpus"]
    (pid,) = busy.processes(0)
    assert (first["memory.used"], first["memory.total"]) == (4096, 24576)
    assert [(process["pid"], process["gpu_memory_usage"]) for process in first["processes"]] == [(pid, 4096)]
    assert (second["memory.used"], second["temperature.gpu"], second["utilization.gpu"]) == (1024, 61, 42)


def test_they_run_on_a_node_with_a_lost_and_a_divided_card(node: MakeNode) -> None:
    made = node("24GiB", SimulatedCard(total="80GiB", name="NVIDIA A100", compute_capability=(8, 0)), "24GiB")
    made.mig(1, ["10GiB", "40GiB"])
    made.lose(2)
    shown = run("nvitop", "-1", on=made.environment)
    assert "1g.10gb" in shown
    assert "GPU is Lost" in shown
    gpus = json.loads(run("gpustat", "--json", on=made.environment))["gpus"]
    assert [gpu.get("memory.total") for gpu in gpus] == [24576, 81920, None]
