"""PostgreSQL with pg_dump, and files on a real gateway; a database that is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters.storage.address import place
from mlops_build.model import files, identity
from tests.backup.world import KEY, fill
from tests.conftest import mlops_build
from tests.watch.zabbix_server import Database, mlflow_database, sql, until

ENDPOINT, ACCESS, SECRET = (os.environ.get(f"MLOPS_TEST_S3_{name}") for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY"))
pytestmark = pytest.mark.slow
needs_s3 = pytest.mark.skipif(not ENDPOINT, reason="needs an S3 gateway: set MLOPS_TEST_S3_ENDPOINT, _ACCESS_KEY and _SECRET_KEY")


@pytest.fixture(scope="module")
def server() -> Iterator[Database]:
    with mlflow_database() as database:
        yield database


@pytest.fixture
def uris(server: Database, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two empty databases."""
    monkeypatch.setenv("PATH", str(server.programs), prepend=os.pathsep)
    names = [f"mlflow_{time.time_ns()}_{number}" for number in range(2)]
    for name in names:
        assert sql(server, "postgres", f"create database {name}")
        # The server's own setting, off, loses what was committed within the last 0.6 s before a crash.
        assert sql(server, "postgres", f"alter database {name} set synchronous_commit = on")
    return [f"postgresql+psycopg2://zabbix@127.0.0.1:{server.port}/{name}" for name in names]


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> str:
    import boto3

    for name, value in {
        "AWS_ACCESS_KEY_ID": str(ACCESS),
        "AWS_SECRET_ACCESS_KEY": str(SECRET),
        "AWS_DEFAULT_REGION": "default",
        "AWS_ENDPOINT_URL": str(ENDPOINT),
        "MLFLOW_S3_ENDPOINT_URL": str(ENDPOINT),
        "MLOPS_BUILD_BACKUP_KEY": KEY,
    }.items():
        monkeypatch.setenv(name, value)
    name = f"backup-{os.getpid()}-{time.time_ns()}"
    boto3.client("s3").create_bucket(Bucket=name)
    return f"s3://{name}"


def run(folder: Path, *arguments: str, expect: int = 0) -> Any:
    return json.loads(mlops_build(folder, *arguments, "--json", expect=expect).stdout)


def check(uri: str, folder: Path, below: str) -> None:
    """Every version of the registry has the files that were registered, below an address."""
    from mlflow import MlflowClient

    client = MlflowClient(uri, registry_uri=uri)
    versions = client.search_model_versions("name = 'digits'")
    assert len(versions) == 3
    for version in versions:
        assert version.source.startswith(f"{below}/")
        target = folder / f"{time.time_ns()}"
        at = place(version.source)
        for entry in at.objects():
            (target / entry.path).parent.mkdir(parents=True, exist_ok=True)
            at.save(entry.path, target / entry.path)
        assert files.digest(target) == version.tags[identity.DIGEST_TAG]
    assert client.get_experiment_by_name("old").artifact_location == f"{below}/1"
    assert client.get_run(versions[0].run_id).info.artifact_uri.startswith(f"{below}/1/")


@needs_s3
def test_postgresql_and_s3_are_restored_to_another_database_and_bucket(
    uris: list[str], bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = [f"{bucket}/backups", "--database", uris[0], "--without", "mlruns"]
    monkeypatch.chdir(tmp_path)  # MLflow puts its experiment Default into ./mlruns
    fill(uris[0], tmp_path, f"{bucket}/mlflow/1", size=9 << 20)
    made = run(tmp_path, "backup", *options)
    assert (made["files"], made["findings"]) == (9, [])
    again = run(tmp_path, "backup", *options)
    assert (again["not_read_again"], again["new_objects"]) == (9, 1)  # the dump has a time in it
    assert run(tmp_path, "backup", f"{bucket}/backups", "--verify", "--all")["findings"] == []
    restored = run(tmp_path, "restore", f"{bucket}/backups", "--database", uris[1], "--artifacts", f"{bucket}/new")
    assert restored["places"] == {f"{bucket}/mlflow": f"{bucket}/new"}
    check(uris[1], tmp_path, f"{bucket}/new")
    assert (
        "not empty" in run(tmp_path, "restore", f"{bucket}/backups", "--database", uris[1], "--artifacts", f"{bucket}/b", expect=4)["error"]
    )


def test_folders_of_a_server_are_read_only_where_they_are_named(uris: list[str], tmp_path: Path) -> None:
    fill(uris[0], tmp_path, f"{tmp_path}/artifacts/1")
    refused = run(tmp_path, "backup", "backups", "--database", uris[0], expect=4)
    assert {entry["rule"] for entry in refused["findings"]} == {"not-copied", "no-files"}
    assert refused["files"] == 0
    made = run(tmp_path, "backup", "backups", "--database", uris[0], "--artifacts", f"{tmp_path}/artifacts", expect=4)
    assert (made["files"], {entry["rule"] for entry in made["findings"]}) == (9, {"not-copied"})  # MLflow's Default, in ./mlruns


def test_a_killed_database_fails_the_command_and_running_it_again_completes(server: Database, uris: list[str], tmp_path: Path) -> None:
    fill(uris[0], tmp_path, f"{tmp_path}/artifacts/1")
    backup = ["backup", "backups", "--database", uris[0], "--artifacts", f"{tmp_path}/artifacts"]
    restore = ["restore", "backups", "--database", uris[1], "--artifacts", f"{tmp_path}/new"]
    assert kills(server, tmp_path, uris[0], "lock table tags", backup) == 3
    run(tmp_path, *backup, expect=4)
    assert kills(server, tmp_path, uris[1], "create table alembic_version ()", restore) == 3
    run(tmp_path, *restore)
    check(uris[1], tmp_path, f"{tmp_path}/new")


def kills(server: Database, folder: Path, uri: str, statement: str, command: list[str]) -> int:
    """How many of three runs failed, since the session of pg_dump or pg_restore was killed while it waited for what an open transaction has
    locked with `statement`. PostgreSQL then ends all sessions, and recovers as after a crash.
    """
    import psycopg2

    failed = 0
    for _ in range(3):
        with closing(psycopg2.connect(host="127.0.0.1", port=server.port, user="zabbix", dbname=uri.rpartition("/")[2])) as connection:
            connection.cursor().execute(statement)
            words = [sys.executable, "-m", "mlops_build", *command]
            with subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
                os.kill(until(lambda: waiting(server), "a session that waits"), signal.SIGKILL)
                failed += process.wait(timeout=60) in (1, 5)
        until(lambda: sql(server, "postgres", "select 1") or None, "PostgreSQL")
    return failed


def waiting(server: Database) -> int | None:
    import psycopg2

    query = "select pid from pg_stat_activity where application_name in ('pg_dump', 'pg_restore') and wait_event_type = 'Lock'"
    with closing(psycopg2.connect(host="127.0.0.1", port=server.port, user="zabbix", dbname="postgres")) as connection:
        cursor = connection.cursor()
        cursor.execute(query)
        row = cursor.fetchone()
        return int(row[0]) if row else None
