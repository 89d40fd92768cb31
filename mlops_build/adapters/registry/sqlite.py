"""MLflow's sqlite file: model versions, tags and aliases by Python's sqlite3, the rest by mlflow.

The import of mlflow, SQLAlchemy and alembic takes two seconds, longer than everything else that a command does. Only tables
that have the columns below are used; for another schema, mlflow does everything.
"""

import contextlib
import math
import os
import shlex
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

from mlops_build.adapters.registry import schema
from mlops_build.adapters.registry.database import Database
from mlops_build.adapters.registry.records import (
    NoAnswer,
    NoDatabase,
    RegisteredModel,
    RegisteredVersion,
    Rejected,
    Run,
    first_line,
    stage,
)
from mlops_build.errors import Refused

T = TypeVar("T")

BUSY_SECONDS = 20  # as in mlflow
# The columns that are read and written. Each table also has `workspace`, whose value is 'default' without workspaces.
TABLES = {
    "registered_models": {"name", "description"},
    "registered_model_tags": {"name", "key", "value"},
    "registered_model_aliases": {"name", "alias", "version"},
    "model_versions": {"name", "version", "creation_time", "current_stage", "source", "run_id", "status"},
    "model_version_tags": {"name", "version", "key", "value"},
}
# Without `workspace`.
TABLES_OF_RUNS = {
    "runs": {"run_uuid", "artifact_uri", "lifecycle_stage"},
    "params": {"run_uuid", "key", "value"},
    "latest_metrics": {"run_uuid", "key", "value", "is_nan"},
    "tags": {"run_uuid", "key", "value"},
}
VERSIONS = """
select name, version, run_id, source, creation_time, status, current_stage from model_versions
where workspace = 'default' and name = ? and coalesce(current_stage, '') != 'Deleted_Internal'
"""
ALIASES = """
select models.name, aliases.alias, aliases.version from registered_models as models
left join registered_model_aliases as aliases on aliases.workspace = models.workspace and aliases.name = models.name
where models.workspace = 'default' and models.name not in
(select name from registered_model_tags where workspace = 'default' and key = 'mlflow.prompt.is_prompt' and lower(value) = 'true')
"""


def create_database(file: Path) -> None:
    """MLflow's tables in a new file, which exists with all of them or not at all; if another process creates it first, that one stays.

    Raises NoAnswer and Refused.
    """
    check_new(file)
    try:
        with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=f".{file.name}-") as scratch:
            part = Path(scratch) / "mlflow.db"
            Database(f"sqlite:///{part}").experiment_page("")
            with contextlib.suppress(FileExistsError):
                file.hardlink_to(part)
    except OSError as error:
        raise NoAnswer(f"the file cannot be created: {error.strerror}") from error


def check_new(file: Path) -> None:
    """Raises Refused if a journal of a former database is beside the file: sqlite would write it into the new one."""
    for name in (f"{file.name}-journal", f"{file.name}-wal"):
        if file.with_name(name).exists():
            raise Refused(
                f"{file.with_name(name)} is left from another database: sqlite would write it into a new {file.name}",
                remedy=f"move it away: mv {shlex.quote(str(file.with_name(name)))} {shlex.quote(str(file.with_name(name)))}.old",
            )


def open_database(uri: str, file: Path) -> Database:
    """The database in a file that exists. Raises OtherSchema, and NoAnswer if it cannot be read."""
    database = Sqlite(uri, file)
    database.check()
    return database if database.is_known() else Database(uri)


class Sqlite(Database):
    """The calls of Database on a file with TABLES."""

    def __init__(self, uri: str, file: Path) -> None:
        super().__init__(uri)
        self._file = file

    def check(self) -> None:
        """Raise OtherSchema, also where the tables have the columns of TABLES: a migration may have failed in between."""
        with self._open() as database:
            tables = {name for (name,) in database.execute("select name from sqlite_master where type = 'table'")}
            rows = database.execute("select version_num from alembic_version") if schema.TABLE in tables else ()
            revisions = [revision for (revision,) in rows]
        schema.check(self._uri, revisions, is_empty=not tables - {schema.TABLE})

    def is_known(self) -> bool:
        """Whether the file has the columns of TABLES."""
        with self._open() as database:
            wanted = {table: columns | {"workspace"} for table, columns in TABLES.items()} | TABLES_OF_RUNS
            return all(columns <= {row[1] for row in database.execute(f"pragma table_info({table})")} for table, columns in wanted.items())

    def version(self, name: str, number: str) -> RegisteredVersion:
        with self._open() as database:
            return _only(_versions(database, name, int(number)), f"version {number} of {name} not found")

    def aliased(self, name: str, alias: str) -> RegisteredVersion:
        if alias.lower() == "latest":  # not an alias, but mlflow gives it a meaning
            return super().aliased(name, alias)
        with self._open() as database:
            query = "select version from registered_model_aliases where workspace = 'default' and name = ? and alias = ?"
            number = _only(list(database.execute(query, (name, alias))), f"alias {alias} of {name} not found")[0]
            return _only(_versions(database, name, int(number)), f"version {number} of {name} not found")

    def aliases(self, name: str) -> dict[str, int]:
        with self._open() as database:
            rows = list(database.execute(f"{ALIASES} and models.name = ?", (name,)))
        if not rows:
            raise Rejected("RESOURCE_DOES_NOT_EXIST", 404, f"registered model {name} not found")
        return {alias: int(version) for _, alias, version in rows if alias is not None}

    def models(self) -> list[RegisteredModel]:
        aliases: dict[str, dict[str, int]] = {}
        with self._open() as database:
            for name, alias, version in database.execute(ALIASES):
                aliases.setdefault(name, {}).update({alias: int(version)} if alias is not None else {})
            tags: dict[str, dict[str, str]] = {}
            for name, key, value in database.execute("select name, key, value from registered_model_tags where workspace = 'default'"):
                tags.setdefault(name, {})[key] = value or ""
            about = dict(database.execute("select name, description from registered_models where workspace = 'default'"))
        return [RegisteredModel(name, those, tags.get(name, {}), about[name] or "") for name, those in aliases.items()]

    def version_page(self, token: str) -> tuple[list[RegisteredVersion], str]:
        """The versions of one model. token: its place among the names."""
        with self._open() as database:
            names = sorted({name for name, _, _ in database.execute(ALIASES)})
            place = int(token or 0)
            versions = _versions(database, names[place]) if place < len(names) else []
        return versions, str(place + 1) if place + 1 < len(names) else ""

    def versions(self, name: str) -> list[RegisteredVersion]:
        with self._open() as database:
            return _versions(database, name)

    def run(self, run_id: str) -> Run:
        with self._open() as database:
            query = "select artifact_uri, lifecycle_stage from runs where run_uuid = ?"
            artifact_uri, lifecycle = _only(list(database.execute(query, (run_id,))), f"run {run_id} not found")
            metrics = {
                key: math.nan if is_nan else float(value)
                for key, value, is_nan in database.execute("select key, value, is_nan from latest_metrics where run_uuid = ?", (run_id,))
            }
            params = dict(database.execute("select key, value from params where run_uuid = ?", (run_id,)))
            tags = dict(database.execute("select key, value from tags where run_uuid = ?", (run_id,)))
        return Run(run_id, artifact_uri or "", params, metrics, {key: value or "" for key, value in tags.items()}, lifecycle == "deleted")

    def set_alias(self, name: str, alias: str, version: str) -> None:
        with self._open() as database:
            _only(_versions(database, name, int(version)), f"version {version} of {name} not found")
            row = ("default", name, alias, int(version))
            database.execute("replace into registered_model_aliases (workspace, name, alias, version) values (?, ?, ?, ?)", row)

    def delete_alias(self, name: str, alias: str) -> None:
        with self._open() as database:
            query = "delete from registered_model_aliases where workspace = 'default' and name = ? and alias = ?"
            database.execute(query, (name, alias))

    def set_tag(self, name: str, version: str, key: str, value: str) -> None:
        with self._open() as database:
            _only(_versions(database, name, int(version)), f"version {version} of {name} not found")
            row = ("default", name, int(version), key, value)
            database.execute("replace into model_version_tags (workspace, name, version, key, value) values (?, ?, ?, ?, ?)", row)

    def delete_tag(self, name: str, version: str, key: str) -> None:
        with self._open() as database:
            query = "delete from model_version_tags where workspace = 'default' and name = ? and version = ? and key = ?"
            database.execute(query, (name, int(version), key))

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """One transaction."""
        try:
            with contextlib.closing(
                sqlite3.connect(f"{self._file.resolve().as_uri()}?mode=rw", timeout=BUSY_SECONDS, uri=True)
            ) as database:
                database.execute("pragma foreign_keys = on")
                with database:
                    yield database
        except sqlite3.Error as error:
            raise NoAnswer(first_line(error)) from error


def _versions(database: sqlite3.Connection, name: str, number: int | None = None) -> list[RegisteredVersion]:
    """All versions of a model, or those of one number."""
    only, values = ("", (name,)) if number is None else (" and version = ?", (name, number))
    tags: dict[int, dict[str, str]] = {}
    query = "select version, key, value from model_version_tags where workspace = 'default' and name = ?"
    for version, key, value in database.execute(query + only, values):
        tags.setdefault(int(version), {})[key] = value or ""
    return [
        RegisteredVersion(
            name, int(version), run_id or "", source or "", tags.get(int(version), {}), int(created or 0), status or "READY", stage(marked)
        )
        for name, version, run_id, source, created, status, marked in database.execute(VERSIONS + only, values)
    ]


def _only(rows: list[T], why: str) -> T:
    if not rows:
        raise Rejected("RESOURCE_DOES_NOT_EXIST", 404, why)
    return rows[0]


def no_database(file: Path) -> NoDatabase:
    """The error for a database that does not exist."""
    missing = f"MLflow's database {file} does not exist"
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return NoDatabase(
            missing,
            remedy="correct MLFLOW_TRACKING_URI; `mlops-build train`, or `mlops-build adopt register FILE --yes`, creates the file",
        )
    return NoDatabase(
        f"{missing}: Git does not contain it, so it is only where a model was trained",
        remedy="`mlops-build train` trains a model here and creates it. For models that others registered, set tracking.uri in service.yaml"
        " (or MLFLOW_TRACKING_URI) to an MLflow server that both machines reach",
    )
