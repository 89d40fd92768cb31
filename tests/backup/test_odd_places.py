"""Addresses, names and places that are legal and rare: copied and restored, or named; never dropped without a word."""

import json
import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mlops_build.__main__ import main
from mlops_build.adapters.storage.folder import Folder
from mlops_build.backup import take
from mlops_build.backup.destination import Destination
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


def test_an_address_with_a_single_slash_is_a_place_too(world: World) -> None:
    with closing(sqlite3.connect(world.file)) as database, database:
        database.execute("update experiments set artifact_location = replace(artifact_location, 'file:///', 'file:/')")
    assert world.backup()["findings"] == []
    world.restore("new")
    with closing(sqlite3.connect(world.folder / "new/mlflow.db")) as database:
        assert not database.execute("select name from experiments where artifact_location like '%/old/%'").fetchall()


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


def test_a_prompt_needs_no_files(world: World) -> None:
    from mlflow import MlflowClient

    MlflowClient(world.uri, registry_uri=world.uri).register_prompt("greeting", "Hello {{name}}")
    made = world.backup()
    assert (made["findings"], made["files"]) == ([], 9)
    assert list(world.restore("new")["places"]) == [str(world.store)]


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
    for inside in (world.folder / "link/backups", world.store / "../mlruns/1/backups"):
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


def test_a_list_that_was_damaged_is_written_again(world: World) -> None:
    first = world.backup()
    digest = json.loads(world.manifest(first["backup"]).read_text())["listing"]
    stored = world.backups / "objects" / digest[:2] / digest
    stored.write_bytes(bytes(stored.stat().st_size))
    assert world.backup()["new_objects"] == 1
    assert world.backup("--verify", "--all")["findings"] == []
    assert world.backup("--verify", "--all", "--backup", first["backup"])["findings"] == []


def test_a_place_that_had_files_before_and_is_not_there_now_keeps_the_good_backup(world: World) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(world.uri, registry_uri=world.uri)
    for number in (1, 2, 3):
        client.delete_model_version("digits", str(number))
    good = world.backup()["backup"]
    world.store.rename(world.home / "away")
    made = world.backup("--keep", "1", expect=4)
    assert rules(made) == [("no-files", "mlruns")]
    assert [entry["id"] for entry in world.backup("--list")] == [good, made["backup"]]


def test_a_journal_of_another_database_is_not_taken_for_one_of_the_restored(world: World) -> None:
    world.backup()
    (world.folder / "new").mkdir()
    journal = world.folder / "new/mlflow.db-journal"
    journal.write_bytes(b"of another database")
    refused = world.restore("new", expect=4)
    assert "would write it into a new mlflow.db" in refused["error"]
    subprocess.run(["sh", "-c", refused["remedy"].removeprefix("move it away: ")], check=True)
    world.restore("new")


@pytest.mark.slow
def test_a_locked_database_is_waited_for_only_a_while(world: World) -> None:
    with closing(sqlite3.connect(world.file)) as database:
        database.execute("begin exclusive")
        assert "locked" in world.backup(expect=5)["error"]
        database.rollback()
    world.backup()


def test_an_interrupted_restore_names_its_backup_if_there_is_a_newer_one(world: World) -> None:
    first = world.backup()["backup"]
    world.restore("new")
    (world.folder / "new/mlflow.db").unlink()
    (world.folder / "new/mlartifacts/.mlops-build-restore").write_text(first)
    world.backup()
    refused = world.restore("new", expect=4)
    assert refused["remedy"] == f"add --backup {first}, or use an empty place"
    world.restore("new", "--backup", first)


def test_options_that_would_do_nothing_are_refused(world: World) -> None:
    world.environment["MLOPS_BUILD_BACKUP_KEY_FILE"] = "/dev/null"
    assert "fewer than 16" in world.backup(expect=2)["error"]
    del world.environment["MLOPS_BUILD_BACKUP_KEY_FILE"]
    assert "nowhere" in world.backup("--also", "nowhere", expect=5)["error"]
    for words in (["--all"], ["--backup", "20260101T000000000Z-00000000"]):
        assert "belong to --verify" in world.backup(*words, expect=2)["error"]


def test_of_two_deletions_neither_deletes_while_the_other_runs(tmp_path: Path) -> None:
    first, second = Destination(Folder(tmp_path)), Destination(Folder(tmp_path))
    with first.pruning() as (_, others):
        assert others == []
        with second.pruning() as (_, others):
            assert len(others) == 1
        assert len(list(first.place.objects("running"))) == 1
    assert not list(first.place.objects("running"))


def test_a_backup_of_a_later_time_than_now_is_named(world: World) -> None:
    made = world.backup()["backup"]
    later = f"2099{made[4:]}"
    world.manifest(made).rename(world.manifest(later))
    refused = world.backup("--keep", "1", expect=4)
    assert f"backup {later} is after it" in refused["error"]
    assert f"delete backups/{later}.json" in refused["remedy"]
    assert [entry["id"] for entry in world.backup("--list", expect=4)] == [later]


def test_addresses_of_a_proxy_can_be_left_out(world: World) -> None:
    with closing(sqlite3.connect(world.file)) as database, database:
        database.execute("update experiments set artifact_location = 'mlflow-artifacts:/0' where name = 'Default'")
    assert "--without mlflow-artifacts:" in world.backup(expect=2)["remedy"]
    assert world.backup("--without", "mlflow-artifacts:")["findings"] == []


def test_a_database_without_a_column_of_later_releases(world: World) -> None:
    with closing(sqlite3.connect(world.file)) as database, database:
        database.execute("alter table model_versions drop column storage_location")
    assert world.backup()["files"] == 9


def test_what_is_restored_can_be_read_by_others_and_damage_is_named(world: World) -> None:
    next(world.store.rglob("weights*")).write_bytes(b"altered")
    world.backup(expect=4)
    refused = world.restore("new", "--artifacts", str(world.backups / "objects"), expect=2)
    assert "has the backups" in refused["error"]
    world.restore("new")
    assert "damaged or missing when this backup was made: models:/digits/" in world.stderr
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in (world.folder / "new").rglob("*") if path.is_file()} == {0o666 & ~mask}


def test_a_place_without_files_needs_no_folder_of_its_own(world: World) -> None:
    """MLflow's experiment Default often has an address of its own, and no run."""
    with closing(sqlite3.connect(world.file)) as database, database:
        database.execute("update experiments set artifact_location = ? where name = 'Default'", (f"{world.home}/elsewhere/0",))
    world.backup()
    (world.folder / "new/mlartifacts").mkdir(parents=True)
    restored = world.restore("new")
    assert set(restored["places"].values()) == {f"{world.folder}/new/mlartifacts"}
    assert len(list((world.folder / "new/mlartifacts/1").iterdir())) == 3
    with closing(sqlite3.connect(world.folder / "new/mlflow.db")) as database:
        (location,) = database.execute("select artifact_location from experiments where name = 'Default'").fetchone()
    assert location == f"{world.folder}/new/mlartifacts/0"
