"""Where the template and the package come from: a clone, however it was named, and the answer `package_source`."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlops_build import __version__
from tests.conftest import Render, git

MIRROR = "git+https://git.example.com/ml/mlops-build.git"
WHEEL = "wheels/mlops_build-0.6.2+acme.1-py3-none-any.whl"


@pytest.mark.parametrize(
    ("answer", "pin", "versions"),
    [
        ("mlops-build", f"mlops-build=={__version__}", None),
        ("mlops-build==0.6.2", "mlops-build==0.6.2", "~=0.6.0"),
        (MIRROR, f"{MIRROR}@COMMIT#egg=mlops-build", None),
        (f"{MIRROR}@v0.6.2", f"{MIRROR}@v0.6.2#egg=mlops-build", None),
        (
            "git+ssh://git@git.example.com/ml/mlops-build.git",
            "git+ssh://git@git.example.com/ml/mlops-build.git@COMMIT#egg=mlops-build",
            None,
        ),
        (WHEEL, WHEEL, "~=0.6.0"),
    ],
)
def test_the_answer_says_what_is_pinned(render: Render, commit: str, answer: str, pin: str, versions: str | None) -> None:
    root = render(example="none", package_source=answer)
    lines = (root / "requirements-mlops-build.txt").read_text().splitlines()
    assert lines[1:] == [pin.replace("COMMIT", commit)]
    major, minor, *_ = __version__.split(".")
    train = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert f"mlops-build[serve,train]{versions or f'~={major}.{minor}.0'}" in train


@pytest.fixture
def clone(template: Path, tmp_path: Path) -> Path:
    """A clone of the template without tags."""
    git(tmp_path, "clone", "--quiet", "--no-tags", str(template), str(tmp_path / "clone"))
    return tmp_path / "clone"


def copied(clone: Path, *arguments: str) -> Path:
    """`copier copy . ../digits`, in the clone."""
    command = [sys.executable, "-m", "copier", "copy", "--quiet", "--defaults", "--data=example=none", *arguments, ".", "../digits"]
    done = subprocess.run(command, cwd=clone, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return clone.parent / "digits"


def pinned(service: Path) -> str:
    return (service / "requirements-mlops-build.txt").read_text().splitlines()[1]


def test_a_clone_without_tags_is_recorded_so_that_it_is_found_from_anywhere(clone: Path) -> None:
    service = copied(clone)
    answers: dict[str, Any] = YAML(typ="safe").load((service / ".copier-answers.yml").read_text())
    assert answers["_src_path"] == str(clone)
    commit = git(clone, "rev-parse", "HEAD")
    assert pinned(service) == f"git+file://{clone}@{commit}#egg=mlops-build"
    # A later version arrives there.
    git(service, "init", "--quiet", "--initial-branch=main")
    git(service, "add", "--all")
    git(service, "commit", "--quiet", "--message=Start")
    (clone / "template/NEW.md").write_text("new\n")
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message=Add a file")
    command = [sys.executable, "-m", "copier", "update", "--quiet", "--defaults"]
    subprocess.run(command, cwd=service, timeout=120, check=True, capture_output=True)
    assert (service / "NEW.md").read_text() == "new\n"
    assert pinned(service).endswith(f"@{git(clone, 'rev-parse', 'HEAD')}#egg=mlops-build")


def test_uncommitted_changes_of_a_clone_are_in_the_service_and_installed_from_the_clone(clone: Path, tmp_path: Path) -> None:
    (clone / "template/NEW.md").write_text("not committed\n")
    service = copied(clone, "--vcs-ref=HEAD")
    assert (service / "NEW.md").read_text() == "not committed\n"
    commit = pinned(service).partition("@")[2].partition("#")[0]
    assert subprocess.run(["git", "-C", str(clone), "cat-file", "-e", commit], capture_output=True, check=False).returncode != 0

    asked = installs(service, tmp_path)
    assert f"ci/install: {clone} does not have the commit of requirements-mlops-build.txt" in asked.stderr
    assert asked.stdout.splitlines()[-2].endswith("-r .venv/mlops-build.txt")
    assert (service / ".venv/mlops-build.txt").read_text() == f"mlops-build @ file://{clone}\n"

    # Once the commit is there, it is what is installed.
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message=Add a file")
    shutil.rmtree(service)
    asked = installs(copied(clone), tmp_path)
    assert asked.stderr == ""
    assert asked.stdout.splitlines()[-2].endswith("-r requirements-mlops-build.txt")


def installs(service: Path, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """ci/install, with a uv that prints what it is to install."""
    programs = tmp_path / "programs"
    programs.mkdir(exist_ok=True)
    (programs / "uv").write_text('#!/bin/sh\necho "$@"\n')
    (programs / "uv").chmod(0o755)
    (service / ".venv/bin").mkdir(parents=True)
    (service / ".venv/bin/python").symlink_to(sys.executable)
    environment = {"PATH": f"{programs}:/usr/bin:/bin"}
    done = subprocess.run(["ci/install"], cwd=service, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done
