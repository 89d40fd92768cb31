"""What hadolint, a linter for Dockerfiles, says of every kind of Dockerfile that is generated."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from mlops_build.model.version import ModelVersion
from mlops_build.packaging.contents import Contents
from mlops_build.packaging.dockerfile import dockerfile
from mlops_build.packaging.recipe import Recipe

# Findings that are right and stay, with the reason.
EXPLAINED = {
    "DL3029": "a platform in FROM: who asks for one by --platform gets it, on whatever machine it is built",
    "DL3008": "apt packages without a version: Debian's archive holds the newest alone, so that a pinned one is soon gone",
}
MODELS = (ModelVersion("points", 1, f"sha256:{'a' * 64}"), ModelVersion("lines", 3, f"sha256:{'b' * 64}"))


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
    recipe = Recipe("points", "python:3.11-slim", apt, gpu)
    assert hadolint(written(recipe, count)) == ({"DL3008"} if apt else set())


@pytest.mark.parametrize(
    ("more", "explained"),
    [
        ({"platform": "linux/arm64"}, {"DL3029"}),
        ({"secrets": ("ca-bundle", "index-url", "netrc")}, set()),
        ({"cuda": "base", "gpu": True}, {"DL3008"}),
        ({"base": f"python:3.11-slim@sha256:{'a' * 64}"}, set()),
    ],
)
def test_nor_has_one_for_which_more_was_asked(more: dict[str, Any], explained: set[str]) -> None:
    recipe = Recipe(**{"service": "points", "base": "python:3.11-slim", **more})
    assert hadolint(written(recipe, 1, files="points")) == explained
    assert hadolint(written(recipe, 1, wheelhouse=True)) == explained
    assert explained <= set(EXPLAINED)


def written(recipe: Recipe, count: int, **more: Any) -> str:
    found = Contents("points", f"registry.example.com/ml/points:v1-{'d' * 12}", "3.11", "2.13.0", MODELS[:count])
    return dockerfile(recipe, found, {"org.opencontainers.image.revision": "c" * 40, "mlops-build.run.points": "e" * 32}, **more)


def test_hadolint_finds_something_where_there_is_something() -> None:
    assert {"DL3006", "DL3042"} <= hadolint("FROM debian\nRUN pip install torch\n")
