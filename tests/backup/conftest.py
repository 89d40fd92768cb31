"""A world for each test; its empty database is made once."""

from pathlib import Path

import pytest

from mlops_build.adapters.registry import Registry
from tests.backup.world import World
from tests.conftest import MadeOnce


@pytest.fixture(scope="session")
def database(made_once: MadeOnce) -> Path:
    def make(folder: Path) -> None:
        assert Registry(f"sqlite:///{folder}/mlflow.db", create=True).alias_map() == {}

    return made_once("registry", make) / "mlflow.db"


@pytest.fixture
def world(tmp_path: Path, database: Path) -> World:
    return World(tmp_path, database)
