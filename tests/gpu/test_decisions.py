"""Decisions: recorded by real leases, read; and hostile files."""

import json
import os
from pathlib import Path

from mlops_build.gpu import decisions
from mlops_build.gpu.ledger import Ledger

ASK = """
from dataclasses import replace
from mlops_build import gpu
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import new

def first(cards, request, rng):
    return cards

with Ledger.open() as ledger:
    held = ledger.hold(replace(new([gpu.cards()[0].uuid], 2 << 30, "older"), pid=0))  # of another process
    gpu.lease("1GiB", strategy=first, names=["*L4*"], max_utilisation=50, min_compute_capability=(7, 0)).release()
    for memory in ("6GiB", "9GiB"):
        try: gpu.lease(memory, service=f"asks {memory}").release()
        except gpu.NoRoom: pass
"""


def test_every_decision_is_recorded_with_its_inputs(node, run_python) -> None:
    """Other users' strategies, filters and leases are in it, as plain JSON."""
    machine = node("8GiB", "4GiB")
    run_python(ASK, machine.environment)
    with Ledger.open(machine.directory / "leases") as ledger:
        record, *others = decisions.read(ledger)
    assert [(decision["outcome"], decision["service"], decision["uid"], len(decision["chosen"])) for decision in others] == [
        ("granted", "asks 6GiB", os.geteuid(), 1),
        ("refused", "asks 9GiB", os.geteuid(), 0),
    ]
    assert {"used_bytes", "external_counted_bytes", "committed_bytes", "left_bytes"} <= record["cards"][0].keys()
    assert record["request"] == {
        "bytes": 1 << 30,
        "count": 1,
        "exclusive": False,
        "strategy": "first",
        "names": ["*L4*"],
        "uuids": [],
        "max_utilisation": 50,
        "min_compute_capability": [7, 0],
    }
    (promise,) = record["cards"][0]["leases"]
    assert (promise["service"], promise["bytes"], promise["seen"]) == ("older", 2 << 30, None)
    assert [(card["trouble"], card["compute_capability"]) for card in record["cards"]] == [(None, [8, 9])] * 2


def test_a_file_has_a_limit(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        for number in range(400):
            decisions.record(ledger, json.dumps({"outcome": "refused", "time": number, "filling": "x" * 2000}), os.geteuid())
        times = [decision["time"] for decision in decisions.read(ledger)]
    assert times == list(range(times[0], 400)), "the newest"
    status = (tmp_path / f"decisions-{os.geteuid()}.jsonl").stat()
    assert decisions.LIMIT // 3 < status.st_size <= decisions.LIMIT
    assert status.st_mode & 0o777 == 0o644


def test_only_valid_lines_of_the_owner_of_the_file_are_read(tmp_path: Path) -> None:
    good = {"outcome": "granted", "time": 5.0, "service": "old"}
    lines = [
        json.dumps(good),
        "{",
        "[]",
        '{"outcome": "granted", "time": NaN}',
        '{"outcome": "granted", "time": 1e999}',
        '"text"',
        "[" * 50000,
    ]
    (tmp_path / f"decisions-{os.geteuid()}.jsonl").write_text("\n".join(lines))
    (tmp_path / "decisions-12345.jsonl").write_text(json.dumps(good))  # not the file of 12345
    (tmp_path / "decisions-x.jsonl").symlink_to("/etc/shadow")
    with Ledger.open(tmp_path) as ledger:
        (read,) = decisions.read(ledger)
    assert read == good | {"uid": os.geteuid()}
