"""Tests on a real NVIDIA card. Skipped with the reason if there is none.

They have their lease directory to themselves, and take little: two GiB of a card that has them to spare. `tests/gpu/test_device.py` runs
those that need no torch on the simulated node, so that they are known to run at all.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_build import gpu

ROOT = Path(__file__).resolve().parents[2]
NEEDED = 4 << 30
# Runs a program on the card in a separate process, since CUDA reads its mask once: program(code, *arguments) -> its output.
Program = Callable[..., str]


def _why_not() -> str | None:
    try:
        cards = gpu.cards()
    except gpu.NoDriver as error:
        return f"no NVIDIA card here: {error}"
    if not any(card.trouble is None and card.left_bytes >= NEEDED for card in cards):
        return f"no card with {NEEDED >> 30} GiB to spare"
    return None


@pytest.fixture(scope="session", autouse=True)
def card() -> None:
    if why := _why_not():
        pytest.skip(why)


@pytest.fixture(scope="session")
def torch_card() -> None:
    """Skips the test without torch with CUDA. Checked in another process, since the check would start CUDA in this one."""
    program = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 4)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        pytest.skip("torch sees no CUDA here" if done.returncode == 4 else f"no torch here: {done.stderr.strip().splitlines()[-1:]}")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    leases = tmp_path / "leases"
    leases.mkdir(mode=0o1777)
    return {**os.environ, "MLOPS_GPU_LEASE_DIR": str(leases), "PYTHONPATH": str(ROOT)}


@pytest.fixture
def program(environment: dict[str, str]) -> Program:
    def run(code: str, *arguments: str, expect: int = 0) -> str:
        command = [sys.executable, "-c", code, *arguments]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == expect, done.stderr
        return done.stdout.strip()

    return run
