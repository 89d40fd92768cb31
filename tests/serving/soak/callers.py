"""Normal callers: every answer is compared with the right one, which is known before the request is sent."""

import gzip
import http.client
import json
import math
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.serving.forms import CSV, JSON

Address = tuple[str, int]
# A caller's probe of a pod waits this long (timeoutSeconds of the template's livenessProbe).
PROBE_SECONDS = 10
WAIT_SECONDS = 60


@dataclass(frozen=True)
class Call:
    """A request, and what it must be answered with. right: whether an answer is right."""

    path: str
    body: bytes
    right: Callable[[Any], bool]
    kind: str = JSON
    encoding: str | None = None

    @property
    def headers(self) -> dict[str, str]:
        return {"Content-Type": self.kind, **({"Content-Encoding": self.encoding} if self.encoding else {})}


def _number(dice: random.Random) -> float:
    return dice.randrange(-800, 800) / 16


def rows(dice: random.Random) -> Call:
    """One row or many, in every form."""
    sent = [[_number(dice) for _ in "abc"] for _ in range(dice.choice([1, 1, 1, 1, 2, 7, 64, 500]))]
    totals = [a + 2 * b - 3 * c for a, b, c in sent]
    answer = [{"total": total, "sign": "plus" if total > 0 else "minus"} for total in totals]
    records = [dict(zip("abc", row, strict=True)) for row in sent]
    form = dice.choice(["split", "split", "split", "records", "instances", "inputs", "csv", "gzip", "v2"])
    path = dice.choice(["/invocations", "/models/rows/invocations"])
    documents: dict[str, Any] = {
        "split": {"dataframe_split": {"columns": ["c", "a", "b"], "data": [[c, a, b] for a, b, c in sent]}},
        "records": {"dataframe_records": records},
        "instances": {"instances": records},
        "inputs": {"inputs": {name: [row[name] for row in records] for name in "abc"}},
    }
    if form == "csv":
        text = "a,b,c\n" + "".join(",".join(map(str, row)) + "\n" for row in sent)
        return Call(path, text.encode(), lambda body: bool(body == {"predictions": answer}), CSV)
    if form == "v2":
        inputs = [{"name": name, "datatype": "FP32", "shape": [len(sent)], "data": [row[name] for row in records]} for name in "abc"]
        return Call(
            "/v2/models/rows/infer",
            json.dumps({"inputs": inputs}).encode(),
            lambda body: next(output["data"] for output in body["outputs"] if output["name"] == "total") == totals,
        )
    body = json.dumps(documents.get(form, documents["split"])).encode()
    packed = form == "gzip"
    return Call(
        path,
        gzip.compress(body) if packed else body,
        lambda body: bool(body == {"predictions": answer}),
        encoding="gzip" if packed else None,
    )


def _centred(dice: random.Random) -> Call:
    """The answer to one row is 0, whatever other callers send at the same time."""
    values = [_number(dice) for _ in range(dice.choice([1, 1, 1, 3]))]
    mean = sum(values) / len(values)
    body = json.dumps({"dataframe_split": {"columns": ["x"], "data": [[value] for value in values]}}).encode()
    name = dice.choice(["centred", "centred-one"])
    return Call(f"/models/{name}/invocations", body, lambda answer: close(answer["predictions"], [value - mean for value in values]))


def _text(dice: random.Random) -> Call:
    rows = [
        ("".join(dice.choices('abcé😀 ,"\n', k=dice.randrange(1, 30))), dice.randrange(-(2**63), 2**63))
        for _ in range(dice.choice([1, 1, 20]))
    ]
    body = json.dumps({"dataframe_records": [{"number": number, "text": text} for text, number in rows]}).encode()
    answer = {"predictions": [f"{text[::-1]}:{number}" for text, number in rows]}
    return Call("/models/text/invocations", body, lambda body: bool(body == answer))


def _beside_errors(dice: random.Random) -> Call:
    """A good request to the model that fails for those of hostile callers."""
    values = [abs(_number(dice)) for _ in range(dice.choice([1, 1, 5]))]
    body = json.dumps({"inputs": {"what": values}}).encode()
    return Call("/models/odd/invocations", body, lambda answer: bool(answer == {"predictions": values}))


Calls = Sequence[Callable[[random.Random], Call]]
CALLS: Calls = [rows, rows, rows, _centred, _centred, _text, _beside_errors]


def close(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(close, left, right))
    return isinstance(left, int | float) and math.isclose(left, right, rel_tol=1e-5, abs_tol=1e-9)


@dataclass
class Tally:
    """What normal callers received. wrong: the first wrong answers. lost: connections that were closed without an answer."""

    statuses: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    without_retry: int = 0
    lost: Counter[str] = field(default_factory=Counter)
    probes: Counter[str] = field(default_factory=Counter)
    slowest_probe: float = 0.0
    failed_in_a_row: int = 0  # the most
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, call: Call, status: int, headers: Any, body: bytes) -> None:
        with self.lock:
            self.statuses[str(status)] += 1
            if status == 200:
                if not call.right(json.loads(body)) and len(self.wrong) < 20:
                    self.wrong.append(f"{call.path} {call.body[:300]!r} → {body[:300]!r}")
            elif status in (429, 503):
                self.without_retry += headers.get("Retry-After") is None
            elif len(self.wrong) < 20:
                self.wrong.append(f"{call.path} {call.body[:300]!r} → {status} {body[:300]!r}")


class Caller(threading.Thread):
    """Sends one request after the other until `stop`, on a connection that it keeps for some of them."""

    def __init__(self, address: Address, number: int, stop: threading.Event, tally: Tally, calls: Calls = CALLS) -> None:
        super().__init__(daemon=True)
        self._address, self._dice, self._stop_event, self._tally = address, random.Random(number), stop, tally  # noqa: S311
        self._calls = calls

    def run(self) -> None:
        connection = http.client.HTTPConnection(*self._address, timeout=WAIT_SECONDS)
        while not self._stop_event.is_set():
            call = self._dice.choice(self._calls)(self._dice)
            try:
                connection.request("POST", call.path, call.body, call.headers)
                response = connection.getresponse()
                status, headers, body = response.status, response.headers, response.read()
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                with self._tally.lock:
                    self._tally.lost[type(error).__name__] += 1
                self._stop_event.wait(0.1)
                continue
            try:
                self._tally.add(call, status, headers, body)
            except (ValueError, KeyError, TypeError, StopIteration) as error:
                self._tally.wrong.append(f"{call.path} {call.body[:300]!r} → {body[:300]!r}: {error!r}")
            if status != 200:
                self._stop_event.wait(0.05)
            if self._dice.random() < 0.1:
                connection.close()
        connection.close()


class Prober(threading.Thread):
    """Asks /health as the kubelet does, each time on a new connection, but every half second."""

    def __init__(self, address: Address, stop: threading.Event, tally: Tally) -> None:
        super().__init__(daemon=True)
        self._address, self._stop_event, self._tally = address, stop, tally

    def run(self) -> None:
        failed = 0
        while not self._stop_event.wait(0.5):
            began = time.monotonic()
            connection = http.client.HTTPConnection(*self._address, timeout=PROBE_SECONDS)
            outcome = "no answer"
            with suppress(OSError, http.client.HTTPException):
                connection.request("GET", "/health")
                response = connection.getresponse()
                outcome = str(response.status)
                if outcome != "200":
                    outcome += f" {response.read()[:100]!r}"
            connection.close()
            failed = 0 if outcome == "200" else failed + 1
            with self._tally.lock:
                self._tally.probes[outcome] += 1
                self._tally.failed_in_a_row = max(self._tally.failed_in_a_row, failed)
                self._tally.slowest_probe = max(self._tally.slowest_probe, time.monotonic() - began)
