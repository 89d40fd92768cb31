"""`ci image` killed at any moment, and started more than once, with a real registry that MLOPS_TEST_IMAGE_REGISTRY names; no engine."""

import hashlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mlops_build import service as service_file
from mlops_build.adapters.image_registry import Repository
from mlops_build.model import identity
from mlops_build.model.version import ModelVersion
from mlops_build.packaging import assemble, context, environment, recipe
from mlops_build.packaging.name import image_name
from mlops_build.release import record as records
from mlops_build.release.record import Record
from tests.packaging.world import COMMIT, World, make

REGISTRY = os.environ.get("MLOPS_TEST_IMAGE_REGISTRY", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.real_python,
    pytest.mark.skipif(not REGISTRY, reason="set MLOPS_TEST_IMAGE_REGISTRY to push to a real registry"),
]
LARGE = 64 << 20
RUN_SECONDS = 120
OCI = "application/vnd.oci.image.manifest.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True)
class Agent:
    """A clone of a service whose image goes to a repository that nobody has used."""

    root: Path
    repository: Repository
    record: Record

    @property
    def tag(self) -> str:
        return str(self.record.image).rpartition(":")[2]

    def start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "mlops_build", "ci", "image", "--json"]
        return subprocess.Popen(command, cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def image(self) -> dict[str, Any]:
        """The result of a run that nothing disturbs."""
        return result(self.start())

    def document(self) -> dict[str, Any] | None:
        """The manifest of the tag; None if there is none. Fails if a blob is missing, or has another content than the manifest says."""
        manifest = self.repository.manifest(self.tag)
        if manifest is None:
            return None
        document: dict[str, Any] = json.loads(manifest.body)
        for blob in [document["config"], *document["layers"]]:
            assert self.digest_of(blob["digest"], blob["size"]) == blob["digest"]
        return document

    def digest_of(self, blob: str, size: int) -> str:
        """The digest of what the registry sends for a blob."""
        host, _, path = self.repository.name.partition("/")
        with urllib.request.urlopen(f"http://{host}/v2/{path}/blobs/{blob}", timeout=60) as answer:
            total, received = hashlib.sha256(), 0
            while chunk := answer.read(1 << 20):
                total.update(chunk)
                received += len(chunk)
        assert received == size
        return f"sha256:{total.hexdigest()}"


Clone = Callable[[], Agent]


def result(process: "subprocess.Popen[str]") -> dict[str, Any]:
    output, errors = process.communicate(timeout=RUN_SECONDS)
    assert process.returncode == 0, errors
    (made,) = json.loads(output)["images"]
    assert isinstance(made, dict)
    return made


@pytest.fixture(scope="module")
def large_world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """points 1 with a large file, and with the tag that training writes, so that the file is hashed while it is sent."""
    made = make(tmp_path_factory.mktemp("world"))
    folder = made.files("one")
    (folder / "artifacts/backbone.dat").write_bytes(os.urandom(LARGE))
    version = made.register(folder)
    made.registry.set_tag("points", version.version, identity.LAYERS, assemble.layers_tag("points", folder))
    return made


@pytest.fixture
def clone(rendered_none: Path, large_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """clone(): a service that has released points 1, with a database of its own; its environment image is a small file."""
    monkeypatch.setenv("DOCKER_CLI", "no-such-docker")

    def cloned() -> Agent:
        name = secrets.token_hex(4)
        root = Path(shutil.copytree(rendered_none, tmp_path / name))
        world = large_world.copy(tmp_path / f"{name}.db")
        path = root / "service.yaml"
        text = path.read_text().replace(f"registry: {service_file.load(root).image.registry}", f"registry: {REGISTRY}/{name}")
        path.write_text(text.replace("uri: sqlite:///mlflow.db", f"uri: {world.uri}"))
        settings, version = service_file.load(root), world.registry.version("points", 1)
        models = (ModelVersion("points", 1, version.tags[identity.DIGEST_TAG], version.run_id),)
        record = Record("staging", models, COMMIT, image_name(settings, models))
        for document, content in records.render(record, settings).items():
            (root / records.folder("staging") / document).write_text(content)
        put_environment(root, world, repository := Repository(f"{REGISTRY}/{name}/points"))
        return Agent(root, repository, record)

    return cloned


def put_environment(root: Path, world: World, repository: Repository) -> None:
    """Store an environment image whose layer is one file."""

    def stored(kind: str, content: bytes) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        repository.upload(digest, len(content), lambda offset: iter([content[offset:]]))
        return {"mediaType": kind, "digest": digest, "size": len(content)}

    settings = service_file.load(root)
    needs = context.needs(world.folder / "one", "points 1", pickled=False)
    layer = stored(LAYER, b"the layer of the environment")
    config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]}}
    document = {"schemaVersion": 2, "mediaType": OCI, "config": stored(CONFIG, json.dumps(config).encode()), "layers": [layer]}
    tag = environment.tag(recipe.of_service(settings), needs, settings.image.revision)
    repository.put_manifest(tag, OCI, json.dumps(document).encode())


def same(agent: Agent, other: Agent) -> None:
    """Both images are the same, except that each has its own name in context.json, which is in the last layer."""
    ours, theirs = agent.document(), other.document()
    assert ours
    assert theirs
    assert ours["layers"][:-1] == theirs["layers"][:-1]
    assert any(layer["size"] > LARGE for layer in ours["layers"])
    last, others_last = (each.repository.read_blob(document["layers"][-1]["digest"]) for each, document in ((agent, ours), (other, theirs)))
    assert last.replace(str(agent.record.image).encode(), str(other.record.image).encode()) == others_last
    config, others_config = (
        json.loads(each.repository.read_blob(document["config"]["digest"])) for each, document in ((agent, ours), (other, theirs))
    )
    del config["rootfs"]["diff_ids"][-1], others_config["rootfs"]["diff_ids"][-1]
    assert config == others_config


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_at_any_moment_no_tag_names_an_incomplete_image_and_the_next_run_goes_on(clone: Clone, kills: int) -> None:
    undisturbed = clone()
    began = time.monotonic()
    undisturbed.image()
    seconds = time.monotonic() - began
    seed = secrets.randbits(32)
    moments, agents = random.Random(seed), [clone()]  # noqa: S311 -- repeated with the seed
    incomplete = 0
    for number in range(kills):
        process = agents[-1].start()
        time.sleep(moments.uniform(0, seconds))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=RUN_SECONDS)
        where = f"kill {number} of seed {seed}"
        if agents[-1].document() is None:
            incomplete += 1
        else:  # what is complete cannot be disturbed any more
            assert agents[-1].image()["reference"], where
            agents.append(clone())
    print(f"{kills} kills (seed {seed}), {incomplete} before the image was complete, {len(agents)} images")
    assert incomplete > kills // 4
    for agent in agents:
        agent.image()
        same(agent, undisturbed)
        assert len(list((agent.root / "build").glob("image-*/"))) <= kills


def test_four_agents_at_once_push_the_same_digest(clone: Clone, tmp_path: Path) -> None:
    agent = clone()
    agents = [replace(agent, root=Path(shutil.copytree(agent.root, tmp_path / f"agent {number}"))) for number in range(4)]
    processes = [each.start() for each in agents]
    references = {result(process)["reference"] for process in processes}
    manifest = agent.repository.manifest(agent.tag)
    assert manifest
    assert references == {f"{agent.repository.name}@{manifest.digest}"}
    assert agent.document()
    assert [sorted(path.name for path in (each.root / "build").iterdir()) for each in agents] == [["image-digests.json"]] * 4
