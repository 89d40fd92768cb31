"""`kill -9` of backup and restore at any time: running again completes, nothing is half done, nothing is lost."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters.storage.folder import Folder
from mlops_build.backup import keep
from mlops_build.backup.destination import Destination
from tests.backup.world import World, fill

CHANCE = random.Random()  # noqa: S311
ROUNDS = int(os.environ.get("SOAK_ROUNDS", "30"))
VERSIONS = 20
pytestmark = pytest.mark.real_python


def started(world: World, where: Path, *arguments: str) -> "subprocess.Popen[bytes]":
    environment = {**os.environ, **world.environment, **({} if where == world.home else {"MLFLOW_TRACKING_URI": ""})}
    silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-m", "mlops_build", *arguments]
    return subprocess.Popen(command, cwd=where, env=environment, start_new_session=True, **silent)


def seconds_of(world: World, where: Path, *arguments: str) -> float:
    began = time.monotonic()
    assert started(world, where, *arguments).wait(timeout=120) == 0
    return time.monotonic() - began


def killed(world: World, seconds: float, where: Path, *arguments: str) -> bool:
    """Whether the command was killed before it ended. It does nothing in its first third, in which Python imports."""
    process = started(world, where, *arguments)
    try:
        process.wait(timeout=CHANCE.uniform(seconds / 3, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(timeout=30) == -signal.SIGKILL


def kill_and_repeat(world: World, database: Path, rounds: int) -> None:
    shutil.copyfile(database, world.file)
    shutil.rmtree(world.store)
    fill(world.uri, world.folder, f"{world.store.as_uri()}/1", versions=VERSIONS, size=50_000)
    before = world.versions(world.uri)
    seconds = seconds_of(world, world.home, "backup", str(world.backups))
    kills = 0
    while kills < rounds:
        place = world.folder / "killed"
        while killed(world, seconds, world.home, "backup", str(place)):
            kills += 1
            for name in Destination(Folder(place)).names():  # what exists is whole
                assert keep.verify(Destination(Folder(place)), name, None, print).findings == []
        seconds_of(world, world.home, "backup", str(place))
        assert keep.verify(Destination(Folder(place)), None, None, print).findings == []
        shutil.rmtree(place)
    new = world.folder / "new"
    new.mkdir()
    seconds = seconds_of(world, new, "restore", str(world.backups))
    kills = 0
    while kills < rounds:
        shutil.rmtree(new)
        new.mkdir()
        while not (new / "mlflow.db").exists() and killed(world, seconds, new, "restore", str(world.backups)):
            kills += 1
            if (new / "mlflow.db").exists():
                assert world.versions(f"sqlite:///{new}/mlflow.db") == before
        if list(new.rglob(".mlops-build-*")) or not (new / "mlflow.db").exists():
            seconds_of(world, new, "restore", str(world.backups))
        assert world.versions(f"sqlite:///{new}/mlflow.db") == before
        assert not list(new.rglob(".*"))


@pytest.mark.slow
def test_a_few_kills(world: World, database: Path) -> None:
    kill_and_repeat(world, database, 2)


@pytest.mark.soak
def test_many_kills(world: World, database: Path) -> None:
    kill_and_repeat(world, database, ROUNDS)
