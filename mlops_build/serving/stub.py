"""A stand-in for a service, for the tests of who calls it: recorded answers, requests judged by the contract, faults on request.

It needs openapi.json and Python's standard library; no model, no MLflow, no torch. docs/how-to/test-against-a-stub.md
"""

import csv
import datetime
import io
import json
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from mlops_build.errors import Failed, NotFound, Refused, UsageError
from mlops_build.model import openapi
from mlops_build.model.openapi import Described
from mlops_build.packaging import contents
from mlops_build.serving import json_schema
from mlops_build.serving.json_schema import Problem
from mlops_build.serving.refusal import BAD_REQUEST, INVALID, Refusal, inflated, too_large

JSON, CSV = "application/json", "text/csv"
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
# What can be asked for, with the error_code that the service has for it.
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
IDLE_SECONDS = 60
DIGITS = re.compile("[0-9]+")


class NoContract(Refused):
    """What was named says no contract that a stub could answer by."""


@dataclass(frozen=True)
class Faults:
    """What goes wrong for everybody. every: each such request (1: all) gets `status`; None: none does. delay_ms: before each answer."""

    every: int | None = None
    status: int = 503
    delay_ms: int = 0


@dataclass(frozen=True)
class Answer:
    """Of one request. headers: beside the content's type and length."""

    status: int
    body: bytes
    kind: str = JSON
    headers: tuple[tuple[str, str], ...] = ()


def document_of(what: Path) -> dict[str, Any]:
    """The contract: an openapi.json, or a folder with one (a service, a model version), or a build context.

    Raises NotFound, NoContract, and UsageError where reading an older model's MLmodel needs a package that is not there.
    """
    if what.is_file():
        return _read(what)
    if not what.is_dir():
        raise NotFound(f"{what} does not exist", remedy="name an openapi.json, or a folder with one: a service's, or a build context")
    if (what / contents.FILE).is_file():
        found = contents.read(what)
        return openapi.openapi(found.service, [_described(one.name, what / one.path) for one in found.models])
    if (what / openapi.FILE).is_file():
        document = _read(what / openapi.FILE)
        if openapi.EXTENSION in document or not (what / "MLmodel").is_file():
            return document
    if (what / "MLmodel").is_file():
        name = what.resolve().name
        return openapi.openapi(name, [_described(name, what)])
    raise NotFound(
        f"{what} holds no {openapi.FILE}",
        remedy="`mlops-build train` writes it at a service's root; a running service answers with it",
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise NoContract(f"{path} is not JSON: {str(error)[:200]}", remedy="restore it from Git") from None
    if not isinstance(found, dict):
        raise NoContract(f"{path} is no OpenAPI document", remedy="name a service's openapi.json")
    return found


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
            remedy="pip install pyyaml, or take /openapi.json of the running service",
        ) from None


def _models(document: Mapping[str, Any]) -> list[Described]:
    try:
        found = openapi.parse(document)
    except (KeyError, TypeError, AttributeError) as error:
        raise NoContract(f"the document is no contract of mlops-build: {error!r:.200}", remedy="name a service's openapi.json") from None
    if not found:
        raise NoContract("the document describes no model", remedy="name a service's openapi.json")
    return found


class Stub:
    """Answers requests by a contract. Guards the count of requests."""

    def __init__(self, document: Mapping[str, Any], faults: Faults | None = None) -> None:
        """Raises NoContract and UnknownSchema."""
        self._document = document
        self._faults = faults or Faults()
        self._count, self._counting = 0, threading.Lock()
        self._doors: dict[str, Described] = {}
        self._schemas: dict[str, Any] = {}
        self._plain = {"/openapi.json": Answer(200, openapi.as_text(document).encode())}
        self.models = tuple(_models(document))
        for place, model in enumerate(self.models):
            self._schemas[model.name] = json_schema.resolve(f"#/components/schemas/{model.name}.request", document)
            json_schema.check_schema(self._schemas[model.name], document)
            version = Answer(200, (model.mlflow or "unknown").encode(), "text/plain")
            for at in (f"/models/{model.name}", *([""] if place == 0 else [])):
                self._doors[f"{at}/invocations"] = model
                self._plain |= {f"{at}/ping": Answer(200, b"\n"), f"{at}/health": Answer(200, b"\n"), f"{at}/version": version}

    def answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """headers: with names in small letters."""
        model = self._doors.get(path)
        if model is None or method != "POST":
            return self._other(method, path)
        try:
            status = self._fault(headers)
            if status is not None:
                return _error(status, FAULTS[status], "the stub was asked for this")
            return self._invocation(model, headers, body)
        except Refusal as error:
            return _error(error.status, error.code, error.message)

    def _other(self, method: str, path: str) -> Answer:
        if method == "GET" and path in self._plain:
            return self._plain[path]
        if path in self._plain or path in self._doors:
            allowed = "POST" if path in self._doors else "GET"
            return Answer(405, b'{"detail":"Method Not Allowed"}', headers=(("Allow", allowed),))
        bare = path.rstrip("/")
        if bare != path and (bare in self._plain or bare in self._doors):
            return Answer(307, b"", headers=(("Location", bare),))
        return Answer(404, b'{"detail":"Not Found"}')

    def _fault(self, headers: Mapping[str, str]) -> int | None:
        """The status that goes wrong here, after the delay that was asked for; None: nothing goes wrong."""
        delay = _number(headers, "x-stub-delay-ms", self._faults.delay_ms, range(LONGEST_DELAY_MS + 1))
        asked = _number(headers, "x-stub-status", 0, FAULTS) if "x-stub-status" in headers else None
        if delay:
            time.sleep(delay / 1000)
        with self._counting:
            self._count += 1
            due = self._faults.every is not None and self._count % self._faults.every == 0
        return asked if asked is not None else self._faults.status if due else None

    def _invocation(self, model: Described, headers: Mapping[str, str], body: bytes) -> Answer:
        kind = _media_type(headers.get("content-type"))
        encoding = headers.get("content-encoding", "").strip().lower()
        if encoding not in ("", "identity"):
            body = inflated(body, encoding.encode("latin-1", "replace"), BODY_LIMIT)
        schema = self._schemas[model.name]
        asked = _records(_text(body), _row(schema)) if kind == CSV else _parsed(_text(body))
        form = _form(asked)
        if asked.get("params", ...) is None:  # the defaults
            del asked["params"]
        found = json_schema.problem(asked, schema, self._document) or self._table_problem(asked, schema)
        if found is not None:
            raise Refusal(str(found), code=BAD_REQUEST if found.kind == "value" else INVALID)
        if model.recorded is None:
            return _error(501, "NOT_IMPLEMENTED", f"{model.name} has no recorded example to answer with")
        predictions = model.recorded["predictions"]
        if isinstance(predictions, list) and predictions:
            predictions = [predictions[place % len(predictions)] for place in range(_count(asked[form]))]
        return Answer(200, json.dumps({"predictions": predictions}).encode())

    def _table_problem(self, asked: Mapping[str, Any], schema: Mapping[str, Any]) -> Problem | None:
        """What a schema cannot say of columns: cells of `dataframe_split` are of their column's type, no row is short, dates are dates."""
        row = _row(schema)
        if row is None:
            return None
        try:
            rows = _rows(asked)
        except Refusal as error:
            return Problem(_form(asked), error.message, "size")
        dates = [name for name, one in row.get("properties", {}).items() if one.get("format") == "date-time"]
        written: dict[str, str] = {}  # how the first date of each column is
        for place, cells in enumerate(rows):
            where = f"{_form(asked)}, row {place}"
            if "dataframe_split" in asked and (found := json_schema.problem(cells, row, self._document, where)):
                return found
            for name in dates:
                text = cells.get(name)
                if not isinstance(text, str):
                    continue
                if not _is_date(text):
                    return Problem(f"{where}.{name}", f"{text[:40]!r} is no date, such as 2026-11-28T18:05:00, without a zone")
                if written.setdefault(name, DIGITS.sub("0", text)) != DIGITS.sub("0", text):  # pandas reads all as it reads the first
                    return Problem(f"{where}.{name}", f"{text[:40]!r} is written otherwise than the first date of its column")
        return None


def _row(schema: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The schema of one row by names, where the model takes columns."""
    for form in schema.get("anyOf", []):
        records = form.get("properties", {}).get("dataframe_records", {})
        if "items" in records:
            return records["items"]  # type: ignore[no-any-return]
    return None


def _rows(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each row by names. Raises Refusal where one has more or fewer values than another."""
    form = _form(asked)
    content = asked[form]
    if form == "inputs":
        names, columns = list(content), list(content.values())
        if len({len(column) for column in columns}) > 1:
            raise Refusal("its columns are of unlike lengths")
        return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]
    if form != "dataframe_split":
        return list(content)
    names = content["columns"]
    if len(set(names)) < len(names):
        raise Refusal("a column stands there twice")
    for place, cells in enumerate(content["data"]):
        if len(cells) != len(names):
            raise Refusal(f"row {place} has {len(cells)} values for {len(names)} columns")
    return [dict(zip(names, cells, strict=True)) for cells in content["data"]]


def _is_date(text: str) -> bool:
    """What pandas holds to the nanosecond, and MLflow takes: no zone, and these years."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        return False
    return found.tzinfo is None and 1678 <= found.year <= 2261


def _count(rows: Any) -> int:
    """How many rows a form brings."""
    if isinstance(rows, dict) and "data" in rows and isinstance(rows["data"], list):
        return len(rows["data"])
    if isinstance(rows, dict):
        rows = next(iter(rows.values()), [])
    return len(rows) if isinstance(rows, list) else 1


def _media_type(header: str | None) -> str:
    kind, *parameters = (part.strip() for part in (header or "").lower().split(";"))
    values = {name: value.strip('"') for name, _, value in (one.partition("=") for one in parameters)}
    if values.get("charset", "utf-8") != "utf-8" or set(values) - {"charset"}:
        raise Refusal("only UTF-8 is read here, and no other parameter of Content-Type", status=415)
    if kind not in (JSON, CSV):
        raise Refusal(f"Content-Type is {kind[:60] or 'none'}; this stub reads {JSON} and {CSV}", status=415)
    return kind


def _text(body: bytes) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Refusal(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None


def _parsed(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(found, dict):
        raise Refusal(f"the body must be a JSON object with one of {', '.join(FORMS)}")
    return found


def _whole(text: str) -> int:
    if len(text) > 300:
        raise ValueError(f"{text[:20]}… is beyond every type of number")
    return int(text)


def _form(asked: Mapping[str, Any]) -> str:
    found = [form for form in FORMS if form in asked]
    if len(found) != 1:
        raise Refusal(f"the body must hold exactly one of {', '.join(FORMS)}; found {', '.join(found) or 'none'}")
    return found[0]


def _records(text: str, row: Mapping[str, Any] | None) -> dict[str, Any]:
    """CSV with a header line, as records: each cell as its column's schema wants it, if it can be."""
    if row is None:
        raise Refusal("this model takes no columns, so no CSV")
    try:
        lines = list(csv.reader(io.StringIO(text), strict=True))
    except csv.Error as error:
        raise Refusal(f"the body is not CSV: {error}") from None
    if not lines:
        raise Refusal("the body is empty: CSV has a header line")
    names, *rows = lines
    properties = row.get("properties", {})
    records = []
    for place, cells in enumerate(rows):
        if len(cells) != len(names):
            raise Refusal(f"line {place + 2}: {len(cells)} values for {len(names)} columns")
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
        listed = ", ".join(map(str, allowed)) if isinstance(allowed, dict) else f"0 to {max(allowed)}"
        raise Refusal(f"{name} is {text[:40]!r}; it may be {listed}")
    return int(text)


def _error(status: int, code: str, message: str) -> Answer:
    if status == 415:  # a plain sentence, as the service has it
        return Answer(status, message.encode("utf-8", "replace"), "text/plain; charset=utf-8")
    body = json.dumps({"error_code": code, "message": message}).encode()
    return Answer(status, body, headers=(("Retry-After", "1"),) if status in RETRY else ())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = IDLE_SECONDS
    server: "Server"

    def _handle(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            body = self._body(headers)
        except Refusal as error:
            self.close_connection = True  # what is left of the body would be read as the next request
            answer = _error(error.status, error.code, error.message)
        else:
            answer = self.server.stub.answer(self.command, self.path.partition("?")[0], headers, body)
        self._send(answer, headers.get("x-request-id"))

    # The base class looks for one by the method's name.
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _handle  # noqa: N815

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if "transfer-encoding" in headers:
            return b"".join(self._chunks())
        size = headers.get("content-length", "0")
        if not size.isdecimal() or len(size) > 15:
            raise Refusal("Content-Length is no number")
        if int(size) > BODY_LIMIT:
            raise too_large(BODY_LIMIT)
        body = self.rfile.read(int(size))
        if len(body) < int(size):
            raise Refusal("the body ends before its Content-Length")
        return body

    def _chunks(self) -> "Sequence[bytes]":
        found, size = [], 0
        while True:
            head = self.rfile.readline(100).partition(b";")[0].strip()
            try:
                length = int(head, 16)
            except ValueError:
                raise Refusal("the body's chunks cannot be read") from None
            size += length
            if length < 0 or size > BODY_LIMIT:
                raise too_large(BODY_LIMIT)
            found.append(self.rfile.read(length))
            if not length:
                break
            if self.rfile.readline(10).strip():
                raise Refusal("a chunk is longer than it says")
        for _ in range(100):  # trailers, which nobody wants
            if not self.rfile.readline(1000).strip():
                return found
        raise Refusal("there are too many trailers")

    def _send(self, answer: Answer, request_id: str | None) -> None:
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        for name, value in answer.headers:
            self.send_header(name, value)
        if request_id and request_id.isascii() and request_id.isprintable():
            self.send_header("X-Request-Id", request_id[:128])
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def version_string(self) -> str:
        return "mlops-build-stub"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the base class calls it so)
        """Nothing: the caller's tests have a log of their own."""


class Server(ThreadingHTTPServer):
    """The stub on a port; 0 takes a free one. Raises Failed where the port is taken."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, stub: Stub, host: str, port: int) -> None:
        self.stub = stub
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise Failed(
                f"cannot listen on {host} port {port}: {error.strerror}", remedy="choose another port; --port 0 takes a free one"
            ) from None

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that goes away is nobody's fault."""
