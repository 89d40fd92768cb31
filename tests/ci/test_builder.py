"""The choice of a builder in `ci image`, its commands, and the real buildah if it is installed."""

import json
import os
import shutil
import stat
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_build import doctor
from mlops_build.adapters import engine as builder
from mlops_build.adapters.engine import buildah, docker
from mlops_build.adapters.engine import command as engine
from mlops_build.adapters.image_registry import Repository
from mlops_build.ci import image
from mlops_build.errors import UsageError
from mlops_build.release.record import Record
from tests.packaging.world import World

# Called with the names of commands; the result reads their calls.
Agent = Callable[..., Callable[[], list[str]]]
DIGEST = f"sha256:{'a' * 64}"
NAME = "registry.example.com/ml/points:v1-0123456789ab"
VERSION = "docker version --format {{.Server.Version}}"
# Records its calls; its registry has an image only after a push.
STAND_IN = """#!/bin/sh
echo "{name} $*" >> {folder}/calls
case "{name} $*" in
  "docker version"*) {docker} ;;
  "buildah --version") echo "buildah version 1.28.2 (image-spec 1.1.0)" ;;
  "docker manifest"*) [ -e {folder}/pushed ] || {{ echo "no such manifest" >&2; exit 1; }}
    echo '{{"Descriptor": {{"digest": "{digest}"}}}}' ;;
  "buildah pull"*) [ -e {folder}/pushed ] || {{ echo "Error: reading manifest: manifest unknown" >&2; exit 125; }} ;;
  "buildah inspect"*) echo "{digest}" ;;
  *" push "*) touch {folder}/pushed ;;
esac
"""


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    """Create an agent with only these commands; returns a function that reads their calls."""
    folder = tmp_path / "agent"
    folder.mkdir()
    for variable in ("DOCKER_CLI", "BUILDAH_CLI", "MLOPS_BUILD_ENGINE", "MLOPS_BUILD_DOCKER_ARGS", "MLOPS_BUILD_BUILDAH_ARGS"):
        monkeypatch.delenv(variable, raising=False)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("sh", "touch", "git", "cat"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    monkeypatch.setenv("PATH", f"{folder}:{tools}")

    def make(*names: str, docker: str = "echo 24.0.7") -> Callable[[], list[str]]:
        for name in names:
            path = folder / name
            path.write_text(STAND_IN.format(name=name, folder=folder, docker=docker, digest=DIGEST))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return lambda: (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []

    return make


@pytest.mark.parametrize(
    ("has", "engine", "named", "taken", "seen"),
    [
        (("docker",), "echo 24.0.7", None, docker, "Docker 24.0.7"),
        (("buildah",), "", None, buildah, "buildah version 1.28.2"),
        (("docker", "buildah"), "echo 24.0.7", None, docker, "Docker 24.0.7"),
        (("docker", "buildah"), "exit 1", None, buildah, "buildah version 1.28.2"),
        (("docker", "buildah"), "echo 24.0.7", "buildah", buildah, "buildah version 1.28.2"),
        (("docker", "buildah"), "exit 1", "docker", docker, "the Docker Engine does not answer"),
        ((), "", None, docker, "neither docker nor buildah is installed"),
    ],
    ids=["docker", "buildah", "both", "both, no engine", "both, buildah named", "both, docker named", "none"],
)
def test_the_builder_is_one_that_the_agent_has_and_doctor_reports_it(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, has: tuple[str, ...], engine: str, named: str | None, taken: object, seen: str
) -> None:
    agent(*has, docker=engine)
    if named:
        monkeypatch.setenv("MLOPS_BUILD_ENGINE", named)
    assert builder.choose() is taken
    check = doctor.engine(required=True)
    assert check.seen.startswith(seen)
    assert bool(check.findings) is (not seen.startswith(("Docker", "buildah")))


def test_another_name_is_refused_and_a_missing_builder_is_named(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent()
    with pytest.raises(engine.EngineUnreachable, match="the command 'docker' is not installed") as caught:
        builder.choose().digest_of(NAME)
    assert "install Docker or buildah" in str(caught.value.remedy)
    monkeypatch.setenv("MLOPS_BUILD_ENGINE", "podman")
    with pytest.raises(UsageError, match="'podman'"):
        builder.choose()


@pytest.mark.parametrize(
    ("name", "arguments", "calls"),
    [
        (
            "docker",
            "MLOPS_BUILD_DOCKER_ARGS",
            [
                "docker manifest inspect --verbose NAME",
                "docker build --tag NAME --build-arg PIP_INDEX_URL=https://me:hush@index.example.com CONTEXT",
                "docker push NAME",
                "docker manifest inspect --verbose NAME",
            ],
        ),
        (
            "buildah",
            "MLOPS_BUILD_BUILDAH_ARGS",
            [
                "buildah pull --quiet --policy always docker://NAME",
                "buildah --version",
                "buildah bud --format docker --layers --tag NAME --build-arg PIP_INDEX_URL=https://me:hush@index.example.com CONTEXT",
                "buildah push NAME",
                "buildah pull --quiet --policy always docker://NAME",
                "buildah inspect --type image --format {{.FromImageDigest}} NAME",
            ],
        ),
    ],
    ids=["docker", "buildah"],
)
def test_ci_image_prints_its_commands(
    service: Path,
    release: Callable[..., Record],
    world: World,
    agent: Agent,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    name: str,
    arguments: str,
    calls: list[str],
) -> None:
    record = release("staging")
    called = agent(name)
    monkeypatch.setenv(arguments, "--build-arg PIP_INDEX_URL=https://me:hush@index.example.com")
    lines: list[str] = []
    (made,) = image.run(service, say=lines.append)["images"]
    assert made["reference"] == f"{str(record.image).rpartition(':')[0]}@{DIGEST}"
    assert made["built"] is True
    made_calls = [line.replace(str(record.image), "NAME") for line in called()]
    made_calls = [f"{line.rpartition(' ')[0]} CONTEXT" if line.split()[1] in ("build", "bud") else line for line in made_calls]
    assert [line for line in made_calls if line != VERSION] == calls
    assert any(f"building it with {'Docker 24.0.7' if name == 'docker' else 'buildah 1.28.2'}" in line for line in lines)
    err = capfd.readouterr().err
    assert f"+ {name} {'build' if name == 'docker' else 'bud'} " in err
    assert f"+ {name} push " in err
    assert "hush" not in err
    assert "https://***@index.example.com" in err
    assert image.run(service, say=lines.append)["images"][0]["built"] is False


def test_ci_image_uses_the_packages_of_the_agents_wheelhouse(
    service: Path, release: Callable[..., Record], agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    release("staging")
    called = agent("docker")
    monkeypatch.setenv("MLOPS_BUILD_WHEELHOUSE", str(service / "no-such-folder"))
    with pytest.raises(Exception, match="no-such-folder is not a folder"):
        image.run(service, say=lambda _: None)
    assert not any(line.startswith("docker build") for line in called())


@pytest.mark.slow
def test_buildah_itself_builds_pushes_and_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = os.environ.get("MLOPS_TEST_IMAGE_REGISTRY")
    if not registry:
        pytest.skip("set MLOPS_TEST_IMAGE_REGISTRY to push to a real registry")
    if not shutil.which("buildah") or os.geteuid() != 0:
        pytest.skip("there is no buildah here, or no root to run it without user namespaces")
    monkeypatch.setenv("MLOPS_BUILD_ENGINE", "buildah")
    monkeypatch.setenv("STORAGE_DRIVER", "vfs")
    monkeypatch.setenv("BUILDAH_ISOLATION", "chroot")
    settings = tmp_path / "storage.conf"
    settings.write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/storage"\nrunroot = "{tmp_path}/run"\n')
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(settings))
    context = tmp_path / "context"
    context.mkdir()
    (context / "Dockerfile").write_text('FROM scratch\nCOPY hello /hello\nHEALTHCHECK CMD ["/hello"]\n')
    (context / "hello").write_text(f"{tmp_path}\n")
    # The registry may have images of earlier runs, and pytest's folders have the same names in each run.
    name = f"{registry}/{uuid.uuid4().hex}/points:v1-0123456789ab"
    chosen = builder.choose()
    assert chosen.check_engine().startswith("buildah 1.")
    assert chosen.digest_of(name) is None
    chosen.build(context, name)
    chosen.push(name)
    digest = chosen.digest_of(name)
    repository, _, tag = name.rpartition(":")
    stored = Repository(repository).manifest(tag)
    assert stored is not None
    assert digest == stored.digest
    config = json.loads(Repository(repository).read_blob(json.loads(stored.body)["config"]["digest"]))
    assert config["config"]["Healthcheck"]["Test"] == ["CMD", "/hello"]
    (context / "Dockerfile").write_text("FROM scratch\nCOPY nothing /\n")
    with pytest.raises(engine.BuildFailed, match="buildah bud exited with"):
        chosen.build(context, name)
