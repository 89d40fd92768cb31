"""Released services without their code."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import Render
from tests.verify.faults import ANSWERS, build

Services = Callable[[str], Path]


@pytest.fixture(scope="session")
def services(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Services:
    """services("shared") is a service with that GPU mode."""
    return cache(lambda gpu: build(render(gpu=gpu, **ANSWERS), tmp_path_factory.mktemp(gpu), gpu))


@pytest.fixture
def service(services: Services, tmp_path: Path) -> Path:
    """A copy of a service without a GPU."""
    return Path(shutil.copytree(services("none"), tmp_path / "service"))
