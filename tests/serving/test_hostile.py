"""Bodies that would become very large, sent to a server in a cgroup with 512 MiB: it survives, and answers others correctly."""

import contextlib
import gzip
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlops_build.serving.memory import CGROUPS
from tests.serving import models
from tests.serving.conftest import wait_for_log

MIB = 1 << 20
BODY = 16 * MIB
JSON = {"Content-Type": "application/json"}
NAMES = [f"f{number}" for number in range(32)]
ROW = [number / 7 for number in range(32)]
SUM = """
    def predict(self, context, data, params=None):
        return data.sum(axis=1).to_numpy()
"""
pytestmark = [pytest.mark.slow, pytest.mark.real_python]  # a process of its own in the cgroup


@pytest.fixture
def group() -> Iterator[Path]:
    """A cgroup with a limit of 512 MiB."""
    version_1 = CGROUPS / "memory" / "memory.limit_in_bytes"
    group = (CGROUPS / "memory" if version_1.exists() else CGROUPS) / f"mlops-build-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / ("memory.limit_in_bytes" if version_1.exists() else "memory.max")).write_text(str(512 * MIB))
    except OSError as error:
        pytest.skip(f"needs the right to create a cgroup with a limit: {error}")
    yield group
    with contextlib.suppress(OSError):
        group.rmdir()


def hostile() -> list[tuple[bytes, dict[str, str]]]:
    def filled(form: bytes, unit: bytes, size: int = BODY - 200) -> bytes:
        return form.replace(b"%", b",".join([unit] * (size // (len(unit) + 1))))

    inputs, split = b'{"inputs":[%]}', b'{"dataframe_split":{"columns":["f0"],"data":[%]}}'
    large = [filled(inputs, unit) for unit in (b"[]", b"{}", b'{"a":{}}', '"\u0100"'.encode(), b"1")]
    large += [filled(split, b"[1]"), b'{"inputs":' + b"[" * 7_000_000 + b"]" * 7_000_000 + b"}", bytes(BODY * 4)]
    compressed = {**JSON, "Content-Encoding": "gzip"}
    bodies = [(gzip.compress(body, 9), compressed) for body in large]
    csv = {"Content-Type": "text/csv", "Content-Encoding": "gzip"}
    bodies += [(gzip.compress(b"," * BODY, 9), csv), (gzip.compress(b"f0\n" + b"1\n" * (BODY // 2 - 10), 9), csv)]
    bodies += [(gzip.compress(b"") * 400_000, compressed), (b'{"inputs":' + b"[" * 8_000_000, JSON)]
    bodies += [
        (filled(inputs, b"[]", 60_000), JSON),
        (filled(b'{"dataframe_split":{"index":[%],"columns":["f0"],"data":[[1]]}}', b"[]", 60_000), JSON),
    ]
    headers = b"".join(b"h%d: x\r\n" % number for number in range(1_000_000))
    form = b'--b\r\nContent-Disposition: form-data; name="f0"\r\n' + headers + b"\r\n1\r\n--b--\r\n"
    bodies.append((gzip.compress(form, 9), {"Content-Type": "multipart/form-data; boundary=b", "Content-Encoding": "gzip"}))
    one_text = pa.DictionaryArray.from_arrays(pa.array([0] * 1_000_000, pa.int32()), pa.array(["x" * MIB]))
    for table in (pa.table({"f0": one_text}), pa.table({name: pa.array([1.0] * 1_000_000) for name in NAMES})):
        content = io.BytesIO()
        pq.write_table(table, content)
        bodies.append((content.getvalue(), {"Content-Type": "application/vnd.apache.parquet"}))
    row = json.dumps(ROW).encode()
    bodies.append(
        (b'{"dataframe_split":{"columns":%b,"data":[%b]}}' % (json.dumps(NAMES).encode(), b",".join([row] * (BODY // len(row) - 10))), JSON)
    )
    return bodies


@pytest.mark.parametrize("requests", [150, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_small_container_survives(group: Path, tmp_path: Path, requests: int) -> None:
    models.save(tmp_path / "saved", models.columns(*((name, "float") for name in NAMES)), SUM)
    log = tmp_path / "log"
    with log.open("w") as output:
        command = [sys.executable, "-m", "mlops_build", "serve", str(tmp_path / "saved" / "model"), "--port", "0", "--device", "cpu"]
        process = subprocess.Popen(
            command, stdout=output, stderr=output, preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None
        )
    try:
        port = int(wait_for_log(log, r"serving .* on http://[^:]+:(\d+)", lambda: process.poll() is None)[1])

        def ask(body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
            try:
                connection.request("POST", "/invocations", body, headers)
                answer = connection.getresponse()
                return answer.status, answer.read()
            finally:
                connection.close()

        def resident() -> int:
            return int(Path(f"/proc/{process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

        bodies = hostile()
        numbers = iter(range(requests))  # a range's iterator is safe for threads
        statuses: Counter[int] = Counter()
        one = json.dumps({"dataframe_split": {"columns": NAMES, "data": [ROW]}}).encode()
        before = resident()

        def attack() -> None:
            for number in numbers:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # refused before all of the body was sent
                    statuses[ask(*bodies[number % len(bodies)])[0]] += 1

        threads = [threading.Thread(target=attack) for _ in range(8)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            status, answer = ask(one, JSON)
            assert status == 200
            assert json.loads(answer)["predictions"] == [pytest.approx(sum(ROW), rel=1e-5)]
        assert set(statuses) <= {200, 400, 413, 503}, statuses
        assert statuses[413], statuses
        end = time.monotonic() + 30
        while resident() > before + 100 * MIB and time.monotonic() < end:
            time.sleep(0.2)
        assert resident() <= before + 100 * MIB
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
