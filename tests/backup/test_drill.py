"""The restore drill: back up, destroy everything but Git, restore, release, serve; the recorded example is answered as before."""

import contextlib
import json
import shutil
import sqlite3
import urllib.request
from pathlib import Path

import pytest

from tests.conftest import git, mlops_build
from tests.serving.conftest import serving


@pytest.mark.slow
def test_everything_is_destroyed_and_the_service_releases_and_serves_again(piped: Path, tmp_path: Path) -> None:
    service = Path(shutil.copytree(piped, tmp_path / "points", symlinks=True))
    with contextlib.closing(sqlite3.connect(service / "mlflow.db")) as database, database:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")):
            database.execute(f"update {table} set {column} = replace({column}, ?, ?)", (str(piped), str(service)))  # noqa: S608
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    origin = (tmp_path / "origin.git").as_uri()
    git(service, "remote", "add", "origin", origin)
    trained = json.loads(mlops_build(service, "train", "--json").stdout)["models"][0]
    assert trained["model_uri"] == "models:/points/1"
    recorded = json.loads((service / "models/points/examples/recorded.json").read_text())
    mlops_build(service, "promote", "points", "1", "--to", "staging")
    made = json.loads(mlops_build(service, "backup", str(tmp_path / "backups"), "--json").stdout)
    assert made["findings"] == []

    shutil.rmtree(service)
    git(tmp_path, "clone", "--quiet", origin, "new")
    new = tmp_path / "new"
    mlops_build(new, "restore", str(tmp_path / "backups"))
    environment = {"MLFLOW_TRACKING_URI": f"sqlite:///{new / 'mlflow.db'}"}
    bridged = mlops_build(tmp_path, "bridge", "once", "--repo", origin, environment=environment)
    git(new, "pull", "--quiet")
    assert "models:/points/1" in git(new, "grep", "models:/points/1", "--", "deploy"), bridged.stderr
    mlops_build(new, "package", "models:/points/1", "-o", str(tmp_path / "context"))
    with serving(tmp_path / "serve", str(tmp_path / "context")) as server:
        request = urllib.request.Request(
            f"{server.url}/invocations", json.dumps(recorded["input"]).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            assert json.load(response)["predictions"] == recorded["predictions"]
