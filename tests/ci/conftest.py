"""A service with released environments, and a small registry with the released versions."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_build import service as service_file
from mlops_build.model import identity
from mlops_build.model.version import ModelVersion
from mlops_build.packaging.name import image_name
from mlops_build.release import record
from mlops_build.release.record import Record
from tests.packaging.world import COMMIT, World, make

Release = Callable[..., Record]


@pytest.fixture(autouse=True)
def docker_builds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use docker, also on a machine with buildah."""
    monkeypatch.setenv("MLOPS_BUILD_ENGINE", "docker")


@pytest.fixture(scope="session")
def made_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """points 1 and 2, with different weights."""
    made = make(tmp_path_factory.mktemp("world"))
    made.register(made.files("one"))
    made.register(made.files("two", weight=3.0))
    return made


@pytest.fixture
def small_world(made_world: World, tmp_path: Path) -> World:
    """A copy with its own database, since tests write tags; the artifacts are shared."""
    return made_world.copy(tmp_path / "mlflow.db")


@pytest.fixture
def world(small_world: World) -> World:
    return small_world


@pytest.fixture
def service(rendered_none: Path, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service from the template without releases; its MLflow is the world's."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.uri)
    return Path(shutil.copytree(rendered_none, tmp_path / "points"))


@pytest.fixture
def release(service: Path, world: World) -> Release:
    """Write an environment's release record into the working tree, as the bridge does."""

    def write(env: str, version: int = 1, image: str | None = None) -> Record:
        settings = service_file.load(service)
        registered = world.registry.version("points", version)
        models = (ModelVersion("points", version, registered.tags[identity.DIGEST_TAG], registered.run_id),)
        made = Record(env, models, COMMIT, image or image_name(settings, models))
        for name, text in record.render(made, settings).items():
            (service / record.folder(env) / name).write_text(text)
        return made

    return write
