"""What the template's tests share: the commit that was rendered, and a copy of a service to change."""

import shutil
from pathlib import Path

import pytest

from tests.conftest import Render, git


@pytest.fixture(scope="session")
def commit(template: Path) -> str:
    """The commit that the template was rendered from."""
    return git(template, "rev-parse", "HEAD")


@pytest.fixture
def service(render: Render, tmp_path: Path) -> Render:
    """Like `render`, but a copy of its own that a test may change."""

    def copy(**answers: str) -> Path:
        return Path(shutil.copytree(render(**answers), tmp_path / "service"))

    return copy
