"""Each extra declares what its commands import, and the supported Pythons are the same wherever they are named."""

import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mlops_build import doctor
from mlops_build.cli.table import COMMANDS
from tests.imports import closure

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What a command can do without: code that it does not reach, or that copes without the package.
WITHOUT = {
    "gpu": {"torch"},  # limit_torch, in a process that has torch
    "watch": {"torch"},
    "stub": {"yaml"},  # only for a folder with MLmodel and without openapi.json
    # boto3 only for models:/… on S3, where the message names it; pyarrow for bodies in Parquet, if the service depends on it
    # alembic and sqlalchemy for an MLflow that is a database, for which mlflow needs them, too
    "serve": {"alembic", "boto3", "botocore", "pyarrow", "sqlalchemy"},
    "package": {"psutil"},  # only where DVC runs
    "audit": {"psutil", "swiftclient"},  # DVC does not run; Swift is in the extra swift
    "backup": {"swiftclient"},
    "restore": {"swiftclient"},
}
PYTHONS = [found[1] for line in PROJECT["classifiers"] if (found := re.fullmatch(r"Programming Language :: Python :: (3\.[0-9]+)", line))]


@cache
def declared(extra: str) -> frozenset[str]:
    """The packages that an extra names, those of extras that it includes among them."""
    names: set[str] = set()
    for line in PROJECT["optional-dependencies"][extra]:
        if included := re.match(r"mlops-build\[([a-z,]+)\]", line):
            names.update(*(declared(other) for other in included[1].split(",")))
        else:
            names |= named([line])
    return frozenset(names)


def named(requirements: list[str]) -> set[str]:
    return {normal(re.split(r"[^A-Za-z0-9._-]", line)[0]) for line in requirements}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache  # it reads the files of every installed package: a second
def distributions() -> dict[str, set[str]]:
    """The distributions of each package that can be imported."""
    installed = {package: {normal(name) for name in names} for package, names in metadata.packages_distributions().items()}
    return {**installed, "botocore": {"boto3"}, "alembic": {"mlflow"}, "sqlalchemy": {"mlflow"}}  # theirs


NAMED = {name: (module, extra) for name, (module, _, extra) in COMMANDS.items()} | {"training": ("mlops_build.training", "train")}


@pytest.mark.parametrize("command", NAMED)
def test_the_extra_of_a_command_declares_what_the_command_imports(command: str) -> None:
    module, extra = NAMED[command]
    # What `doctor` looks at, it names `operate` for.
    extras = extra.split(",") if extra else ["operate", "train"] if command == "doctor" else []
    packages = {name for each in extras for name in declared(each)} | named(PROJECT["dependencies"])
    missing = {
        package
        for package in closure(module).packages - WITHOUT.get(command, set())
        if not distributions().get(package, {package}) & packages
    }
    assert not missing, f"{command}: extra {extra} does not declare them"


def test_no_exception_is_out_of_date() -> None:
    for command, packages in WITHOUT.items():
        assert packages <= closure(COMMANDS[command][0]).packages


def test_doctor_names_the_extras_that_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    """This environment has them all; then one package of the server's is missing."""
    assert doctor.extras().seen == "operate, serve, swift, template, train, watch"
    version = metadata.version

    def without_httptools(name: str) -> str:
        if name == "httptools":
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without_httptools)
    assert doctor.extras().seen == "operate, swift, template, train, watch"


@pytest.mark.real_python  # the shared process has imported the package that is replaced here
@pytest.mark.parametrize("command", [["doctor", "--ci", "--checklist"], ["serve", "models:/digits/1"]])
def test_a_command_without_its_packages_names_an_extra_that_has_them(tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "service.yaml").write_text("schema: 1\n")
    (tmp_path / "ruamel").mkdir()
    (tmp_path / "ruamel/__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'ruamel'\", name='ruamel')\n")
    done = subprocess.run(
        [sys.executable, "-m", "mlops_build", *command],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "needs the Python package 'ruamel'" in done.stderr
    extra = re.search(r"pip install 'mlops-build\[([a-z]+)\]'", done.stderr)
    assert extra
    assert "ruamel-yaml" in declared(extra[1])


def test_the_supported_pythons_are_the_same_everywhere() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    questions = next(YAML(typ="safe").load_all((ROOT / "copier.yml").read_text()))
    assert questions["python_version"]["choices"] == PYTHONS
    install = (ROOT / "scripts/install.sh").read_text()
    candidates = [f"python{version}" for version in reversed(PYTHONS)]
    assert f"for candidate in {' '.join(candidates)} python3; do" in install
    # A service names its own version only, so that an update touches nothing else.
    assert not re.search(r"python3\.\d", (ROOT / "template/ci/install").read_text())
    images = json.loads((ROOT / "mlops_build/packaging/base_images.json").read_text())["images"]
    assert {f"python:{version}-slim" for version in PYTHONS} <= set(images)


def test_doctor_says_which_pythons_are_tested_where_it_runs_on_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.11.2")
    assert "tested with" not in doctor.system().seen
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.15.0")
    assert f"(tested with Python {', '.join(PYTHONS)})" in doctor.system().seen
