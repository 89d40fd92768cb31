"""The deliberate differences from MLflow's server: for each row of the table in docs/reference/http-contract.md, when it applies.

`unexplained` compares two answers; any difference that no row allows fails a test.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serving.forms import CSV, JSON, Request

PAGE = Path(__file__).parents[2] / "docs/reference/http-contract.md"
# Answers may differ in the last digits, since rows of several requests are predicted together (docs/reference/http-contract.md).
RELATIVE = 1e-3
MANY_BYTES = 16 << 20


@dataclass(frozen=True)
class Verdict:
    """An answer. code: `error_code`, if it has one. content: the parsed body of a 200; otherwise its text."""

    status: int
    code: str | None
    content: Any


@dataclass(frozen=True)
class Answers:
    """What both servers answered to one request. model: a key of KINDS_OF_MODELS, or empty."""

    model: str
    request: Request
    theirs: Verdict
    ours: Verdict

    def __str__(self) -> str:
        sent = f"{self.request.name}: {self.request.body[:300]!r}"
        return f"{sent}\n  MLflow: {str(self.theirs)[:600]}\n  ours:   {str(self.ours)[:600]}"

    @property
    def statuses(self) -> tuple[int, int]:
        return self.theirs.status, self.ours.status

    @property
    def message(self) -> str:
        return str(self.ours.content)

    @property
    def media_type(self) -> str:
        return (self.request.kind or "").partition(";")[0].strip().lower()

    @property
    def document(self) -> dict[str, Any]:
        """The body, if it is a JSON object."""
        try:
            document = json.loads(self.request.body)
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}


def verdict(status: int, body: bytes) -> Verdict:
    """A verdict from an HTTP response."""
    try:
        document = json.loads(body)
    except ValueError:
        return Verdict(status, None, body.decode("utf-8", "replace"))
    if status == 200:
        return Verdict(status, None, document)
    return Verdict(status, document.get("error_code") if isinstance(document, dict) else None, body.decode())


MISSING = "NaN, infinity in a response"
NO_DATE = "a missing date (NaT) in a response"


def reasons(answers: Answers) -> set[str] | None:
    """The rows of the table that explain how the answers differ, empty if they do not. None if they differ in any other way."""
    theirs, ours = answers.theirs, answers.ours
    used: set[str] = set()
    if theirs.status == ours.status:
        if theirs.code and '"stack_trace"' in str(theirs.content):
            used.add("tracebacks in errors")
            if answers.model == "outputs" and theirs.code == "BAD_REQUEST" and "the model failed on this input" in answers.message:
                used.add("an exception in the model")
        same_code = theirs.code is None or theirs.code == ours.code
        changes = set(_changes(theirs.content, ours.content)) if theirs.status == 200 else set()
        if same_code and changes <= {MISSING, NO_DATE}:
            return used | changes
    rows = {row for row, applies in DIFFERENCES.items() if applies(answers)}
    return used | rows if rows else None


def _changes(theirs: Any, ours: Any) -> Iterator[str]:
    """How each value differs: MISSING, NO_DATE, or the two values."""
    if isinstance(theirs, dict) and isinstance(ours, dict) and theirs.keys() == ours.keys():
        for key in theirs:
            yield from _changes(theirs[key], ours[key])
    elif isinstance(theirs, list) and isinstance(ours, list) and len(theirs) == len(ours):
        for left, right in zip(theirs, ours, strict=True):
            yield from _changes(left, right)
    elif isinstance(theirs, float) and not math.isfinite(theirs) and ours is None:
        yield MISSING
    elif theirs == "NaT" and ours is None:
        yield NO_DATE
    elif isinstance(theirs, float) and isinstance(ours, float):
        if not math.isclose(theirs, ours, rel_tol=RELATIVE):
            yield f"{theirs} and {ours}"
    elif theirs != ours or type(theirs) is not type(ours):
        yield f"{theirs} and {ours}"


# -- conditions of the rows --


def _nested(answers: Answers) -> bool:
    body = answers.request.body
    return answers.statuses == (500, 400) and max(body.count(b"["), body.count(b"{")) >= 900


def _out_of_range(answers: Answers) -> bool:
    """A number that our message says does not fit, and that does not fit."""
    match = re.search(r"(\S+) does not fit into \w+ \((-?\d+) to (\d+)\)", answers.message)
    if not match or answers.ours.status != 400:
        return False
    text = match[1].strip("'").rstrip("…")
    number = int(text) if re.fullmatch(r"-?\d+", text) else float(text)
    return not int(match[2]) <= number <= int(match[3])


def _lost_date(answers: Answers) -> bool:
    match = re.search(r"expected a date and time .*, got '(\d{1,4})", answers.message)
    return answers.statuses == (200, 400) and bool(match) and not 1678 <= int(match[1]) <= 2261  # type: ignore[index]


def _ragged(answers: Answers) -> bool:
    if answers.ours.status != 400 or not re.search(r"one for each column|which other rows have", answers.message):
        return False
    if answers.media_type == CSV:
        return len({line.count(b",") for line in answers.request.body.splitlines() if line}) > 1
    document = answers.document
    split = document.get("dataframe_split")
    rows = split.get("data") if isinstance(split, dict) else next((rows for rows in document.values() if isinstance(rows, list)), [])
    return len({frozenset(row) if isinstance(row, dict) else len(row) for row in rows if isinstance(row, dict | list)}) > 1


def _unknown_columns(answers: Answers) -> bool:
    return answers.statuses == (400, 200) and "z" in answers.document.get("inputs", {})


def _other_code(answers: Answers) -> bool:
    """Both refuse, for reasons that both exist."""
    if answers.statuses != (400, 400) or not {answers.theirs.code, answers.ours.code} <= {"BAD_REQUEST", "INVALID_PARAMETER_VALUE"}:
        return False
    split = answers.document.get("dataframe_split")
    columns = split.get("columns") if isinstance(split, dict) else None
    odd_names = isinstance(columns, list) and ({type(name) for name in columns} != {str} or len(set(columns)) < len(columns))
    return odd_names or _ragged(answers) or _out_of_range(answers) or "which CSV cannot contain" in answers.message


def _encoded(answers: Answers) -> bool:
    encoding = (answers.request.encoding or "").lower()
    if encoding in ("gzip", "deflate"):
        return answers.statuses == (400, 200) or (answers.statuses == (200, 400) and f"not {encoding}" in answers.message)
    return bool(encoding) and answers.ours.status == 415 and "Content-Encoding" in answers.message


def _other_kind(answers: Answers) -> bool:
    kind = answers.media_type
    return answers.statuses == (415, 200) and (kind.startswith("image/") or kind in ("text/plain", "multipart/form-data"))


def _same_kind(answers: Answers) -> bool:
    """`Application/JSON`, and quotes."""
    header = answers.request.kind or ""
    return answers.statuses in ((415, 200), (415, 400)) and answers.media_type == JSON and (header.lower() != header or '"' in header)


DIFFERENCES: dict[str, Callable[[Answers], bool]] = {
    "no `Content-Type`": lambda answers: answers.request.kind is None and answers.statuses == (500, 415),
    "a body nested deeper than about 1,000 levels": _nested,
    MISSING: lambda _: False,  # see `_changes`
    NO_DATE: lambda _: False,
    "a whole number out of range for its column or tensor": lambda answers: answers.theirs.status == 200 and _out_of_range(answers),
    "a date before 1678 or after 2261, in `inputs` and `instances`": _lost_date,
    "rows of different lengths, in JSON and CSV": lambda answers: answers.theirs.status == 200 and _ragged(answers),
    "a table with very many unknown columns": _unknown_columns,
    "CSV without rows, for a model with a column of dates": lambda answers: (
        answers.statuses == (200, 400) and "contains dates, which CSV cannot contain" in answers.message
    ),
    "a body with several mistakes": _other_code,
    "a model returns a torch tensor": lambda answers: answers.statuses == (500, 200) and b'"torch' in answers.request.body,
    "a model returns a table with levels of columns": lambda answers: answers.statuses == (500, 200) and b"levels" in answers.request.body,
    "a very large body": lambda answers: answers.statuses == (200, 413) and len(answers.request.body) > MANY_BYTES,
    "`Content-Encoding`": _encoded,
    "`Application/JSON`, `charset=\"utf-8\"`": _same_kind,
    "`image/*`, `text/plain`, `multipart/form-data`": _other_kind,
    "tracebacks in errors": lambda _: False,  # see `reasons`
    "`/docs`, `/openapi.json`": lambda answers: (
        answers.request.path in ("/docs", "/openapi.json") and answers.statuses == (200, 200)
    ),
    "Parquet": lambda answers: answers.statuses == (200, 415) and "add pyarrow" in answers.message,
    "an exception in the model": lambda answers: (
        answers.model == "outputs" and answers.statuses == (500, 400) and bool(answers.theirs.code)
    ),
}  # fmt: skip


def documented() -> list[str]:
    """The first cells of the table in the docs."""
    table = PAGE.read_text().partition("## Differences from MLflow's server")[2]
    return [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")][2:]
