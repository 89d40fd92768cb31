"""An assembled image and a built one of the same versions, in a real engine and a real registry; and the clients that read it."""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlops_build import service as service_file
from mlops_build.adapters.engine import docker
from mlops_build.adapters.image_registry import Repository
from mlops_build.ci import image
from mlops_build.model import identity
from mlops_build.model.version import ModelVersion
from mlops_build.packaging import context, environment, recipe
from mlops_build.packaging.name import image_name
from mlops_build.release import record as records
from mlops_build.release.record import Record
from tests.ci.conftest import Release, client
from tests.packaging.world import COMMIT, World

# What differs (docs/explanation/layers.md): the layers above the environment, their history, and the times of folders and files.
pytestmark = pytest.mark.docker


def quiet(text: str) -> None:
    del text


@contextmanager
def exported(name: str) -> Iterator[tarfile.TarFile]:
    """The file system of an image that the engine has."""
    container = client("create", name)
    try:
        with subprocess.Popen([os.environ["DOCKER_CLI"], "export", container], stdout=subprocess.PIPE) as process:
            assert process.stdout
            with tarfile.open(fileobj=process.stdout, mode="r|", bufsize=1 << 20) as archive:
                yield archive
            process.stdout.read()
        assert process.returncode == 0
    finally:
        client("rm", container)


def file_system(name: str) -> dict[str, tuple[object, ...]]:
    """By path: type, mode, owner, group, target of a link, and the hash of the content."""
    seen = {}
    with exported(name) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            content = hashlib.file_digest(file, "sha256").hexdigest() if file else None  # type: ignore[arg-type]
            seen[member.name] = (member.type, member.mode, member.uid, member.gid, member.linkname, content)
    return seen


def inspected(name: str) -> dict[str, Any]:
    (document,) = json.loads(client("image", "inspect", name))
    assert isinstance(document, dict)
    return document


@pytest.fixture
def two_models(service: Path, world: World, repository: str) -> Record:
    """A release to staging of two models, whose versions bring files of the repository."""
    path = service / "service.yaml"
    text = path.read_text().replace(f"registry: {service_file.load(service).image.registry}", f"registry: {repository}")
    path.write_text(text.replace('  - name: "points"\n', '  - name: "points"\n  - name: corners\n'))
    settings = service_file.load(service)
    assert [model.name for model in settings.models] == ["points", "corners"]
    models = []
    for name, number in (("points", 3), ("corners", 1)):
        version = world.registry.version(name, number)
        models.append(ModelVersion(name, number, version.tags[identity.DIGEST_TAG], version.run_id))
    made = Record("staging", tuple(models), COMMIT, image_name(settings, models))
    for name, text in records.render(made, settings).items():
        (service / records.folder("staging") / name).write_text(text)
    return made


def test_a_built_and_an_assembled_image_have_the_same_files_and_settings(
    service: Path, world: World, two_models: Record, tmp_path: Path
) -> None:
    (made,) = image.run(service, say=quiet)["images"]
    assert made["built"]
    client("pull", "--quiet", made["reference"])
    sources = context.from_registry(world.registry, two_models.models)
    context.write_context(recipe.of_service(service_file.load(service)), two_models.image, sources, tmp_path / "context")
    built = f"{str(two_models.image).rpartition(':')[0]}:built"
    docker.build(tmp_path / "context", built)

    one, other = inspected(built), inspected(made["reference"])
    assert other["Config"] == one["Config"]
    assert "MLOPS_FILES=/app/files" in other["Config"]["Env"]
    assert other["Config"]["Labels"]["mlops-build.model.corners"].startswith("1 sha256:")
    assert (other["Os"], other["Architecture"]) == (one["Os"], one["Architecture"])
    of_environment = one["RootFS"]["Layers"][:-2]
    assert other["RootFS"]["Layers"][: len(of_environment)] == of_environment

    files, others = file_system(built), file_system(made["reference"])
    assert sorted(files) == sorted(others)
    assert {path: (files[path], others[path]) for path in files if files[path] != others[path]} == {}
    assert others["app/files"][4] == "models/points/environment/files"
    for path in ("app/models/corners/environment/files/config/labels.txt", "opt/code/bin/mlops-build", "opt/venv/bin/python"):
        assert path in others


DOCKERFILE = """\
FROM scratch
COPY hello /opt/venv/hello
ENV PATH=/opt/venv/bin:/usr/bin
USER 10001:10001
ENTRYPOINT ["/opt/venv/hello"]
"""


def by_docker(folder: Path, name: str) -> None:
    docker.build(folder, name)
    docker.push(name)


def by_buildah(folder: Path, name: str, kind: str) -> None:
    if not shutil.which("buildah") or os.geteuid() != 0:
        pytest.skip("there is no buildah here, or no root to run it without user namespaces")
    (folder.parent / "storage.conf").write_text(f'[storage]\ndriver = "vfs"\ngraphroot = "{folder}-storage"\nrunroot = "{folder}-run"\n')
    settings = {"STORAGE_DRIVER": "vfs", "BUILDAH_ISOLATION": "chroot", "CONTAINERS_STORAGE_CONF": str(folder.parent / "storage.conf")}
    for command in (["bud", "--format", kind, "--tag", name, str(folder)], ["push", "--format", kind, "--tls-verify=false", name]):
        subprocess.run(["buildah", *command], env={**os.environ, **settings}, check=True, capture_output=True, timeout=120)


@pytest.mark.soak
@pytest.mark.parametrize("way", ["docker", "buildah oci", "buildah docker"])
def test_an_environment_image_of_each_engine_can_be_added_to_and_each_client_reads_the_result(
    service: Path, release: Release, world: World, repository: str, way: str, tmp_path: Path
) -> None:
    """The environment is a file: what counts is the format of its manifest, its configuration and its compressed layer."""
    folder = tmp_path / "environment"
    folder.mkdir()
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "hello").write_text("hello\n")
    path = service / "service.yaml"
    registry = f"{repository}/{way.replace(' ', '-')}"
    path.write_text(path.read_text().replace(f"registry: {service_file.load(service).image.registry}", f"registry: {registry}"))
    settings, record = service_file.load(service), release("staging")
    needs = context.needs(world.folder / "one", "points 1", pickled=False)
    tag = environment.tag(recipe.of_service(settings), needs, settings.image.revision)
    by_docker(folder, f"{registry}/points:{tag}") if way == "docker" else by_buildah(folder, f"{registry}/points:{tag}", way.split()[1])

    said: list[str] = []
    (made,) = image.run(service, say=said.append)["images"]
    assert not any("building it" in line for line in said)
    base, manifest = (Repository(f"{registry}/points").manifest(of) for of in (tag, str(record.image).rpartition(":")[2]))
    assert base
    assert manifest
    assert manifest.media_type == base.media_type
    assert ("oci" in manifest.media_type) == ("oci" in way)

    client("pull", "--quiet", made["reference"])
    assert inspected(made["reference"])["Config"]["User"] == "10001:10001"
    files = file_system(made["reference"])
    assert files["opt/venv/hello"][5] == hashlib.sha256(b"hello\n").hexdigest()
    weights = files["app/models/points/artifacts/weights.pt"][5]
    assert weights == hashlib.sha256((world.folder / "one/artifacts/weights.pt").read_bytes()).hexdigest()
    for command in clients(made["reference"], tmp_path):
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def clients(reference: str, folder: Path) -> Iterator[list[str]]:
    """Commands that read a whole image, of the programs that are installed."""
    if shutil.which("skopeo"):
        yield ["skopeo", "copy", "--src-tls-verify=false", f"docker://{reference}", f"dir:{folder}/copy"]
        yield ["skopeo", "copy", "--src-tls-verify=false", f"docker://{reference}", f"oci:{folder}/oci:copy"]
    if shutil.which("buildah") and os.geteuid() == 0:
        storage = ["--storage-driver", "vfs", "--root", f"{folder}/root", "--runroot", f"{folder}/run"]
        yield ["buildah", *storage, "pull", "--quiet", "--tls-verify=false", f"docker://{reference}"]
