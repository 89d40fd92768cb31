"""Simulated nodes as in tests/gpu; a folder with `mlops-build` for PATH; Debian's programs."""

import os
import stat
import sys
from pathlib import Path

import pytest

from tests.gpu.conftest import _package_for_processes, lease, node, run_python, simulation, start  # noqa: F401 -- fixtures

ROOT = Path(__file__).parents[2]


def program(variable: str) -> str:
    """The program in this variable; the test is skipped if it is not set."""
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"{variable} is not set (scripts/debian-tools.sh)")
    return path


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH with `mlops-build`, as in an installed package."""
    folder = tmp_path_factory.mktemp("bin")
    script = folder / "mlops-build"
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{ROOT}" exec "{sys.executable}" -m mlops_build "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return folder
