"""What a service imports is promised for years: the src/ of every released template trains with today's mlops_build.

An update never touches src/, so that a service of the first release has it as it was, beside a package that is newer and newer.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mlops_build.scaffold import render
from tests.conftest import MadeOnce, git
from tests.template.releases import RELEASES, published

# The pipeline's commands in one process: torch and MLflow are imported once.
RUN = """
import runpy, sys
for module, *arguments in COMMANDS:
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def template(made_once: MadeOnce) -> Path:
    return made_once("releases", published)


OLDEST, *MIDDLE, NEWEST = RELEASES


@pytest.mark.parametrize("version", [OLDEST, *(pytest.param(version, marks=pytest.mark.soak) for version in MIDDLE), NEWEST])
def test_trains_with_this_package(template: Path, version: str, tmp_path: Path) -> None:
    root = tmp_path / "points"
    render.copy(str(template), root, {"project_name": "Points", "example": "none"}, version=version)
    git(root, "init", "--quiet")
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message=Start")
    stages = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]
    assert list(stages) == ["prepare", "train", "evaluate"]
    commands = [["points.data", "fetch"]]
    for stage in stages.values():
        python, option, *words = stage["cmd"].split()
        assert (python, option) == ("python", "-m")
        commands.append(words)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(root / "src"), os.environ.get("PYTHONPATH")]))}
    command = [sys.executable, "-c", RUN.replace("COMMANDS", repr(commands))]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((root / "metrics.json").read_text())["accuracy"] >= 0.9
    assert (root / "models/points/MLmodel").is_file()
