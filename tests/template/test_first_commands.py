"""The commands that `copier copy` prints, run as they are printed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.registry import Registry
from mlops_build.training import pipeline


def printed_commands(template: Path, destination: Path) -> list[str]:
    """Render a service, and read the commands from the message: an indented line each, two spaces before the explanation."""
    command = [sys.executable, "-m", "copier", "copy", "--defaults", "--data", "example=none", str(template), str(destination)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    message = done.stderr[done.stderr.index('The service "digits" is ready') :]
    return [line.split("  ")[0] for line in re.findall(r"(?m)^  (\S.*)$", message)]


@pytest.mark.parametrize("with_training", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_the_printed_commands_lead_to_a_registered_version(template: Path, tmp_path: Path, with_training: bool) -> None:
    root = tmp_path / "digits"
    commands = printed_commands(template, root)
    assert commands[-1] == "make test train"
    # An environment that is there takes the place of the one that `make install` makes, which also writes the lock.
    environment = {**os.environ, "MAKEFLAGS": f" -- VENV={Path(sys.executable).parent.parent}"}
    for command in commands if with_training else commands[:-1]:
        done = subprocess.run(
            ["sh", "-c", command], cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}"
        if command == "make install":
            (root / "requirements.lock").touch()
    checkout = Checkout.find(root)
    assert checkout
    # Nothing that training refuses is left before it, and nothing uncommitted after it.
    assert pipeline.check_dirt(root, allow_dirty=False) == []
    pipeline.check_outputs_are_ignored(checkout, root)
    assert checkout.files("HEAD", "data") == ["data/raw.dvc"]
    if with_training:
        assert [version.version for version in Registry(f"sqlite:///{root / 'mlflow.db'}").versions("digits")] == [1]
        assert checkout.changes() == []
