"""What is known of files while a backup is made or restored: in a sqlite file, since there can be millions."""

import contextlib
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mlops_build.backup.manifest import Copied
from mlops_build.errors import Failed

TABLES = """
create table files (uri text, path text, size integer, sha256 text, stamp text, primary key (uri, path)) without rowid;
create table held (sha256 text primary key, size integer) without rowid;
"""


class Index:
    def __init__(self, file: Path) -> None:
        self._database = sqlite3.connect(file, check_same_thread=False)
        self._database.executescript(f"pragma journal_mode = off; pragma synchronous = off; {TABLES}")
        self._lock = threading.Lock()

    def close(self) -> None:
        self._database.close()

    def add(self, entries: Iterable[Copied], uris: list[str]) -> None:
        """uris: those of the stores, by number."""
        rows = ((uris[entry.store], entry.path, entry.size, entry.sha256, entry.stamp) for entry in entries)
        with self._lock:
            self._database.executemany("insert or replace into files values (?, ?, ?, ?, ?)", rows)

    def hold(self, contents: Iterable[tuple[str, int]]) -> None:
        with self._lock:
            self._database.executemany("insert or replace into held values (?, ?)", contents)

    def holds(self, sha256: str, size: int) -> bool:
        return bool(self._rows("select 1 from held where sha256 = ? and size = ?", sha256, size))

    def sha256(self, uri: str, path: str, size: int, stamp: str) -> str | None:
        """The content of a file that was copied before, if it has not changed since."""
        rows = self._rows("select sha256 from files where uri = ? and path = ? and size = ? and stamp = ?", uri, path, size, stamp)
        return str(rows[0][0]) if rows else None

    def has(self, uri: str) -> bool:
        """Whether it has files of a store."""
        return bool(self._rows("select 1 from files where uri = ? limit 1", uri))

    def size(self, uri: str, path: str) -> int | None:
        rows = self._rows("select size from files where uri = ? and path = ?", uri, path)
        return int(rows[0][0]) if rows else None

    def contents(self, most: int | None) -> Iterator[tuple[str, str]]:
        """Each content once, with a path that has it; at random, if there are more than `most`."""
        chosen = "" if most is None else f"order by random() limit {most:d}"
        yield from self._database.execute(f"select sha256, min(path) from files group by sha256 {chosen}")  # noqa: S608

    def below(self, uri: str, folder: str) -> list[tuple[str, int, str]]:
        """Path in the folder, size and SHA-256 of its files; "" is the whole store."""
        start = f"{folder}/" if folder else ""
        query = "select path, size, sha256 from files where uri = ? and substr(path, 1, ?) = ?"
        if start:
            query += " and path >= ? and path < ?"
        values = (uri, len(start), start, *((start, f"{folder}0") if start else ()))  # 0 follows /
        return [(path[len(start) :], size, sha256) for path, size, sha256 in self._rows(query, *values)]

    def _rows(self, query: str, *values: object) -> list[Any]:
        with self._lock:
            return self._database.execute(query, values).fetchall()


@contextlib.contextmanager
def opened(folder: Path, name: str) -> Iterator[Index]:
    try:
        with contextlib.closing(Index(folder / name)) as index:
            yield index
    except sqlite3.Error as error:
        raise Failed(f"a temporary file in {folder.parent}: {error}", remedy="free space there, or set TMPDIR to another folder") from error
