"""List the files of a place into adopt.csv. Nothing else is written, and a file that was listed before is not read again."""

import fnmatch
import hashlib
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from mlops_build.adapters.registry.records import LATEST_MS
from mlops_build.adapters.storage.place import NoPlace, Place, StoredObject
from mlops_build.adopt import kind, table
from mlops_build.adopt.table import Row
from mlops_build.errors import Failed
from mlops_build.quantity import show_bytes

SAVE_SECONDS, MOST_OF_TIME = 5.0, 20  # between two writes of the CSV file: at least this, and as many times the last write took
FAILURES = 3  # files in a row that the store does not send: it is the store then

Rows = dict[tuple[str, str], Row]


def run(place: Place, csv: Path, pattern: str, say: Callable[[str], None]) -> Rows:
    """The rows of the CSV file after listing `place`, with those of other places. Saved now and then, so that it can be stopped.

    pattern: of paths, as in a shell. What people wrote stays; a decision about a file whose content changed is cleared.
    Raises NoPlace if the place does not answer, and BadTable.
    """
    rows = table.read(csv, may_be_missing=True)
    seen: set[tuple[str, str]] = set()
    failures, size, saved, pause = 0, 0, time.monotonic(), SAVE_SECONDS
    for entry in place.objects():
        if not fnmatch.fnmatchcase(entry.path, pattern):
            continue
        key = (place.uri, entry.path)
        before = rows.get(key)
        seen.add(key)
        size += entry.size
        known = before is not None and before.kind not in (kind.MISSING, kind.UNREADABLE)
        if before is None or not known or (before.size, before.modified) != (entry.size, when(entry)):
            rows[key], failure = _row(place, entry, before)
            failures = failures + 1 if isinstance(failure, NoPlace) else 0
            if failure and failures == FAILURES:
                table.write(csv, rows.values())
                raise failure
        if time.monotonic() - saved > pause:
            began = time.monotonic()
            table.write(csv, rows.values())
            saved = time.monotonic()
            pause = max(SAVE_SECONDS, MOST_OF_TIME * (saved - began))
            say(f"{len(seen):,} files, {show_bytes(size)}: {table.escaped(entry.path)}")
    if place.left_out:
        say(f"symbolic links and special files are left out, such as {table.escaped(place.left_out[0])}: list what they name")
    if place.left_out:
        say(f"symbolic links and special files are left out, such as {table.escaped(place.left_out[0])}: list what they name")
    if not seen:
        hint = ": a prefix is a folder, not the beginning of a name" if "://" in place.uri else ""
        say(f"{place.uri} has no file that matches {pattern!r}{hint}")
    for key, row in rows.items():
        if key[0] == place.uri and key not in seen and place.lists_all and fnmatch.fnmatchcase(row.path, pattern):
            rows[key] = replace(row, kind=kind.MISSING, details="it is no longer in the source")
    table.write(csv, rows.values())
    return rows


def when(entry: StoredObject) -> str:
    """Its time in UTC, with milliseconds."""
    at = min(max(entry.modified_ms, 0), LATEST_MS)
    return f"{datetime.fromtimestamp(at // 1000, UTC):%Y-%m-%dT%H:%M:%S}.{at % 1000:03d}Z"


def _row(place: Place, entry: StoredObject, before: Row | None) -> tuple[Row, Failed | NoPlace | None]:
    row = Row(place.uri, entry.path, entry.size, when(entry))
    failure: Failed | NoPlace | None = None
    try:
        with place.opened(entry.path) as file:
            with file.open("rb") as content:
                sha256 = hashlib.file_digest(content, "sha256").hexdigest()
            if file.stat().st_size != entry.size:
                raise Failed(f"it changed while it was read: {file.stat().st_size} bytes instead of {entry.size}")
            examined = kind.examine(file, entry.path)
        row = replace(row, sha256=sha256, kind=examined.kind, details=f"{'unsafe: ' * examined.unsafe}{examined.details}"[:1000])
    except (NoPlace, Failed) as error:
        row, failure = replace(row, kind=kind.UNREADABLE, details=error.message[:1000]), error
    except OSError as error:
        row = replace(row, kind=kind.UNREADABLE, details=str(error)[:1000])
    if before and (not row.sha256 or before.sha256 in ("", row.sha256)):
        kept = ("model", "service", "suggested_by", "action", "decided_by", "reason", "until")
        row = replace(row, sha256=row.sha256 or before.sha256, **{name: getattr(before, name) for name in kept})
    elif before:
        row = replace(row, model=before.model, service=before.service, suggested_by="the file changed: decide again")
    return row, failure
