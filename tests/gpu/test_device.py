"""The tests for a real card (tests/gpu_device) that do not need torch, on a simulated node."""

import os
import re
import subprocess
import sys

import pytest

from mlops_build.gpu import testing
from tests.gpu.conftest import ROOT, MakeNode


@pytest.mark.soak
def test_the_tests_for_a_real_card_pass_on_a_simulated_one(node: MakeNode) -> None:
    made = node(testing.SimulatedCard(), testing.SimulatedCard(total="16GiB", compute_capability=(9, 0)), context="300MiB")
    command = [sys.executable, "-m", "pytest", "-q", "-rsfE", "-p", "no:cacheprovider", "tests/gpu_device"]
    done = subprocess.run(
        command, env={**os.environ, **made.environment}, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) == 7, done.stdout  # noqa: PT018
    assert set(re.findall(r"SKIPPED .*?: (.*)", done.stdout)) == {"torch sees no CUDA here"}, done.stdout
