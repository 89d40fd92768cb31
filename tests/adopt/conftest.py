"""A world for each test; its empty database is made once."""

from pathlib import Path

import pytest

from tests.adopt.world import World


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from mlflow import MlflowClient

    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def world(tmp_path: Path, database: Path) -> World:
    return World(tmp_path, database)
