"""Databases and servers of older MLflow releases. databases/ has what MLflow 1.30.1 and 2.3.0 wrote: three versions with stages."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.adapters.registry.schema import OtherSchema
from mlops_build.errors import Failed
from tests import servers
from tests.conftest import MadeOnce

DATABASES = sorted((Path(__file__).parent / "databases").glob("*.sql"))


@pytest.fixture(params=DATABASES, ids=lambda path: path.stem)
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    file = tmp_path / "mlflow.db"
    with sqlite3.connect(file) as database:
        database.executescript(request.param.read_text())
    database.close()
    return file


def test_a_command_does_not_migrate_the_database_of_an_older_mlflow(old: Path) -> None:
    before = old.read_bytes()
    with pytest.raises(OtherSchema, match="belongs to another release of MLflow") as error:
        Registry(f"sqlite:///{old}").models()
    assert "mlflow db upgrade" in str(error.value.remedy)
    assert old.read_bytes() == before


def test_a_database_without_its_revision_is_left_as_it_is(old: Path) -> None:
    change(old, "drop table alembic_version")
    before = old.read_bytes()
    for create in (False, True):
        with pytest.raises(OtherSchema, match="has tables, but no revision") as error:
            Registry(f"sqlite:///{old}", create=create).models()
    assert "restore the backup" in str(error.value.remedy)
    assert old.read_bytes() == before


@pytest.mark.parametrize(
    "left",
    [
        "update alembic_version set version_num = '97727af70f4d'",
        "insert into alembic_version values ('97727af70f4d')",
        "delete from alembic_version",
        "drop table alembic_version",
    ],
)
def test_a_failed_migration_that_left_every_table_is_refused(left: str, tmp_path: Path, made_once: MadeOnce) -> None:
    file = Path(shutil.copy(made_once("mlflow-database", make_database) / "mlflow.db", tmp_path))
    assert Registry(f"sqlite:///{file}").models() == []
    change(file, left)
    before = file.read_bytes()
    for driver in ("sqlite", "sqlite+pysqlite"):  # the second one is asked as any database of SQLAlchemy
        with pytest.raises(OtherSchema):
            Registry(f"{driver}:///{file}").models()
    assert file.read_bytes() == before


def make_database(folder: Path) -> None:
    """A database of the installed MLflow."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{folder / 'mlflow.db'}").search_experiments()


def change(file: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(file)) as database, database:
        database.execute(statement)


@pytest.mark.slow  # each migration takes four seconds of CPU
@pytest.mark.real_python
def test_a_migrated_database_has_every_version_run_and_stage(old: Path) -> None:
    uri = f"sqlite:///{old}"
    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri], check=True, capture_output=True, timeout=120)

    registry = Registry(uri)
    assert [(model.name, model.tags, model.description) for model in registry.models()] == [("churn", {"owner": "crm"}, "who leaves")]
    versions = list(registry.every_version())
    assert [(version.version, version.stage) for version in versions] == [(1, "Archived"), (2, "Production"), (3, "Staging")]
    assert all(version.tags == {"reviewed": "yes"} for version in versions)
    runs = {run.run_id: run for run in registry.every_run()}
    assert [runs[version.run_id].metrics for version in versions] == [{"accuracy": 0.81}, {"accuracy": 0.84}, {"accuracy": 0.9}]
    assert all(run.params == {"rate": "0.1"} for run in runs.values())
    registry.set_alias("churn", "production", 2)
    assert registry.version("churn", "production").stage == "Production"


class OneX(servers.Handler):
    """Answers as MLflow 1.30.1: it knows no aliases, no webhooks and no /version."""

    def do_GET(self) -> None:
        if self.path.startswith("/api/2.0/mlflow/registered-models/search"):
            self.reply(200, b"{}")
        else:
            self.reply(404, b"<!doctype html><title>404 Not Found</title>")

    do_POST = do_GET


class TwoX(OneX):
    """Says its version."""

    def do_GET(self) -> None:
        if self.path == "/version":
            self.reply(200, b"2.3.0\n")
        else:
            super().do_GET()


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    with servers.serve(request.param) as place:
        yield f"http://{place}"


@pytest.mark.parametrize("address", [OneX], indirect=True)
def test_a_server_without_aliases_is_named(address: str) -> None:
    registry = Registry(address)
    assert registry.server_version() is None
    with pytest.raises(Failed, match="does not know this request") as error:
        registry.version("digits", "staging")
    assert "aliases need MLflow 2.3, webhooks 3.3" in str(error.value.remedy)


@pytest.mark.parametrize("address", [TwoX], indirect=True)
def test_the_version_of_a_server(address: str) -> None:
    assert Registry(address).server_version() == "2.3.0"
