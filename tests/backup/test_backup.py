"""Backup, check and restore of a sqlite registry with folders, as commands."""

import gzip
import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters.registry.dump import COLUMNS
from tests.backup.world import KEY, World

ADDRESS = re.compile(r"uri|url|location|source$|source_name|path|root|artifact|folder|bucket|file(?!\w)|storage|link(?!age)")
# They name no file that MLflow keeps: code, data of users, web pages.
OTHERS = {
    "datasets.dataset_profile",
    "datasets.dataset_source",
    "evaluation_dataset_records.source",
    "evaluation_datasets.profile",
    "issues.root_causes",
    "mcp_access_endpoints.url",
    "mcp_server_versions.source",
    "model_versions.run_link",
    "runs.source_name",
    "webhooks.url",
}


def test_a_registry_is_restored_elsewhere_after_everything_was_destroyed(world: World) -> None:
    before = world.versions(world.uri)
    made = world.backup()
    assert (made["findings"], made["files"], made["new_objects"]) == ([], 9, 9)  # 3 weights, 3 MLmodel, one text, the database, the list
    shutil.rmtree(world.home)
    restored = world.restore("new")
    assert restored["places"] == {str(world.store): str(world.folder / "new/mlartifacts")}
    assert world.versions(f"sqlite:///{world.folder}/new/mlflow.db") == before
    with closing(sqlite3.connect(world.folder / "new/mlflow.db")) as database:
        assert str(world.home) not in "\n".join(database.iterdump())
        assert not database.execute("select name from sqlite_master where name like 'mlops%'").fetchall()
    assert not list((world.folder / "new").rglob(".*"))
    assert "is not empty" in world.restore("new", expect=4)["error"]


def test_the_second_backup_reads_and_sends_only_what_is_new_and_each_can_be_restored(world: World) -> None:
    first = world.backup()
    world.add()
    second = world.backup()
    assert (second["files"], second["not_read_again"]) == (12, 9)
    assert second["new_objects"] == 4  # weights, MLmodel, the database, the list
    listed = world.backup("--list")
    assert [entry["id"] for entry in listed] == [first["backup"], second["backup"]]
    world.restore("first", "--backup", first["backup"])
    world.restore("second")
    assert len(world.versions(f"sqlite:///{world.folder}/first/mlflow.db")) == 3
    assert len(world.versions(f"sqlite:///{world.folder}/second/mlflow.db")) == 4


def test_a_damaged_version_is_named_and_the_earlier_backup_still_has_it(world: World) -> None:
    first = world.backup()
    before = world.versions(world.uri)
    weights = next(path for path in world.store.rglob("weights*"))
    weights.write_bytes(b"x" * 2000)
    made = world.backup(expect=4)
    assert [entry["rule"] for entry in made["findings"]] == ["files-altered"]
    shutil.rmtree(weights.parents[1])
    made = world.backup(expect=4)
    assert [entry["rule"] for entry in made["findings"]] == ["no-files"]
    assert [bool(entry["damaged"]) for entry in world.backup("--list")] == [False, True, True]
    world.restore("new", "--backup", first["backup"])
    assert world.versions(f"sqlite:///{world.folder}/new/mlflow.db") == before


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_object_is_found_and_not_restored(world: World, damage: str) -> None:
    made = world.backup()
    assert world.backup("--verify", "--all")["findings"] == []
    weights = next(path for path in world.store.rglob("weights*")).read_bytes()
    stored = world.backups / "objects" / hashlib.sha256(weights).hexdigest()[:2] / hashlib.sha256(weights).hexdigest()
    if damage == "gone":
        stored.unlink()
    else:
        stored.write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]) if damage == "flip" else weights[:-1])
    found = world.backup("--verify", "--all", expect=4)["findings"]
    assert [entry["rule"] for entry in found] == ["altered" if damage == "flip" else "missing"]
    world.restore("new", expect=5 if damage == "gone" else 4)
    assert not (world.folder / "new/mlflow.db").exists()
    # With the registry still there, the next backup copies it again (for a flipped bit: after the object was deleted).
    stored.unlink(missing_ok=True)
    assert world.backup()["new_objects"] >= 1
    assert world.backup("--verify", "--all", "--backup", made["backup"])["findings"] == []
    world.restore("new", "--backup", made["backup"])
    assert len(world.versions(f"sqlite:///{world.folder}/new/mlflow.db")) == 3


def test_a_damaged_dump_is_found_and_refused(world: World) -> None:
    made = world.backup()
    digest = json.loads(world.manifest(made["backup"]).read_text())["database"]
    stored = world.backups / "objects" / digest[:2] / digest
    stored.write_bytes(stored.read_bytes()[:-4096] + bytes(4096))
    assert world.backup("--verify", expect=4)["findings"][0]["subject"] == "the database"
    assert "another content" in world.restore("new", expect=4)["error"]
    assert not (world.folder / "new/mlflow.db").exists()


def seal(document: dict[str, Any]) -> str:
    """As somebody writes a manifest who has no key."""
    document = {key: value for key, value in document.items() if key not in ("digest", "hmac")}
    return json.dumps({**document, "digest": hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()})


@pytest.mark.parametrize(
    "changes",
    [{"kind": "oracle"}, {"files": -1}, {"schema": "'; drop"}, {"database": "../../x"}, {"stores": [{"uri": "a\nb", "spellings": []}]}],
)
def test_a_manifest_that_is_not_valid_is_refused(world: World, changes: dict[str, Any]) -> None:
    made = world.backup()
    file = world.manifest(made["backup"])
    document = json.loads(file.read_text())
    file.write_text(json.dumps({**document, **changes}))
    assert "is not the one that was written" in world.restore("new", expect=4)["error"]
    file.write_text(seal({**document, **changes}))
    assert "is not valid" in world.restore("new", expect=4)["error"]
    assert "is not valid" in world.backup("--verify", expect=4)["error"]
    assert "is not valid" in world.backup("--list", expect=4)[0]["error"]
    file.write_text("{")
    assert "is not valid" in world.restore("new", expect=4)["error"]


@pytest.mark.parametrize("path", ["../escaped", "/tmp/escaped", "a/../../escaped", "a//b", ""])
def test_no_path_of_a_list_leads_out_of_the_place(world: World, path: str) -> None:
    made = world.backup()
    file = world.manifest(made["backup"])
    document = json.loads(file.read_text())
    listing = (world.backups / "objects" / document["listing"][:2] / document["listing"]).read_bytes()
    entries = [json.loads(line) for line in gzip.decompress(listing).splitlines()]
    entries[0][1] = path
    content = gzip.compress("".join(json.dumps(entry) + "\n" for entry in entries).encode())
    digest = hashlib.sha256(content).hexdigest()
    stored = world.backups / "objects" / digest[:2] / digest
    stored.parent.mkdir(exist_ok=True)
    stored.write_bytes(content)
    file.write_text(seal({**document, "listing": digest}))
    assert "its list has" in world.restore("new", expect=4)["error"]
    assert not list(world.folder.rglob("escaped"))


def test_with_a_key_only_signed_backups_are_used(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unsigned = world.backup()
    world.environment["MLOPS_BUILD_BACKUP_KEY"] = KEY
    assert "not signed" in world.restore("new", expect=4)["error"]
    signed = world.backup()
    assert signed["not_read_again"] == 0  # the unsigned list is not believed
    file = world.manifest(signed["backup"])
    document = json.loads(file.read_text())
    document["mlflow"] = "9.9"
    file.write_text(seal(document))
    assert "not signed" in world.restore("new", expect=4)["error"]
    assert "not signed" in world.backup("--verify", expect=4)["error"]
    kept = world.backup("--keep", "1", expect=4)
    assert [entry["rule"] for entry in kept["findings"]] == ["nothing-deleted"]
    assert "not signed" in kept["findings"][0]["why"]
    assert f"delete backups/{unsigned['backup']}.json" in kept["findings"][0]["remedy"]
    file.unlink()
    world.manifest(unsigned["backup"]).unlink()
    (tmp_path / "key").write_text(f"{KEY}\n")
    world.environment["MLOPS_BUILD_BACKUP_KEY"] = ""
    world.environment["MLOPS_BUILD_BACKUP_KEY_FILE"] = str(tmp_path / "key")
    world.restore("new")
    world.environment["MLOPS_BUILD_BACKUP_KEY_FILE"] = ""
    world.environment["MLOPS_BUILD_BACKUP_KEY"] = "short"
    assert "fewer than 16" in world.backup("--list", expect=2)["error"]


def test_another_place_is_copied_and_restored(world: World) -> None:
    (world.folder / "dvc/files").mkdir(parents=True)
    (world.folder / "dvc/files/data").write_text("data")
    for number in range(50):
        (world.folder / f"dvc/files/same{number}").write_text("in each file")
    remote = str(world.folder / "dvc")
    made = world.backup("--also", remote)
    assert (made["files"], made["new_objects"]) == (60, 11)  # many threads send it, once
    shutil.rmtree(remote)
    assert world.restore("one")["places"][remote] == ""
    world.restore("two", "--also", f"{remote}={world.folder}/two/dvc")
    assert (world.folder / "two/dvc/files/data").read_text() == "data"
    assert "has no place" in world.restore("three", "--also", "/nowhere=x", expect=2)["error"]


def test_a_backup_into_what_it_copies_and_a_server_without_its_database_are_refused(world: World) -> None:
    assert "which is copied" in world.command("backup", str(world.store / "1/backups"), expect=4)["error"]
    assert "does not hand out its database" in world.backup("--database", "http://127.0.0.1:9", expect=2)["error"]
    assert "no such file" in world.backup("--database", "sqlite:////nonexistent.db", expect=3)["error"]
    assert not world.manifest("x").parent.exists()
    error = world.backup("--database", "postgresql://me:hidden@127.0.0.1:9/mlflow", expect=5)
    assert "hidden" not in json.dumps(error) + world.stderr


def old(world: World, name: str, days: int) -> str:
    """Make a backup, and everything that it wrote, older."""
    file = world.manifest(name)
    document = json.loads(file.read_text())
    document["id"] = f"{datetime.now(UTC) - timedelta(days=days):%Y%m%dT%H%M%S}000Z-{name[-8:]}"
    file.unlink()
    world.manifest(document["id"]).write_text(seal(document))
    for path in [*world.objects(), world.manifest(document["id"])]:
        os.utime(path, (time.time() - days * 86400,) * 2)
    return str(document["id"])


def test_old_backups_are_deleted_with_what_no_other_one_needs(world: World) -> None:
    first = old(world, world.backup()["backup"], 40)
    only = next(path for path in world.store.rglob("weights*"))
    only.write_bytes(b"first")
    damaged = world.backup(expect=4)["backup"]  # a damaged backup is no reason to delete the last good one
    assert world.backup("--keep", "1", expect=4)["deleted_backups"] == [damaged]
    assert first in [entry["id"] for entry in world.backup("--list")]
    shutil.rmtree(world.folder / "new", ignore_errors=True)
    world.restore("new", "--backup", first)
    # The version is restored from it; then the good backups are the newest ones.
    good = world.folder / "new/mlartifacts" / only.relative_to(world.store)
    shutil.copyfile(good, only)
    young = world.backup()["backup"]
    kept = world.backup("--keep", "1", "--keep-days", "30")
    assert kept["deleted_backups"] == [first]
    assert young in [entry["id"] for entry in world.backup("--list")]
    assert kept["deleted_objects"] == 1  # its list; its files and its database are those of the others
    assert world.backup("--verify", "--all")["findings"] == []
    # While another backup is being written, nothing is deleted.
    (world.backups / "running").mkdir(exist_ok=True)
    (world.backups / "running/20260101T000000000Z-00000000").write_text("")
    assert world.backup("--keep", "1")["deleted_backups"] == []
    assert "is being written" in world.stderr
    assert not (world.backups / "running/prune").exists()


def test_each_column_with_an_address_is_known(database: Path) -> None:
    """A new MLflow that has another column for addresses fails here: it belongs to COLUMNS or to OTHERS."""
    known = {f"{table}.{column}" for table, column, _ in COLUMNS}
    with closing(sqlite3.connect(database)) as connection:
        tables = [row[0] for row in connection.execute("select name from sqlite_master where type = 'table'")]
        columns = {f"{table}.{row[1]}" for table in tables for row in connection.execute(f"pragma table_info({table})")}
    assert known - columns == set()
    assert {column for column in columns if ADDRESS.search(column.partition(".")[2])} - known == OTHERS
