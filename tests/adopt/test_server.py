"""`adopt register` with MLflow's own server: its answers are lost, and its database is killed."""

import contextlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest

from mlops_build.adapters.registry import RegisteredVersion
from mlops_build.model import files, identity
from tests.adapters.registry.server import Proxy, mlflow_server
from tests.adopt.test_kills import plain, started, timed
from tests.adopt.world import World
from tests.watch.zabbix_server import Database, mlflow_database, sql, until

pytestmark = pytest.mark.real_python


def complete(world: World, folder: Path) -> list[RegisteredVersion]:
    """Register again. Every content is then in the registry once, with all of its files."""
    made = world.register("--yes")
    assert {each["outcome"] for each in made.values()} <= {"registered", "registered before"}
    versions = list(world.registry.every_version())
    assert Counter(version.tags[identity.FILE_TAG] for version in versions) == Counter({row["sha256"] for row in world.rows()})
    for number, version in enumerate(versions):
        world.registry.fetch(version, folder / str(number))
        assert files.digest(folder / str(number)) == version.tags[identity.DIGEST_TAG]
    return versions


def listed(world: World, uri: str) -> None:
    world.environment["MLFLOW_TRACKING_URI"] = uri
    timed(world, "list", str(plain(world)))
    world.edit(lambda _: {"action": "adopt", "decided_by": "Ada"})


@pytest.mark.slow
def test_answers_that_are_lost_make_nothing_twice(world: World, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with mlflow_server(tmp_path / "server") as server, Proxy(server).serve() as proxy:
        listed(world, proxy.uri)
        proxy.lose |= {"runs/create": [502], "registered-models/create": [502], "model-versions/create": [502, 502]}
        for _ in range(5):  # each may end with the first lost answer
            started(world, "register", "adopt.csv", "--yes").wait(timeout=120)
        assert proxy.lose == {end: [] for end in proxy.lose}
        first = complete(world, tmp_path / "fetched")[0]
        # As another process that looked before the first version was there.
        other = world.registry.create_version(first.name, first.source, first.run_id, first.tags)
        world.register("--yes")
        assert other.version not in [version.version for version in world.registry.versions(first.name)]


@pytest.mark.soak
def test_a_database_that_is_killed_loses_nothing(world: World, tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    with mlflow_database() as database:
        # Tests otherwise lose what was committed within the last 0.6 s before a crash.
        assert sql(database, "mlflow", "alter database mlflow set synchronous_commit = on")
        backend = f"postgresql+psycopg2://zabbix@127.0.0.1:{database.port}/mlflow"
        artifacts = ["--serve-artifacts", "--artifacts-destination", str(tmp_path / "artifacts")]
        with mlflow_server(tmp_path / "server", "--backend-store-uri", backend, *artifacts) as server:
            listed(world, server)
            kills = sum(kill_sessions(world, database) for _ in range(4))
            assert kills == (database.socket.parent / "postgres.log").read_text().count("terminated by signal 9") > 4
            complete(world, tmp_path / "fetched")


def kill_sessions(world: World, database: Database) -> int:
    """Kill a session of the database after every third file that `register` registers. PostgreSQL then ends all others, and recovers as
    after a crash; `register` fails, or asks again. How many were killed.
    """
    command = [sys.executable, "-m", "mlops_build", "adopt", "register", "adopt.csv", "--yes"]
    variables = {**os.environ, **world.environment}
    count = 0
    with subprocess.Popen(
        command, cwd=world.folder, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr
        for line in process.stderr:
            count += "] registered: " in line
            if "] registered: " in line and count % 3 == 1:
                until(lambda: session(database), "a session").kill()
        assert process.wait(timeout=120) in (0, 4, 5)
    return (count + 2) // 3


def session(database: Database) -> psutil.Process | None:
    postmaster = psutil.Process(int((database.socket / "data/postmaster.pid").read_text().split()[0]))
    for child in postmaster.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if "zabbix mlflow" in " ".join(child.cmdline()):
                return child
    return None
