"""The wheel, installed alone and with each extra into a bare environment: what the extra promises must import."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from mlops_build.adapters import installer
from mlops_build.cli.table import COMMANDS
from mlops_build.model import environment
from tests.imports import closure
from tests.test_dependencies import WITHOUT

ROOT = Path(__file__).parent.parent
# What an extra promises beyond what its commands import.
PROMISES = {"train": ["mlops_build.training"], "template": ["mlops_build.scaffold.cookiecutter", "cookiecutter"]}
EXTRAS = ["train", "serve", "operate", "watch", "template"]


def promised(extra: str) -> list[str]:
    """The modules that the commands of an extra import, ours and others'."""
    modules = {*PROMISES.get(extra, [])}
    for command, (module, _, needed) in COMMANDS.items():
        if needed == extra:
            imports = closure(module)
            modules |= imports.modules | (imports.packages - WITHOUT.get(command, set()))
    return sorted(modules)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment.project_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def installed(folder: Path, wheel: Path, extra: str | None, constraints: Sequence[Path]) -> Path:
    """A fresh environment with the wheel and an extra, at the versions of our lock; returns its bin folder."""
    uv = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True, timeout=60)
    wanted = f"mlops-build[{extra}] @ {wheel.as_uri()}" if extra else str(wheel)
    command = [
        *uv,
        "pip",
        "install",
        "--quiet",
        "--python",
        str(folder / "bin/python"),
        wanted,
        *(f"--constraint={path}" for path in constraints),
    ]
    done = subprocess.run(command, env=installer.uv_environment(), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


@pytest.fixture(scope="session")
def constraints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Our lock's versions, and torch's: no hash, since the wheel itself has none."""
    path = tmp_path_factory.mktemp("constraints") / "constraints.txt"
    lines = [
        line.rstrip(" \\\n")
        for line in (ROOT / "requirements.lock").read_text().splitlines()
        if "==" in line and not line.startswith((" ", "#"))
    ]
    path.write_text("\n".join([*lines, f"torch=={environment.torch_version()}"]) + "\n")
    return [path]


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    listed = subprocess.run(
        [sys.executable, "-m", "zipfile", "--list", str(wheel)], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    names = {line.split()[0].split("/")[0] for line in listed.splitlines()[1:]}
    assert {name for name in names if not name.endswith(".dist-info")} == {"mlops_build"}
    assert "mlops_build/py.typed" in listed
    assert "Dockerfile" in listed
    assert "mlops_build/gpu/testing/c/nvml.c" in listed
    assert "mlops_build/watch/files/zabbix-template.yaml" in listed


def test_the_base_alone_runs_the_command_line_and_names_what_is_missing(tmp_path: Path, wheel: Path, constraints: list[Path]) -> None:
    bin_ = installed(tmp_path / "venv", wheel, None, constraints)
    listed = subprocess.run(
        [bin_ / "python", "-c", "import importlib.metadata as m; print([d.name for d in m.distributions()])"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert sorted(eval(listed.stdout)) == ["mlops-build", "nvidia-ml-py"]  # noqa: S307
    done = subprocess.run([bin_ / "mlops-build", "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert "promote" in done.stdout
    missing = subprocess.run([bin_ / "mlops-build", "lineage", "models:/a/1"], capture_output=True, text=True, check=False, timeout=60)
    assert missing.returncode == 1
    assert "pip install 'mlops-build[operate]'" in missing.stderr
    assert "Traceback" not in missing.stderr
    doctor = subprocess.run(
        [bin_ / "mlops-build", "doctor", "--json"], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert {check["name"] for check in json.loads(doctor.stdout)["checks"]} >= {"system", "git"}


@pytest.mark.slow
@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_brings_what_it_promises(tmp_path: Path, wheel: Path, constraints: list[Path], extra: str) -> None:
    bin_ = installed(tmp_path / "venv", wheel, extra, constraints)
    script = f"import importlib; [importlib.import_module(name) for name in {promised(extra)!r}]; print('ok')"
    done = subprocess.run(
        [bin_ / "python", "-c", script],
        env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "ok"


def test_an_installed_wheel_is_put_together_again_with_the_same_files(tmp_path: Path, wheel: Path, constraints: list[Path]) -> None:
    """A pod or an agent has no source tree: the wheel for the image then comes from the installed files."""
    bin_ = installed(tmp_path / "venv", wheel, "template", constraints)
    script = "import sys, pathlib; from mlops_build.model import environment as e; print(e.mlops_build_wheel(pathlib.Path(sys.argv[1])))"
    done = subprocess.run([bin_ / "python", "-c", script, str(tmp_path / "made")], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    again = Path(done.stdout.strip())
    second = installed(tmp_path / "second", again, None, constraints)
    told = subprocess.run([second / "mlops-build", "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
    assert told == subprocess.run([bin_ / "mlops-build", "--version"], capture_output=True, text=True, check=True, timeout=60).stdout
