"""Decide whether requests to a model may be predicted in one batch: only if there is evidence that its rows do not influence each other.

The evidence comes from the recorded example at load, or from the first requests. While the service runs, a few rows of some batches are
predicted again one by one.
"""

import logging
import random
import time
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlops_build.model import independence
from mlops_build.model.independence import Tolerance, Verdict
from mlops_build.serving.input.rows import Rows

# Rows are collected until there are independence.ROWS of them, or until there are two after this many requests.
REQUESTS = 64
# One prediction of a check with rows of requests may take this many seconds, since requests wait for it.
LONGEST = 4.0
# Batches that are compared before they are answered; rows of a batch that are compared, and the part of the time for it.
FIRST, SAMPLE, SHARE = 8, 4, 0.01
# After so many seconds without an idle moment, rows are compared while requests wait: a busy service would never be checked.
BUSY_SECONDS = 1.0
# The params for which evidence is kept, and the bytes of all its rows. Requests with other params are not batched.
PARAMS, MEMORY = 16, 64 << 20

log = logging.getLogger("mlops_build.serving")
Key = Hashable


@dataclass(slots=True)
class _Evidence:
    """What is known about requests with the same params. rows: answered ones, each different. needed: requests before the next check."""

    shown: bool
    rows: dict[int, Rows] = field(default_factory=dict)
    requests: int = 0
    needed: int = REQUESTS
    magnitude: "independence.Magnitude | None" = None  # of its answers
    compared: int = 0  # batches
    largest: int = 0  # rows of the largest of them

    @property
    def ready(self) -> bool:
        enough = len(self.rows) >= independence.ROWS and self.needed == REQUESTS
        return len(self.rows) > 1 and (enough or self.requests >= self.needed)


class Joining:
    """The state of one model: requests are joined only if `allows` says so. Not thread-safe.

    predict: the output for rows; may raise. declared: whether service.yaml says that rows are independent. on_difference: called when
    batching is turned off while the service runs.
    """

    def __init__(self, predict: Callable[[Rows], Any], tolerance: Tolerance, *, declared: bool) -> None:
        self.name = "the model"  # for the log
        self.refuted: str | None = None
        self.on_difference: Callable[[], None] = lambda: None
        self._predict, self._tolerance, self._declared = predict, tolerance, declared
        self._known: dict[Key, _Evidence] = {}
        self._room = MEMORY
        self._work: Generator[float, None, None] | None = None
        self._urgent = False  # the work is the first check of rows, which is short and does not wait for an idle moment
        self._patient_until = 0.0  # after this, other work no longer waits for one
        self._allowance, self._at = 0.0, time.perf_counter()

    def allows(self, key: Key) -> bool:
        if self.refuted is not None:
            return False
        evidence = self._known.get(key)
        return self._declared if evidence is None else evidence.shown

    @property
    def on(self) -> bool:
        return self.refuted is None and (self._declared or any(evidence.shown for evidence in self._known.values()))

    def refute(self, why: str, request: str = "") -> None:
        """Turn batching off for the rest of the process."""
        if self.refuted is None:
            batched = self.on
            self.refuted, self._work = why, None
            self._known.clear()
            request = request and f" (request {request})"
            log.warning("%s: %s%s: its requests are %s predicted in batches", self.name, why, request, "no longer" if batched else "not")
            if batched:
                self.on_difference()

    def check(self, rows: Rows, expected: float = 0.0) -> Verdict:
        """Check the rows of the recorded example before the service is ready. expected: seconds to predict one."""
        evidence = self._evidence(key_of(rows))
        if evidence is None:
            return Verdict(None)
        self._add(evidence, rows)
        verdict = independence.check(list(evidence.rows.values()), joined, self._predict, self._tolerance, expected=expected)
        if verdict.independent is False:
            self.refuted = verdict.why
        evidence.shown |= verdict.independent is True
        evidence.magnitude = verdict.magnitude
        return verdict

    def observe(self, rows: Rows, answer: Any) -> None:
        """Collect rows of an answered request as evidence, while `allows` is False for it."""
        key = key_of(rows)
        if self.refuted is not None or not isinstance(answer, list | np.ndarray) or len(answer) != rows.count:
            return
        evidence = self._evidence(key)
        if evidence is not None and not evidence.ready:
            evidence.requests += 1
            self._add(evidence, rows)

    def compare(self, group: Sequence[Rows], parts: Sequence[Any], seconds: float) -> bool:
        """Compare the answers of a batch with those of some of its rows alone. Returns False if they differ.

        The first batches, and those with more rows than any before, are compared before they are answered, for about `seconds`; of
        others, a sample is kept for an idle moment.
        """
        evidence, rows = self._evidence(key_of(group[0])), sum(request.count for request in group)
        if evidence is None:
            return True
        later = evidence.compared >= FIRST and rows <= evidence.largest
        if later and (self._work is not None or self._grant() <= 0):
            return True
        sample = []
        for number in random.sample(range(rows), min(rows, SAMPLE)):
            index, at = 0, number
            while at >= group[index].count:
                index, at = index + 1, at - group[index].count
            sample.append((part(group[index], at, at + 1), parts[index][at], group[index].request_id))
        work = self._compare(sample, evidence)
        if later:
            self._begin(work)
            return True
        evidence.compared, evidence.largest = evidence.compared + 1, max(rows, evidence.largest)
        end = time.perf_counter() + seconds + 0.1
        for _ in work:
            if time.perf_counter() > end:
                break
        return self.refuted is None

    def doubt(self, key: Key) -> None:
        """Check the evidence again in an idle moment, since the model's output for a batch did not have one element per row."""
        evidence = self._known.get(key)
        if evidence is not None and len(evidence.rows) > 1 and self._work is None:
            self._begin(self._check(evidence))

    def step(self, *, idle: bool) -> bool:
        """Make one prediction of a check, if one is due. Returns whether it did. idle: no request waits."""
        work = self._work
        if work is None:
            evidence = next((evidence for evidence in self._known.values() if not evidence.shown and evidence.ready), None)
            if evidence is None:
                return False
            work = self._begin(self._check(evidence), urgent=True)
        idle |= self._urgent or time.perf_counter() > self._patient_until
        if not idle or (not self._urgent and self._grant() <= 0):
            return False
        began = time.perf_counter()
        if next(work, None) is None and self._work is work:
            self._work = None
        if not self._urgent:
            self._allowance -= time.perf_counter() - began
        return True

    def _begin(self, work: Generator[float, None, None], *, urgent: bool = False) -> Generator[float, None, None]:
        self._work, self._urgent, self._patient_until = work, urgent, time.perf_counter() + BUSY_SECONDS
        return work

    def _evidence(self, key: Key) -> _Evidence | None:
        if key not in self._known and len(self._known) < PARAMS and key is not None:
            self._known[key] = _Evidence(self._declared)
        return self._known.get(key)

    def _add(self, evidence: _Evidence, rows: Rows) -> None:
        for at in range(min(rows.count, independence.ROWS - len(evidence.rows))):
            row = joined([part(rows, at, at + 1)])  # a copy, since a view keeps the whole request in memory
            content = repr([list(column) for column in row.data]) if row.kind == "columns" else row.data.tobytes()
            if hash(content) not in evidence.rows and len(content) <= self._room:
                self._room -= len(content)
                evidence.rows[hash(content)] = row

    def _grant(self) -> float:
        """The seconds that checks may take now: a share of the time, saved for at most a minute."""
        now = time.perf_counter()
        self._allowance = min(60 * SHARE, self._allowance + (now - self._at) * SHARE)
        self._at = now
        return self._allowance

    def _check(self, evidence: _Evidence) -> Generator[float, None, None]:
        running = independence.steps(list(evidence.rows.values()), joined, self._predict, self._tolerance)
        verdict = Verdict(None)
        try:
            while (expected := next(running)) <= LONGEST:
                yield expected
        except StopIteration as stop:
            verdict = stop.value
        if verdict.independent is False:
            self.refute(verdict.why)
        elif verdict.independent and not evidence.shown:
            evidence.shown, evidence.magnitude = True, verdict.magnitude
            log.warning("%s: its requests are predicted in batches from now on, since rows do not influence each other", self.name)
        elif not evidence.shown:  # try again with more rows, or in another order, and less often each time
            first = next(iter(evidence.rows))
            evidence.rows[first] = evidence.rows.pop(first)
            evidence.requests, evidence.needed = 0, 2 * evidence.needed

    def _compare(self, sample: Sequence[tuple[Rows, Any, bytes]], evidence: _Evidence) -> Generator[float, None, None]:
        magnitude = evidence.magnitude = independence.scale([answer for _, answer, _ in sample], evidence.magnitude)
        for rows, answer, request in sample:
            yield 0.0
            try:
                alone = self._predict(rows)
            except Exception:  # such as a lack of memory: says nothing about the rows
                return
            if not independence.close(alone, [answer], self._tolerance, magnitude):
                self.refute("the model's output for a row changes with the other rows of a batch", request.decode())
                return


def key_of(rows: Rows) -> Key | None:
    """Requests with the same key can be joined, if that is allowed; those with None never."""
    if rows.kind not in ("block", "columns", "tensor"):
        return None
    return rows.kind, repr(rows.params), rows.data.shape[1:] if rows.kind == "tensor" else None


def joined(group: Sequence[Rows]) -> Rows:
    """The rows of several requests with the same key as one request."""
    first = group[0]
    count = sum(rows.count for rows in group)
    if first.kind == "columns":
        columns = [
            np.concatenate([rows.data[position] for rows in group])
            if isinstance(column, np.ndarray)
            else [value for rows in group for value in rows.data[position]]
            for position, column in enumerate(first.data)
        ]
        return Rows("columns", columns, count, first.params)
    return Rows(first.kind, np.concatenate([rows.data for rows in group]), count, first.params)


def part(rows: Rows, begin: int, end: int) -> Rows:
    """Some rows of a request, as a view of its data."""
    data = [column[begin:end] for column in rows.data] if rows.kind == "columns" else rows.data[begin:end]
    return Rows(rows.kind, data, end - begin, rows.params)
