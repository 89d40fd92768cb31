"""`mlops-build ci check` in a service, as an agent without secrets runs it."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.conftest import mlops_build


@pytest.fixture
def service(rendered_none: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(rendered_none, tmp_path / "points"))


def test_a_fresh_service_passes(service: Path) -> None:
    done = mlops_build(service, "ci", "check", "--json")
    assert json.loads(done.stdout) == {"checks": ["service.yaml", "lint", "format", "tests", "manifests"]}
    (suite,) = ElementTree.parse(service / "build/test-reports/tests.xml").getroot()  # noqa: S314 # pytest's own
    assert (int(suite.get("tests", 0)) > 0, suite.get("failures")) == (True, "0")
    if shutil.which("kubectl"):
        assert "check manifests: ok (" in done.stderr
        assert "not rendered" not in done.stderr


def test_every_failure_is_named(service: Path) -> None:
    (service / "src/points/bad.py").write_text("import os\nx   = 1\n")
    (service / "tests/test_bad.py").write_text("def test_bad() -> None:\n    assert 1 == 2\n")
    (service / "deploy/overlays/staging/kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    done = mlops_build(service, "ci", "check", expect=4)
    named = "lint, format, tests" + (", manifests" if shutil.which("kubectl") else "")
    assert f"checks failed: {named}" in done.stderr


def test_a_mistake_in_service_yaml_is_named_first(service: Path) -> None:
    path = service / "service.yaml"
    path.write_text(path.read_text().replace("serving:", "servin:"))
    done = mlops_build(service, "ci", "check", expect=4)
    assert "unknown key 'servin'; did you mean 'serving'?" in done.stderr
