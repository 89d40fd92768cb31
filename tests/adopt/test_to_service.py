"""From an old file to a release: adopted with code, registered again by a service that has the code, promoted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.adopt import table
from mlops_build.model import identity
from tests.conftest import git, mlops_build


@pytest.mark.slow
def test_a_service_registers_an_adopted_version_and_it_is_promoted(piped: Path, tmp_path: Path) -> None:
    service = Path(shutil.copytree(piped, tmp_path / "points", symlinks=True))
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(service, "remote", "add", "origin", (tmp_path / "origin.git").as_uri())
    git(service, "add", "--all")
    git(service, "commit", "--quiet", "--message=Keep the pipeline")
    (tmp_path / "old").mkdir()
    shutil.copyfile(service / "models/weights.pt", tmp_path / "old/points-best.pth")
    recorded = json.loads((service / "models/points/examples/recorded.json").read_text())
    split = recorded["input"]["dataframe_split"]
    rows = [dict(zip(split["columns"], row, strict=True)) for row in split["data"]]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{service / 'mlflow.db'}"}

    mlops_build(tmp_path, "adopt", "list", "old", environment=environment)
    (row,) = table.read(tmp_path / "adopt.csv").values()
    assert row.model == "points"
    table.write(tmp_path / "adopt.csv", [replace(row, action="adopt", decided_by="Ada")])
    code = ["--model", "points", "--code", str(service / "src/points/model.py"), "--example", "rows.json"]
    mlops_build(tmp_path, "adopt", "register", "adopt.csv", *code, "--yes", environment=environment)
    registry = Registry(environment["MLFLOW_TRACKING_URI"])
    adopted = registry.version("points", 1)
    assert json.loads(registry.read(adopted, "examples/recorded.json"))["predictions"] == recorded["predictions"]

    mlops_build(service, "register", "--weights-from", "models:/points/1")
    made = registry.version("points", 2)
    assert made.tags[identity.FILE_TAG] == row.sha256
    assert made.tags[identity.WEIGHTS_FROM] == "models:/points/1"
    mlops_build(service, "promote", "points", "2", "--to", "staging")
    mlops_build(service, "package", "models:/points/2", "-o", str(tmp_path / "context"))
    assert (tmp_path / "context/models/points/artifacts/weights.pt").read_bytes() == (service / "models/weights.pt").read_bytes()
    # Both versions stay.
    mlops_build(tmp_path, "adopt", "register", "adopt.csv", "--yes", environment=environment)
    assert [version.version for version in registry.versions("points")] == [2, 1]
