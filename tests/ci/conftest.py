"""A service with released environments, a small registry with the released versions, and a real container engine for tests with Docker."""

import os
import secrets
import shutil
import stat
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_build import service as service_file
from mlops_build.model import environment, identity
from mlops_build.model.version import ModelVersion
from mlops_build.packaging.name import image_name
from mlops_build.release import record
from mlops_build.release.record import Record
from tests.packaging.world import COMMIT, World, make

Release = Callable[..., Record]
DOCKER = ("MLOPS_TEST_DOCKER_HOST", "MLOPS_TEST_DOCKER_CLI", "MLOPS_TEST_IMAGE_REGISTRY")


def simulate_kubectl(folder: Path, script: str) -> Path:
    """Write a kubectl into a new folder; `{real}` in the script is the real one, for `kustomize`, and `{folder}` the folder."""
    real = shutil.which("kubectl")
    if not real:
        pytest.skip("put kubectl on PATH to render overlays (its `kustomize` needs no cluster)")
    folder.mkdir()
    (folder / "kubectl").write_text(script.format(real=real, folder=folder))
    (folder / "kubectl").chmod(stat.S_IRWXU)
    return folder


def client(*arguments: str) -> str:
    """The output of a docker command; for tests with the fixture `engine`."""
    done = subprocess.run([os.environ["DOCKER_CLI"], *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"docker {arguments}: {done.stderr}"
    return done.stdout.strip()


def answer(url: str, body: bytes | None = None, seconds: float = 60) -> str:
    """The answer of a server, which may still be starting."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + seconds
    while True:
        try:
            request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
            with opener.open(request, timeout=30) as response:
                return str(response.read().decode())
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)


@pytest.fixture(scope="module")
def engine() -> Iterator[str]:
    """The image registry; the environment names client and engine while these tests run."""
    for variable in DOCKER:
        if not os.environ.get(variable):
            pytest.skip(f"set {variable} (and the others of {', '.join(DOCKER)}) to build real images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", os.environ["MLOPS_TEST_DOCKER_HOST"])
        patch.setenv("DOCKER_CLI", os.environ["MLOPS_TEST_DOCKER_CLI"])
        patch.setenv("MLOPS_BUILD_DOCKER_ARGS", os.environ.get("MLOPS_TEST_DOCKER_ARGS", "--network host"))
        yield os.environ["MLOPS_TEST_IMAGE_REGISTRY"]


@pytest.fixture(scope="session")
def unused() -> str:
    """A name that no earlier run has used. All modules share it, so that an environment image is built once."""
    return secrets.token_hex(4)


@pytest.fixture(scope="module")
def repository(engine: str, unused: str) -> Iterator[str]:
    """A folder of repositories in the registry."""
    name = f"{engine}/{unused}"
    yield name
    below = [f"--filter=reference={name}/{names}" for names in ("*", "*/*")]
    # By name, not by id: another worker may be about to push the same environment image under its own name.
    shown = '{{.Repository}}{{if eq .Tag "<none>"}}@{{.Digest}}{{else}}:{{.Tag}}{{end}}'
    if names := client("image", "ls", "--digests", "--format", shown, *below).split():
        client("image", "rm", "--force", *set(names))


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


@pytest.fixture(scope="session")
def built_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The same with a lock that can be installed. In points 3, and in corners 1 of the same commit, are files of the repository."""
    made = make(tmp_path_factory.mktemp("world"))
    (made.folder / "lock").mkdir()
    made.lock = environment.lock(sorted(made.wheels.iterdir()), made.folder / "lock")
    made.register(made.files("one"))
    made.register(made.files("two", weight=3.0))
    for model, weight in (("points", 4.0), ("corners", 5.0)):
        folder = made.files(f"{model}-with-files", weight=weight)
        (folder / "environment/files/config").mkdir(parents=True)
        (folder / "environment/files/config/labels.txt").write_text("minus\nplus\n")
        made.register(folder, model)
    return made


@pytest.fixture
def small_world(made_world: World, tmp_path: Path) -> World:
    """A copy with its own database, since tests write tags; the artifacts are shared."""
    return made_world.copy(tmp_path / "mlflow.db")


@pytest.fixture
def world(request: pytest.FixtureRequest) -> World:
    """A single world for all tests with Docker, so that its environment image is built once; a small one for the others."""
    if request.node.get_closest_marker("docker"):
        request.getfixturevalue("engine")  # it skips the test
        return request.getfixturevalue("built_world")  # type: ignore[no-any-return]
    return request.getfixturevalue("small_world")  # type: ignore[no-any-return]


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
