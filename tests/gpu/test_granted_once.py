"""Memory is never granted twice: 100 processes at once, with delays at every file operation and driver call, kills, and a held lock.

The processes write down when they have a lease and when they give it up (crowd.py). At no time may the budgets on a card, and the memory
in use without a lease, exceed the card. SOAK_ROUNDS sets the number of rounds of the long test (default 1000).
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mlops_build.gpu import testing
from tests.gpu.nodes import GIB, PATIENCE, ROOT

SOAK_ROUNDS = int(os.environ.get("SOAK_ROUNDS", "1000"))
AT_ONCE = 5  # rounds; they mostly wait
CARD = 24 * GIB
LAST = 10_000  # the number of the process that requests a whole card
EXTERNAL = (0, 5 * GIB, 0, 11 * GIB)  # on each card, by processes without a lease
NVML_DELAYS = (0, 0, 5, 20)  # ms, of each call about a card


@dataclass
class Outcome:
    """What happened in a round. violations: of the invariants; empty is what must be. warnings: what the processes wrote to stderr."""

    seed: int
    violations: list[str] = field(default_factory=list)
    granted: list[int] = field(default_factory=list)  # the processes
    refused: int = 0
    seconds: float = 0.0
    warnings: str = ""


class Round:
    """A node on which crowds run, and their log."""

    def __init__(self, node: testing.Node, dice: random.Random, seed: int, *, slow: bool) -> None:
        self.node, self.seed = node, seed
        self.environment = {**os.environ, **node.view(hide_pids=dice.random() < 0.3), "PYTHONSAFEPATH": "1"}
        self.log = node.directory / "log"
        self.errors = (node.directory / "stderr").open("w+")
        if slow:
            node.fault(None, "*", delay_ms=dice.choice(NVML_DELAYS))

    def start(self, package: Path, members: int, first: int, *, stalls: bool = False, whole: int = 0) -> "subprocess.Popen[bytes]":
        """Start a crowd that imports mlops_build from the folder `package`."""
        order = {"seed": self.seed + first, "members": members, "first": first, "seconds": PATIENCE, "cards": len(self.node.cards)}
        return subprocess.Popen(
            [sys.executable, "-m", "tests.gpu.crowd", json.dumps({**order, "stalls": stalls, "whole": whole}), str(self.log)],
            env={**self.environment, "PYTHONPATH": f"{package}{os.pathsep}{ROOT}"},
            stderr=self.errors,
        )

    def wait(self, *crowds: "subprocess.Popen[bytes]") -> None:
        for crowd in crowds:
            assert crowd.wait(3 * PATIENCE) == 0, self.warnings()

    def warnings(self) -> str:
        self.errors.seek(0)
        return self.errors.read()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def round_of(seed: int, members: int = 100, *, stalls: bool = True, packages: Sequence[Path] = (ROOT,)) -> Outcome:
    """Run one round on a node of its own: a crowd for each package at once, and at the end a request for a whole card.

    stalls: whether calls of the driver are slow, and some operations take longer than the lock is waited for.
    """
    dice = random.Random(seed)  # noqa: S311
    external = EXTERNAL[: dice.randint(2, 4)]
    cards = [testing.SimulatedCard(total=CARD, used=used) for used in external]
    with tempfile.TemporaryDirectory(prefix="mlops-gpu-") as folder, testing.Node(cards, directory=folder) as node:
        play = Round(node, dice, seed, slow=stalls)
        with play.errors:
            play.wait(*[play.start(package, members, number * members, stalls=stalls) for number, package in enumerate(packages)])
            node.restore()  # on a busy machine a slow call can count as a card that does not answer
            play.wait(play.start(packages[-1], 1, LAST, whole=CARD))
            used = {str(card.uuid): size for card, size in zip(node.cards, external, strict=True)}
            return judge(Outcome(seed, warnings=play.warnings()), play.events(), used)


def judge(outcome: Outcome, events: Sequence[dict[str, Any]], external: dict[str, int]) -> Outcome:
    """Replay the events in the order of their times. external: bytes in use without a lease, by UUID."""
    events = sorted(events, key=lambda event: float(event["at"]))
    held: dict[int, dict[str, Any]] = {}  # the grants that have not ended, by process
    ended: set[int] = set()
    for event in events:
        number, kind = int(event["number"]), event["event"]
        if kind in ("failed", "hangs", "out of memory"):
            outcome.violations.append(f"process {number}: {event}")
        if kind in ("ending", "killed"):
            ended.add(number)
            held.pop(number, None)
        elif kind == "refused":
            outcome.refused += 1
        elif kind == "granted" and number not in ended:
            outcome.granted.append(number)
            held[number] = event
            outcome.violations += [broken for uuid in event["cards"] if (broken := over_promised(uuid, held, external[uuid]))]
    if not any(event["number"] == LAST and event["event"] == "granted" for event in events):
        outcome.violations.append(f"a whole card is not granted after all have ended: {events[-1]}")
    outcome.seconds = float(events[-1]["at"]) - float(events[0]["at"])
    return outcome


def over_promised(uuid: str, held: dict[int, dict[str, Any]], external: int) -> str:
    here = {number: event for number, event in held.items() if uuid in event["cards"]}
    budgets = {number: event["bytes"] / GIB for number, event in here.items()}
    if sum(budgets.values()) + external / GIB > CARD / GIB:
        return f"{uuid}: GiB by process {budgets}, and {external / GIB:g} without a lease, exceed {CARD / GIB:g}"
    if len(here) > 1 and any(event["exclusive"] for event in here.values()):
        return f"{uuid}: an exclusive lease is not alone: {budgets}"
    return ""


def rounds(seeds: Sequence[int], members: int = 100, *, stalls: bool = True) -> list[Outcome]:
    testing.libraries()  # built once
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda seed: round_of(seed, members, stalls=stalls), seeds))


def violations(outcomes: Sequence[Outcome]) -> str:
    """The rounds with violations, for a message; empty without."""
    bad = [outcome for outcome in outcomes if outcome.violations]
    return "\n".join(f"round {outcome.seed}: {' | '.join(outcome.violations[:3])}" for outcome in bad)


@pytest.mark.usefixtures("simulation")
def test_thirty_processes() -> None:
    outcomes = rounds([1], 30, stalls=False)
    assert violations(outcomes) == ""
    assert all(len(outcome.granted) > 1 for outcome in outcomes)


@pytest.mark.soak
@pytest.mark.usefixtures("simulation")
def test_a_hundred_processes_in_many_rounds() -> None:
    outcomes = rounds(range(1000, 1000 + SOAK_ROUNDS))
    assert violations(outcomes) == ""
