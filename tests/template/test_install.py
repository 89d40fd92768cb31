"""scripts/install.sh and a service's ci/install: which interpreter and torch they take. The wheels are made here; no index is reached."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
UV = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
HERE = f"cp3{sys.version_info.minor}"
# An index that is not ours to reach: what is asked of it fails, and is written down.
FAKE_UV = """#!/bin/sh
case "$*" in
*--torch-backend*) echo "$*" >>"$ASKED"; exit ${BACKEND_FAILS:-1} ;;
esac
exec "$UV" "$@"
"""


def wheel(folder: Path, name: str, version: str, tag: str, requires: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-{tag}-{tag if tag == 'none' else 'none'}-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{requires}")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return path


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a script with our uv, the folders with wheels, and no package index."""
    programs = tmp_path / "programs"
    programs.mkdir()
    (tmp_path / "index").mkdir()
    (programs / "uv").write_text(FAKE_UV)
    (programs / "uv").chmod(0o755)

    def run(*command: str, root: Path, path: Path = programs, **settings: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "VIRTUAL_ENV", "PYTHON"))}
        environment = {
            **kept,
            "UV": UV,
            "ASKED": str(tmp_path / "asked"),
            "PIP_INDEX_URL": (tmp_path / "index").as_uri(),
            "XDG_CONFIG_HOME": str(tmp_path / "config"),  # no settings of the user's uv
            "UV_CACHE_DIR": str(tmp_path / "cache"),
            "PATH": f"{path}:/usr/bin:/bin",
            **settings,
        }
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A tiny mlops-build with the real script: one locked package, and nothing to build."""
    root = tmp_path / "clone"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/install.sh", root / "scripts")
    (root / "mlops_build").mkdir()
    (root / "mlops_build/__init__.py").touch()
    locked = wheel(tmp_path / "wheels", "locked", "1.0", "py3")
    (root / "requirements.lock").write_text(f"locked==1.0 --hash=sha256:{hashlib.sha256(locked.read_bytes()).hexdigest()}\n")
    (root / "backend.py").write_text(BACKEND)
    backend = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    # For the lock, torch has the requirements of its CPU build.
    (root / "pyproject.toml").write_text(f"{backend}[[tool.uv.dependency-metadata]]\nname = 'torch'\nrequires-dist = []\n")
    return root


# The smallest build backend: an editable installation that holds nothing.
BACKEND = """
import zipfile
def build_editable(folder, config_settings=None, metadata_directory=None):
    with zipfile.ZipFile(folder + "/mlops_build-0-py3-none-any.whl", "w") as archive:
        info = "mlops_build-0.dist-info"
        archive.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: mlops-build\\nVersion: 0\\n")
        archive.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nGenerator: t\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(info + "/RECORD", "")
    return "mlops_build-0-py3-none-any.whl"
"""


def installed(root: Path) -> set[str]:
    return {path.name.partition("-")[0] for path in root.glob(".venv/lib/python3*/site-packages/*.dist-info")}


def test_help_says_what_it_does_and_does_nothing(clone: Path, run: Run) -> None:
    done = run("scripts/install.sh", "--help", root=clone)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: scripts/install.sh\n")
    assert "PIP_FIND_LINKS" in done.stdout
    assert not (clone / ".venv").exists()
    wrong = run("scripts/install.sh", "--now", root=clone)
    assert wrong.returncode == 2
    assert "unknown argument --now" in wrong.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("script", ["scripts/install.sh", "ci/install"])
def test_a_torch_wheel_for_another_python_is_skipped_with_a_line(service: Path, run: Run, tmp_path: Path, script: str) -> None:
    wheel(tmp_path / "wheels", "pinned", "0.4.0", "py3")
    wheel(tmp_path / "old", "torch", "2.13.0", "cp39")
    wheel(tmp_path / "fits", "torch", "2.13.0", HERE)
    environment(service)
    links = f"{tmp_path / 'old'} {tmp_path / 'wheels'} {tmp_path / 'fits'}"
    done = run(script, root=service, PYTHON=sys.executable, PIP_FIND_LINKS=links)
    assert done.returncode == 0, done.stderr
    version = ".".join(map(str, sys.version_info[:3]))
    assert done.stderr.count(f"no torch wheel in {tmp_path / 'old'} fits Python {version}: the next source is used") == 1
    assert installed(service) >= {"locked", "torch", "mlops_build"}
    again = run(script, root=service, PYTHON=sys.executable, PIP_FIND_LINKS=links)
    assert (again.returncode, "torch from" in again.stderr) == (0, False)


def test_without_a_wheel_that_fits_pytorchs_index_is_next_then_the_package_index(clone: Path, run: Run, tmp_path: Path) -> None:
    wheel(tmp_path / "old", "torch", "2.13.0", "cp39")
    done = run("scripts/install.sh", root=clone, PYTHON=sys.executable, PIP_FIND_LINKS=f"{tmp_path / 'wheels'} {tmp_path / 'old'}")
    assert done.returncode == 1
    assert "--torch-backend=cpu torch" in (tmp_path / "asked").read_text()
    assert "torch from the package index" in done.stderr
    assert "put a wheel that fits" in done.stderr
    assert "Traceback" not in done.stderr
    # A build that was named is not replaced by another one.
    done = run("scripts/install.sh", root=clone, PYTHON=sys.executable, PIP_FIND_LINKS=str(tmp_path / "wheels"), TORCH_BACKEND="cu128")
    assert done.returncode == 1
    assert "torch from the package index" not in done.stderr


def index(folder: Path, *wheels: Path) -> None:
    """A package index of these wheels, in a folder."""
    for path in wheels:
        page = folder / path.name.partition("-")[0].replace("_", "-") / "index.html"
        page.parent.mkdir()
        page.write_text(f'<a href="{path.as_uri()}">{path.name}</a>\n')


@pytest.mark.parametrize("script", ["scripts/install.sh", "ci/install"])
def test_torch_from_the_package_index_brings_what_it_needs(service: Path, run: Run, tmp_path: Path, script: str) -> None:
    """The CUDA build does not import without NVIDIA's packages, which are not in the lock."""
    wheel(tmp_path / "wheels", "pinned", "0.4.0", "py3")
    torch = wheel(tmp_path / "files", "torch", "2.13.0", HERE, "Requires-Dist: nvidia-cudnn\n")
    index(tmp_path / "index", torch, wheel(tmp_path / "files", "nvidia_cudnn", "9.0", "py3"))
    environment(service)
    done = run(script, root=service, PIP_FIND_LINKS=str(tmp_path / "wheels"))
    assert done.returncode == 0, done.stderr
    assert "--torch-backend=cpu torch" in (tmp_path / "asked").read_text()
    assert installed(service) >= {"locked", "torch", "nvidia_cudnn", "mlops_build"}


@pytest.mark.parametrize("script", ["scripts/install.sh", "ci/install"])
def test_a_cuda_build_in_a_folder_brings_what_it_needs(service: Path, run: Run, tmp_path: Path, script: str) -> None:
    wheel(tmp_path / "wheels", "pinned", "0.4.0", "py3")
    wheel(tmp_path / "cuda", "torch", "2.13.0", HERE, "Requires-Dist: nvidia-cudnn\n")
    wheel(tmp_path / "cuda", "nvidia_cudnn", "9.0", "py3")
    environment(service)
    done = run(script, root=service, PIP_FIND_LINKS=f"{tmp_path / 'wheels'} {tmp_path / 'cuda'}")
    assert done.returncode == 0, done.stderr
    assert installed(service) >= {"torch", "nvidia_cudnn"}


def test_an_interpreter_that_exists_and_fails_is_passed_over(clone: Path, run: Run, tmp_path: Path) -> None:
    """pyenv's shims exist for versions that are not selected."""
    shims = tmp_path / "programs"
    for name in ("python3.14", "python3.13", "python3.12", "python3.11", "python3"):
        (shims / name).write_text("#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n")
        (shims / name).chmod(0o755)
    none = run("scripts/install.sh", root=clone)
    assert none.returncode == 1
    assert none.stderr == "install: no Python ≥ 3.11 found; install one, or name it: make PYTHON=/path/to/python\n"
    (shims / "python3").unlink()
    (shims / "python3").symlink_to(sys.executable)
    wheel(tmp_path / "wheels", "torch", "2.13.0", HERE)
    done = run("scripts/install.sh", root=clone, PIP_FIND_LINKS=str(tmp_path / "wheels"))
    assert done.returncode == 0, done.stderr


@pytest.fixture
def service(clone: Path) -> Path:
    """The same as a service with the template's ci/install."""
    (clone / "ci").mkdir()
    shutil.copy(ROOT / "template/ci/install", clone / "ci")
    project = '[project]\nname = "mlops-build"\nversion = "0"\ndependencies = [\n    "torch>=2.6",\n]\n'
    (clone / "pyproject.toml").write_text(f"{(clone / 'pyproject.toml').read_text()}\n{project}")
    (clone / "requirements-mlops-build.txt").write_text("pinned==0.4.0\n")
    return clone


def environment(root: Path) -> None:
    """Faster than `python -m venv`, which the script would call."""
    subprocess.run([UV, "venv", "--quiet", "--python", sys.executable, str(root / ".venv")], check=True, timeout=60)


def test_a_service_whose_python_is_missing_says_what_to_do(service: Path, run: Run, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    for program in ("dirname", "sh"):
        (alone / program).symlink_to(str(shutil.which(program)))
    (alone / "python3.13").symlink_to(sys.executable)
    done = run("ci/install", root=service, PATH=str(alone), PYTHON="python3.11")
    assert done.returncode == 1
    assert done.stderr == (
        "ci/install: python3.11, which this service is made for, is not installed\n"
        "    install it: apt-get install python3.11-venv, or: uv python install 3.11\n"
        "    or use python3.13: make install PYTHON=python3.13, and set image.base in service.yaml to the image of the same Python\n"
    )
    assert not (service / ".venv").exists()


def test_an_interpreter_that_uv_knows_need_not_be_on_path(service: Path, run: Run, tmp_path: Path) -> None:
    alone = tmp_path / "programs"
    (alone / "dirname").symlink_to(str(shutil.which("dirname")))
    sh = shutil.which("sh")
    (alone / "uv").write_text(f"#!{sh}\n[ \"$*\" = 'python find --no-python-downloads python3.11' ] && echo {alone}/of-uv\n")
    (alone / "of-uv").write_text(f'#!{sh}\n[ "$1" = -c ] || {{ echo "$*" >"$ASKED"; exit 3; }}\n')
    (alone / "of-uv").chmod(0o755)
    assert run("ci/install", root=service, PATH=str(alone), PYTHON="python3.11").returncode == 3
    assert (tmp_path / "asked").read_text() == "-m venv .venv\n"
