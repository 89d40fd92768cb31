"""A stub of a service for its callers' tests: validates requests by the contract, returns recorded predictions, and simulates faults.

It needs openapi.json and Python's standard library, but no model, MLflow or torch. See docs/how-to/test-against-a-stub.md.
"""

import base64
import csv
import datetime
import io
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build.errors import NotFound, Refused, UsageError
from mlops_build.model import openapi
from mlops_build.model.openapi import Described
from mlops_build.packaging import contents
from mlops_build.serving.http.answer import Answer, mlflow_error, no_route
from mlops_build.serving.input.text import FORMS, check_parameters, decoded, media_type
from mlops_build.serving.refusal import BAD_REQUEST, INVALID, Refusal, inflated
from mlops_build.stub import json_schema
from mlops_build.stub.json_schema import Problem

JSON, CSV = "application/json", "text/csv"
# The statuses that a request can ask for, with the service's error_code for each.
FAULTS = {
    400: BAD_REQUEST,
    413: BAD_REQUEST,
    429: "REQUEST_LIMIT_EXCEEDED",
    500: "INTERNAL_ERROR",
    503: "TEMPORARILY_UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}
RETRY = {429, 503, 504}
BODY_LIMIT = 16 * 2**20
LONGEST_DELAY_MS = 120_000
DIGITS = re.compile("[0-9]+")


class NoContract(Refused):
    """A file or folder without a contract that the stub can use."""


@dataclass(frozen=True)
class Faults:
    """Faults for all callers. every: each Nth request (1: all) gets `status`; None: no request. delay_ms: delay of each response."""

    every: int | None = None
    status: int = 503
    delay_ms: int = 0


def document_of(what: Path) -> dict[str, Any]:
    """The contract in an openapi.json, in a folder that contains one (a service, a model version), or in a build context.

    Raises NotFound, NoContract, and UsageError if reading the MLmodel of an older model needs a package that is not installed.
    """
    if what.is_file():
        return _read(what)
    if not what.is_dir():
        raise NotFound(f"{what} does not exist", remedy="name an openapi.json, the folder of a service, or a build context")
    if (what / contents.FILE).is_file():
        context = contents.read(what)
        return openapi.openapi(context.service, [_described(model.name, what / contents.folder_of(model.name)) for model in context.models])
    if (what / openapi.FILE).is_file():
        document = _read(what / openapi.FILE)
        if openapi.EXTENSION in document or not (what / "MLmodel").is_file():
            return document
    if (what / "MLmodel").is_file():
        name = what.resolve().name
        return openapi.openapi(name, [_described(name, what)])
    raise NotFound(
        f"{what} contains no {openapi.FILE}",
        remedy="`mlops-build train` writes it to the root of a service; a running service returns it at /openapi.json",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise NoContract(f"{path} is not JSON: {str(error)[:200]}", remedy="restore it from Git") from None
    if not isinstance(document, dict):
        raise NoContract(f"{path} is not an OpenAPI document", remedy="name a service's openapi.json")
    return document


def _described(name: str, folder: Path) -> Described:
    if (folder / openapi.FILE).is_file():
        document = _read(folder / openapi.FILE)
        if openapi.EXTENSION in document:
            return _models(document)[0]
    try:
        return openapi.describe(name, None, folder)
    except ModuleNotFoundError:
        raise UsageError(
            f"{folder} has no {openapi.FILE}, and reading its MLmodel needs PyYAML",
            remedy="pip install pyyaml, or use /openapi.json of the running service",
        ) from None


def _models(document: Mapping[str, Any]) -> list[Described]:
    try:
        models = openapi.parse(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise NoContract(f"the document is not a contract of mlops-build: {error!r:.200}", remedy="name a service's openapi.json") from None
    if not models:
        raise NoContract("the document describes no model", remedy="name a service's openapi.json")
    return models


class Stub:
    """Answers requests by a contract. Thread-safe."""

    def __init__(self, document: Mapping[str, Any], faults: Faults | None = None) -> None:
        """Raises NoContract and UnknownSchema."""
        self._document = document
        self._faults = faults or Faults()
        self._count, self._count_lock = 0, threading.Lock()
        self._endpoints: dict[str, Described] = {}
        self._schemas: dict[str, Any] = {}
        self._static = {"/openapi.json": Answer(200, openapi.as_text(document).encode())}
        self.models = tuple(_models(document))
        for position, model in enumerate(self.models):
            self._schemas[model.name] = json_schema.resolve(f"#/components/schemas/{model.name}.request", document)
            json_schema.check_schema(self._schemas[model.name], document)
            version = Answer(200, (model.mlflow or "unknown").encode(), b"text/plain")
            for at in (f"/models/{model.name}", *([""] if position == 0 else [])):
                self._endpoints[f"{at}/invocations"] = model
                self._static |= {f"{at}/ping": Answer(200, b"\n"), f"{at}/health": Answer(200, b"\n"), f"{at}/version": version}

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """The response to a request. headers: with names in lower case."""
        model = self._endpoints.get(path)
        if model is None or method != "POST":
            return self._other(method, path)
        try:
            status = self._fault(headers)
            if status is not None:
                return mlflow_error(status, FAULTS[status], "this fault was requested from the stub", _retry(status))
            return self._invocation(model, headers, body)
        except Refusal as error:
            return mlflow_error(error.status, error.code, error.message)

    def _other(self, method: str, path: str) -> Answer:
        if method == "GET" and path in self._static:
            return self._static[path]
        return no_route(path, self._static, self._endpoints)

    def _fault(self, headers: Mapping[str, str]) -> int | None:
        """Wait for the requested delay. Returns the status of a requested fault, None without one."""
        delay = _number(headers, "x-stub-delay-ms", self._faults.delay_ms, range(LONGEST_DELAY_MS + 1))
        requested = _number(headers, "x-stub-status", 0, FAULTS) if "x-stub-status" in headers else None
        if delay:
            time.sleep(delay / 1000)
        with self._count_lock:
            self._count += 1
            due = self._faults.every is not None and self._count % self._faults.every == 0
        return requested if requested is not None else self._faults.status if due else None

    def _invocation(self, model: Described, headers: Mapping[str, str], body: bytes) -> Answer:
        kind = media_type(headers.get("content-type"))
        check_parameters(headers.get("content-type"))
        if kind not in (JSON, CSV):
            raise Refusal(f"Content-Type is {kind[:60] or 'none'}; this stub reads {JSON} and {CSV}", status=415)
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            body = inflated(body, encoding.encode("latin-1", "replace"), BODY_LIMIT)
        schema = self._schemas[model.name]
        text = decoded(body, "the body").removeprefix("\ufeff")
        content = _records(text, _row(schema)) if kind == CSV else _parsed(text)
        form = _form(content)
        if content.get("params", ...) is None:  # null: the defaults
            del content["params"]
        problem = json_schema.problem(content, schema, self._document) or self._table_problem(content, schema)
        if problem is not None:
            raise Refusal(str(problem), code=BAD_REQUEST if problem.kind == "value" else INVALID)
        if model.recorded is None:
            return mlflow_error(501, "NOT_IMPLEMENTED", f"{model.name} has no recorded example to answer with")
        predictions = model.recorded["predictions"]
        if isinstance(predictions, list) and predictions:
            predictions = [predictions[row % len(predictions)] for row in range(_count(content[form]))]
        return Answer(200, json.dumps({"predictions": predictions}).encode())

    def _table_problem(self, content: Mapping[str, Any], schema: Mapping[str, Any]) -> Problem | None:
        """The first problem of a table that the schema cannot express: types in `dataframe_split`, lengths of rows, dates, base64."""
        row_schema = _row(schema)
        if row_schema is None:
            return None
        try:
            rows = _rows(content)
        except Refusal as error:
            return Problem(_form(content), error.message, "size")
        columns = row_schema.get("properties", {}).items()
        dates = [name for name, column in columns if column.get("format") == "date-time"]
        encoded = [name for name, column in columns if column.get("contentEncoding") == "base64"]
        formats: dict[str, str] = {}  # the format of the first date in each column
        for position, cells in enumerate(rows):
            where = f"{_form(content)}, row {position}"
            if "dataframe_split" in content and (problem := json_schema.problem(cells, row_schema, self._document, where)):
                return problem
            for name in encoded:
                if isinstance(text := cells.get(name), str) and not _is_base64(text):
                    return Problem(f"{where}.{name}", f"{text[:40]!r} is not valid base64")
            for name in dates:
                text = cells.get(name)
                if not isinstance(text, str):
                    continue
                if not _is_date(text):
                    why = f"{text[:40]!r} is not a valid date; write it without a time zone, such as 2026-11-28T18:05:00"
                    return Problem(f"{where}.{name}", why)
                if formats.setdefault(name, DIGITS.sub("0", text)) != DIGITS.sub("0", text):  # pandas uses the format of the first date
                    return Problem(f"{where}.{name}", f"{text[:40]!r} has another format than the first date of its column")
        return None


def _retry(status: int) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"retry-after", b"1"),) if status in RETRY else ()


def _row(schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of one row by column names; None if the model takes no named columns."""
    for form in schema.get("anyOf", []):
        records = form.get("properties", {}).get("dataframe_records", {})
        if "items" in records:
            return records["items"]  # type: ignore[no-any-return]
    return None


def _rows(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each row by column names. Raises Refusal if rows have different lengths."""
    form = _form(content)
    table = content[form]
    if form == "inputs":
        names, columns = list(table), list(table.values())
        if len({len(column) for column in columns}) > 1:
            raise Refusal("the columns have different lengths")
        return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if form != "dataframe_split":
        return list(table)
    names = table["columns"]
    if len(set(names)) < len(names):
        raise Refusal("a column occurs twice")
    for position, cells in enumerate(table["data"]):
        if len(cells) != len(names):
            raise Refusal(f"row {position} has {len(cells)} values for {len(names)} columns")
    return [dict(zip(names, cells, strict=True)) for cells in table["data"]]


def _is_date(text: str) -> bool:
    """Whether MLflow accepts the date: without a time zone, and in the years that pandas can represent in nanoseconds."""
    try:
        date = datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return date.tzinfo is None and 1678 <= date.year <= 2261


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text.replace("\n", ""), validate=True)
    except ValueError:
        return False
    return True


def _count(rows: Any) -> int:
    """The number of rows in a form."""
    if isinstance(rows, dict) and "data" in rows and isinstance(rows["data"], list):
        return len(rows["data"])
    if isinstance(rows, dict):
        rows = next(iter(rows.values()), [])
    return len(rows) if isinstance(rows, list) else 1


def _parsed(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(content, dict):
        raise Refusal(f"the body must be a JSON object with one of {', '.join(FORMS)}")
    return content


def _whole(text: str) -> int:
    if len(text) > 300:
        raise ValueError(f"{text[:20]}… is out of range for every type")
    return int(text)


def _form(content: Mapping[str, Any]) -> str:
    forms = [form for form in FORMS if form in content]
    if len(forms) != 1:
        raise Refusal(f"the body must contain exactly one of {', '.join(FORMS)}; it contains {', '.join(forms) or 'none'}")
    return forms[0]


def _records(text: str, row: Mapping[str, Any] | None) -> dict[str, Any]:
    """CSV with a header line, as records. Cells are converted to the type of their column if possible."""
    if row is None:
        raise Refusal("this model does not take columns, so it cannot take CSV")
    properties = row.get("properties", {})
    if any(column.get("format") == "date-time" for column in properties.values()):
        raise Refusal("this model takes dates, which CSV cannot contain: send JSON")
    try:
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise Refusal(f"the body is not CSV: {error}") from None
    if not lines:
        raise Refusal("the body is empty: CSV needs a header line")
    names, *rows = lines
    records = []
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(names):
            raise Refusal(f"line {number}: {len(cells)} values for {len(names)} columns")
        records.append({name: _cell(text, properties.get(name, {})) for name, text in zip(names, cells, strict=True)})
    if not rows and (missing := [name for name in row.get("required", []) if name not in names]):
        raise Refusal(f"{missing[0]} is missing", code=INVALID)
    return {"dataframe_records": records}


def _cell(text: str, schema: Mapping[str, Any]) -> Any:
    kinds = schema.get("type", "string")
    if "string" in kinds:
        return text
    if not text:
        return None
    try:
        return json.loads(text.lower() if "boolean" in kinds else text)
    except ValueError:
        return text


def _number(headers: Mapping[str, str], name: str, default: int, allowed: Any) -> int:
    text = headers.get(name)
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 9 or int(text) not in allowed:
        values = ", ".join(map(str, allowed)) if isinstance(allowed, dict) else f"0 to {max(allowed)}"
        raise Refusal(f"{name} is {text[:40]!r}; allowed values: {values}")
    return int(text)
