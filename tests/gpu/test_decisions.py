"""Decisions: recorded by real leases, read, followed, replayed; and hostile files."""

import json
import os
from pathlib import Path

import pytest

from mlops_build.gpu import decisions
from mlops_build.gpu.ledger import Ledger

ASK = """
import sys
from mlops_build import gpu
for memory in sys.argv[1:]:
    try: gpu.lease(memory, service=f"asks {memory}").release()
    except gpu.NoRoom: pass
"""


def test_every_decision_is_recorded_with_its_inputs(node, run_python) -> None:
    machine = node("8GiB", "4GiB")
    run_python(ASK, machine.environment, "1GiB", "6GiB", "9GiB")
    with Ledger.open(machine.directory / "leases") as ledger:
        read = decisions.read(ledger)
        assert [(decision["outcome"], decision["service"], decision["uid"]) for decision in read] == [
            ("granted", "asks 1GiB", os.geteuid()),
            ("granted", "asks 6GiB", os.geteuid()),
            ("refused", "asks 9GiB", os.geteuid()),
        ]
        assert {"used_bytes", "external_counted_bytes", "committed_bytes", "left_bytes"} <= read[0]["cards"][0].keys()
        assert decisions.read(ledger, 2) == read[1:]
        assert decisions.read(ledger, 0) == []
        for line in (ledger.path / f"decisions-{os.geteuid()}.jsonl").read_text().splitlines():
            again = decisions.replay(line)
            assert (list(again.uuids), again.refused) == (json.loads(line)["chosen"], json.loads(line)["refused"])


def test_a_follower_returns_each_decision_once(node, run_python) -> None:
    machine = node("8GiB")
    run_python(ASK, machine.environment, "1GiB")
    with Ledger.open(machine.directory / "leases") as ledger:
        follower = decisions.follow(ledger)
        assert follower.new() == []
        run_python(ASK, machine.environment, "2GiB", "9GiB")
        assert [decision["outcome"] for decision in follower.new()] == ["granted", "refused"]
        assert follower.new() == []


def test_a_follower_handles_a_shortened_file_and_equal_times(tmp_path: Path) -> None:
    with Ledger.open(tmp_path) as ledger:
        follower = decisions.follow(ledger)
        counted = 0
        for number in range(40):
            for _ in range(10):
                line = json.dumps({"outcome": "refused", "time": float(number // 3), "filling": "x" * 2000})
                decisions.record(ledger, line, os.geteuid())
            counted += len(follower.new())
        size = (tmp_path / f"decisions-{os.geteuid()}.jsonl").stat().st_size
    assert size <= decisions.LIMIT
    assert counted == 400


@pytest.mark.parametrize(
    "line",
    ["", "{", "[]", "5", "null", '{"request": {}}', "[" * 100000, '{"request": {"strategy": ["x"]}, "cards": []}'],
)
def test_an_invalid_line_cannot_be_replayed(line: str) -> None:
    with pytest.raises(decisions.NotReplayable):
        decisions.replay(line)


def test_a_decision_of_a_custom_strategy_is_replayed_with_it() -> None:
    line = json.dumps(
        {
            "request": {
                "bytes": 1,
                "count": 1,
                "exclusive": False,
                "strategy": "mine:last",
                "names": [],
                "uuids": [],
                "max_utilisation": None,
                "min_compute_capability": None,
            },
            "cards": [],
            "seed": 1,
        }
    )
    with pytest.raises(decisions.NotReplayable, match="mine:last"):
        decisions.replay(line)
    assert decisions.replay(line, {"mine:last": lambda cards, *_: cards}).uuids == ()


def test_lines_of_other_users_are_printable_and_only_their_own(tmp_path: Path) -> None:
    good = {"outcome": "granted", "time": 5.0, "service": "evil\x1b[2J", "deep": [[[[[[[[[[[[1]]]]]]]]]]]], "\n": "x" * 9999}
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
    assert read["service"] == "evil?[2J"
    assert len(read["?"]) == 300
    assert "[[[" in str(read["deep"])
