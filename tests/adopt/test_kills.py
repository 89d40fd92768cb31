"""`kill -9` of list and register at any time, and two processes at once: running again completes, and nothing is registered twice."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from mlops_build.adapters.storage.folder import Folder
from mlops_build.adapters.storage.place import StoredObject
from mlops_build.adopt import listing, table
from mlops_build.model import files, identity
from tests.adopt.world import World

FILES = 24
CHANCE = random.Random()  # noqa: S311
ROUNDS = int(os.environ.get("SOAK_ROUNDS", "40"))


class Stopped(Folder):
    """A folder whose list is interrupted after some files."""

    def objects(self, below: str = "") -> Iterator[StoredObject]:
        for number, entry in enumerate(super().objects(below)):
            if number == 7:
                raise KeyboardInterrupt
            yield entry


def test_a_list_continues_where_it_was_stopped(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(listing, "MOST_OF_TIME", 0)
    with pytest.raises(KeyboardInterrupt):
        listing.run(Stopped(world.source), world.csv, "*", lambda _: None)
    half = table.read(world.csv)
    assert len(half) == 7
    read: list[str] = []

    class Counting(Folder):
        def opened(self, path: str):  # type: ignore[no-untyped-def]
            read.append(path)
            return super().opened(path)

    rows = listing.run(Counting(world.source), world.csv, "*", lambda _: None)
    assert len(rows) == len(world.kinds)
    known = {path for (_, path), row in half.items() if row.kind not in ("unreadable", "missing")}
    assert known.isdisjoint(read)
    assert len(read) == len(rows) - len(known)


def started(world: World, *arguments: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "mlops_build", "adopt", *arguments]
    silent: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=world.folder, env={**os.environ, **world.environment}, start_new_session=True, **silent)


def timed(world: World, *arguments: str) -> float:
    began = time.monotonic()
    assert started(world, *arguments).wait(timeout=120) == 0
    return time.monotonic() - began


def killed(world: World, seconds: float, *arguments: str) -> bool:
    """Whether the command was killed, after at most these seconds, before it ended."""
    process = started(world, *arguments)
    try:
        process.wait(timeout=CHANCE.uniform(0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
    return process.wait(timeout=30) == -signal.SIGKILL


def plain(world: World) -> Path:
    """A folder with FILES different models, each in two files."""
    folder = world.folder / "plain"
    folder.mkdir()
    for number in range(FILES):
        torch.save({"w": torch.full((1000,), float(number))}, folder / f"net-{number}.pth")
        (folder / f"copy-{number}.pth").write_bytes((folder / f"net-{number}.pth").read_bytes())
    return folder


def check(world: World) -> None:
    """Every content is in the registry once, with all of its files."""
    versions = list(world.registry.every_version())
    counts = Counter(version.tags[identity.FILE_TAG] for version in versions)
    assert set(counts) == {row["sha256"] for row in world.rows()}
    assert set(counts.values()) == {1}
    for version in versions:
        assert files.digest(Path(version.source.removeprefix("file://"))) == version.tags[identity.DIGEST_TAG]


def kill_and_repeat(world: World, rounds: int) -> None:
    source = plain(world)
    before = files.digest(source)
    seconds = timed(world, "list", str(source))
    world.csv.unlink()
    for _ in range(rounds):
        killed(world, seconds, "list", str(source))
        if world.csv.exists():
            table.read(world.csv)  # raises if it is half written
    timed(world, "list", str(source))
    assert len(world.rows()) == 2 * FILES
    world.edit(lambda _: {"action": "adopt", "decided_by": "Ada"})
    kills = 0
    while kills < rounds:
        kills += killed(world, 4.0, "register", "adopt.csv", "--yes")
        if len(list(world.registry.every_version())) == FILES:  # done: begin again, with a new registry
            check(world)
            world.reset()
    timed(world, "register", "adopt.csv", "--yes")
    check(world)
    assert files.digest(source) == before


@pytest.mark.slow
@pytest.mark.real_python
def test_a_few_kills(world: World) -> None:
    kill_and_repeat(world, 4)


@pytest.mark.soak
@pytest.mark.real_python
def test_many_kills(world: World) -> None:
    kill_and_repeat(world, ROUNDS)


@pytest.mark.slow
@pytest.mark.real_python
def test_two_processes_at_once(world: World) -> None:
    timed(world, "list", str(plain(world)))
    world.edit(lambda _: {"action": "adopt", "decided_by": "Ada"})
    both = [started(world, "register", "adopt.csv", "--yes") for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    timed(world, "register", "adopt.csv", "--yes")
    check(world)


@pytest.mark.slow
@pytest.mark.real_python
def test_a_new_database_is_made_whole_by_one_of_many(world: World) -> None:
    """Three processes create it at once, while others are killed at any time."""
    world.adopt("list", str(world.source), "--match", "digits-best.pth")
    world.adopt_all()
    register = ("register", "adopt.csv", "--yes")
    for seconds in (0, 6):
        file = world.folder / "mlflow.db"
        file.unlink(missing_ok=True)
        for _ in range(4 if seconds else 0):
            killed(world, seconds, *register)
        processes = [started(world, *register) for _ in range(1 if seconds else 3)]
        assert [process.wait(timeout=120) for process in processes] == [0] * len(processes)
        assert world.registry.version("digits", 1).tags[identity.DECIDED_BY] == "Ada"
