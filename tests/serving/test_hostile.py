"""Bodies that would become very large, sent to a server in a cgroup with 512 MiB: it survives, and answers others correctly."""

import contextlib
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from mlops_build.serving.memory import CGROUPS
from tests.serving import models
from tests.serving.conftest import serving
from tests.serving.soak import callers, hostile, served
from tests.serving.test_http import address

MIB = 1 << 20
ATTACKS = [
    hostile.ATTACKS[name] for name in ("gzip bombs", "Parquet bombs", "deep nesting", "16 MiB bodies", "garbage", "shapes beyond the data")
]
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


@pytest.mark.parametrize("requests", [150, pytest.param(10_000, marks=pytest.mark.soak)])
def test_a_small_container_survives(group: Path, tmp_path: Path, requests: int) -> None:
    models.save(tmp_path / "saved", served.FLOATS, served.ROWS)
    context = models.context(tmp_path / "context", rows=tmp_path / "saved/model")
    hostile.prepare()
    numbers, statuses = iter(range(requests)), Counter[str]()  # a range's iterator is safe for threads
    with serving(tmp_path, str(context)) as server:
        (group / "cgroup.procs").write_text(str(server.process.pid))
        where, process = address(server), psutil.Process(server.process.pid)
        before = process.memory_info().rss

        def attack() -> None:
            for number in numbers:
                statuses.update(ATTACKS[number % len(ATTACKS)](where, random.Random(number)))  # noqa: S311

        attackers = [threading.Thread(target=attack) for _ in range(8)]
        stop, tally = threading.Event(), callers.Tally()
        normal = callers.Caller(where, 1, stop, tally, [callers.rows])
        for thread in (*attackers, normal):
            thread.start()
        for thread in attackers:
            thread.join()
        stop.set()
        normal.join()
        assert not tally.wrong, tally.wrong
        assert not tally.lost, tally.lost
        assert tally.statuses["200"] > 0
        assert set(statuses) <= {"200", "400", "404", "413", "415", "503", "closed"}, statuses
        assert statuses["413"], statuses
        end = time.monotonic() + 30
        while process.memory_info().rss > before + 100 * MIB:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert server.process.poll() is None
