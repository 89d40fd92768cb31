"""A registry with three models, and the service of one of them."""

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.model import identity
from mlops_build.release.write import in_checkout
from tests.conftest import MadeOnce, git
from tests.release.world import SERVICE, alone, checkout, empty_database, first_commit, make_repository, registry

__all__ = ["alone", "checkout", "empty_database", "make_repository", "registry"]

HOSTILE = "</script><script>document.title='x'</script>\u202e\x1b[31m"


@dataclass(frozen=True)
class World:
    """folder: has digits, a person's checkout, and digits.git."""

    folder: Path
    uri: str

    @property
    def url(self) -> str:
        return f"file://{self.folder}/digits.git"


def make(folder: Path, database: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{shutil.copy(database, folder / 'mlflow.db')}"
    client, known = MlflowClient(uri, registry_uri=uri), Registry(uri)
    experiment = client.create_experiment("overview", artifact_location=(folder / "artifacts").as_uri())

    def register(name: str, number: int, metrics: dict[str, float], **tags: str) -> None:
        run = client.create_run(experiment).info.run_id
        for key, value in metrics.items():
            client.log_metric(run, key, value)
        files = folder / "files" / name.encode().hex()[:20] / str(number)
        files.mkdir(parents=True)
        (files / "weights.pt").write_bytes(b"w" * 1024 * number)
        all_tags = {identity.DIGEST_TAG: f"sha256:{number:064x}", identity.COMMIT_TAG: f"{number:040x}", **tags}
        known.create_version(name, files.as_uri(), run, {f"mlops_build.{k}" if "." not in k else k: v for k, v in all_tags.items()})

    for number in range(1, 12):
        register("digits", number, {"accuracy": 0.9 + number / 1000, "loss": 1 / number}, data=f"sha256:{number:064x}")
    register("legacy", 1, {"auc": float("nan"), "gain": float("inf")}, service="old-shop")
    register("hostile", 1, {"hostile": 1.0, **{f"m{number}": number for number in range(8)}}, service=HOSTILE, data=HOSTILE)
    client.create_registered_model("empty")
    client.set_registered_model_tag("legacy", "owner", "search")
    client.set_registered_model_tag("hostile", "owner", HOSTILE)
    bare = folder / "digits.git"
    git(folder, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    work = first_commit(folder / "digits", SERVICE, bare)
    for number in (3, 9):
        known.set_alias("digits", "staging", number)
        in_checkout(work, "staging", known)
    git(work, "push", "--quiet")
    known.set_alias("digits", "staging", 10)  # not released yet
    known.set_alias("digits", "live", 2)
    known.set_alias("digits", "best", 11)
    known.set_alias("legacy", "production", 1)
    with sqlite3.connect(folder / "mlflow.db") as database_:  # MLflow refuses such names, other clients' databases may have them
        database_.execute("update model_versions set creation_time = 1700000000000 + version * 86400000")
        for table in ("registered_models", "registered_model_tags", "model_versions", "model_version_tags"):
            database_.execute(f"update {table} set name = ? where name = 'hostile'", (HOSTILE,))  # noqa: S608
        database_.execute("update latest_metrics set key = ? where key = 'hostile'", (HOSTILE,))


@pytest.fixture
def world(made_once: MadeOnce, empty_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    original = made_once("overview", lambda folder: make(folder, empty_database))
    folder = tmp_path / "world"
    shutil.copytree(original, folder)
    git(folder / "digits", "remote", "set-url", "origin", f"file://{folder}/digits.git")
    uri = f"sqlite:///{folder}/mlflow.db"
    with sqlite3.connect(folder / "mlflow.db") as database:
        database.execute("update model_versions set source = replace(source, ?, ?)", (original.as_uri(), folder.as_uri()))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.delenv("MLOPS_FLEET", raising=False)
    monkeypatch.chdir(tmp_path)
    return World(folder, uri)
