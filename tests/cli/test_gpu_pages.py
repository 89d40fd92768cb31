"""The commands of the how-tos about `mlops-build gpu`, on a simulated node."""

import os
import sys
from pathlib import Path

import pytest

from mlops_build.gpu.testing import SimulatedCard
from tests.conftest import ROOT
from tests.e2e import console
from tests.gpu.conftest import MakeNode

CARDS = {
    "stop-hardcoding-cuda0.md": [SimulatedCard(), SimulatedCard()],
    "migrate-from-gpu-utilities.md": [SimulatedCard(used="9GiB"), SimulatedCard(name="NVIDIA H100 80GB HBM3", total="80GiB", used="50GiB")],
}


@pytest.mark.parametrize("page", CARDS)
def test_each_command_prints_the_output_of_the_page(page: str, node: MakeNode, tmp_path: Path) -> None:
    environment = node(*CARDS[page]).environment
    environment["COLUMNS"] = "100"  # the width of the pages' output
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])  # gpu_utilities
    folder = tmp_path / "reader"
    folder.mkdir()
    console.check((ROOT / "docs/how-to" / page).read_text(), folder, environment, at_least=2)
