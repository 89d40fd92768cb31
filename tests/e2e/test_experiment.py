"""Run docs/how-to/experiment.md like a reader."""

from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.e2e import console

PAGE = ROOT / "docs/how-to/experiment.md"


@pytest.mark.slow
def test_every_command_prints_what_the_page_shows(tmp_path: Path, environment: dict[str, str]) -> None:
    # Job control, as in an interactive shell: a signal to a job reaches all of its processes.
    shell = tmp_path / "bashrc"
    shell.write_text("set -m\n")
    folder = tmp_path / "reader"
    folder.mkdir()
    console.check(PAGE.read_text(), folder, {**environment, "BASH_ENV": str(shell)}, at_least=20)
