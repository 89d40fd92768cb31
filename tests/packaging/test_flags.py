"""`package` with flags: another device, a platform, secrets, packages from a folder; and what each does to the image's name."""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_build import service
from mlops_build.__main__ import main
from mlops_build.errors import NotFound, Refused
from mlops_build.model import environment
from mlops_build.packaging import bases, wheelhouse
from mlops_build.packaging.dockerfile import UV
from mlops_build.packaging.name import image_name
from mlops_build.packaging.recipe import Recipe, of_service
from mlops_build.packaging.wheelhouse import Incomplete, Wanted
from tests.packaging.world import SERVICE, World

TEXT = SERVICE.replace("REGISTRY", "registry.example.com/ml")


@pytest.fixture
def package(world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., str]:
    """Run `mlops-build package models:/points/1` in a service's folder; returns the Dockerfile, or what it says when it is to fail."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.uri)
    (tmp_path / "service.yaml").write_text(TEXT)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, expect: int = 0) -> str:
        capsys.readouterr()
        assert main(["package", "models:/points/1", "-o", "context", "--json", *arguments]) == expect
        said = capsys.readouterr().err
        return said if expect else (tmp_path / "context/Dockerfile").read_text()

    return run


def image(folder: Path) -> str:
    found: str = json.loads((folder / "context/context.json").read_text())["image"]
    return found


def test_a_flag_wins_over_service_yaml_and_makes_another_image(package: Callable[..., str], tmp_path: Path) -> None:
    assert "NVIDIA_VISIBLE_DEVICES" not in package()
    names = [image(tmp_path)]
    assert "NVIDIA_VISIBLE_DEVICES=all" in package("--gpu")
    names.append(image(tmp_path))
    assert package("--platform", "linux/arm64").count("FROM --platform=linux/arm64 python:3.11-slim AS start") == 1
    names.append(image(tmp_path))
    assert package("--secret", "netrc").count("--mount=type=secret,id=netrc,required=true") == 3
    names.append(image(tmp_path))
    assert len(set(names)) == len(names)
    package("--cpu")
    assert image(tmp_path) == names[0], "repeating a default of service.yaml does not change the image"
    (tmp_path / "service.yaml").write_text(TEXT + "gpu: {mode: shared}\n")
    assert "NVIDIA_VISIBLE_DEVICES" not in package("--cpu")
    assert image(tmp_path) == names[0]


def test_only_who_asks_for_secrets_gets_a_dockerfile_that_needs_buildkit(package: Callable[..., str], tmp_path: Path) -> None:
    assert "--mount" not in package()
    (tmp_path / "service.yaml").write_text(TEXT.replace('slim"}', 'slim", secrets: [index-url, ca-bundle]}'))
    text = package("--secret", "netrc")
    assert "#   docker build" in text
    assert "--secret id=ca-bundle,src=FILE --secret id=index-url,src=FILE --secret id=netrc,src=FILE ." in text
    final = text[text.rindex("\nFROM ") :]
    assert "/run/secrets" not in final
    assert "/run/secrets" not in "".join(re.findall(r"^(?:ENV|ARG) .*$", text, re.MULTILINE)), "else it would stay in the image"


@pytest.mark.parametrize(
    "arguments", [["--gpu", "--cpu"], ["--platform", "windows/amd64"], ["--platform", "linux/amd64 AS x"], ["--secret", "x"]]
)
def test_other_values_are_no_choice(package: Callable[..., str], arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        package(*arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    "arguments", [{"platform": "linux/amd64\nRUN id"}, {"secrets": ("x,target=/etc/passwd",)}, {"cuda": "both"}, {"platform": ""}]
)
def test_a_recipe_takes_no_other_value_either(arguments: dict[str, object]) -> None:
    with pytest.raises(Refused):
        Recipe("points", "python:3.11", **arguments)  # type: ignore[arg-type]


def test_cuda_from_the_base_image_installs_its_python_and_none_of_nvidias_wheels(package: Callable[..., str], tmp_path: Path) -> None:
    settings = 'base: "nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04", cuda: base, apt: [libgomp1]}'
    (tmp_path / "service.yaml").write_text(TEXT.replace('base: "python:3.11-slim"}', settings) + "gpu: {mode: shared}\n")
    text = package()
    assert text.count("FROM nvidia/cuda:12.8.1-cudnn-runtime-ubuntu24.04") == 1
    python = f"python{environment.python_version()}"
    assert f"apt-get install --yes --no-install-recommends {python} {python}-venv libgomp1 " in text
    assert text.count("apt-get install") == 1
    assert text.count("FROM start") == 3
    assert "uv pip install --no-deps ${TORCH_BACKEND" in text
    assert "import sys, torch" in text, "a library that the base lacks must fail the build, not the pod"
    (tmp_path / "service.yaml").write_text(TEXT + "gpu: {mode: shared}\n")
    assert "uv pip install ${TORCH_BACKEND" in package()


# Base images by digest.


def test_a_base_whose_digest_is_known_is_pinned_in_the_dockerfile_and_not_in_the_name(
    package: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package()
    before = image(tmp_path)
    digest = f"sha256:{'a' * 64}"
    monkeypatch.setattr(bases, "known", lambda: {"python:3.11-slim": digest, "python:3.12-slim": None})
    text = package()
    assert text.count(f"FROM python:3.11-slim@{digest} AS start") == 1
    assert f'org.opencontainers.image.base.digest="{digest}"' in text
    assert image(tmp_path) == before
    assert bases.pinned("python:3.12-slim") == "python:3.12-slim"
    assert bases.pinned("mirror.example.com/python:3.11-slim") == "mirror.example.com/python:3.11-slim", "a mirror may have another"
    assert bases.pinned(f"python:3.11-slim@sha256:{'b' * 64}") == f"python:3.11-slim@sha256:{'b' * 64}"


def test_the_table_of_bases_holds_digests_or_nothing() -> None:
    for name, digest in bases.known().items():
        Recipe("points", bases.pinned(name))
        assert digest is None or re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    assert {f"python:3.{minor}-slim" for minor in range(11, 15)} <= set(bases.known())


# Packages from a folder.


def wheel(folder: Path, name: str, content: bytes = b"wheel") -> str:
    """A file of this name; returns its SHA-256."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def wanted(lock: str, *, cuda: bool = False, platform: str = "linux/amd64") -> Wanted:
    return Wanted(lock, {"torch": "2.13.0", "uv": UV}, "3.11", platform, cuda)


@pytest.fixture
def house(tmp_path: Path) -> tuple[Path, str]:
    """A folder of wheels, and a lock that it fits."""
    folder = tmp_path / "wheels"
    numpy = wheel(folder, "numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl", b"numpy")
    arm = wheel(folder, "numpy-2.4.6-cp311-cp311-manylinux_2_28_aarch64.whl", b"numpy for arm")
    pyyaml = wheel(folder, "PyYAML-6.0.3-py3-none-any.whl", b"yaml")
    crypto = wheel(folder, "cryptography-50.0.2-cp39-abi3-manylinux_2_34_x86_64.whl", b"crypto")
    wheel(folder, "torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl")
    wheel(folder, f"uv-{UV}-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl")
    wheel(folder, "nvidia_cublas_cu12-12.8.4-py3-none-manylinux_2_27_x86_64.whl")
    wheel(folder, "numpy-2.4.6-cp312-cp312-manylinux_2_28_x86_64.whl", b"another interpreter's")
    wheel(folder, "left_over-1.0-py3-none-any.whl")
    hashes = {"numpy==2.4.6": [numpy, arm], "pyyaml==6.0.3": [pyyaml], "cryptography==50.0.2": [crypto]}
    return folder, "".join(f"{name}{''.join(f' --hash=sha256:{one}' for one in found)}\n" for name, found in hashes.items())


def test_a_wheelhouse_brings_what_is_needed_and_nothing_else(house: tuple[Path, str], tmp_path: Path) -> None:
    folder, lock = house
    copied = [path.name for path in wheelhouse.fill(folder, tmp_path / "cpu", wanted(lock))]
    assert sorted(copied) == sorted(path.name for path in (tmp_path / "cpu").iterdir())
    assert [name.partition("-")[0] for name in copied] == ["numpy", "PyYAML", "cryptography", "torch", "uv"]
    assert (tmp_path / "cpu/numpy-2.4.6-cp311-cp311-manylinux_2_28_x86_64.whl").read_bytes() == b"numpy"
    assert "nvidia_cublas_cu12-12.8.4-py3-none-manylinux_2_27_x86_64.whl" in [
        path.name for path in wheelhouse.fill(folder, tmp_path / "gpu", wanted(lock, cuda=True))
    ]


def test_a_wheelhouse_that_lacks_something_says_all_of_it(house: tuple[Path, str], tmp_path: Path) -> None:
    folder, lock = house
    (folder / "PyYAML-6.0.3-py3-none-any.whl").write_bytes(b"other content under the same name")
    (folder / f"uv-{UV}-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl").unlink()
    with pytest.raises(Incomplete) as caught:
        wheelhouse.fill(folder, tmp_path / "context", wanted(lock))
    assert "pyyaml==6.0.3 (its hash is not the one in the lock)" in caught.value.message
    assert f"uv=={UV}" in caught.value.message
    assert "numpy" not in caught.value.message
    with pytest.raises(Incomplete, match=r"(?s)on aarch64:.*cryptography==50\.0\.2.*torch"):
        wheelhouse.fill(folder, tmp_path / "arm", wanted(lock, platform="linux/arm64"))
    with pytest.raises(NotFound, match="is not a folder"):
        wheelhouse.fill(tmp_path / "nowhere", tmp_path / "context", wanted(lock))
    assert not (tmp_path / "context").exists()


def test_a_link_in_a_wheelhouse_is_no_wheel(house: tuple[Path, str], tmp_path: Path) -> None:
    folder, lock = house
    (folder / "PyYAML-6.0.3-py3-none-any.whl").rename(tmp_path / "elsewhere.whl")
    (folder / "PyYAML-6.0.3-py3-none-any.whl").symlink_to(tmp_path / "elsewhere.whl")
    with pytest.raises(Incomplete, match="pyyaml"):
        wheelhouse.fill(folder, tmp_path / "context", wanted(lock))


def test_a_build_from_a_wheelhouse_asks_no_index(package: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package()
    plain = image(tmp_path)
    said = package("--wheelhouse", "nowhere", expect=3)
    assert "nowhere is not a folder" in said
    (tmp_path / "wheels").mkdir()
    assert f"torch=={environment.torch_version()}" in package("--wheelhouse", "wheels", expect=4)
    monkeypatch.setattr(wheelhouse, "fill", lambda _, destination, __: destination.mkdir())
    text = package("--wheelhouse", "wheels")
    assert "PIP_INDEX_URL" not in text
    assert "TORCH_BACKEND" not in text
    installs = re.findall(r"pip install[^\n]*", text)
    assert len(installs) == 3
    assert all("--no-index" in one for one in installs)
    assert "--no-index --no-deps --require-hashes" in text
    assert "wheelhouse" not in text[text.rindex("\nFROM ") :]
    assert image(tmp_path) == plain, "where packages come from is not in the image's name"


# Files of the repository.


def test_the_images_files_are_those_of_the_commit_and_nothing_outside(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "config/deep").mkdir(parents=True)
    (tree / "config/labels.txt").write_text("cat\n")
    (tree / "config/deep/more.txt").write_text("dog\n")
    (tree / "readme").write_text("x")
    environment.image_files(tree, ["config", "readme"], tmp_path / "files")
    found = sorted(path.relative_to(tmp_path / "files").as_posix() for path in (tmp_path / "files").rglob("*") if path.is_file())
    assert found == ["config/deep/more.txt", "config/labels.txt", "readme"]
    environment.image_files(tree, [], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(NotFound, match="names other, which is not in the commit"):
        environment.image_files(tree, ["other"], tmp_path / "files")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("secret")
    for link, name in (("config/out", "config"), ("away", "away/key")):
        (tree / link).symlink_to(tmp_path / "secret")
        with pytest.raises(Refused, match="is not a plain file"):
            environment.image_files(tree, [name], tmp_path / "copy")
        (tree / link).unlink()
    assert not list(tmp_path.glob("copy/**/key"))


@pytest.mark.parametrize("path", ["/etc/passwd", "../other", "config/../../x", "a//b", "", ".git", 'a" b', "a\nRUN id"])
def test_a_file_has_a_plain_relative_name(path: str) -> None:
    with pytest.raises(service.ServiceError, match=r"image\.files"):
        service.parse(TEXT.replace('slim"}', f'slim", files: [{json.dumps(path)}]}}'))


def test_a_version_with_files_links_them_into_the_image(world: World, tmp_path: Path) -> None:
    from mlops_build.packaging.context import write_context
    from tests.packaging.test_context import CPU, IMAGE, source

    folder = world.files("with-files")
    (folder / "environment/files/config").mkdir(parents=True)
    (folder / "environment/files/config/labels.txt").write_text("cat\n")
    write_context(CPU, IMAGE, [source(folder)], tmp_path / "context")
    text = (tmp_path / "context/Dockerfile").read_text()
    assert "RUN ln -s models/points/environment/files /model/app/files" in text
    assert "MLOPS_FILES=/app/files" in text
    write_context(CPU, IMAGE, [source(world.folder / "one")], tmp_path / "context")
    assert "MLOPS_FILES" not in (tmp_path / "context/Dockerfile").read_text()


# The name.


def test_the_name_of_a_recipe_counts_every_choice() -> None:
    from mlops_build.model.version import ModelVersion

    settings = service.parse(TEXT)
    models = [ModelVersion("points", 1, f"sha256:{'a' * 64}")]
    base = of_service(settings)
    names = {image_name(settings, models), image_name(settings, models, of_service(settings, gpu=True))}
    names |= {image_name(settings, models, of_service(settings, platform=one)) for one in ("linux/amd64", "linux/arm64")}
    names |= {image_name(settings, models, of_service(settings, secrets=("netrc",)))}
    cuda = service.parse(TEXT.replace('slim"}', 'slim", cuda: base}'))
    names |= {image_name(cuda, models)}
    assert len(names) == 6
    assert image_name(settings, models, base) == image_name(settings, models)
