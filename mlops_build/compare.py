"""Send the same requests to two services, and compare their answers: an old service and its replacement, or two releases."""

import json
import re
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

from mlops_build.adapters import http
from mlops_build.errors import UsageError
from mlops_build.model.answers import TOLERANCE, differences

JSON = "application/json"
MOST_FILE = 256 << 20  # bytes of a file of requests
MOST_ANSWER = 64 << 20  # bytes of an answer
MOST_LINES = 5  # differences that are kept of a request
# A side receives no more requests after it has left this many without an answer.
MOST_SILENT = 3
URL = re.compile(r"(https?://(?:[A-Za-z0-9._-]+|\[(?P<ip>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{1,5}))?)(?P<path>/[!-~]*)?")
PATH = re.compile(r"/[!\"$-~]*")  # printable ASCII without #
METHODS = ("POST", "GET", "PUT", "PATCH")
HEADER, VALUE = re.compile(r"[A-Za-z0-9-]{1,100}"), re.compile(r"[ -~]{0,4000}")
# Secrets, which belong in the environment, and what the connection itself sets.
RESERVED = {"authorization", "cookie", "proxy-authorization", "x-api-key", "host", "content-length", "transfer-encoding", "connection"}
STEP = re.compile(r"\.?([A-Za-z0-9_-]+)|\[([0-9]{1,9}|\*)\]")
SIDES = ("first", "second")
KEYS = {"body", "path", "method", "headers"}


@dataclass(frozen=True)
class Pick:
    """Which part of an answer is compared: `result.scores`, `predictions[0]`, `predictions[*].score`; all of it if empty."""

    text: str
    steps: tuple[str | int | None, ...] = ()

    @staticmethod
    def parse(text: str) -> "Pick":
        """Raises UsageError. A step is a key, an index, or None for all entries of a list."""
        steps: list[str | int | None] = []
        at = 0
        while at < len(text):
            match = STEP.match(text, at)
            if not match or (match.group().startswith(".") is not (at > 0) and match.group(1)):
                raise UsageError(
                    f"{text[:100]!a} is not a valid part of an answer", remedy="write it as predictions[*].score or result.scores"
                )
            key, index = match.groups()
            steps.append(key if key else None if index == "*" else int(index))
            at = match.end()
        return Pick(text, tuple(steps))

    def of(self, answer: Any, steps: Sequence[Any] | None = None) -> Any:
        """The part. Raises LookupError if the answer does not have it."""
        steps = self.steps if steps is None else steps
        for number, step in enumerate(steps):
            if not isinstance(answer, dict if isinstance(step, str) else list):
                raise LookupError
            if step is None:
                return [self.of(entry, steps[number + 1 :]) for entry in answer]
            answer = answer[step]
        return answer


@dataclass(frozen=True)
class Side:
    """One of the two services. token: for the header Authorization. url: of its host, without a path."""

    name: str
    url: str
    path: str
    pick: Pick
    token: str | None = None

    @staticmethod
    def parse(name: str, url: str, pick: str, token: str | None) -> "Side":
        """Raises UsageError."""
        match = URL.fullmatch(url)
        try:
            is_valid = match is not None and "#" not in url and int(match["port"] or 80) <= 65535
            IPv6Address(match["ip"] if match and match["ip"] else "::")
        except ValueError:
            is_valid = False
        if match is None or not is_valid:
            raise UsageError(
                f"{url.rpartition('@')[2][:200]!a} is not the address of a service",
                remedy="write http://HOST:PORT/PATH or https://…, without user and password",
            )
        if token is not None and not VALUE.fullmatch(token):
            raise UsageError(f"the token of the {name} service contains other characters than printable ASCII", remedy="set it again")
        path = match["path"] or "/"
        return Side(name, match.group(1), "/invocations" if path == "/" else path, Pick.parse(pick), token)


@dataclass(frozen=True)
class Request:
    """A request to one side. path: None for that of the side's address."""

    body: bytes | None
    path: str | None
    method: str
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Limits:
    """What one comparison may take. seconds: for an answer. relative, absolute: how much two numbers may differ."""

    seconds: float = 30.0
    relative: float = TOLERANCE
    absolute: float = TOLERANCE
    at_once: int = 1


@dataclass(frozen=True)
class Compared:
    """What became of one request. number: its place in the file, from 1. lines: differences, or why an answer is missing.

    state: equal, different, failed or unanswered. seconds: of each side; None without an answer.
    """

    number: int
    state: str
    lines: tuple[str, ...]
    seconds: tuple[float | None, float | None]


def read(path: Path, most: int) -> tuple[list[tuple[Request, Request]], int]:
    """The first `most` requests of a file, each for both sides, and how many more there are. Raises UsageError.

    The file has a JSON object per line, or is a JSON list of bodies, or a version's examples/recorded.json.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_FILE + 1)
    except OSError as error:
        raise UsageError(f"{str(path)!a} cannot be read: {error.strerror}", remedy="give a file of requests") from None
    if len(content) > MOST_FILE:
        raise UsageError(f"{str(path)!a} has more than {MOST_FILE >> 20} MiB", remedy="split it")
    entries = _entries(content, path)
    if not entries:
        raise UsageError(f"{str(path)!a} has no request", remedy="see mlops-build compare --help")
    return [_both(entry, f"{str(path)!a}, request {number}") for number, entry in enumerate(entries[:most], 1)], len(entries[most:])


def _entries(content: bytes, path: Path) -> list[Any]:
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        lines = []
        for number, line in enumerate(content.splitlines(), 1):
            try:
                lines += [json.loads(line)] if line.strip() else []
            except (ValueError, RecursionError):
                raise UsageError(f"{str(path)!a}, line {number} is not JSON", remedy='write {"body": …} in each line') from None
        return lines
    if isinstance(document, list):
        return [{"body": body} for body in document]
    if isinstance(document, dict) and "input" in document and "predictions" in document:
        return [{"body": document["input"]}]
    return [document]


def _both(entry: Any, where: str) -> tuple[Request, Request]:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(side, {}), dict) for side in SIDES):
        raise UsageError(f"{where}: not an object", remedy='write {"body": …}; `first` and `second` are objects, too')
    common = {key: value for key, value in entry.items() if key not in SIDES}
    first, second = (_request({**common, **entry.get(side, {})}, where) for side in SIDES)
    return first, second


def _request(entry: Mapping[str, Any], where: str) -> Request:
    if unknown := entry.keys() - KEYS:
        raise UsageError(f"{where}: {min(unknown)[:80]!a} is not a valid key", remedy=f"use {', '.join(sorted(KEYS))}, first and second")
    path, method, headers = entry.get("path"), entry.get("method", "POST"), entry.get("headers", {})
    if path is not None and not (isinstance(path, str) and PATH.fullmatch(path)):
        raise UsageError(f"{where}: {str(path)[:80]!a} is not a valid path", remedy="write /predict: printable ASCII, without a host")
    if method not in METHODS or ("body" in entry) is (method == "GET"):
        raise UsageError(
            f"{where}: the method {str(method)[:20]!a} is not valid", remedy="use POST, PUT or PATCH with a body, or GET without"
        )
    if not isinstance(headers, dict) or not all(
        isinstance(v, str) and HEADER.fullmatch(k) and VALUE.fullmatch(v) for k, v in headers.items()
    ):
        raise UsageError(f"{where}: the headers are not valid", remedy='write {"Content-Type": "text/csv"}')
    fields = {key.lower(): value for key, value in headers.items()}
    if reserved := fields.keys() & RESERVED:
        raise UsageError(
            f"{where}: the header {min(reserved)} is not allowed", remedy="set MLOPS_COMPARE_TOKEN1 and MLOPS_COMPARE_TOKEN2 for tokens"
        )
    if method == "GET":
        return Request(None, path, method, fields)
    fields.setdefault("content-type", JSON)
    body = entry["body"]
    is_text = isinstance(body, str) and JSON not in fields["content-type"]
    return Request((body if is_text else json.dumps(body)).encode(errors="replace"), path, method, fields)


def run(sides: tuple[Side, Side], requests: Iterable[tuple[Request, Request]], limits: Limits) -> list[Compared]:
    """Send each request to the first, then to the second side. A side that does not answer MOST_SILENT times ends the comparison."""
    silent = [0, 0]

    def one(numbered: tuple[int, tuple[Request, Request]]) -> Compared | None:
        if max(silent) >= MOST_SILENT:
            return None
        number, pair = numbered
        answers = [_ask(side, request, limits.seconds) for side, request in zip(sides, pair, strict=True)]
        for index, answer in enumerate(answers):
            silent[index] += answer.seconds is None
        return _compare(number, sides, answers, limits)

    with ThreadPoolExecutor(limits.at_once) as threads:
        return [compared for compared in threads.map(one, enumerate(requests, 1)) if compared]


@dataclass(frozen=True)
class _Answer:
    """seconds: None if there is no answer. problem: why there is nothing to compare."""

    seconds: float | None
    part: Any = None
    problem: str | None = None


def _ask(side: Side, request: Request, seconds: float) -> _Answer:
    headers = {**request.headers, **({"authorization": f"Bearer {side.token}"} if side.token else {})}
    began = time.monotonic()
    url = side.url + (request.path or side.path)
    try:
        answer = http.call(request.method, url, seconds=seconds, headers=headers, body=request.body, limit=MOST_ANSWER + 1)
    except http.NoAnswer as error:
        return _Answer(None, problem=error.message)
    taken = time.monotonic() - began
    if not 200 <= answer.status < 300:
        return _Answer(taken, problem=f"status {answer.status}: {answer.body[:200].decode(errors='replace')}")
    if len(answer.body) > MOST_ANSWER:
        return _Answer(taken, problem=f"the answer has more than {MOST_ANSWER >> 20} MiB")
    try:
        return _Answer(taken, side.pick.of(json.loads(answer.body)))
    except (ValueError, RecursionError):
        return _Answer(taken, problem="the answer is not JSON")
    except LookupError:
        return _Answer(taken, problem=f"the answer has no {side.pick.text}")


def _compare(number: int, sides: Sequence[Side], answers: Sequence[_Answer], limits: Limits) -> Compared:
    seconds = (answers[0].seconds, answers[1].seconds)
    if problems := [f"{side.name}: {answer.problem}" for side, answer in zip(sides, answers, strict=True) if answer.problem]:
        return Compared(number, "unanswered" if None in seconds else "failed", tuple(problems), seconds)
    tolerances = {"relative": limits.relative, "absolute": limits.absolute}
    try:
        lines = differences(answers[0].part, answers[1].part, sides[0].pick.text or "answer", names=SIDES, **tolerances)
    except RecursionError:
        return Compared(number, "failed", ("the answers are too deep",), seconds)
    more = [f"and {len(lines) - MOST_LINES} more differences"] if len(lines) > MOST_LINES else []
    return Compared(number, "different" if lines else "equal", (*lines[:MOST_LINES], *more), seconds)


def latency(compared: Iterable[Compared], side: int) -> tuple[float, float] | None:
    """Median and 95th percentile of a side's answers, in milliseconds; None without an answer."""
    taken = sorted(each.seconds[side] or 0.0 for each in compared if each.seconds[side] is not None)
    if not taken:
        return None
    return statistics.median(taken) * 1000, taken[min(len(taken) - 1, len(taken) * 95 // 100)] * 1000


def counts(compared: Iterable[Compared]) -> dict[str, int]:
    """How many requests are in each state."""
    states = dict.fromkeys(("equal", "different", "failed", "unanswered"), 0)
    for each in compared:
        states[each.state] += 1
    return states
