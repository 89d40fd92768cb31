"""`ci image` assembles an image in a registry, which is a stand-in here."""

import io
import json
import os
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from mlops_build import service as service_file
from mlops_build.adapters.engine.command import EngineUnreachable
from mlops_build.adapters.image_registry import LoginNeeded, RefusedByRegistry
from mlops_build.ci import image
from mlops_build.errors import Failed
from mlops_build.model import files, identity
from mlops_build.model.files import DigestMismatch
from mlops_build.packaging import assemble, context, environment, recipe
from mlops_build.packaging.appended import NotAnImage
from mlops_build.packaging.layer import Layer
from mlops_build.release.record import Record
from tests import registries
from tests.packaging.world import World
from tests.registries import Fault

Release = Callable[..., Record]
OCI = "application/vnd.oci.image.manifest.v1+json"


def quiet(text: str) -> None:
    del text


@pytest.fixture
def registry() -> Iterator[registries.Registry]:
    with registries.serve() as serving:
        yield serving


@pytest.fixture
def service(service: Path, registry: registries.Registry, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A service whose images are in the stand-in; there is no engine."""
    path = service / "service.yaml"
    path.write_text(path.read_text().replace(f"registry: {service_file.load(service).image.registry}", f"registry: {registry.host}/ml"))
    monkeypatch.setenv("DOCKER_CLI", "no-such-docker")
    return service


def put(registry: registries.Registry, content: bytes) -> dict[str, Any]:
    """Store a blob; its descriptor."""
    digest = registries.digest_of(content)
    registry.blobs["ml/points", digest] = content
    return {"digest": digest, "size": len(content)}


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def environment_image(service: Path, world: World, registry: registries.Registry, kind: str = OCI) -> str:
    """Store an environment image for points; its tag."""
    settings = service_file.load(service)
    needs = context.needs(world.folder / "one", "points 1", pickled=False)
    tag = environment.tag(recipe.of_service(settings), needs, settings.image.revision)
    base = put(registry, b"the layer of the environment")
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/opt/venv/bin:/usr/bin"], "User": "10001:10001", "Entrypoint": ["mlops-build"]},
        "rootfs": {"type": "layers", "diff_ids": [base["digest"]]},
        "history": [{"created_by": "COPY /opt/venv"}],
    }
    document = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", **put(registry, json.dumps(config).encode())},
        "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **base}],
    }
    registry.manifests["ml/points", tag] = (kind, json.dumps(document).encode())
    return tag


@pytest.fixture
def ready(service: Path, world: World, registry: registries.Registry) -> str:
    return environment_image(service, world, registry)


def assembled(registry: registries.Registry, name: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
    """The manifest, the configuration, and the files of an image's own layers, without the base."""
    kind, body = registry.manifests["ml/points", name.rpartition(":")[2]]
    manifest = json.loads(body)
    assert kind == manifest["mediaType"]
    config = json.loads(registry.blobs["ml/points", manifest["config"]["digest"]])
    contents: dict[str, bytes] = {}
    for layer in manifest["layers"][1:]:
        blob = registry.blobs["ml/points", layer["digest"]]
        assert (len(blob), registries.digest_of(blob)) == (layer["size"], layer["digest"])
        with tarfile.open(fileobj=io.BytesIO(blob)) as archive:
            contents |= {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}  # type: ignore[union-attr]
    return manifest, config, contents


@pytest.mark.usefixtures("ready")
def test_an_image_is_assembled_from_the_environment_code_and_model(
    service: Path, release: Release, world: World, registry: registries.Registry
) -> None:
    record = release("staging")
    (made,) = image.run(service, say=quiet)["images"]
    manifest, config, contents = assembled(registry, str(record.image))
    assert made["built"]
    assert made["reference"].endswith(f"@{registries.digest_of(registry.manifests['ml/points', str(record.image).rpartition(':')[2]][1])}")
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in manifest["layers"]]
    assert len(config["history"]) == len(manifest["layers"])
    assert config["config"]["User"] == "10001:10001"
    assert config["config"]["Labels"]["mlops-build.model.points"].startswith("1 sha256:")
    in_image = {name.removeprefix("app/models/points/"): content for name, content in contents.items() if name.startswith("app/models/")}
    assert in_image == files_of(world.folder / "one")
    assert json.loads(contents["app/context.json"])["image"] == record.image
    assert "opt/code/points_service/model.py" in contents
    assert contents["opt/code/bin/mlops-build"].startswith(b"#!/opt/venv/bin/python\n")
    tags = world.registry.version("points", 1).tags
    assert (tags[identity.IMAGE_NAME], tags[identity.IMAGE]) == (record.image, made["reference"])


@pytest.mark.usefixtures("ready")
def test_a_second_version_sends_only_what_changed(service: Path, release: Release, registry: registries.Registry, world: World) -> None:
    release("staging")
    image.run(service, say=quiet)
    before = len(registry.seen)
    record = release("production", 2)
    image.run(service, say=quiet)
    one, two = (files_of(world.folder / name) for name in ("one", "two"))
    changed = sum(len(content) for path, content in two.items() if content != one.get(path))
    assert sum(seen.size for seen in registry.seen[before:]) <= changed + 20_000
    manifest, _, _ = assembled(registry, str(record.image))
    first, _, _ = assembled(registry, str(release("staging").image))
    assert len({layer["digest"] for layer in manifest["layers"]} - {layer["digest"] for layer in first["layers"]}) == 1


@pytest.mark.usefixtures("ready")
def test_two_agents_push_the_same_digest(service: Path, release: Release, registry: registries.Registry, tmp_path: Path) -> None:
    record = release("staging")
    other = Path(shutil.copytree(service, tmp_path / "another folder"))
    results: list[Any] = []

    def run(root: Path) -> None:
        results.extend(image.run(root, say=quiet)["images"])

    agents = [threading.Thread(target=run, args=(root,)) for root in (service, other)]
    for agent in agents:
        agent.start()
    for agent in agents:
        agent.join(60)
    assert len({made["reference"] for made in results}) == 1
    assert len(results) == 2
    assembled(registry, str(record.image))


@pytest.mark.usefixtures("ready")
def test_what_a_killed_run_left_is_removed_after_a_day(service: Path, release: Release) -> None:
    release("staging")
    for name, hours in (("image-old", 25), ("release-old", 25), ("image-new", 23)):
        folder = service / "build" / name
        folder.mkdir(parents=True)
        (folder / "layer").write_text("incomplete")
        os.utime(folder, (time.time() - hours * 3600,) * 2)
    image.run(service, say=quiet)
    assert sorted(path.name for path in (service / "build").iterdir()) == ["image-digests.json", "image-new"]


@pytest.mark.usefixtures("ready")
def test_a_tampered_artifact_gets_no_name(service: Path, release: Release, registry: registries.Registry, world: World) -> None:
    version = world.registry.version("points", 1)
    source = Path(version.source.removeprefix("file://"))
    kept = (source / "MLmodel").read_bytes()
    record = release("staging")
    try:
        (source / "MLmodel").write_bytes(kept + b"\n# changed\n")
        with pytest.raises(DigestMismatch, match="points 1"):
            image.run(service, say=quiet)
    finally:
        (source / "MLmodel").write_bytes(kept)
    assert ("ml/points", str(record.image).rpartition(":")[2]) not in registry.manifests


def test_without_an_engine_a_new_environment_is_an_error_with_the_commands(
    service: Path, release: Release, registry: registries.Registry
) -> None:
    release("staging")
    with pytest.raises(EngineUnreachable, match=r"environment image .*/ml/points:env-[0-9a-f]{12} does not exist") as caught:
        image.run(service, say=quiet)
    assert "mlops-build package staging" in str(caught.value.remedy)
    assert "--target environment" in str(caught.value.remedy)
    assert not registry.manifests


@pytest.mark.usefixtures("ready")
def test_a_registry_that_refuses_the_manifest_leads_to_a_build(service: Path, release: Release, registry: registries.Registry) -> None:
    release("staging")
    registry.faults.append(Fault("PUT .*/manifests/v1-", 400, body=b'{"errors":[{"code":"MANIFEST_INVALID"}]}'))
    said: list[str] = []
    with pytest.raises(RefusedByRegistry, match="MANIFEST_INVALID"):  # there is no engine either
        image.run(service, say=said.append)
    assert any("not assembled" in line and "MANIFEST_INVALID" in line for line in said)


def test_without_an_engine_a_refused_push_is_the_error(service: Path, release: Release, registry: registries.Registry) -> None:
    registry.mode = "basic"
    release("staging")
    with pytest.raises(LoginNeeded, match="401") as caught:
        image.run(service, say=quiet)
    assert "docker login" in str(caught.value.remedy)


def test_a_service_can_ask_for_builds(service: Path, release: Release, registry: registries.Registry) -> None:
    path = service / "service.yaml"
    path.write_text(re.sub("^image:.*$", "image:\n  assemble: false", path.read_text(), count=1, flags=re.MULTILINE))
    release("staging")
    said: list[str] = []
    with pytest.raises(EngineUnreachable):
        image.run(service, say=said.append)
    assert said[0] == "image: not assembled, because service.yaml has image.assemble: false"
    assert not registry.seen


@pytest.mark.usefixtures("ready")
def test_the_layers_of_the_same_version_are_taken_over_from_another_repository(
    service: Path, release: Release, registry: registries.Registry, world: World
) -> None:
    release("staging")
    image.run(service, say=quiet)
    path = service / "service.yaml"
    path.write_text(path.read_text().replace(f"registry: {registry.host}/ml", f"registry: {registry.host}/other"))
    before = len(registry.seen)
    record = release("staging")
    (made,) = image.run(service, say=quiet)["images"]
    assert made["image"].startswith(f"{registry.host}/other/points:")
    assert made["image"] == record.image
    assert sum(seen.size for seen in registry.seen[before:]) < 40_000, "the layers were sent again"
    assert registry.calls("POST .*/other/points/blobs/uploads/.*from=ml/points")


def test_an_index_of_another_repository_is_not_taken_over(
    service: Path, release: Release, registry: registries.Registry, ready: str
) -> None:
    release("staging")
    image.run(service, say=quiet)
    of_environment = ready.rpartition(":")[2]
    registry.manifests["ml/points", of_environment] = ("application/vnd.oci.image.index.v1+json", b'{"manifests": []}')
    path = service / "service.yaml"
    path.write_text(path.read_text().replace(f"registry: {registry.host}/ml", f"registry: {registry.host}/other"))
    release("staging")
    with pytest.raises(
        EngineUnreachable, match=f"other/points:{of_environment} does not exist"
    ):  # it would be built, but there is no engine
        image.run(service, say=quiet)


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("tag", ["right", "wrong", "[" * 10_000, '{"artifacts/weights.pt": 1}', None])
def test_a_large_file_is_sent_while_it_is_read_for_the_first_time(
    service: Path, release: Release, registry: registries.Registry, world: World, monkeypatch: pytest.MonkeyPatch, tag: str | None
) -> None:
    """The tag of the version says what a layer's digest will be; it need not be right."""
    monkeypatch.setattr(assemble, "OWN_LAYER", 512)
    monkeypatch.setattr(assemble, "LARGE", 512)
    layers = json.loads(assemble.layers_tag("points", world.folder / "one"))
    assert "artifacts/weights.pt" in layers
    if tag == "wrong":
        layers = dict.fromkeys(layers, f"sha256:{'0' * 64}")
    text = json.dumps(layers) if tag in ("right", "wrong") else tag
    if text is not None:
        world.registry.set_tag("points", 1, identity.LAYERS, text)
    passes: list[str] = []
    hashed = Layer.hashed
    monkeypatch.setattr(Layer, "hashed", lambda layer: passes.extend(file.path for file in layer.files) or hashed(layer))
    record = release("staging")
    image.run(service, say=quiet)
    _, _, contents = assembled(registry, str(record.image))
    assert contents["app/models/points/artifacts/weights.pt"] == (world.folder / "one/artifacts/weights.pt").read_bytes()
    assert ("app/models/points/artifacts/weights.pt" in passes) is (tag != "right")
    if tag == "wrong":
        assert not registry.uploads, "an upload was not cancelled"


def test_what_mlflow_writes_into_a_local_store_is_not_part_of_a_version(world: World, tmp_path: Path) -> None:
    version = world.registry.version("points", 1)
    written = Path(version.source.removeprefix("file://")) / "registered_model_meta"
    try:
        mlflow.set_tracking_uri(world.uri)
        mlflow.artifacts.download_artifacts("models:/points/1")
        assert written.exists()
        files.verify(world.registry.fetch(version, tmp_path / "fetched"), version.checked().digest)
        assert {file.path for file in world.registry.files(version)} == set(files_of(tmp_path / "fetched"))
    finally:
        mlflow.set_tracking_uri(None)
        written.unlink(missing_ok=True)


@pytest.mark.usefixtures("ready")
def test_an_existing_image_needs_no_permission_to_push(service: Path, release: Release, registry: registries.Registry) -> None:
    """Such as after a rollback, on an agent that may only pull."""
    release("staging")
    (made,) = image.run(service, say=quiet)["images"]
    registry.faults.append(Fault("POST", 403, times=100))
    assert image.run(service, say=quiet)["images"] == [{**made, "built": False}]


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"history": None, "config": {"Env": None, "Labels": None}}, None),
        ({"history": {}}, "not valid"),
        ({"config": {"Env": "A=b"}}, "not valid"),
        ({"config": {"Labels": ["a"]}}, "not valid"),
        ({"rootfs": {"diff_ids": [5]}}, "not valid"),
        ({"rootfs": {"diff_ids": []}}, "not an image with layers"),
        ({"architecture": "arm64"}, "it is for linux/arm64"),
        ({"created": float("nan")}, "not valid"),
    ],
)
def test_the_environment_image_is_checked(
    service: Path, release: Release, registry: registries.Registry, world: World, changed: dict[str, Any], why: str | None
) -> None:
    record = release("staging")
    tag = environment_image(service, world, registry)
    kind, body = registry.manifests["ml/points", tag]
    document = json.loads(body)
    config = json.loads(registry.blobs["ml/points", document["config"]["digest"]])
    document["config"] |= put(registry, json.dumps(config | changed).encode())
    registry.manifests["ml/points", tag] = (kind, json.dumps(document).encode())
    if why is None:
        image.run(service, say=quiet)
        assert assembled(registry, str(record.image))[1]["config"]["Labels"]
    else:
        with pytest.raises(NotAnImage, match=why):
            image.run(service, say=quiet)


@pytest.mark.usefixtures("ready")
def test_a_hostile_tag_of_an_image_is_no_source_of_layers(
    service: Path, release: Release, registry: registries.Registry, world: World
) -> None:
    release("staging")
    for hostile in (registry.host, f"{registry.host}/{'a/' * 200}a", "evil.example.com/x", f"{registry.host}/../x"):
        world.registry.set_tag("points", 1, identity.IMAGE, f"{hostile}@sha256:{'0' * 64}")
        registry.manifests = {key: value for key, value in registry.manifests.items() if key[1].startswith("env-")}
        assert image.run(service, say=quiet)["images"][0]["built"]


@pytest.mark.usefixtures("ready")
def test_a_folder_that_cannot_be_written_is_an_error(service: Path, release: Release) -> None:
    release("staging")
    (service / "build").write_text("a file\n")
    with pytest.raises(Failed, match="build"):
        image.run(service, say=quiet)
