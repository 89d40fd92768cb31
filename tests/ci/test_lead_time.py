"""From the move of an alias to the answer of the new container. Everything is real but the cluster: `docker run` takes its place."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mlops_build import service as service_file
from tests.ci.conftest import answer, client
from tests.conftest import git, mlops_build
from tests.packaging.world import World, answered
from tests.serving.conftest import free_port

pytestmark = [pytest.mark.docker, pytest.mark.soak, pytest.mark.real_python]


class Clock:
    """Prints the seconds of each part."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        print(f"{name:<10} {time.monotonic() - began:6.2f} s, {time.monotonic() - self.began:6.2f} s in all")


@pytest.fixture
def world(built_world: World, engine: str, tmp_path: Path) -> World:
    """Two versions more, in a database of its own."""
    copy = built_world.copy(tmp_path / "mlflow.db")
    for name, weight in (("before", 6.0), ("after", 7.0)):
        copy.register(copy.files(name, weight=weight))
    return copy


@pytest.fixture
def clone(service: Path, world: World, repository: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An agent's clone of the service."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.uri)
    path = service / "service.yaml"
    path.write_text(path.read_text().replace(f"registry: {service_file.load(service).image.registry}", f"registry: {repository}"))
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(service, "init", "--quiet", "--initial-branch=main")
    git(service, "add", "--all")
    git(service, "commit", "--quiet", "--message=Start")
    git(service, "remote", "add", "origin", (tmp_path / "origin.git").as_uri())
    git(service, "push", "--quiet", "origin", "main")
    git(tmp_path, "clone", "--quiet", (tmp_path / "origin.git").as_uri(), "clone")
    return tmp_path / "clone"


def test_a_moved_alias_becomes_a_container_that_answers_as_the_new_version(clone: Path, world: World, tmp_path: Path) -> None:
    """The parts are printed, and their goal of 20 s is not asserted: on a busy machine they take many times as long."""
    recorded = json.loads((world.folder / "after/examples/recorded.json").read_text())
    assert answered(world.folder / "after") != answered(world.folder / "before")
    last = max(version.version for version in world.registry.versions("points"))
    bridge = ["bridge", "once", "--repo", (tmp_path / "origin.git").as_uri()]
    mlops_build(clone, "promote", "points", str(last - 1), "--to", "staging")
    mlops_build(tmp_path, *bridge)
    git(clone, "pull", "--quiet", "--ff-only")
    mlops_build(clone, "ci", "image")

    clock, port, container = Clock(), free_port(), ""
    with clock.part("promote"):
        mlops_build(clone, "promote", "points", str(last), "--to", "staging")
    with clock.part("bridge"):
        mlops_build(tmp_path, *bridge)
    with clock.part("git pull"):
        git(clone, "pull", "--quiet", "--ff-only")
    with clock.part("ci image"):
        (made,) = json.loads(mlops_build(clone, "ci", "image", "--json").stdout)["images"]
    assert made["built"]
    try:
        with clock.part("docker run"):  # it pulls the layers that the engine does not have
            container = client("run", "--detach", "--network", "host", made["reference"], "--port", str(port), "--host", "127.0.0.1")
        with clock.part("answer"):
            text = answer(f"http://127.0.0.1:{port}/invocations", json.dumps(recorded["input"]).encode())
        assert json.loads(text)["predictions"] == answered(world.folder / "after")
    finally:
        if container:
            client("rm", "--force", container)
