"""adopt.csv: one row for each file, with what was found and what people decided.

People edit it with any program, and it contains names that anybody chose. Every cell is one line of printable characters that no
spreadsheet takes for a formula; other characters are written as Python writes them, such as \\n or \\xe9.
"""

import csv
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import date
from pathlib import Path

from mlops_build import reason
from mlops_build.adopt.kind import KINDS
from mlops_build.errors import Failed, NotFound, Refused
from mlops_build.model.identity import NAME
from mlops_build.spreadsheet import cell

MOST_BYTES, MOST_FAULTS, LONGEST = 1 << 29, 20, 8000
ESCAPE = re.compile(r"\\(\\|x[0-9a-f]{2}|u[0-9a-f]{4}|U000[0-9a-f]{5}|U0010[0-9a-f]{4})")
ADOPT, SKIP = "adopt", "skip"


class BadTable(Refused):
    """The CSV file is not valid; the message has the lines and columns."""


@dataclass(frozen=True, slots=True)
class Row:
    """source, path: the place, and the file in it. modified: UTC. sha256: empty if the file could not be read.

    action: adopt, skip or empty. until: the last day of an exception, as YYYY-MM-DD.
    """

    source: str
    path: str
    size: int
    modified: str
    sha256: str = ""
    kind: str = ""
    details: str = ""
    model: str = ""
    service: str = ""
    suggested_by: str = ""
    action: str = ""
    decided_by: str = ""
    reason: str = ""
    until: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.source, self.path

    @property
    def shown(self) -> str:
        return escaped(f"{self.source}/{self.path}")


COLUMNS = [field.name for field in fields(Row)]


def _matches(pattern: str, wanted: str) -> Callable[[str], str | None]:
    return lambda value: None if re.fullmatch(pattern, value) else wanted


def _date(value: str) -> str | None:
    try:
        return (
            None if not value or (re.fullmatch(r"\d{4}-\d{2}-\d{2}", value) and date.fromisoformat(value)) else "a date such as 2027-01-31"
        )
    except ValueError:
        return "a date such as 2027-01-31"


def _reason(value: str) -> str | None:
    try:
        return None if not value or reason.checked(value) else ""
    except ValueError:
        return f"one line of at most {reason.LENGTH} printable characters"


NAME_OR_NOTHING = _matches(rf"(?:{NAME.pattern})?", "a name of lower-case letters, digits and -")
GRAMMAR: dict[str, Callable[[str], str | None]] = {
    "source": _matches(r"[^\s\0][^\0]{0,1999}", "a path, s3://… or swift://…"),
    "path": _matches(r"[^\0]+", "the path of a file"),
    "size": _matches(r"[0-9]{1,18}", "a number of bytes"),
    "modified": _matches(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}\.[0-9]{3}Z", "a time as `adopt list` writes it"),
    "sha256": _matches(r"(?:[0-9a-f]{64})?", "64 hexadecimal digits"),
    "kind": _matches("|".join(map(re.escape, KINDS)), f"one of {', '.join(KINDS)}"),
    "model": NAME_OR_NOTHING,
    "service": NAME_OR_NOTHING,
    "action": _matches(rf"(?:{ADOPT}|{SKIP})?", f"{ADOPT}, {SKIP} or empty"),
    "decided_by": lambda value: None if value.isprintable() and len(value) <= 200 else "a name of at most 200 characters",
    "reason": _reason,
    "until": _date,
}


def read(path: Path, *, may_be_missing: bool = False) -> dict[tuple[str, str], Row]:
    """The rows by source and path. Raises NotFound, and BadTable with up to MOST_FAULTS faults."""
    rows: dict[tuple[str, str], Row] = {}
    faults: list[str] = []
    for line, cells in _lines(path, may_be_missing):
        values = dict(zip(COLUMNS, map(_parsed, cells), strict=False))
        wrong = list(_faults(values)) if len(cells) == len(COLUMNS) else [f"{len(cells)} columns instead of {len(COLUMNS)}"]
        if not wrong:
            row = Row(**{**values, "size": int(values["size"])})  # type: ignore[arg-type]
            wrong = ["column path: the file has two rows"] if row.key in rows else []
            rows[row.key] = row
        faults += [f"  line {line}, {fault}" for fault in wrong]
        if len(faults) >= MOST_FAULTS:
            break
    if faults:
        raise BadTable(f"{path}:\n" + "\n".join(faults[:MOST_FAULTS]), remedy="correct these cells, and run this again")
    return rows


def _lines(path: Path, may_be_missing: bool) -> Iterator[tuple[int, list[str]]]:
    """The lines below the header, with their numbers."""
    remedy = f"save it as CSV with commas, in UTF-8, with the columns that `mlops-build adopt list` writes: {','.join(COLUMNS)}"
    try:
        if path.exists() and not path.is_file():
            raise NotFound(f"{path} is not a plain file", remedy="mlops-build adopt list SOURCE --csv FILE")
        with path.open(encoding="utf-8-sig", newline="") as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise BadTable(f"{path} has more than {MOST_BYTES} bytes", remedy="list the source in parts: --match")
            reader = csv.reader(file, strict=True)
            try:
                if next(reader, None) != COLUMNS:
                    raise BadTable(f"{path}: line 1 does not have the columns of adopt.csv", remedy=remedy)
                yield from ((reader.line_num, cells) for cells in reader if cells)
            except csv.Error as error:
                raise BadTable(f"{path}: line {reader.line_num}: {error}", remedy=remedy) from None
    except OSError as error:
        if may_be_missing and error.errno == errno.ENOENT:
            return
        raise NotFound(f"{path} cannot be read: {error.strerror}", remedy="mlops-build adopt list SOURCE --csv FILE") from None
    except UnicodeDecodeError:
        raise BadTable(f"{path} is not UTF-8 text", remedy=remedy) from None


def _faults(values: dict[str, str]) -> Iterator[str]:
    for column, value in values.items():
        wanted = GRAMMAR[column](value) if column in GRAMMAR else None
        if len(value) > LONGEST:
            wanted = f"at most {LONGEST} characters"
        if wanted is not None:
            yield f"column {column}: {value[:100]!a} is not {wanted}"
    for column in ("model", "decided_by") if values["action"] == ADOPT else ():
        if not values[column]:
            yield f"column {column}: it is empty, but the action is {ADOPT}"


def write(path: Path, rows: Iterable[Row]) -> None:
    """Replace the file at once. Raises Failed."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        try:
            with part.open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow(COLUMNS)
                writer.writerows([cell(escaped(str(value))) for value in asdict(row).values()] for row in rows)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        raise Failed(f"{path} cannot be written: {error.strerror}", remedy="give a file in an existing folder: --csv FILE") from None


def escaped(text: str) -> str:
    """The text as printable characters; a backslash is doubled."""
    return "".join(character if character.isprintable() and character != "\\" else _escape(character) for character in text)


def _escape(character: str) -> str:
    return "\\\\" if character == "\\" else f"\\x{ord(character):02x}" if ord(character) < 256 else ascii(character)[1:-1]


def _parsed(written: str) -> str:
    text = written.removeprefix("'")
    return ESCAPE.sub(lambda match: "\\" if match[1] == "\\" else chr(int(match[1][1:], 16)), text)
