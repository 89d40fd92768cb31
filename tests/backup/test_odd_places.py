"""Addresses, names and places that are legal and rare: copied and restored, or named; never dropped without a word."""

import json
import os
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlops_build.__main__ import main
from mlops_build.backup import take
from tests.backup.world import World, add


def experiment(world: World, location: str) -> None:
    """A version in an experiment at an address."""
    from mlflow import MlflowClient

    client = MlflowClient(world.uri, registry_uri=world.uri)
    add(client, client.create_experiment(location[-20:].replace("/", " "), location), world.folder, 9)


def rules(document: dict[str, list[dict[str, str]]]) -> list[tuple[str, str]]:
    return sorted((entry["rule"], entry["subject"].rpartition("/")[2]) for entry in document["findings"])


@pytest.mark.parametrize("name", ["my%20exp", "gr%C3%B6%C3%9Fe", "a%25b", "deep/3/4"])
def test_an_address_is_restored_as_it_is_written(world: World, name: str) -> None:
    experiment(world, f"{world.store.as_uri()}/{name}")
    before = world.versions(world.uri)
    assert world.backup()["findings"] == []
    shutil.rmtree(world.home)
    world.restore("new")
    assert world.versions(f"sqlite:///{world.folder}/new/mlflow.db") == before
    with closing(sqlite3.connect(world.folder / "new/mlflow.db")) as database:
        (location,) = database.execute("select artifact_location from experiments order by experiment_id desc").fetchone()
    assert location == f"{(world.folder / 'new/mlartifacts').as_uri()}/{name}"


@pytest.mark.parametrize("name", ["other%0Aplace/exp", "a%00b/exp", "x" * 300])
def test_an_address_that_cannot_be_copied_is_named_and_the_backup_is_good(world: World, name: str) -> None:
    location = f"{world.folder.as_uri()}/{name}"
    with closing(sqlite3.connect(world.file)) as database, database:
        database.execute("update experiments set artifact_location = ? where name = 'Default'", (location,))
    made = world.backup(expect=4)
    assert [entry["subject"] for entry in made["findings"]] == [location[:200]]
    assert [entry["id"] for entry in world.backup("--list")] == [made["backup"]]
    world.restore("new")


def test_a_deleted_version_needs_no_files(world: World) -> None:
    from mlflow import MlflowClient

    MlflowClient(world.uri, registry_uri=world.uri).delete_model_version("digits", "2")
    made = world.backup("--artifacts", str(world.store))
    assert "REDACTED" not in json.dumps(made)
    assert made["findings"] == []


def test_links_special_files_and_names_that_are_not_utf8_are_named(world: World) -> None:
    run = next(world.store.glob("1/*/artifacts"))
    (run / "link.bin").symlink_to(world.file)
    (run / "links").symlink_to(world.folder)
    os.mkfifo(run / "pipe")
    (run / os.fsdecode(b"\xff.bin")).write_bytes(b"x")
    (run / "back\\slash\n").write_bytes(b"x")
    made = world.backup(expect=4)
    names = ["\\udcff.bin", "back\\\\slash\\n", "link.bin", "links", "pipe"]
    assert rules(made) == [("not-copied", name) for name in names]
    assert made["files"] == 9
    assert [bool(entry["damaged"]) for entry in world.backup("--list")] == [True]
    world.restore("new")


def test_a_place_that_is_a_file_or_behind_a_link_into_what_is_copied_is_refused(world: World) -> None:
    (world.folder / "file").write_text("mine")
    (world.folder / "link").symlink_to(world.store / "1")
    for arguments in (["backup", "file"], ["backup", "b", "--also", "file"], ["restore", "file"], ["backup", "file", "--list"]):
        words = [str(world.folder / word) if word == "file" else word for word in arguments]
        assert "is a file" in world.command(*words, expect=2)["error"]
    for inside in (world.folder / "link/backups", world.store / "../mlruns/backups"):
        assert "which is copied" in world.command("backup", str(inside), expect=4)["error"]
    world.backup()
    assert "/proc/nothing" in world.restore("new", "--artifacts", "/proc/nothing", expect=5)["error"]


def test_a_damaged_object_has_a_remedy_that_works(world: World) -> None:
    world.backup()
    stored = max((path for path in (world.backups / "objects").rglob("*") if path.stat().st_size == 2000), key=str)
    stored.write_bytes(b"x" * 2000)
    (found,) = world.backup("--verify", "--all", expect=4)["findings"]
    assert str(stored) in found["why"]
    assert "delete this object and back up again" in found["remedy"]
    stored.unlink()
    world.backup()
    assert world.backup("--verify", "--all")["findings"] == []


def test_files_beside_the_backups_that_are_none(world: World) -> None:
    made = world.backup()
    names = [f"20200101T00000000{number}Z-00000000" for number in range(3)]
    for name, text in zip(names, ["[" * 200_000, '{"format": 1}', "x" * (17 << 20)], strict=True):
        (world.backups / "backups" / f"{name}.json").write_text(text)
    listed = world.backup("--list", expect=4)
    assert [entry["id"] for entry in listed if "error" in entry] == names
    for name in names:
        assert world.restore("new", "--backup", name, expect=4)["remedy"]
        assert world.backup("--verify", "--backup", name, expect=4)["remedy"]
    world.restore("new", "--backup", made["backup"])


def test_old_backups_can_be_deleted_without_a_new_one(world: World) -> None:
    made = [world.backup()["backup"] for _ in range(3)]
    assert "which backups stay" in world.backup("--prune", expect=2)["error"]
    assert world.backup("--prune", "--keep", "1")["backups"] == made[:2]
    assert [entry["id"] for entry in world.backup("--list")] == made[2:]


@pytest.mark.parametrize("year", [1970, 2100])
def test_a_clock_that_is_wrong_is_named(
    world: World, year: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "datetime":  # type: ignore[override] # noqa: ARG003
            return datetime(year, 1, 1, tzinfo=UTC)

    monkeypatch.setattr(take, "datetime", Clock)
    monkeypatch.chdir(world.home)
    assert main(["backup", str(world.backups), "--database", world.uri]) == 4
    assert f"the clock of this machine is at {year}-01-01" in capsys.readouterr().err
    assert not Path(world.backups).exists()
