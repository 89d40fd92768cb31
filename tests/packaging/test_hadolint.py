"""What hadolint, a linter for Dockerfiles, says of every kind of Dockerfile that is generated."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from mlops_build.packaging.contents import Contents, Model
from mlops_build.packaging.dockerfile import dockerfile
from mlops_build.packaging.recipe import Recipe

# Findings that are right and stay, with the reason.
EXPLAINED = {
    "DL3008": "apt packages without a version: Debian's archive holds the newest alone, so that a pinned one is soon gone",
}
MODELS = (Model("points", 1, f"sha256:{'a' * 64}"), Model("lines", 3, f"sha256:{'b' * 64}"))


def hadolint(text: str) -> set[str]:
    """The codes of all findings, whatever their severity."""
    program = Path(sys.executable).with_name("hadolint")
    if not program.exists():
        pytest.skip("hadolint is not beside this Python: it is published for Linux on x86-64 only")
    command = [str(program), "--no-fail", "--format", "json", "--config", "/dev/null", "-"]
    done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=True)
    return {finding["code"] for finding in json.loads(done.stdout)}


@pytest.mark.parametrize(("gpu", "apt", "count"), product([False, True], [(), ("libgomp1",)], [1, 2]))
def test_a_dockerfile_has_no_finding_that_is_not_explained(gpu: bool, apt: tuple[str, ...], count: int) -> None:
    found = Contents("points", f"registry.example.com/ml/points:v1-{'d' * 12}", "3.11", "2.13.0", MODELS[:count])
    text = dockerfile(Recipe("points", "python:3.11-slim", apt, gpu), found, "c" * 40)
    assert hadolint(text) == (set(EXPLAINED) if apt else set())


def test_hadolint_finds_something_where_there_is_something() -> None:
    assert {"DL3006", "DL3042"} <= hadolint("FROM debian\nRUN pip install torch\n")
