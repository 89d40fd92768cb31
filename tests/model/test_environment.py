"""The lock of a model version's environment, and the wheels beside it."""

import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.adapters import installer
from mlops_build.errors import Failed
from mlops_build.model import environment

PROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "points"
version = "0"
requires-python = ">=3.11"
dependencies = [{dependencies}]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "points").mkdir(parents=True)
    (folder / "points/__init__.py").write_text("ANSWER = 42\n")
    (folder / "pyproject.toml").write_text(PROJECT.format(dependencies='"numpy>=2", "torch"'))
    return folder


def scratch(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def test_the_same_files_give_the_same_wheel(project: Path, tmp_path: Path) -> None:
    first = environment.project_wheel(project, tmp_path / "one")
    (project / "points/__init__.py").touch()
    second = environment.project_wheel(project, tmp_path / "two")
    assert first.name == "points-0-py3-none-any.whl"
    assert first.read_bytes() == second.read_bytes()
    assert "points/__init__.py" in zipfile.ZipFile(first).namelist()


def test_the_wheel_of_mlops_build_is_built_from_its_source(tmp_path: Path) -> None:
    wheel = environment.mlops_build_wheel(tmp_path)
    assert "mlops_build/model/environment.py" in zipfile.ZipFile(wheel).namelist()
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".pyc")]


def test_a_project_that_cannot_be_built_is_an_error(project: Path, tmp_path: Path) -> None:
    (project / "pyproject.toml").write_text("[project]\nname = 'points'\n")
    with pytest.raises(Failed, match="could not be built"):
        environment.project_wheel(project, tmp_path / "wheels")


def test_the_lock_is_exact_hashed_and_without_torch(project: Path, tmp_path: Path) -> None:
    import numpy as np

    wheels = [environment.project_wheel(project, tmp_path / "wheels")]
    text = environment.lock(wheels, scratch(tmp_path))
    names = [line.partition("==")[0] for line in text.splitlines() if "==" in line]
    assert f"numpy=={np.__version__} \\" in text.splitlines()
    assert "--hash=sha256:" in text
    assert not {"torch", "points"} & set(names)
    assert not [name for name in names if name.startswith(("nvidia", "triton"))]
    assert not [line for line in text.splitlines() if "://" in line or line.startswith(("#", "-"))]


def test_a_wheel_may_be_newer_than_the_editable_installation_of_its_project(project: Path, tmp_path: Path) -> None:
    """After a new version in pyproject.toml, nobody installs the project again."""
    (project / "pyproject.toml").write_text(PROJECT.format(dependencies="").replace('"points"', '"orjson"'))
    (project / "points").rename(project / "orjson")
    wheel = environment.project_wheel(project, tmp_path / "wheels")
    assert wheel.name == "orjson-0-py3-none-any.whl"
    assert environment.lock([wheel], scratch(tmp_path)) == ""


def test_requirements_that_cannot_be_resolved_are_an_error(project: Path, tmp_path: Path) -> None:
    (project / "pyproject.toml").write_text(PROJECT.format(dependencies='"numpy>=99999"'))
    wheels = [environment.project_wheel(project, tmp_path / "wheels")]
    with pytest.raises(environment.LockFailed, match="numpy") as caught:
        environment.lock(wheels, scratch(tmp_path))
    assert caught.value.exit_code == 1
    assert "pyproject.toml" in str(caught.value.remedy)


def test_an_index_that_does_not_answer_is_exit_code_5(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "cache"))
    wheels = [environment.project_wheel(project, tmp_path / "wheels")]
    with pytest.raises(environment.IndexUnreachable) as caught:
        environment.lock(wheels, scratch(tmp_path))
    assert caught.value.exit_code == 5


def test_uv_gets_pip_settings_under_its_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    monkeypatch.setenv("PIP_INDEX_URL", "https://index.example.com/simple")
    monkeypatch.setenv("PIP_FIND_LINKS", "/one /two")
    variables = installer.uv_environment()
    assert variables["UV_DEFAULT_INDEX"] == "https://index.example.com/simple"
    assert variables["UV_FIND_LINKS"] == "/one,/two"


@given(st.lists(st.sampled_from(["a==1 \\", "    --hash=sha256:00", "", "# a comment", "    # via b", "b==2 "])))
def test_a_lock_has_no_comments_and_is_stable(lines: list[str]) -> None:
    once = environment.resolved_lines("\n".join(lines))
    assert environment.resolved_lines(once) == once
    assert "#" not in once
    assert [line for line in once.splitlines() if "==" in line] == [line.rstrip() for line in lines if "==" in line]
