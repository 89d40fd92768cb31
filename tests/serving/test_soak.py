"""The long forms of test_hard.py, with numeric goals (`make soak`): SOAK_SECONDS of overload (60) and SOAK_MINUTES of mixed traffic (30).
Measurements are printed, and appended to the file SOAK_RECORD as a line of JSON. docs/reference/benchmarks.md has the latest figures."""

import contextlib
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.serving import models
from tests.serving.conftest import Server, serving
from tests.serving.openloop import offer
from tests.serving.test_hard import MODEL, connect, everything, request, statuses
from tests.serving.test_http import address, alive, ask, body

pytestmark = [pytest.mark.soak, pytest.mark.real_python]

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
MINUTES = float(os.environ.get("SOAK_MINUTES", "30"))
# The capacity of test_hard.MODEL in batches of 8.
ROWS_A_SECOND = 400
FUZZ = Path(__file__).with_name("fuzz_decoder.py")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("soak") / "saved"
    models.save(folder, models.FLOATS, MODEL)
    return folder / "model"


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
    with serving(tmp_path, str(folder), "--port", "0", "--device", "cpu", *options) as server:
        small_request = request(body(1.5))
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


def test_mixed_traffic(folder: Path, tmp_path: Path) -> None:
    """Goal: the process grows by less than 2 %."""
    end = time.monotonic() + MINUTES * 60
    answered: Counter[str] = Counter()
    with serving(tmp_path, str(folder), "--port", "0", "--device", "cpu", "--max-queue", "64", "--read", "2") as server:
        _ = server.url
        callers = [threading.Thread(target=_mixed, args=(server, number, end, answered)) for number in range(12)]
        for caller in callers:
            caller.start()
        sizes: list[tuple[float, int]] = []
        while (now := time.monotonic()) < end:
            sizes.append((now, memory(server)))
            time.sleep(1)
        for caller in callers:
            caller.join()
        alive(server)
        # The first fifth is the warm-up: pools of threads and memory grow.
        kept = [size for at, size in sizes if at > end - 0.8 * MINUTES * 60]
        tenth = max(1, len(kept) // 10)
        first, last = statistics.median(kept[:tenth]), statistics.median(kept[-tenth:])
        record(
            "mixed traffic",
            minutes=MINUTES,
            requests=sum(answered.values()),
            by_status=dict(sorted(answered.items())),
            memory_mib=round(last / 2**20, 1),
            memory_growth=round(last / first - 1, 4),
        )
        assert not [status for status in answered if status.startswith("5") and status != "503"], answered
        assert MINUTES < 10 or last < 1.02 * first
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()


def _mixed(server: Server, number: int, end: float, answered: "Counter[str]") -> None:
    dice = random.Random(number)  # noqa: S311
    whole = request(body(1.5))
    csv = b"a,b,c\n" + b"1.5,2,0\n" * 20
    while time.monotonic() < end:
        what = dice.random()
        with contextlib.suppress(OSError):
            if what < 0.4:
                status, *_ = ask(server, body(*[1.5] * dice.choice([1, 1, 8, 32])))
            elif what < 0.5:
                status, *_ = ask(server, csv, Content_Type="text/csv")
            elif what < 0.6:
                status, *_ = ask(server, json.dumps({"inputs": {"a": ["x"], "b": [1], "c": [2]}}).encode())
            elif what < 0.7:
                status, *_ = ask(
                    server, json.dumps({"dataframe_records": [{"a": "1.5", "b": None, "c": 0, str(dice.random()): 1}]}).encode()
                )
            elif what < 0.75:
                status, *_ = ask(server, b" " * dice.randrange(2 << 20))
            elif what < 0.8:
                status, *_ = ask(server, b"", "GET", dice.choice(["/metrics", "/health", "/docs", "/nowhere"]))
            else:
                with connect(server) as connection:
                    connection.sendall(whole[: dice.randrange(len(whole))] if what < 0.9 else whole.replace(b"1", dice.randbytes(1)))
                    if what > 0.95:
                        answered.update(str(status_code) for status_code in statuses(everything(connection)))
                continue
            answered[str(status)] += 1
        if what < 0.01:
            for _ in range(200):
                with contextlib.suppress(OSError):
                    answered[str(ask(server, body(1.5))[0])] += 1


def test_ten_thousand_connections(folder: Path, tmp_path: Path) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 10_000
    if hard != resource.RLIM_INFINITY and hard < wanted + 500:
        pytest.skip(f"only {hard} files may be open here (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted + 500, hard))
    options = ["--connections", "4096", "--read", "300"]
    with serving(tmp_path, str(folder), "--port", "0", "--device", "cpu", *options) as server:
        alive(server)
        before = memory(server)
        old = connect(server)
        old.sendall(request(body(1.5))[:-10])
        others = []
        try:
            for _ in range(wanted):
                others.append(connect(server))
                if len(others) % 500 == 0:
                    time.sleep(0.1)
            time.sleep(3)
            received: Counter[int] = Counter()
            for connection in others:
                connection.setblocking(False)
                with contextlib.suppress(BlockingIOError, ConnectionResetError):
                    received.update(statuses(connection.recv(4096)))
            record(
                "connections",
                opened=len(others),
                refused_503=received[503],
                memory_mib=round(memory(server) / 2**20),
                before_mib=round(before / 2**20),
            )
            assert set(received) == {503}
            assert received[503] >= wanted - 4096 - 600
            old.sendall(request(body(1.5))[-10:])
            assert statuses(old.recv(4096)) == [200]
        finally:
            for connection in others:
                connection.close()
        time.sleep(1)
        alive(server)
        assert memory(server) - before < 200 << 20


def test_the_decoder_by_coverage(tmp_path: Path) -> None:
    """Fuzz the decoder with atheris, which searches for bytes that reach new code; test_fuzz.py is the short form."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed here: pip install atheris")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    command = [
        sys.executable,
        str(FUZZ),
        str(corpus),
        f"-max_total_time={SECONDS:.0f}",
        "-timeout=10",
        "-rss_limit_mb=4096",
        "-max_len=4096",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(FUZZ.parents[2]), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=SECONDS + 300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    ran = [line for line in done.stderr.splitlines() if line.startswith("Done ")]
    record("atheris", seconds=SECONDS, output=ran[-1] if ran else "")
