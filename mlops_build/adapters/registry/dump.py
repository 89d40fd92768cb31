"""MLflow's database as a file, and back: sqlite by Python's sqlite3, PostgreSQL by pg_dump and pg_restore, which find their server and
password in the environment, never among their arguments.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import gettempdir
from typing import Any

from mlops_build.adapters import program
from mlops_build.adapters.registry.records import first_line, shown
from mlops_build.adapters.registry.sqlite import check_new
from mlops_build.errors import Failed, NotFound, Refused, Unreachable, UsageError

SECONDS = 6 * 3600  # the most that pg_dump or pg_restore may take
SQLITE, POSTGRESQL = "sqlite", "postgresql"
# A restored database has it until all is restored; MLflow does not know this table. done: whether the addresses are those of the new place.
MARKER = "mlops_build_restore"
# Of the table model_versions: neither a deleted version, whose address MLflow replaces by a text, nor a prompt, which has no files.
PRESENT = (
    "coalesce(current_stage, '') != 'Deleted_Internal' and model_versions.name not in (select name from registered_model_tags"
    " where key = 'mlflow.prompt.is_prompt' and lower(value) = 'true')"
)
# Where MLflow's tables have the addresses of files: table, column, and which rows. tests/backup/test_columns.py knows the rest.
COLUMNS = (
    ("experiments", "artifact_location", ""),
    ("runs", "artifact_uri", ""),
    ("logged_models", "artifact_location", ""),
    ("model_versions", "source", PRESENT),
    ("model_versions", "storage_location", PRESENT),
    ("trace_tags", "value", "key = 'mlflow.artifactLocation'"),
    ("workspaces", "default_artifact_root", ""),
    ("workspaces", "trace_archival_location", ""),
)
# Of an address of PostgreSQL: what libpq has a variable for.
OPTIONS = {"sslmode", "sslrootcert", "sslcert", "sslkey", "options", "connect_timeout", "service", "passfile", "host", "port"}


@dataclass(frozen=True)
class Dumped:
    """What a dump has. schema: the revision of MLflow's tables. locations: addresses, the experiments' first. versions: name, number,
    source and expected digest, which is empty if it was not recorded.
    """

    schema: str
    locations: list[str]
    versions: list[tuple[str, int, str, str]]


class Sql:
    """The database at a URI of SQLAlchemy. Raises UsageError unless it is a sqlite file or PostgreSQL."""

    def __init__(self, uri: str) -> None:
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            self._url = make_url(uri.replace("postgres://", "postgresql://", 1) if uri.startswith("postgres://") else uri)
            self.kind = self._url.get_backend_name()
        except ArgumentError:
            self.kind = ""
        if self.kind not in (SQLITE, POSTGRESQL) or not self._url.database:
            raise UsageError(
                f"{shown(uri)[:200]!r} is not a database that can be dumped: an MLflow server does not hand out its database",
                remedy="give its sqlite:///FILE or postgresql://USER@HOST/NAME: --database, or MLOPS_BUILD_BACKUP_DATABASE",
            )
        self.file = Path(self._url.database)

    def __str__(self) -> str:
        return str(self._url.set(password=None)) if self._url.password else str(self._url)

    def dump(self, destination: Path, digest_tag: str) -> Dumped:
        """Write the database as it is at one moment. digest_tag: of a version, with the digest of its files."""
        with self._translated():
            if self.kind == SQLITE:
                if not self.file.is_file():
                    raise NotFound(f"{self.file}: there is no such file", remedy="check the path of --database, or set MLFLOW_TRACKING_URI")
                with contextlib.closing(sqlite3.connect(self.file)) as source, contextlib.closing(sqlite3.connect(destination)) as copy:
                    source.execute("begin")
                    source.execute("select count(*) from sqlite_master")  # waits for a lock for 5 s; backup() would wait without end
                    source.backup(copy)
                    copy.execute("pragma journal_mode = delete")
                return Sql(f"sqlite:///{destination}")._content(digest_tag)
            with self._engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection, connection.begin():
                snapshot = connection.exec_driver_sql("select pg_export_snapshot()").scalar_one()
                options = ["--format=custom", "--no-owner", "--no-privileges", f"--snapshot={snapshot}", f"--file={destination}"]
                self._program("pg_dump", *options, self.file.name)
                return _content(connection, digest_tag)

    def state(self) -> tuple[str, bool] | None:
        """The backup that is being restored here, and whether the addresses are done; None if the database is empty or does not exist.

        Raises Refused for a database with anything else.
        """
        from sqlalchemy import inspect

        with self._translated():
            if self.kind == SQLITE and not self.file.exists():
                check_new(self.file)
                return None
            with self._engine.connect() as connection:
                tables = set(inspect(connection).get_table_names())
                if MARKER in tables and (row := connection.exec_driver_sql(f"select backup, done from {MARKER}").first()):  # noqa: S608
                    return str(row[0]), bool(row[1])
        if tables - {MARKER}:
            raise Refused(f"{self} is not empty", remedy="restore into an empty database: --database URI")
        return None

    def load(self, dump: Path, backup: str, changes: Mapping[str, str]) -> None:
        """Restore a dump into this empty database, or go on with that, and replace the beginnings of addresses. Leaves the marker."""
        with self._translated():
            if self.kind == POSTGRESQL:
                self._load_postgresql(dump, backup)
                self._change(backup, changes)
                return
            Sql(f"sqlite:///{dump}")._change(backup, changes)
            self.file.parent.mkdir(parents=True, exist_ok=True)
            part = self.file.with_name(f".{self.file.name}.restoring")
            part.write_bytes(b"")
            with contextlib.closing(sqlite3.connect(dump)) as source, contextlib.closing(sqlite3.connect(part)) as copy:
                source.backup(copy)
            part.replace(self.file)

    def finish(self) -> None:
        """Remove the marker."""
        with self._translated(), self._engine.begin() as connection:
            connection.exec_driver_sql(f"drop table if exists {MARKER}")

    def _load_postgresql(self, dump: Path, backup: str) -> None:
        from sqlalchemy import inspect

        with self._engine.begin() as connection:
            _mark(connection, backup, done=False)
        if not inspect(self._engine).has_table("alembic_version"):
            options = ["--no-owner", "--no-privileges", "--single-transaction", "--exit-on-error", f"--dbname={self.file.name}"]
            try:
                self._program("pg_restore", *options, str(dump))
            except Failed:  # that of a killed restore can have gone on until its end
                if not inspect(self._engine).has_table("alembic_version"):
                    raise

    def _change(self, backup: str, changes: Mapping[str, str]) -> None:
        """One transaction, so that no address is changed twice."""
        from sqlalchemy import case, column, func, inspect, or_, table, text, update

        with self._engine.begin() as connection:
            known = inspect(connection)
            for name, key, which in COLUMNS:
                if not changes or not known.has_table(name) or key not in {each["name"] for each in known.get_columns(name)}:
                    continue
                value = column(key)
                cases = [
                    (or_(value == old, func.substr(value, 1, len(old) + 1) == f"{old}/"), new + func.substr(value, len(old) + 1))
                    for old, new in sorted(changes.items(), key=lambda change: -len(change[0]))
                ]
                statement = update(table(name, value)).values({key: case(*cases, else_=value)})
                connection.execute(statement.where(text(which)) if which else statement)
            _mark(connection, backup, done=True)

    def _content(self, digest_tag: str) -> Dumped:
        with self._engine.connect() as connection:
            return _content(connection, digest_tag)

    def _program(self, *command: str) -> None:
        ended = program.run(
            command, seconds=SECONDS, environment=self._environment(), remedy="see what the database waits for: pg_stat_activity"
        )
        if ended.code:
            remedy = "check PGPASSWORD or ~/.pgpass, and what this user may do"
            if "version mismatch" in ended.message or "unsupported version" in ended.message:
                remedy = "install the client programs of the server's release, such as postgresql-client-17, and put them first in PATH"
            raise Failed(f"{command[0]} {self}: {ended.last_line}", remedy=remedy)

    def _environment(self) -> dict[str, str]:
        url, query = self._url, {**self._url.query}
        if unknown := set(query) - OPTIONS:
            raise UsageError(f"{self}: {min(unknown)!a} is not passed to pg_dump", remedy=f"use {', '.join(sorted(OPTIONS))}")
        values = {"user": url.username, "password": url.password, "database": url.database, "host": url.host, "port": url.port, **query}
        return {**os.environ, **{f"PG{name.upper()}": str(value) for name, value in values.items() if value}}

    @cached_property
    def _engine(self) -> Any:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        return create_engine(self._url, poolclass=NullPool)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        from sqlalchemy.exc import DBAPIError

        try:
            yield
        except ModuleNotFoundError as error:
            package = "'psycopg[binary]'" if error.name == "psycopg" else f"{error.name}-binary"
            raise Unreachable(f"{self}: the driver {error.name} is not installed", remedy=f"pip install {package}") from error
        except (DBAPIError, sqlite3.Error) as error:
            text = first_line(getattr(error, "orig", None) or error)
            if "disk is full" in text:
                raise Failed(f"{self}, or a temporary file: {text}", remedy=f"free space there, and in TMPDIR ({gettempdir()})") from error
            raise Unreachable(f"{self}: {text}", remedy="check that the database answers, and --database") from error
        except OSError as error:
            raise Unreachable(f"{self}: {error.strerror or error}", remedy="check the path, and who may read and write it") from error


def check_dump(kind: str, file: Path) -> str | None:
    """Why a dump cannot be read; None if it can be."""
    if kind == SQLITE:
        try:
            with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
                answer = str(database.execute("pragma integrity_check").fetchone()[0])
        except sqlite3.Error as error:
            answer = first_line(error)
        return None if answer == "ok" else answer
    ended = program.run(["pg_restore", "--list", str(file)], seconds=SECONDS)
    return ended.last_line if ended.code else None


def _mark(connection: Any, backup: str, *, done: bool) -> None:
    connection.exec_driver_sql(f"create table if not exists {MARKER} (backup varchar(64), done integer)")
    connection.exec_driver_sql(f"delete from {MARKER}")  # noqa: S608
    connection.exec_driver_sql(f"insert into {MARKER} values ('{backup}', {int(done)})")  # noqa: S608 # its grammar was checked


def _content(connection: Any, digest_tag: str) -> Dumped:
    from sqlalchemy import inspect, text

    known = inspect(connection)
    tables = set(known.get_table_names())
    if not {"alembic_version", "experiments", "runs", "model_versions"} <= tables:
        raise Refused("this is not a database of MLflow", remedy="give MLflow's database: --database URI")
    locations: dict[str, None] = {}
    for table, column, which in COLUMNS:
        if table in tables and column in {each["name"] for each in known.get_columns(table)} and table != "workspaces":
            where = f" where {which}" if which else ""
            locations |= dict.fromkeys(row[0] for row in connection.execute(text(f"select {column} from {table}{where}")) if row[0])  # noqa: S608
    columns = {each["name"] for each in known.get_columns("model_versions")}
    workspace = "t.workspace = model_versions.workspace and " if "workspace" in columns else ""
    source = "coalesce(storage_location, source, '')" if "storage_location" in columns else "coalesce(source, '')"
    query = (
        f"select model_versions.name, model_versions.version, {source}, coalesce(t.value, '') from model_versions"  # noqa: S608
        f" left join model_version_tags t on {workspace}t.name = model_versions.name"
        " and t.version = model_versions.version and t.key = :tag"
        f" where {PRESENT} order by 1, 2"
    )
    schemas = connection.execute(text("select version_num from alembic_version")).scalars().all()
    if len(schemas) != 1:
        raise Refused(f"its table alembic_version has {len(schemas)} rows instead of one", remedy="see docs/how-to/upgrade-mlflow.md")
    return Dumped(str(schemas[0]), list(locations), [tuple(row) for row in connection.execute(text(query), {"tag": digest_tag})])
