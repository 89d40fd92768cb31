"""`ci image`, also with a real engine and registry, which MLOPS_TEST_DOCKER_HOST and MLOPS_TEST_IMAGE_REGISTRY name."""

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from mlops_build import service as service_file
from mlops_build.__main__ import main
from mlops_build.adapters.engine import docker
from mlops_build.adapters.image_registry import ImageRegistryUnreachable
from mlops_build.adapters.registry import Registry, RegistryUnreachable
from mlops_build.ci import image
from mlops_build.errors import Unreachable
from mlops_build.model import environment, files, identity
from mlops_build.model.version import ModelVersion
from mlops_build.packaging import assemble
from mlops_build.packaging.context import Source, write_context
from mlops_build.packaging.dockerfile import UV
from mlops_build.packaging.name import image_name
from mlops_build.packaging.recipe import Recipe
from mlops_build.release import restore
from mlops_build.release.protected import at
from mlops_build.release.record import Record
from mlops_build.service.pin import Pin
from tests.ci.conftest import answer, client
from tests.conftest import git, mlops_build
from tests.packaging.world import World, answered
from tests.serving.conftest import free_port

Release = Callable[..., Record]
REFERENCE = f"registry.example.com/ml/points@sha256:{'1' * 64}"


def quiet(text: str) -> None:
    del text


def test_nothing_released_is_nothing_to_do(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first commit of a service must pass, on an agent without an engine."""
    monkeypatch.setenv("DOCKER_CLI", "no-such-docker")
    assert image.run(service, say=quiet) == {"images": []}
    assert json.loads((service / "build/image-digests.json").read_text()) == {"schema": 1, "images": []}


def test_another_name_than_the_records_is_refused(
    service: Path, release: Release, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written = release("staging", image="registry.example.com/ml/points:v1-0123456789ab")
    computed = release("production").image
    monkeypatch.chdir(service)
    assert main(["ci", "image"]) == 4
    printed = capsys.readouterr().err
    assert str(written.image) in printed
    assert str(computed) in printed
    assert "mlops-build release staging" in printed


def test_the_record_of_another_release_of_the_bridge_keeps_its_name(service: Path, release: Release) -> None:
    settings, models = service_file.load(service), release("staging").models
    names = [image_name(settings, models, pin=pin) for pin in (Pin(0, 2), Pin(0, 8))]
    release("staging", image=names[0])
    release("production", image=names[1])
    assert [named.image for named in image._named(service, settings)] == names


def test_while_mlflow_is_down_an_existing_image_is_taken(
    service: Path, release: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    record = release("staging")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/gone.db")
    monkeypatch.setattr(docker, "digest_of", lambda name: f"sha256:{'1' * 64}" if name == record.image else None)
    (made,) = image.run(service, say=quiet)["images"]
    assert (made["image"], made["built"]) == (record.image, False)
    monkeypatch.setattr(docker, "digest_of", lambda _: None)
    with pytest.raises(RegistryUnreachable):
        image.run(service, say=quiet)


def test_a_restored_release_keeps_its_image_after_service_yaml_has_changed(
    service: Path, release: Release, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    git(service, "init", "--quiet", "--initial-branch=main")
    first = release("staging")
    git(service, "add", "--all")
    git(service, "commit", "--quiet", "--message=First")
    settings = service / "service.yaml"
    settings.write_text(settings.read_text().replace("port: 8080", "port: 8081"))
    second = release("staging", 2)
    git(service, "commit", "--quiet", "--all", "--message=Second")
    restore.roll_back(at(service), "staging")
    monkeypatch.setattr(docker, "digest_of", lambda name: f"sha256:{'1' * 64}" if name == first.image else None)
    (made,) = image.run(service, say=quiet)["images"]
    assert made["image"] == first.image != second.image
    monkeypatch.setattr(docker, "digest_of", lambda _: None)
    with pytest.raises(image.OtherName):  # it would be built with the settings of now
        image.run(service, say=quiet)


def test_a_missing_engine_and_an_unreachable_registry_are_errors(service: Path, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    release("staging")
    monkeypatch.setenv("DOCKER_CLI", "no-such-docker")
    with pytest.raises(ImageRegistryUnreachable, match=r"registry\.example\.com does not answer") as caught:
        image.run(service, say=quiet)
    assert caught.value.exit_code == 5
    assert caught.value.remedy
    client = shutil.which(os.environ.get("MLOPS_TEST_DOCKER_CLI", "docker"))
    if client and subprocess.run([client, "--version"], capture_output=True, check=False).returncode == 0:
        monkeypatch.setenv("DOCKER_CLI", client)
        monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
        with pytest.raises(docker.EngineUnreachable, match="the Docker Engine does not answer"):
            docker.check_engine()
        with pytest.raises(Unreachable, match="does not answer"):
            docker.digest_of(f"127.0.0.1:{free_port()}/points:v1")


def test_a_tag_of_the_version_counts_only_in_the_records_own_repository(release: Release, world: World) -> None:
    record = release("staging")
    registry = world.registry
    assert image.of_version(registry, record) is None
    registry.set_tag("points", 1, identity.IMAGE_NAME, str(record.image))
    for reference, expected in (
        (REFERENCE, REFERENCE),
        (REFERENCE.replace("points@", "evil@"), None),
        (REFERENCE.replace("registry.example.com", "evil.example.com"), None),
        (f"{REFERENCE}\nimage: evil", None),
        ("", None),
    ):
        registry.set_tag("points", 1, identity.IMAGE, reference)
        assert image.of_version(registry, record) == expected
    registry.set_tag("points", 1, identity.IMAGE, REFERENCE)
    registry.set_tag("points", 1, identity.IMAGE_NAME, "registry.example.com/ml/points:v1-another")
    assert image.of_version(registry, record) is None


def test_a_release_is_the_commit_with_its_digests(service: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git(service, "init", "--quiet", "--initial-branch=main")
    git(service, "add", "--all")
    git(service, "commit", "--quiet", "--message=Start")
    (service / "README.md").write_text("not committed\n")
    image.run(service, say=quiet)
    with tarfile.open(service / "build/release.tar") as archive:
        archive.extractall(tmp_path / "release", filter="data")
    assert json.loads((tmp_path / "release/build/image-digests.json").read_text()) == {"schema": 1, "images": []}
    listed = {path.relative_to(tmp_path / "release").as_posix() for path in (tmp_path / "release").rglob("*") if path.is_file()}
    assert listed == {*git(service, "ls-files").splitlines(), "build/image-digests.json"}
    assert os.access(tmp_path / "release/ci/mlops-build", os.X_OK)
    assert "not committed" not in (tmp_path / "release/README.md").read_text()
    assert git(service, "status", "--porcelain") == " M README.md"


def test_a_release_has_a_copy_of_the_fleets_rules(service: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git(service, "init", "--quiet", "--initial-branch=main")
    git(service, "add", "--all")
    git(service, "commit", "--quiet", "--message=Start")
    (tmp_path / "rules.yaml").write_text("schema: 1\n")
    said: list[str] = []
    for where, copies in ((str(tmp_path / "rules.yaml"), 1), ("/nowhere/fleet.yaml", 0), ("", 0)):
        monkeypatch.setenv("MLOPS_FLEET", where)
        image.run(service, say=said.append)
        with tarfile.open(service / "build/release.tar") as archive:
            assert archive.getnames().count("build/fleet.yaml") == copies
    assert len([line for line in said if "no copy of fleet.yaml: /nowhere/fleet.yaml cannot be read" in line]) == 1


def test_only_a_digest_of_the_records_own_image_is_carried(service: Path, release: Release) -> None:
    record = release("staging")
    good = f"{str(record.image).rpartition(':')[0]}@sha256:{'1' * 64}"
    (service / "build").mkdir()
    for text, expected in (
        (json.dumps({"images": [{"image": record.image, "reference": good}]}), good),
        (json.dumps({"images": [{"image": record.image, "reference": good.replace("registry.", "evil.")}]}), None),
        (json.dumps({"images": [{"image": f"{record.image}0", "reference": good}]}), None),
        (json.dumps({"images": [{"image": record.image, "reference": f"{good}\n"}]}), None),
        (json.dumps([1]), None),
        ("not JSON", None),
    ):
        (service / "build/image-digests.json").write_text(text)
        assert image.of_build(service, record) == expected
    (service / "build/image-digests.json").unlink()
    assert image.of_build(service, record) is None


# With Docker. The first test builds an environment, which takes minutes on a fresh engine; the others take its image.


@pytest.fixture
def in_registry(service: Path, repository: str) -> None:
    """The service's images are in the real registry."""
    path = service / "service.yaml"
    text = path.read_text()
    path.write_text(text.replace(f"registry: {service_file.load(service).image.registry}", f"registry: {repository}"))


@pytest.fixture
def builds(service: Path, in_registry: None) -> None:
    """The service asks for builds."""
    path = service / "service.yaml"
    path.write_text(path.read_text().replace("  registry:", "  assemble: false\n  registry:"))
    assert not service_file.load(service).image.assemble


def layers_of(image: str) -> list[str]:
    layers: list[str] = json.loads(client("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))
    return layers


def layers_of_build(folder: Path, *options: str) -> list[str]:
    """The layers of the image that BuildKit makes of a folder."""
    tag = f"mlops-build-test:{secrets.token_hex(4)}"
    command = [os.environ["DOCKER_CLI"], "build", "--quiet", "--network", "host", *options, "--tag", tag, str(folder)]
    subprocess.run(command, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=True, capture_output=True, timeout=300)
    try:
        return layers_of(tag)
    finally:
        client("image", "rm", tag)


def tags(world: World, version: int) -> dict[str, str]:
    return dict(Registry(world.uri).version("points", version).tags)


@pytest.mark.docker
@pytest.mark.usefixtures("in_registry")
@pytest.mark.parametrize("way", ["assembled", "built"])
def test_a_missing_image_is_made_once_and_its_digest_is_written_to_the_version(
    request: pytest.FixtureRequest, service: Path, release: Release, world: World, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    if way == "built":
        request.getfixturevalue("builds")
    record = release("staging")
    release("production")
    (first,) = json.loads(mlops_build(service, "ci", "image", "--json").stdout)["images"]
    assert first["built"] is True
    assert first["environments"] == ["staging", "production"]
    assert first["image"] == record.image
    digest = docker.digest_of(str(record.image))
    assert first["reference"] == f"{str(record.image).rpartition(':')[0]}@{digest}"
    assert tags(world, 1)[identity.IMAGE] == first["reference"]
    assert tags(world, 1)[identity.IMAGE_NAME] == record.image
    assert json.loads((service / "build/image-digests.json").read_text())["images"] == [first]
    assert sorted(path.name for path in (service / "build").iterdir()) == ["image-digests.json"]

    def refuse(*_: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(docker, "build", refuse)
    monkeypatch.setattr(docker, "push", refuse)
    monkeypatch.setattr(assemble, "push", refuse)
    world.registry.delete_tag("points", 1, identity.IMAGE)
    (second,) = image.run(service, say=quiet)["images"]
    assert second == {**first, "built": False}
    assert tags(world, 1)[identity.IMAGE] == first["reference"], "a missing digest is completed"

    moved = f"{str(record.image).rpartition(':')[0]}@sha256:{'2' * 64}"
    world.registry.set_tag("points", 1, identity.IMAGE, moved)
    with pytest.raises(image.OtherImage, match="the tag was moved"):
        image.run(service, say=quiet)
    world.registry.set_tag("points", 1, identity.IMAGE, first["reference"])


@pytest.mark.docker
@pytest.mark.usefixtures("builds")
def test_only_the_last_layer_of_a_second_version_is_new(service: Path, release: Release) -> None:
    first, second = release("staging", 1), release("production", 2)
    result = image.run(service, say=quiet)
    assert len({image["reference"] for image in result["images"]}) == 2
    layers = [layers_of(str(record.image)) for record in (first, second)]
    assert layers[0][:-1] == layers[1][:-1]
    assert layers[0][-1] != layers[1][-1]
    assert len(layers[0]) == len(layers[1])
    client("pull", result["images"][1]["reference"])


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
def test_a_new_version_in_the_same_folder_is_read_again(world: World, tmp_path: Path) -> None:
    """BuildKit caches a folder: a file with the same size and time is not read again."""
    folder = tmp_path / "context"
    layers = []
    for number, name in enumerate(("one", "two"), start=1):
        files_of = world.folder / name
        source = Source(ModelVersion("points", number, files.digest(files_of)), partial(shutil.copytree, files_of))
        write_context(Recipe("points", "python:3.11-slim"), None, [source], folder)
        layers.append(layers_of_build(folder, "--target", "layers"))  # the stage of code and model: nothing is installed
    assert layers[0] != layers[1]


@pytest.mark.docker
@pytest.mark.usefixtures("engine")
def test_two_uncached_builds_have_the_same_layers_of_code_and_model(world: World, tmp_path: Path) -> None:
    """The layers below may differ: apt and pip write times, and bytecode with the time of its source."""
    files_of = Path(shutil.copytree(world.folder / "one", tmp_path / "with-files"))
    (files_of / "environment/files").mkdir()
    (files_of / "environment/files/labels.txt").write_text("cat\n")
    source = Source(ModelVersion("points", 1, files.digest(files_of)), lambda place: shutil.copytree(files_of, place))
    layers = []
    for number, umask in enumerate((0o022, 0o077)):
        before = os.umask(umask)
        try:
            write_context(Recipe("points", "python:3.11-slim"), None, [source], tmp_path / f"context-{number}")
        finally:
            os.umask(before)
        path = tmp_path / f"context-{number}/Dockerfile"
        text = path.read_text()
        # Without the packages of the lock, which take minutes and belong to a lower layer.
        path.write_text(text[: text.index("COPY requirements.lock")] + text[text.index("FROM start AS environment") :])
        layers.append(layers_of_build(path.parent, "--no-cache"))
    assert layers[0][-2:] == layers[1][-2:]
    assert layers[0][-3] != layers[1][-3], "the environment's layer was taken from a cache, so this test compares nothing"


@pytest.mark.docker
@pytest.mark.soak
@pytest.mark.usefixtures("engine")
def test_a_wheelhouse_builds_without_any_network(world: World, tmp_path: Path) -> None:
    """Takes minutes: every wheel is downloaded and installed."""
    house = tmp_path / "wheels"
    (tmp_path / "requirements.lock").write_text(world.lock)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(house)]
    subprocess.run([*download, "--require-hashes", "--requirement", str(tmp_path / "requirements.lock")], check=True, timeout=600)
    subprocess.run([*download, f"uv=={UV}", f"torch=={environment.torch_version()}"], check=True, timeout=600)
    files_of = world.folder / "one"
    source = Source(ModelVersion("points", 1, files.digest(files_of)), lambda place: shutil.copytree(files_of, place))
    write_context(Recipe("points", "python:3.11-slim"), None, [source], tmp_path / "context", wheels=house)
    tag = f"mlops-build-test:{tmp_path.name.lower()}"
    command = [os.environ["DOCKER_CLI"], "build", "--quiet", "--network", "none", "--tag", tag, str(tmp_path / "context")]
    subprocess.run(command, env={**os.environ, "DOCKER_BUILDKIT": "1"}, check=True, capture_output=True, timeout=1200)
    try:
        inside = "import torch, mlops_build.serving.app; from pathlib import Path; print(Path('/tmp/wheelhouse').exists())"
        assert client("run", "--rm", "--network", "none", "--entrypoint", "python", tag, "-c", inside) == "False"
    finally:
        client("image", "rm", tag)


@contextlib.contextmanager
def container(*arguments: str) -> Iterator[str]:
    name = client("run", "--detach", "--network", "host", *arguments)
    try:
        yield name
    finally:
        client("rm", "--force", name)


@pytest.mark.docker
@pytest.mark.usefixtures("in_registry")
def test_the_image_runs_as_any_user_on_a_read_only_root(service: Path, release: Release, world: World) -> None:
    """A random user, a read-only root and no network, as in a strict cluster."""
    release("staging")
    (made,) = image.run(service, say=quiet)["images"]
    port = free_port()
    strict = ["--user", f"{secrets.randbelow(10**6) + 20000}:0", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL"]
    # Arguments after the image's go to the entry point; the last --port wins.
    with container(*strict, "--security-opt", "no-new-privileges", made["reference"], "--port", str(port), "--host", "127.0.0.1") as name:
        recorded = json.loads((world.folder / "one/examples/recorded.json").read_text())
        answered_text = answer(f"http://127.0.0.1:{port}/invocations", json.dumps(recorded["input"]).encode())
        assert json.loads(answered_text)["predictions"] == answered(world.folder / "one")
        metrics = answer(f"http://127.0.0.1:{port}/metrics")
        assert f'image="{made["image"]}"' in metrics
        inside = 'import importlib.util as u; print([n for n in ("pip", "uv", "dvc", "boto3", "flask", "sqlalchemy") if u.find_spec(n)])'
        assert client("exec", name, "python", "-c", inside) == "[]"
        assert client("exec", name, "sh", "-c", "command -v gcc conda nginx java uv || echo none") == "none"
        started = time.monotonic()
        client("stop", name)
        assert time.monotonic() - started < 9, "SIGTERM was not heard"
        assert client("inspect", "--format", "{{.State.ExitCode}}", name) == "0"
        printed = subprocess.run([os.environ["DOCKER_CLI"], "logs", name], capture_output=True, text=True, timeout=30, check=True).stderr
        assert "serving points v1 on" in printed
        assert "Traceback" not in printed


@pytest.mark.docker
@pytest.mark.usefixtures("in_registry")
def test_the_labels_of_the_image(service: Path, release: Release) -> None:
    release("staging")
    (made,) = image.run(service, say=quiet)["images"]
    client("pull", "--quiet", made["image"])
    config = json.loads(client("image", "inspect", "--format", "{{json .Config}}", made["image"]))
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["ExposedPorts"] == {"8080/tcp": {}}
    assert config["Labels"]["org.opencontainers.image.version"] == "v1"
    assert config["Labels"]["mlops-build.model.points"] == f"1 {made['models'][0]['digest']}"
    assert "PYTHONDONTWRITEBYTECODE=1" in config["Env"]
    compiled = "import torch, pathlib; print(len(list(pathlib.Path(torch.__file__).parent.glob('__pycache__/*.pyc'))) > 10)"
    assert client("run", "--rm", "--network", "none", "--entrypoint", "python", made["image"], "-c", compiled) == "True"
