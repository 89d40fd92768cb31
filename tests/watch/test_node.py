"""A watcher counts each decision once, without a driver."""

import json
import os
from pathlib import Path

import pytest

from mlops_build.gpu import decisions
from mlops_build.gpu.ledger import Ledger
from mlops_build.watch.node import Watcher


def test_each_decision_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if several have the same time, if the clock is set back, and if the file is shortened."""
    monkeypatch.setenv("MLOPS_GPU_LEASE_DIR", str(tmp_path))
    seed = 0

    def decide(time: float, count: int) -> None:
        nonlocal seed
        with Ledger.open() as ledger:
            for _ in range(count):
                seed += 1
                document = {"outcome": "refused", "time": time, "seed": seed, "waited": 2.0, "filling": "x" * 2000}
                decisions.record(ledger, json.dumps(document), os.geteuid())

    def decide_again(**keys: object) -> None:
        with Ledger.open() as ledger:
            decisions.record(ledger, json.dumps({"outcome": "refused", "time": 2000.0, "waited": 0.0, **keys}), os.geteuid())

    decide(1000.0, 3)
    watcher = Watcher(fresh=0)
    assert watcher.snapshot().counts.refused == 0, "it counts from its start"
    for number in range(12):
        decide(1000.0 - number // 4, 30)
        assert watcher.snapshot().counts.refused == 30 * (number + 1)
    counts = watcher.snapshot().counts
    assert (counts.refused, counts.waited_seconds) == (360, 720.0)
    assert decisions.LIMIT < 30 * 12 * 2000, "the file was shortened"
    decide_again(service="gpu pick")
    assert watcher.snapshot().counts == counts, "gpu pick takes no lease"
    for lease in ("0123456789abcdef", "123456789abcdef0"):  # since 0.7 there is no seed
        decide_again(lease=lease)
    assert watcher.snapshot().counts.refused == 362
    watcher.close()
