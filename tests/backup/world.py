"""An MLflow with versions and files, and `mlops-build backup` and `restore` as people use them."""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mlops_build.model import files, identity
from tests.conftest import mlops_build

KEY = "0123456789abcdef0123456789abcdef"


def fill(uri: str, folder: Path, artifacts: str | None = None, versions: int = 3, size: int = 2000) -> None:
    """Register versions of the model `digits`, each logged by a run. artifacts: of the experiment (default: MLflow's)."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, registry_uri=uri)
    experiment = client.create_experiment("old", artifacts)
    client.create_registered_model("digits")
    for number in range(1, versions + 1):
        add(client, experiment, folder, number, size)
    client.set_registered_model_alias("digits", "staging", "1")


def add(client: Any, experiment: str, folder: Path, number: int, size: int = 2000) -> None:
    run = client.create_run(experiment).info
    model = folder / "model"
    shutil.rmtree(model, ignore_errors=True)
    (model / "data").mkdir(parents=True)
    (model / "MLmodel").write_text(f"run_id: {run.run_id}\n")
    (model / "same.txt").write_text("the same in every version\n")
    (model / "data/weights größe 1%.bin").write_bytes(os.urandom(size))
    client.log_artifacts(run.run_id, str(model), "model")
    tags = {identity.DIGEST_TAG: files.digest(model)}
    client.create_model_version("digits", f"{run.artifact_uri}/model", run.run_id, tags=tags)


class World:
    """A sqlite registry in `folder`/old, and backups in `folder`/backups."""

    def __init__(self, folder: Path, database: Path) -> None:
        self.folder, self.home, self.backups = folder, folder / "old", folder / "backups"
        self.home.mkdir()
        self.file = self.home / "mlflow.db"
        shutil.copyfile(database, self.file)
        self.uri = f"sqlite:///{self.file}"
        self.store = self.home / "mlruns"
        with closing(sqlite3.connect(self.file)) as connection, connection:
            connection.execute("update experiments set artifact_location = ?", (f"{self.store}/0",))
        fill(self.uri, folder, f"{self.store.as_uri()}/1")
        self.environment: dict[str, str] = {"MLFLOW_TRACKING_URI": self.uri}
        self.stderr = ""

    def command(self, *arguments: str, expect: int = 0, where: Path | None = None) -> Any:
        environment = self.environment if where is None else {**self.environment, "MLFLOW_TRACKING_URI": ""}
        done = mlops_build(where or self.home, *arguments, "--json", expect=expect, environment=environment)
        self.stderr = done.stderr
        return json.loads(done.stdout)

    def backup(self, *arguments: str, expect: int = 0) -> Any:
        return self.command("backup", str(self.backups), *arguments, expect=expect)

    def restore(self, name: str, *arguments: str, expect: int = 0) -> Any:
        (self.folder / name).mkdir(exist_ok=True)
        return self.command("restore", str(self.backups), *arguments, expect=expect, where=self.folder / name)

    def add(self) -> None:
        """One more version."""
        from mlflow import MlflowClient

        client = MlflowClient(self.uri, registry_uri=self.uri)
        add(client, client.get_experiment_by_name("old").experiment_id, self.folder, len(self.versions(self.uri)) + 1)

    @staticmethod
    def versions(uri: str) -> dict[int, str]:
        """The digest of each version's files, which must be the registered one."""
        from mlflow import MlflowClient

        client = MlflowClient(uri, registry_uri=uri)
        found = {}
        for version in client.search_model_versions("name = 'digits'"):
            digest = files.digest(Path(unquote(version.source.removeprefix("file://"))))
            assert digest == version.tags[identity.DIGEST_TAG]
            found[int(version.version)] = digest
        assert client.get_model_version_by_alias("digits", "staging").version in (1, "1")
        return found

    def objects(self) -> list[Path]:
        return [path for path in (self.backups / "objects").rglob("*") if path.is_file()]

    def manifest(self, name: str) -> Path:
        return self.backups / "backups" / f"{name}.json"
