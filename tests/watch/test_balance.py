"""Well and badly placed nodes: the same result in Prometheus, its alerts, Graphite and Zabbix."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mlops_build.gpu.cards import Card
from mlops_build.gpu.cards import Snapshot as Readings
from mlops_build.gpu.choice import Request, choose
from mlops_build.gpu.declared import Declared, Settings
from mlops_build.gpu.neighbours import Known
from mlops_build.gpu.nvml import DriverTrouble, Process, Reading, Trouble
from mlops_build.gpu.promise import Promise
from mlops_build.watch import graphite, shipped, zabbix
from mlops_build.watch.balance import LIMIT_SHARE, movable_leases, movable_processes
from mlops_build.watch.metrics import samples
from mlops_build.watch.node import Snapshot
from tests.watch.test_files import promtool

GIB = 2**30
NOW = 1_800_000_000.0


@dataclass(frozen=True)
class On:
    """A card of 24 GiB: leases as (service, GiB), processes without a lease as (command, GiB)."""

    leases: Sequence[tuple[str, float]] = ()
    processes: Sequence[tuple[str, float]] | None = ()
    total: float = 24
    exclusive: bool = False
    over: float = 0  # GiB that each lease uses beyond its budget
    count: int = 1  # cards of each lease; the others are the next ones
    mig: tuple[str, int, int] | None = None  # parent, GPU instance, compute instance
    trouble: Trouble | None = None


def node(*places: On, declared: Sequence[Declared] = (), cgroup: str = "/user.slice", visible: bool = True) -> tuple[Card, ...]:
    readings, promises, known = [], [], {}
    uuids = [f"GPU-{index}" for index in range(len(places))]
    for index, place in enumerate(places):
        processes = []
        for number, (service, size) in enumerate(place.leases):
            pid = 1000 * (index + 1) + number
            processes.append(Process(pid, round((size + place.over) * GIB)))
            known[pid] = Known(pid, 1, 0, (1, pid), NOW - 900)
            names: dict[str, Any] = {"id": f"{pid}", "service": service, "pid": pid, "pid_namespace": 1, "uid": 0, "created": NOW - 800}
            cards = tuple(uuids[index : index + place.count])
            promises.append(Promise(uuids=cards, bytes=round(size * GIB), exclusive=place.exclusive, loaded=True, **names))
        for number, (command, size) in enumerate(place.processes or ()):
            pid = 1000 * (index + 1) + 500 + number
            processes.append(Process(pid, round(size * GIB)))
            known[pid] = Known(pid, 1, 1000, (1, pid), NOW, command, cgroup.replace("ID", f"{pid:064x}"))
        used = sum(process.used_bytes or 0 for process in processes)
        parent, instance = (place.mig[0], place.mig[1:]) if place.mig else (None, None)
        readings.append(
            Reading(
                uuids[index],
                index,
                "NVIDIA L4",
                round(place.total * GIB),
                used,
                tuple(processes),
                place.trouble,
                mig_parent=parent,
                mig_instance=instance,
            )
        )
    if not visible:
        readings = [replace(reading, processes=None) for reading in readings]
    return tuple(Readings(readings, promises, known if visible else None, 1, {}, Settings(tuple(declared)), NOW).cards())


EMPTY = On()
PAIR = On([("digits", 11), ("faces", 12)])
CUDA_0 = On(processes=[("python train.py", 2.875)] * 8)

# name, cards, what could move by card: services or programs with GiB
CASES: list[tuple[str, tuple[Card, ...], dict[int, dict[str, float]], dict[int, dict[str, float]]]] = [
    ("five models of 14 GiB on eight cards", node(*[On([(f"model{n}", 14)]) for n in range(5)], EMPTY, EMPTY, EMPTY), {}, {}),
    ("two leases fill a card, and its neighbour is empty", node(PAIR, EMPTY), {0: {"digits": 11, "faces": 12}}, {}),
    ("the same on card 1", node(EMPTY, PAIR), {1: {"digits": 11, "faces": 12}}, {}),
    ("only the smaller lease fits", node(PAIR, On([("other", 10)])), {0: {"digits": 11}}, {}),
    ("a single card", node(PAIR), {}, {}),
    ("every card is full", node(PAIR, PAIR, PAIR), {}, {}),
    ("the other card would be full instead", node(PAIR, On([("other", 12)])), {}, {}),
    ("one large model for each card", node(On([("large", 22)]), On([("large", 23)]), EMPTY), {}, {}),
    ("a lease that does not fit on a smaller card", node(PAIR, On(total=12)), {}, {}),
    ("two leases of a service", node(On([("digits", 11), ("digits", 11)]), EMPTY), {0: {"digits": 11}}, {}),
    ("a lease uses more than its budget", node(On([("digits", 10), ("faces", 10)], over=2), EMPTY), {0: {"digits": 12, "faces": 12}}, {}),
    ("the other card has failed", node(PAIR, replace(EMPTY, trouble=Trouble.LOST)), {}, {}),
    ("the full card has failed", node(replace(PAIR, trouble=Trouble.LOST), EMPTY), {}, {}),
    ("the other card is exclusive to a service", node(PAIR, On([("alone", 2)], exclusive=True)), {}, {}),
    (
        "an exclusive lease moves only to an unused card",
        node(On([("alone", 4)], [("python a.py", 19)], exclusive=True), On([("small", 1)])),
        {},
        {0: {"a.py": 19}},
    ),
    (
        "an exclusive lease moves to an unused card",
        node(On([("alone", 4)], [("python a.py", 19)], exclusive=True), EMPTY),
        {0: {"alone": 4}},
        {0: {"a.py": 19}},
    ),
    ("a lease of two cards has no third one", node(On([("both", 22)], count=2), EMPTY), {}, {}),
    (
        "a lease of two cards has a third one",
        node(On([("both", 14), ("one", 9)], count=1), On([("wide", 8)], count=2), EMPTY, EMPTY),
        {0: {"both": 14, "one": 9}},
        {},
    ),
    (
        "an instance has the leases of its memory, and the next instance is other memory",
        node(
            On([("digits", 4), ("faces", 5.5)], total=10, mig=("GPU-p", 1, 0)),
            On(total=10, mig=("GPU-p", 1, 1)),
            On(total=10, mig=("GPU-p", 2, 0)),
        ),
        {0: {"digits": 4, "faces": 5.5}, 1: {"digits": 4, "faces": 5.5}},
        {},
    ),
    (
        "compute instances of the same memory",
        node(On([("digits", 4), ("faces", 5.5)], total=10, mig=("GPU-p", 1, 0)), On(total=10, mig=("GPU-p", 1, 1))),
        {},
        {},
    ),
    ("programs that hardcode cuda:0", node(CUDA_0, *[EMPTY] * 7), {}, {0: {"train.py": 2.875}}),
    ("the same in every card", node(CUDA_0, CUDA_0), {}, {}),
    ("one process fills a card, which is as good as any other", node(On(processes=[("python train.py", 22)]), EMPTY), {}, {}),
    (
        "a process without a lease beside a lease",
        node(On([("digits", 8)], [("python train.py", 15)]), EMPTY),
        {0: {"digits": 8}},
        {0: {"train.py": 15}},
    ),
    ("a display beside a large model", node(On([("large", 22)], [("/usr/bin/Xorg", 0.3)]), EMPTY), {}, {}),
    (
        "declared processes",
        node(CUDA_0, EMPTY, declared=[Declared("batch", 23 * GIB, command="*train.py*")]),
        {},
        {},
    ),
    (
        "processes that cannot be seen",
        node(CUDA_0, EMPTY, visible=False),
        {},
        {0: {"others (their processes cannot be seen from here)": 23}},
    ),
]


def in_bytes(expected: dict[int, dict[str, float]]) -> dict[int, dict[str, int]]:
    return {index: {name: round(size * GIB) for name, size in sizes.items()} for index, sizes in expected.items()}


@pytest.mark.parametrize(("cards", "leases", "processes"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_what_could_move_is_the_same_everywhere(
    cards: tuple[Card, ...], leases: dict[int, dict[str, float]], processes: dict[int, dict[str, float]]
) -> None:
    snapshot = Snapshot(NOW, cards, ledger=True)
    sent = dict(line.split()[:2] for line in graphite.lines(snapshot, "n"))
    document = json.loads(zabbix.get(snapshot, "node"))
    for kind, find, expected in (
        ("lease", movable_leases, in_bytes(leases)),
        ("external", movable_processes, in_bytes(processes)),
    ):
        sizes = {index: movable for index, card in enumerate(cards) if (movable := find(card, cards))}
        assert sizes == expected
        name = f"movable_{kind}_bytes"
        exported = {sample.labels["uuid"]: sample.value for sample in samples(snapshot) if sample.metric.name == f"mlops_gpu_{name}"}
        for index, card in enumerate(cards):
            value = max(expected.get(index, {}).values(), default=0)
            if card.trouble is not None:
                assert card.uuid not in exported
                continue
            assert exported[card.uuid] == value
            assert sent[f"n.card.{card.uuid}.{name}"] == str(value)
            assert zabbix.get(snapshot, f"movable.{kind}[{card.uuid}]") == str(value)
        assert document[f"movable_{kind}"] == max((size for of_card in expected.values() for size in of_card.values()), default=0)
        why = document[f"movable_{kind}_why"]
        assert all(f"{holder} on card {index} (" in why for index, of_card in expected.items() for holder in of_card)
        assert bool(why) == bool(expected)


@given(st.lists(st.lists(st.integers(1, 23), max_size=6), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_who_follows_the_alert_makes_it_end(sizes: list[list[int]]) -> None:
    """Each restarted service chooses another card, which is not near its limit then."""
    placed = [[size for number, size in enumerate(card) if sum(card[: number + 1]) <= 24] for card in sizes]
    for _ in range(sum(map(len, placed)) + 1):
        cards = node(*[On([(f"{size}", size) for size in card]) for card in placed])
        moves = [(index, size) for index, card in enumerate(cards) for size in map(int, movable_leases(card, cards))]
        if not moves:
            return
        index, size = moves[0]
        placed[index].remove(size)
        cards = node(*[On([(f"{size}", size) for size in card]) for card in placed])
        [chosen] = choose(cards, Request(size * GIB), 0).uuids
        target = next(number for number, card in enumerate(cards) if card.uuid == chosen)
        assert target != index
        placed[target].append(size)
        assert sum(placed[target]) <= 24 * (1 - LIMIT_SHARE)
    raise AssertionError(f"services move for ever: {sizes}")


def test_the_mask_of_the_exporter_hides_no_room() -> None:
    full, empty = node(PAIR, EMPTY)
    assert movable_leases(full, [full, replace(empty, visible=False)])


def test_without_a_driver_nothing_is_known_about_leases() -> None:
    assert "movable_lease" not in zabbix.document(Snapshot(NOW, driver=DriverTrouble.SLOW, why="it hangs"))


# -- Prometheus' alerts, from the exported samples --


@pytest.mark.slow
def test_the_alerts_fire_on_badly_placed_nodes_only(tmp_path: Path) -> None:
    """The texts are tested in rules_test.yaml."""
    rules = YAML(typ="safe").load(shipped.read("prometheus-rules.yaml"))
    for rule in (rule for group in rules["groups"] for rule in group["rules"]):
        rule.pop("annotations", None)
    (tmp_path / "rules.yaml").write_text(json.dumps(rules))
    tests = {"rule_files": [str(tmp_path / "rules.yaml")], "evaluation_interval": "1m", "tests": [scenario(*case) for case in CASES]}
    (tmp_path / "test.yaml").write_text(json.dumps(tests))
    promtool("test", "rules", tmp_path / "test.yaml")


def scenario(
    name: str, cards: tuple[Card, ...], leases: dict[int, dict[str, float]], processes: dict[int, dict[str, float]]
) -> dict[str, Any]:
    """A test for promtool: half an hour on this node."""
    series = []
    for sample in samples(Snapshot(NOW, cards, ledger=True)):
        labels = ",".join(f"{label}={json.dumps(value)}" for label, value in {"instance": "gpu-1", **sample.labels}.items())
        series.append({"series": f"{sample.metric.name}{{{labels}}}", "values": f"{sample.value}x30"})
    checks = []
    for alert, expected in (("GpuImbalance", leases), ("GpuFilledWithoutLease", processes)):
        firing = [
            {"exp_labels": {"severity": "warning", "instance": "gpu-1", "index": f"{index}", "uuid": f"GPU-{index}", "name": "NVIDIA L4"}}
            for index in expected
        ]
        checks += [
            {"eval_time": "10m", "alertname": alert, "exp_alerts": []},
            {"eval_time": "20m", "alertname": alert, "exp_alerts": firing},
        ]
    return {"name": name, "interval": "1m", "input_series": series, "alert_rule_test": checks}


# -- labels --


@pytest.mark.parametrize(
    "cgroup",
    [
        "/system.slice/docker-ID.scope",
        "/kubepods/burstable/pod0123abcd-89ab-4cde-8f01-23456789abcd/ID",
        "/kubepods.slice/kubepods-pod0123abcd_89ab_4cde_8f01_23456789abcd.slice/cri-containerd-ID.scope",
        "/system.slice/run-u17.service",
    ],
)
def test_a_restart_begins_no_time_series(cgroup: str) -> None:
    """Two containers of a program are one time series, and so are those of yesterday."""
    [card] = node(On(processes=[("python train.py", 3), ("python train.py", 4)]), cgroup=cgroup)
    snapshot = Snapshot(NOW, (card,), ledger=True)
    labels = {tuple(sample.labels.values()): sample.value for sample in samples(snapshot) if "neighbour" in sample.labels}
    assert labels == {("0", "GPU-0", "train.py"): 7 * GIB}
    assert f"n.card.GPU-0.neighbour.train_py.used_bytes {7 * GIB} {NOW:.0f}\n" in list(graphite.lines(snapshot, "n"))


def test_people_see_the_container() -> None:
    [card] = node(On(processes=[("python train.py", 3)]), cgroup="/system.slice/docker-ID.scope")
    assert card.neighbours[0].name.startswith("train.py (container ")
