"""One table says who owns a file, and copier and mlops-build read it alike."""

from pathlib import Path
from typing import Any

import pytest

from mlops_build.scaffold import ownership

ROOT = Path(__file__).parents[2]
OWNERS = ownership.owners(ownership.settings((ROOT / "copier.yml").read_bytes()))


def test_the_table_covers_every_file_of_a_service(render: Any) -> None:
    root = render()
    owned: dict[str, set[str]] = {"team": set(), "machine": set(), "template": set()}
    for path in root.rglob("*"):
        if path.is_file():
            owned[OWNERS.of(path.relative_to(root).as_posix())].add(path.relative_to(root).as_posix())
    assert owned["team"] == {
        "deploy/overlays/production/kustomization.yaml",
        "deploy/overlays/staging/kustomization.yaml",
        "dvc.yaml",
        "params.yaml",
        "service.yaml",
        *(f"src/digits/{name}.py" for name in ("__init__", "data", "evaluate", "model", "train")),
        "tests/test_data.py",
        "tests/test_model.py",
    }
    assert owned["machine"] == {
        f"deploy/overlays/{env}/release/{name}.yaml" for env in ("staging", "production") for name in ("kustomization", "record")
    }
    assert {"Makefile", "pyproject.toml", "bamboo-specs/bamboo.yaml", "deploy/base/deployment.yaml", ".copier-answers.yml"} <= owned[
        "template"
    ]


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("deploy/overlays/canary/release/patch.yaml", "machine"),
        ("deploy/overlays/canary/patch.yaml", "team"),
        ("deploy/overlays/staging/release", "machine"),
        ("dvc.lock", "machine"),
        ("metrics.json", "machine"),
        ("reports/history.csv", "machine"),
        ("data/raw.dvc", "team"),
        ("requirements.lock", "team"),
        ("docs/dvc.lock", "template"),
        ("ci/src/x.py", "template"),
        ("srcs/x.py", "template"),
    ],
)
def test_files_that_come_later_have_an_owner(path: str, owner: str) -> None:
    assert OWNERS.of(path) == owner


def test_copier_never_overwrites_what_is_the_teams_or_a_machines(template: Path, service: Any) -> None:
    from copier import run_copy

    root = service()
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != ".copier-answers.yml"]
    for path in paths:
        path.write_text("changed\n")
    run_copy(str(template), root, data={"team": "another"}, defaults=True, quiet=True, overwrite=True)
    kept = {path.relative_to(root).as_posix() for path in paths if path.read_text() == "changed\n"}
    assert kept == {name for path in paths if OWNERS.of(name := path.relative_to(root).as_posix()) != "template"}
    assert "team: another" in (root / ".copier-answers.yml").read_text()
