"""The template under test is the working tree, uncommitted changes included, as if it were the newest release."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RELEASE = "0.1.0"

Render = Callable[..., Path]


def git(folder: Path, *arguments: str) -> str:
    """Git without the settings of whoever runs the tests."""
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    for role in ("AUTHOR", "COMMITTER"):
        alone |= {f"GIT_{role}_NAME": "Test", f"GIT_{role}_EMAIL": "test@example.com"}
    done = subprocess.run(["git", "-C", str(folder), *arguments], env={**os.environ, **alone}, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Git repository with copier.yml and template/ as they are now, in one tagged commit; copier reads no user's settings."""
    source = tmp_path_factory.mktemp("template")
    shutil.copy(ROOT / "copier.yml", source)
    shutil.copytree(ROOT / "template", source / "template", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    git(source, "init", "--quiet", "--initial-branch=main")
    git(source, "add", "--all")
    git(source, "commit", "--quiet", "--message=The template")
    git(source, "tag", RELEASE)
    settings = tmp_path_factory.mktemp("copier") / "settings.yml"
    settings.write_text("{}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COPIER_SETTINGS_PATH", str(settings))
        yield source


@pytest.fixture(scope="session")
def commit(template: Path) -> str:
    """The commit that the template was rendered from."""
    return git(template, "rev-parse", "HEAD")


@pytest.fixture(scope="session")
def render(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Render:
    """render(example="none", …) is a folder with the service of these answers; the same answers give the same folder."""
    from copier import run_copy

    rendered: dict[tuple[tuple[str, str], ...], Path] = {}

    def once(**answers: str) -> Path:
        key = tuple(sorted(answers.items()))
        if key not in rendered:
            folder = tmp_path_factory.mktemp("service")
            run_copy(str(template), folder, data=answers, defaults=True, quiet=True)
            rendered[key] = folder
        return rendered[key]

    return once


@pytest.fixture
def service(render: Render, tmp_path: Path) -> Render:
    """Like `render`, but a copy of its own that a test may change."""

    def copy(**answers: str) -> Path:
        return Path(shutil.copytree(render(**answers), tmp_path / "service"))

    return copy
