"""The long form of the overload in test_hard.py, with numeric goals (`make soak`): SOAK_SECONDS (60). soak/ has the mixed traffic.
Measurements are printed, and appended to the file SOAK_RECORD as a line of JSON. docs/reference/benchmarks.md has the latest figures."""

import json
import os
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.serving.conftest import Server, serving
from tests.serving.openloop import offer
from tests.serving.test_hard import request
from tests.serving.test_http import address, ask, body

pytestmark = [pytest.mark.soak, pytest.mark.real_python]

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
# The capacity with predictions of 20 ms in batches of 8.
ROWS_A_SECOND = 400


def memory(server: Server) -> int:
    return int(psutil.Process(server.process.pid).memory_info().rss)


def record(what: str, **figures: object) -> None:
    line = json.dumps({"what": what, **figures})
    sys.stdout.write(line + "\n")
    if path := os.environ.get("SOAK_RECORD"):
        with Path(path).open("a") as file:
            file.write(line + "\n")


def test_ten_times_the_capacity(folder: Path, tmp_path: Path) -> None:
    """Goals: goodput of 90 % of capacity, flat memory, recovery within 2 s."""
    options = ["--max-queue", "64", "--max-batch", "8", "--connections", "2000", "--rows-independent", "a function of each row"]
    with serving(tmp_path, str(folder), *options) as server:
        small_request = request(body(1.5, seconds=0.02))
        offer(address(server), small_request, ROWS_A_SECOND, 3)  # warm
        enough = offer(address(server), small_request, 1.2 * ROWS_A_SECOND, 10)
        capacity = enough.statuses[200] / enough.took
        before = memory(server)
        outcome = offer(address(server), small_request, 10 * ROWS_A_SECOND, SECONDS, connections=1000)
        began = time.monotonic()
        while True:
            sent = time.monotonic()
            if ask(server, body(1.5))[0] == 200 and time.monotonic() - sent < 0.2:
                break
            assert time.monotonic() - began < 30
        record(
            "overload",
            seconds=SECONDS,
            offered=round((sum(outcome.statuses.values()) + outcome.unsent) / outcome.took),
            sent=round(sum(outcome.statuses.values()) / outcome.took),
            capacity=round(capacity),
            goodput=round(outcome.statuses[200] / outcome.took / capacity, 3),
            refused_p50_ms=round(outcome.percentile(429, 0.5) * 1000, 1),
            refused_p99_ms=round(outcome.percentile(429, 0.99) * 1000, 1),
            answered_p99_ms=round(outcome.percentile(200, 0.99) * 1000, 1),
            recovery_s=round(time.monotonic() - began, 2),
            memory_growth=round(memory(server) / before - 1, 4),
        )
        assert set(outcome.statuses) == {200, 429}, outcome.statuses
        assert outcome.without_retry == 0
        assert outcome.lost == 0
        assert memory(server) < 1.1 * before
        assert server.stop() == 0
