"""A build context: complete, checked, the same bytes for the same version, and never half."""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_build import __version__, service
from mlops_build.__main__ import main
from mlops_build.errors import Refused
from mlops_build.model import environment, files
from mlops_build.model.version import ModelVersion
from mlops_build.packaging import contents, context, recipe
from mlops_build.packaging.context import Source, write_context
from mlops_build.packaging.dockerfile import dockerfile
from mlops_build.packaging.grammar import BadValue
from mlops_build.packaging.recipe import Recipe
from mlops_build.service.pin import Pin
from tests.conftest import mlops_build
from tests.packaging.world import COMMIT, LOCK, SERVICE, World

CPU = Recipe("points", "python:3.11-slim")
IMAGE = "registry.example.com/ml/points:v1-0123456789ab"


def source(folder: Path, name: str = "points", version: int = 1, digest: str | None = None) -> Source:
    return Source(ModelVersion(name, version, digest or files.digest(folder)), lambda place: shutil.copytree(folder, place))


def tree(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Path → mode, time, content of everything in a folder."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        found[path.relative_to(folder).as_posix()] = (path.stat().st_mode, int(path.stat().st_mtime), content)
    return found


@pytest.fixture
def altered(world: World, tmp_path: Path) -> Path:
    """A copy of version 1's files, to be spoilt."""
    return Path(shutil.copytree(world.folder / "one", tmp_path / "altered"))


def test_a_context_holds_what_an_image_needs_and_nothing_else(world: World, tmp_path: Path) -> None:
    one = source(world.folder / "one")
    made = write_context(CPU, IMAGE, [one], tmp_path / "context")
    assert sorted(path.name for path in (tmp_path / "context").iterdir()) == sorted(
        ["Dockerfile", ".dockerignore", "requirements.lock", "code", "models", "context.json", "sbom.cdx.json"]
    )
    assert files.digest(tmp_path / "context/models/points") == one.model.digest
    assert (tmp_path / "context/requirements.lock").read_text() == LOCK
    assert sorted(path.name for path in (tmp_path / "context/code").iterdir()) == sorted(
        ["bin", "mlops_build", f"mlops_build-{__version__}.dist-info", "points_service", "points-0.1.0.dist-info"]
    )
    programs = [path for path in (tmp_path / "context").rglob("*") if path.is_file() and path.stat().st_mode & 0o111]
    assert programs == [tmp_path / "context/code/bin/mlops-build"]
    document = json.loads((tmp_path / "context/context.json").read_text())
    assert document["models"] == [{"name": "points", "version": 1, "digest": one.model.digest, "path": "models/points"}]
    assert (document["schema"], document["service"], document["image"], document["python"]) == (
        1,
        "points",
        IMAGE,
        environment.python_version(),
    )
    assert contents.read(tmp_path / "context") == made
    assert list(tmp_path.iterdir()) == [tmp_path / "context"], "the scratch folder is gone"


def test_the_same_version_is_the_same_bytes_modes_and_times(world: World, tmp_path: Path) -> None:
    write_context(CPU, IMAGE, [source(world.folder / "one")], tmp_path / "first")
    umask = os.umask(0o077)
    try:
        other = tmp_path / "deep" / "second"
        write_context(CPU, IMAGE, [source(world.folder / "one")], other)
    finally:
        os.umask(umask)
    assert tree(tmp_path / "first") == tree(other)
    write_context(CPU, IMAGE, [source(world.folder / "two")], tmp_path / "third")
    assert tree(tmp_path / "third") != tree(other)


def test_no_two_contents_of_a_file_have_its_size_and_its_time(world: World, tmp_path: Path) -> None:
    """BuildKit takes a file of the same name, size and time for the one that it has, in a folder that it has seen."""
    trees = []
    for number, name in enumerate(("one", "two"), start=1):
        write_context(CPU, IMAGE, [source(world.folder / name, version=number)], tmp_path / "context")
        trees.append({path: (path.stat(), path.read_bytes()) for path in (tmp_path / "context").rglob("*") if path.is_file()})
    first, second = trees
    differing = [path for path in first if first[path][1] != second[path][1]]
    assert {"Dockerfile", "context.json", "weights.pt"} <= {path.name for path in differing}
    assert any(first[path][0].st_size == second[path][0].st_size for path in differing), "else there is nothing to tell apart"
    same = [
        path
        for path in differing
        if (first[path][0].st_size, first[path][0].st_mtime) == (second[path][0].st_size, second[path][0].st_mtime)
    ]
    assert same == []


def test_an_earlier_context_is_replaced_and_anything_else_left_alone(world: World, tmp_path: Path) -> None:
    destination = tmp_path / "context"
    destination.mkdir()
    write_context(CPU, IMAGE, [source(world.folder / "one")], destination)
    (destination / "added").touch()
    write_context(CPU, IMAGE, [source(world.folder / "two", version=2)], destination)
    assert contents.read(destination).models[0].version == 2
    assert not (destination / "added").exists()

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(destination)
    for place in (mine, tmp_path / "file", tmp_path / "link"):
        with pytest.raises(context.NotOurs):
            write_context(CPU, IMAGE, [source(world.folder / "one")], place)
    assert (mine / "thesis.txt").read_text() == "years of work"
    (mine / "context.json").write_text("{}")
    with pytest.raises(context.NotOurs):
        write_context(CPU, IMAGE, [source(world.folder / "one")], mine)


def test_a_failure_leaves_what_was_there(world: World, altered: Path, tmp_path: Path) -> None:
    destination = tmp_path / "context"
    write_context(CPU, IMAGE, [source(world.folder / "one")], destination)
    before = tree(destination)
    with (altered / "predictor.py").open("a") as file:
        file.write("import os\n")
    with pytest.raises(files.DigestMismatch, match="points 1: "):
        write_context(CPU, IMAGE, [source(altered, digest=files.digest(world.folder / "one"))], destination)
    assert tree(destination) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["altered", "context"]


def test_a_pickled_model_is_not_packaged(altered: Path, tmp_path: Path) -> None:
    (altered / "python_model.pkl").write_bytes(pickle.dumps({}))
    with pytest.raises(context.UnsafeFiles, match=r"python_model\.pkl") as caught:
        write_context(CPU, IMAGE, [source(altered)], tmp_path / "context")
    assert "log_model" in caught.value.message
    assert "serving: {unsafe_pickle:" in str(caught.value.remedy)
    assert not (tmp_path / "context").exists()


def test_a_pickled_model_is_packaged_for_a_reason_and_other_findings_are_refused(world: World, altered: Path, tmp_path: Path) -> None:
    accepting = replace(CPU, unsafe_pickle="the team made it")
    (altered / "python_model.pkl").write_bytes(pickle.dumps({}))
    made = write_context(accepting, IMAGE, [source(altered)], tmp_path / "context")
    assert contents.read(tmp_path / "context") == made
    assert json.loads((tmp_path / "context/context.json").read_text())["unsafe_pickle"] == "the team made it"

    write_context(accepting, IMAGE, [source(world.folder / "one")], tmp_path / "safe")
    write_context(CPU, IMAGE, [source(world.folder / "one")], tmp_path / "plain")
    assert tree(tmp_path / "safe") == tree(tmp_path / "plain"), "a model without pickles needs no reason"

    (altered / "weights.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(context.UnsafeFiles, match=r"weights\.pth") as caught:
        write_context(accepting, IMAGE, [source(altered)], tmp_path / "context")
    assert "python_model.pkl" not in caught.value.message
    assert "unsafe_pickle" not in str(caught.value.remedy)


@pytest.mark.parametrize(
    ("path", "content", "says"),
    [
        ("environment/environment.json", {"schema": 1, "python": "3.11\nRUN id", "torch": "2.13.0"}, "python: '3.11"),
        ("environment/environment.json", {"schema": 1, "python": "3.11", "torch": "2.13.0; id"}, "torch: '2.13.0; id'"),
        ("environment/environment.json", {"schema": 1, "torch": "2.13.0"}, "python: None"),
        ("environment/environment.json", {"schema": 2}, "schema"),
        ("environment/requirements.lock", "--index-url https://evil.example.com\n", "requirements.lock: '--index-url"),
        ("environment/requirements.lock", "torch==2.13.0 --hash=sha256:" + "0" * 64, "requirements.lock: 'torch=="),
        ("environment/wheels/evil name.whl", "", "wheels: 'evil name.whl'"),
        ("lineage.json", {"code": {"commit": 'x" \\\n RUN id'}}, "lineage.json: commit"),
    ],
)
def test_what_a_version_says_passes_a_grammar(altered: Path, tmp_path: Path, path: str, content: object, says: str) -> None:
    (altered / path).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(Refused) as caught:
        write_context(CPU, IMAGE, [source(altered)], tmp_path / "context")
    assert says in caught.value.message
    assert caught.value.exit_code == 4
    assert not (tmp_path / "context").exists()


@pytest.mark.parametrize("path", ["environment/environment.json", "environment/requirements.lock", "environment/wheels", "MLmodel"])
def test_a_version_without_its_parts_says_which_are_missing(altered: Path, tmp_path: Path, path: str) -> None:
    shutil.rmtree(altered / path) if (altered / path).is_dir() else (altered / path).unlink()
    with pytest.raises(context.BadVersion, match=re.escape(path)):
        write_context(CPU, IMAGE, [source(altered)], tmp_path / "context")


@pytest.mark.parametrize("path", ["lineage.json", "openapi.json", "examples/recorded.json"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff"])
def test_a_version_with_a_damaged_document_is_refused(altered: Path, tmp_path: Path, path: str, content: bytes) -> None:
    """Without this, labels would be missing, a new contract would pass as the old one, or the pod would fail at its start."""
    (altered / path).write_bytes(content)
    with pytest.raises(context.BadVersion, match=f"points 1: {path} cannot be read"):
        write_context(CPU, IMAGE, [source(altered)], tmp_path / "context")


@pytest.mark.parametrize(
    ("tags", "platform", "fits"),
    [
        ("py3-none-any", "linux/arm64", True),
        ("py311-none-any", None, True),
        ("py39-none-any", None, True),
        ("py399-none-any", None, False),
        ("cp399-cp399-linux_x86_64", None, False),
        ("cp39-abi3-linux_x86_64", None, True),
        ("cp39-abi3-linux_x86_64", "linux/amd64", True),
        ("cp39-abi3-linux_x86_64", "linux/arm64", False),
    ],
)
def test_a_wheel_is_for_the_python_and_the_machine_of_the_image(
    altered: Path, tmp_path: Path, tags: str, platform: str | None, fits: bool
) -> None:
    """The image's build does not look at the tags: the wheels are unpacked here."""
    wheels = altered / "environment/wheels"
    (wheels / "points-0.1.0-py3-none-any.whl").rename(wheels / f"points-0.1.0-{tags}.whl")
    recipe = replace(CPU, platform=platform)
    if fits:
        write_context(recipe, IMAGE, [source(altered)], tmp_path / "context")
        assert (tmp_path / "context/code/points_service/model.py").is_file()
    else:
        with pytest.raises(context.BadVersion, match=f"points 1: points-0.1.0-{tags}.whl cannot be installed with Python 3"):
            write_context(recipe, IMAGE, [source(altered)], tmp_path / "context")
        assert not (tmp_path / "context").exists()


def test_models_of_one_image_share_one_environment(world: World, altered: Path, tmp_path: Path) -> None:
    one = source(world.folder / "one")
    made = write_context(CPU, IMAGE, [one, source(world.folder / "two", "lines", 7)], tmp_path / "context")
    assert [str(model) for model in made.models] == ["points 1", "lines 7"]
    (altered / "environment/requirements.lock").write_text(LOCK.replace("2.4.6", "2.4.5"))
    with pytest.raises(context.BadVersion, match=r"lines 7 was trained with numpy 2\.4\.5, points 1 with 2\.4\.6"):
        write_context(CPU, IMAGE, [one, source(altered, "lines", 7)], tmp_path / "other")


def test_what_an_image_needs_is_known_from_the_small_files_alone(world: World, tmp_path: Path) -> None:
    """Assembling an image fetches no weights to disk; the result is that of a build context."""
    one = source(world.folder / "one")
    write_context(CPU, IMAGE, [one], tmp_path / "context")
    folder = tmp_path / "staged" / contents.folder_of(one.model.name)
    shutil.copytree(world.folder / "one", folder)
    (folder / "artifacts/weights.pt").unlink()
    before = tree(tmp_path / "staged")
    needed = context.needs(folder, str(one.model), pickled=False)
    prepared = context.prepare(CPU, IMAGE, [(one.model, needed)], tmp_path / "staged")
    assert tree(tmp_path / "staged") == before
    assert prepared.contents.as_text() == (tmp_path / "context/context.json").read_text()
    assert prepared.needs.lock == (tmp_path / "context/requirements.lock").read_text()
    assert (prepared.recipe, prepared.files_of) == (CPU, None)
    assert dockerfile(CPU, prepared.contents, prepared.labels) == (tmp_path / "context/Dockerfile").read_text()
    assert prepared.labels["mlops-build.model.points"] == f"1 {one.model.digest}"


def test_models_of_one_image_share_one_copy_of_the_services_code(world: World, altered: Path, tmp_path: Path) -> None:
    one = source(world.folder / "one")
    (own,) = [path for path in (altered / "environment/wheels").iterdir() if not path.name.startswith("mlops_build-")]
    own.write_bytes(own.read_bytes() + b"changed")
    with pytest.raises(context.BadVersion, match="lines 7 has other code of the service than points 1") as caught:
        write_context(CPU, IMAGE, [one, source(altered, "lines", 7)], tmp_path / "other")
    assert "promote those versions together" in str(caught.value.remedy)
    assert not (tmp_path / "other").exists()


def test_the_dockerfile_is_made_for_small_images_and_plain_builders(world: World, tmp_path: Path) -> None:
    write_context(CPU, IMAGE, [source(world.folder / "one")], tmp_path / "context")
    text = (tmp_path / "context/Dockerfile").read_text()
    for word in ("conda", "nginx", "jdk", "gcc", "build-essential", "--mount", "--link", "<<", "# syntax", "nvidia", "apt-get"):
        assert word not in text.lower().replace("nvidia's", "")
    stages = {stage.partition("\n")[0]: stage.splitlines() for stage in text.split("\nFROM ")}
    environment, final = stages["start AS environment"], stages["environment"]
    copies = [line for line in [*environment, *final] if line.startswith(("COPY", "RUN", "ADD"))]
    assert copies == ["COPY --from=dependencies /opt/venv /opt/venv", "COPY --from=layers /code /", "COPY --from=layers /model /"]
    assert "USER 10001:10001" in environment
    assert any(line.startswith("HEALTHCHECK") for line in environment)
    assert 'ENTRYPOINT ["mlops-build", "serve", "/app", "--host", "0.0.0.0", "--port", "8080"]' in environment
    assert f'org.opencontainers.image.revision="{COMMIT}"' in text
    # What changes with every version stands after what changes with the lock alone.
    assert text.index("COPY requirements.lock") < text.index("COPY code/") < text.index("COPY context.json")


def test_the_dockerfile_follows_service_yaml() -> None:
    text = SERVICE.replace("REGISTRY", "registry.example.com/ml") + "gpu: {mode: shared}\nserving: {port: 9000}\n"
    settings = service.parse(text.replace('base: "python:3.11-slim"', 'base: "mirror.example.com/python:3.11", apt: [libgl1, curl, curl]'))
    made = contents.Contents("points", IMAGE, "3.11", "2.13.0", (ModelVersion("points", 1, f"sha256:{'0' * 64}"),))
    written = dockerfile(recipe.of_service(settings), made, {})
    assert "apt-get install --yes --no-install-recommends curl libgl1 " in written
    assert written.count("FROM mirror.example.com/python:3.11 AS start") == 1
    assert "NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility" in written
    assert "ARG TORCH_BACKEND\n" in written
    assert '"--port", "9000"]' in written
    assert "image.revision" not in written


@pytest.mark.parametrize(
    "arguments",
    [
        {"service": "points", "base": "python:3.11\nRUN id"},
        {"service": "a b", "base": "python:3.11"},
        {"service": "a", "base": "python:3.11", "apt": ("curl; id",)},
        {"service": "a", "base": "python:3.11", "port": 80},
        {"service": "a", "base": "python:3.11", "port": "8080; id"},
    ],
)
def test_a_recipe_holds_nothing_that_its_grammar_refuses(arguments: dict[str, object]) -> None:
    with pytest.raises(BadValue):
        Recipe(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"schema": 2},
        {"schema": 1, "models": []},
        {"schema": 1, "service": "a", "image": None, "python": "3.11", "torch": "2", "models": []},
        {"schema": 1, "service": "a", "image": None, "python": "3.11", "torch": "2", "models": [{"name": "a"}]},
        {
            "schema": 1,
            "service": "a",
            "image": None,
            "python": "3.11",
            "torch": "2",
            "models": [{"name": "a", "version": 1, "digest": f"sha256:{'0' * 64}", "path": "../a"}],
        },
        {
            "schema": 1,
            "service": "a",
            "image": None,
            "python": "3.11",
            "torch": "2",
            "models": [{"name": "a", "version": 1, "digest": f"sha256:{'0' * 64}", "path": "models/a"}],
            "unsafe_pickle": "two\nlines",
        },
    ],
)
def test_a_context_that_says_something_else_is_refused(tmp_path: Path, document: object) -> None:
    (tmp_path / "context.json").write_text(json.dumps(document))
    with pytest.raises(contents.BadContents):
        contents.read(tmp_path)


# The command. Most tests call it in this process: one of its own takes seconds to import torch and MLflow.


@pytest.fixture
def package(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run `mlops-build package` in a folder; returns its stdout, or what it says when it is to fail."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.uri)

    def run(where: Path, *arguments: str, expect: int = 0) -> str:
        monkeypatch.chdir(where)
        capsys.readouterr()
        assert main(["package", *arguments]) == expect
        out, err = capsys.readouterr()
        assert not (expect and out)
        return err if expect else out

    return run


@pytest.fixture
def in_service(tmp_path: Path) -> Path:
    """A service's folder whose staging runs nothing yet."""
    root = tmp_path / "points"
    for env in ("staging", "production"):
        folder = root / "deploy/overlays" / env / "release"
        folder.mkdir(parents=True)
        (folder / "record.yaml").write_text(f"schema: 1\nenvironment: {env}\nmodels: []\ncommit: null\nimage: null\n")
    (root / "service.yaml").write_text(SERVICE.replace("REGISTRY", "registry.example.com/ml"))
    return root


def test_a_version_is_packaged_with_nothing_but_the_registry(world: World, tmp_path: Path) -> None:
    command = ("package", "models:/points/2", "-o", "out/context", "--json")
    document = json.loads(mlops_build(tmp_path, *command, environment={"MLFLOW_TRACKING_URI": world.uri}).stdout)
    assert document["models"][0]["version"] == 2
    assert document["image"] is None
    assert document["context"] == "out/context"
    assert document["files"] == sum(1 for path in (tmp_path / "out/context").rglob("*") if path.is_file())
    assert f"FROM python:{environment.python_version()}-slim AS start" in (tmp_path / "out/context/Dockerfile").read_text()


def test_an_environment_is_packaged_as_its_record_says(package: Callable[..., str], world: World, in_service: Path) -> None:
    said = package(in_service, "staging", "-o", "build/context", expect=3)
    assert "nothing is released to staging yet" in said
    assert "mlops-build promote points VERSION --to staging" in said

    from mlops_build.packaging.name import image_name
    from mlops_build.release import record

    settings = service.load(in_service)
    version = world.registry.version("points", 1)
    released = (ModelVersion("points", 1, version.tags["mlops_build.digest"], version.run_id),)
    image = image_name(settings, released)
    for name, text in record.render(record.Record("staging", released, COMMIT, image), settings).items():
        (in_service / record.folder("staging") / name).write_text(text)
    world.registry.set_alias("points", "newest", 1)
    document = json.loads(package(in_service, "staging", "-o", "build/context", "--json"))
    assert document["image"] == image
    assert document["models"][0]["digest"] == released[0].digest
    by_uri = json.loads(package(in_service, "models:/points@newest", "-o", "build/other", "--json"))
    assert by_uri["image"] == image
    assert tree(in_service / "build/context") == tree(in_service / "build/other")

    path = in_service / record.folder("staging") / "record.yaml"
    older = image_name(settings, released, pin=Pin(0, 8))
    path.write_text(path.read_text().replace(image, older))
    assert json.loads(package(in_service, "staging", "-o", "build/context", "--json"))["image"] == older
    path.write_text(path.read_text().replace(released[0].digest, f"sha256:{'0' * 64}"))
    assert "find out who wrote the tag" in package(in_service, "staging", "-o", "build/context", expect=4)


@pytest.mark.parametrize(
    ("what", "expect", "says"),
    [
        ("models:/nobody/1", 3, "registered models: "),
        ("models:/points/99", 3, "versions: 2, 1"),
        ("models:/points@nowhere", 3, "aliases:"),
        ("models:/points", 2, "models:/NAME/VERSION"),
        ("models:/../etc/1", 2, "is not a model URI"),
        ("staging", 3, "no service.yaml"),
    ],
)
def test_what_does_not_exist_is_told_with_what_does(package: Callable[..., str], tmp_path: Path, what: str, expect: int, says: str) -> None:
    assert says in package(tmp_path, what, "-o", "context", expect=expect)
    assert not (tmp_path / "context").exists()


def test_an_unknown_environment_is_told_with_the_known_ones(package: Callable[..., str], in_service: Path) -> None:
    assert "environments in service.yaml: staging, production" in package(in_service, "stagin", "-o", "context", expect=3)


def test_a_version_that_we_did_not_register_is_refused(package: Callable[..., str], world: World, altered: Path, tmp_path: Path) -> None:
    version = world.register(altered, "stranger")
    world.registry.delete_tag("stranger", version.version, "mlops_build.digest")
    assert "it was not registered by mlops-build" in package(tmp_path, "models:/stranger/1", "-o", "context", expect=4)


def test_files_that_were_changed_in_the_store_are_refused(package: Callable[..., str], world: World, altered: Path, tmp_path: Path) -> None:
    version = world.register(altered, "changed")
    stored = Path(version.source.removeprefix("file://"))
    (stored / "predictor.py").write_text("import os\n")
    assert "changed 1: its files: the files have digest" in package(tmp_path, "models:/changed/1", "-o", "context", expect=4)
