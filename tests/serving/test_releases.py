"""Serving and the registry use private parts of MLflow, and serving replaces a part of uvicorn: their tests also run with the oldest and
the newest allowed releases."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("mlflow", "uvicorn", "httptools")
TESTS = ("tests/serving/test_http.py", "tests/serving/test_hard.py", "tests/serving/test_light.py", "tests/adapters/registry")
pytestmark = [pytest.mark.slow, pytest.mark.real_python]


def allowed(package: str) -> str:
    """The releases that pyproject.toml allows, such as uvicorn>=0.34,<1."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (requirement,) = {line for lines in extras.values() for line in lines if re.match(rf"{package}>=", line)}
    return requirement


@pytest.mark.parametrize("age", [pytest.param("oldest", marks=pytest.mark.soak), "newest"])
def test_serving_and_registry_with_another_release_of_what_they_use(tmp_path: Path, age: str) -> None:
    uv = [str(Path(sys.executable).with_name("uv")), "pip"]
    newest = [allowed(name) for name in PACKAGES]
    wanted = [requirement.replace(">=", "==").partition(",")[0] for requirement in newest] if age == "oldest" else newest
    compiling = [*uv, "compile", "--quiet", "--no-header", "--no-annotate", "-"]
    resolved = subprocess.run(compiling, input="\n".join(wanted), capture_output=True, text=True, check=True, timeout=300).stdout
    packages = [line for line in resolved.splitlines() if re.match(r"(mlflow[a-z-]*|uvicorn|httptools)==", line)]
    names = [package.partition("==")[0] for package in packages]
    if packages == [f"{name}=={importlib.metadata.version(name)}" for name in names]:
        pytest.skip("the newest allowed releases are those of requirements.lock, with which all tests run")
    other = tmp_path / "packages"
    installing = [*uv, "install", "--quiet", "--python", sys.executable, "--no-deps", "--target", str(other), *packages]
    subprocess.run(installing, check=True, timeout=300)
    environment = {**os.environ, "PYTHONPATH": str(other)}
    environment.pop("MLOPS_TEST_WARM_VENV", None)  # its processes are forks of one that has imported the installed releases
    where = [sys.executable, "-c", "import httptools, mlflow, uvicorn; print(httptools.__file__, mlflow.__file__, uvicorn.__file__)"]
    used = subprocess.run(where, env=environment, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout
    assert used.count(str(other)) == len(PACKAGES)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *(str(ROOT / path) for path in TESTS)]
    # In another folder: MLflow 3.10 writes an mlflow.db into the current one.
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, f"{packages}:\n{done.stdout[-4000:]}"
