"""The arithmetic of a card: what is promised, what is used without a lease, what is left."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.gpu.cards import Card, Snapshot, account, unleased
from mlops_build.gpu.declared import Declared, Settings
from mlops_build.gpu.ledger import Promise
from mlops_build.gpu.neighbours import Known
from mlops_build.gpu.nvml import Process, Reading, Trouble
from mlops_build.gpu.peaks import ALL, EACH, Peak, Peaks, observe

GIB = 2**30
NOW = 1_800_000_000.0
HERE, ELSEWHERE = 4026531836, 4026539999  # pid namespaces
UUID = "GPU-a"


def reading(used: float, processes: Mapping[int, float | None] | None = None, total: float = 24, **more: Any) -> Reading:
    """Memory in GiB."""
    shown = (
        None if processes is None else tuple(Process(pid, None if size is None else round(size * GIB)) for pid, size in processes.items())
    )
    return Reading(UUID, 0, "NVIDIA L4", round(total * GIB), round(used * GIB), shown, **more)


def lease(name: str, budget: float, pid: int = 0, seen: float | None = None, namespace: int = HERE, **more: Any) -> Promise:
    """Budget and seen in GiB."""
    report = {} if seen is None else {UUID: round(seen * GIB)}
    fields = {"uuids": (UUID,), "exclusive": False, "service": name, "uid": 0, "created": NOW - 100, "loaded": seen is not None}
    return Promise(**{"id": name, "bytes": round(budget * GIB), "pid": pid, "pid_namespace": namespace, "seen": report} | fields | more)


def known(pid: int, parent: int = 1, command: str = "/usr/bin/old", **more: Any) -> Known:
    fields = {"uid": 1000, "namespace": HERE, "inner_pid": pid, "started": NOW - 1000, "cgroup": "/user.slice"}
    return Known(**{"pid": pid, "parent": parent, "command": command} | fields | more)


def card(
    one: Reading,
    *leases: Promise,
    processes: Sequence[Known] | None = None,
    peaks: Peaks | None = None,
    declared: Sequence[Declared] = (),
    reserve: int = 0,
) -> Card:
    table = None if processes is None else {process.pid: process for process in processes}
    [found] = account([one], leases, peaks=peaks or {}, declared=declared, now=NOW, reserve=reserve, processes=table, namespace=HERE)
    return found


def gib(amount: int) -> float:
    return round(amount / GIB, 3)


def test_an_empty_card() -> None:
    found = card(reading(0))
    assert (found.committed_bytes, found.left_bytes, found.headroom) == (0, 24 * GIB, 1.0)
    assert found.neighbours == found.leases == ()


def test_a_lease_that_has_not_loaded_is_counted_at_its_budget() -> None:
    found = card(reading(0), lease("a", 6), lease("b", 4))
    assert (gib(found.committed_bytes), gib(found.left_bytes)) == (10, 14)


def test_a_loaded_lease_is_not_counted_twice() -> None:
    """By the owner's report where processes are hidden, by NVML where they are not."""
    hidden = card(reading(7), lease("a", 6, seen=5))
    assert (gib(hidden.external_bytes), gib(hidden.committed_bytes)) == (2, 8)
    shown = card(reading(7, {10: 5, 20: 2}), lease("a", 6, pid=10), processes=[known(10), known(20)])
    assert (gib(shown.external_bytes), gib(shown.committed_bytes)) == (2, 8)
    assert shown.leases[0].seen == {UUID: 5 * GIB}


def test_a_loading_lease_s_memory_counts_twice_where_it_cannot_be_told_apart() -> None:
    found = card(reading(3), lease("a", 6))
    assert gib(found.committed_bytes) == 9
    # But it is not remembered as a neighbour's for a week.
    assert unleased([found]) == {UUID: {ALL: 0}}


def test_a_lease_that_outgrew_its_budget_is_counted_at_what_it_uses() -> None:
    assert gib(card(reading(9), lease("a", 6, seen=9)).committed_bytes) == 9
    assert gib(card(reading(9, {10: 9}), lease("a", 6, pid=10), processes=[known(10)]).committed_bytes) == 9


def test_a_report_of_more_than_is_used_hides_nobody() -> None:
    """It was true once; the card is the witness."""
    assert gib(card(reading(4), lease("a", 6, seen=5)).committed_bytes) == 6
    stale = card(reading(4, {10: 1, 20: 3}), lease("a", 2, pid=10, seen=4), processes=[known(10), known(20)])
    assert (gib(stale.external_bytes), gib(stale.committed_bytes)) == (3, 5)
    # The owner's processes would be shown if they had memory there.
    freed = card(reading(3, {20: 3}), lease("a", 2, pid=10, seen=2), processes=[known(20)])
    assert gib(freed.committed_bytes) == 5


def test_workers_belong_to_the_lease_of_their_parent() -> None:
    processes = [known(10), known(11, 10), known(12, 11), known(30, 1)]
    found = card(reading(6, {11: 2, 12: 2, 30: 2}), lease("a", 5, pid=10), processes=processes)
    assert (gib(found.external_bytes), gib(found.committed_bytes)) == (2, 7)
    assert [one.pid for one in found.neighbours] == [30]


def test_the_nearest_lease_of_several_generations() -> None:
    processes = [known(10), known(11, 10)]
    found = card(reading(4, {10: 1, 11: 3}), lease("outer", 2, pid=10), lease("inner", 3, pid=11), processes=processes)
    assert [gib(one.seen[UUID]) for one in found.leases] == [1, 3]


def test_two_leases_of_one_process_share_what_it_uses() -> None:
    found = card(reading(5, {10: 5}), lease("a", 4, pid=10), lease("b", 2, pid=10), processes=[known(10)])
    assert [gib(one.seen[UUID]) for one in found.leases] == [4, 1]
    assert gib(found.committed_bytes) == 6
    found = card(reading(9, {10: 9}), lease("a", 4, pid=10), lease("b", 2, pid=10), processes=[known(10)])
    assert (gib(found.committed_bytes), gib(found.external_bytes)) == (9, 0)


def test_a_container_s_lease_is_recognised_from_the_host() -> None:
    processes = [known(9000, namespace=ELSEWHERE, inner_pid=1), known(9001, 9000, namespace=ELSEWHERE, inner_pid=8)]
    found = card(reading(3, {9001: 3}), lease("pod", 4, pid=1, namespace=ELSEWHERE), processes=processes)
    assert (gib(found.external_bytes), gib(found.committed_bytes), found.neighbours) == (0, 4, ())
    # A process of the same number that is not in its namespace is a stranger.
    found = card(reading(3, {1: 3}), lease("pod", 4, pid=1, namespace=ELSEWHERE), processes=[known(1)])
    assert gib(found.committed_bytes) == 7


def test_a_pid_that_was_given_out_again_is_not_the_lease_s_owner() -> None:
    found = card(reading(3, {10: 3}), lease("a", 4, pid=10), processes=[known(10, started=NOW - 50)])
    assert gib(found.committed_bytes) == 7


def test_a_lease_on_another_card_does_not_cover_this_one() -> None:
    """A program that was given one card and hardcodes another."""
    elsewhere = replace(lease("a", 4, pid=10), uuids=("GPU-b",))
    found = card(reading(3, {10: 3}), elsewhere, processes=[known(10)])
    assert (gib(found.committed_bytes), found.leases) == (3, ())
    assert [(one.pid, one.name) for one in found.neighbours] == [(10, "a (its lease is for another card)")]


def test_memory_that_nvml_does_not_say_is_nobody_s_in_particular() -> None:
    """The owner's report is all there is; a neighbour has what is left over."""
    found = card(reading(9, {10: None, 20: None}), lease("a", 6, pid=10, seen=5), processes=[known(10), known(20)])
    assert (gib(found.external_bytes), gib(found.committed_bytes)) == (4, 10)
    assert {one.name: gib(one.used_bytes) for one in found.neighbours} == {"old": 0, "nobody that can be seen": 4}


def test_a_hostile_promise_or_report_does_not_close_the_card() -> None:
    found = card(reading(2), lease("huge", 1000), lease("a", 3))
    assert gib(found.committed_bytes) == 5
    assert gib(card(reading(4), lease("a", 2, seen=500)).committed_bytes) == 4
    # Both report more than the card has in use beside what its processes show.
    found = card(reading(4, {}), lease("a", 2, pid=10, seen=3), lease("b", 2, pid=11, seen=3), processes=[known(10), known(11)])
    assert gib(found.committed_bytes) == 5


def test_neighbours_are_named_and_counted_at_their_peak() -> None:
    peaks = {UUID: {"1000:old": Peak(6 * GIB, NOW, 0, NOW), "1000:gone": Peak(9 * GIB, NOW, 0, NOW), ALL: Peak(20 * GIB, NOW, 0, NOW)}}
    one = reading(5, {20: 1.5, 21: 0.5, 30: 2})
    processes = [known(20), known(21, 20), known(30, command="python -m ipykernel_launcher -f k.json", uid=1001)]
    found = card(one, processes=processes, peaks=peaks)
    assert [(n.name, n.uid, n.pid, gib(n.used_bytes), gib(n.counted_bytes), n.why) for n in found.neighbours] == [
        ("old", 1000, 20, 2, 6, "peak"),
        ("ipykernel_launcher", 1001, 30, 2, 2, "used"),
        ("nobody that can be seen", None, None, 1, 1, "used"),
    ]
    assert (gib(found.external_bytes), gib(found.external_counted_bytes), gib(found.committed_bytes)) == (5, 9, 9)
    # Where processes are hidden, who is gone cannot be known: the whole card's peak counts.
    hidden = card(reading(5), peaks=peaks)
    assert (gib(hidden.external_counted_bytes), hidden.neighbours[0].why) == (20, "peak")


def test_notebooks_that_are_closed_do_not_count() -> None:
    """Ten of one user had 30 GiB together; one of them is left."""

    def notebooks(*sizes: float) -> tuple[Reading, list[Known]]:
        pids = range(20, 20 + len(sizes))
        return reading(sum(sizes), dict(zip(pids, sizes, strict=True)), 80), [known(pid, command="ipykernel") for pid in pids]

    def looked(peaks: Peaks, *sizes: float) -> tuple[Card, Peaks]:
        nonlocal now
        one, processes = notebooks(*sizes)
        found = card(one, processes=processes, peaks=peaks)
        now += 10
        return found, observe(peaks, unleased([found]), now)

    now = NOW - 100
    peaks: Peaks = {}
    for sizes in ([3.0] * 10, [3.0] * 10, [1.0]):
        found, peaks = looked(peaks, *sizes)
    assert gib(found.committed_bytes) == pytest.approx(3, abs=0.1)
    # One large and nine small ones: not ten times the large one.
    peaks = {}
    for sizes in ([12.0, *[1.0] * 9], [12.0, *[1.0] * 9], [1.0] * 10):
        found, peaks = looked(peaks, *sizes)
    assert gib(found.committed_bytes) == pytest.approx(21, abs=0.1)


@pytest.mark.parametrize(("used", "counted"), [(2, 6), (6, 6), (8, 8)])
def test_a_declaration_counts_instead_of_a_peak_but_not_instead_of_what_is_used(used: float, counted: float) -> None:
    peaks = {UUID: {"1000:old": Peak(20 * GIB, NOW, 0, NOW)}}
    found = card(
        reading(used, {20: used / 2, 21: used / 2}),
        processes=[known(20), known(21, command="/usr/bin/other")],
        peaks=peaks,
        declared=[Declared("billing", 6 * GIB, uid=1000), Declared("late", 20 * GIB, command="*old*")],
    )
    assert [(one.name, gib(one.counted_bytes), one.why) for one in found.neighbours] == [("billing", counted, "declared")]
    assert gib(found.committed_bytes) == counted


def test_a_declaration_fits_by_everything_it_says() -> None:
    one, processes = reading(2, {20: 2}), [known(20, cgroup="/system.slice/billing.service", command="python score.py")]
    for declared, fits in (
        (Declared("d", 6 * GIB, cgroup="/system.slice/billing*"), True),
        (Declared("d", 6 * GIB, cgroup="billing*"), False),
        (Declared("d", 6 * GIB, command="*score.py*"), True),
        (Declared("d", 6 * GIB, uid=1000, command="*train.py*"), False),
        (Declared("d", 6 * GIB, uid=0), False),
    ):
        assert gib(card(one, processes=processes, declared=[declared]).committed_bytes) == (6 if fits else 2)


def test_a_reserve_is_kept_on_each_card() -> None:
    assert gib(card(reading(2), reserve=GIB).left_bytes) == 21


def test_nothing_is_left_on_a_card_in_trouble() -> None:
    found = card(Reading(UUID, 0, "unknown", trouble=Trouble.LOST), lease("a", 4))
    assert (found.left_bytes, found.headroom, gib(found.committed_bytes)) == (0, 0.0, 4)
    assert card(reading(2, trouble=Trouble.MIG_PARENT)).left_bytes == 0
    assert card(Reading(UUID, 0, "NVIDIA GB10")).headroom == 0.0


def test_compute_instances_of_one_gpu_instance_share_its_memory() -> None:
    parts = [
        Reading(
            f"MIG-{n}", 0, "MIG", 20 * GIB, 3 * GIB, (Process(10, 3 * GIB),) if n == 0 else (), mig_parent="GPU-a", mig_instance=(place, n)
        )
        for n, place in ((0, 1), (1, 1), (2, 2))
    ]
    leases = [replace(lease("a", 5, pid=10), uuids=("MIG-0",)), replace(lease("b", 4), uuids=("MIG-1",))]
    found = account(parts, leases, peaks={}, declared=(), now=NOW, processes={10: known(10)}, namespace=HERE)
    assert [gib(one.committed_bytes) for one in found] == [9, 9, 3]


# What is true on a card, and what of it can be seen.
amounts = st.integers(0, 12 * 8).map(lambda eighths: eighths / 8)
truths = st.fixed_dictionaries(
    {
        # (budget, used of it in eighths of the budget, how: not reported, reported in part, reported)
        "leases": st.lists(st.tuples(st.integers(1, 12), st.integers(0, 8), st.sampled_from([None, 0.5, 1])), max_size=5),
        "strangers": st.lists(amounts, max_size=4),
        "nobody": amounts,
        "sees": st.sampled_from(["processes", "processes of some namespaces", "no memory", "hidden", "nothing"]),
    }
)


def see(truth: dict[str, Any], peaks: Peaks | None = None) -> tuple[Card, float]:
    """The card as accounted for, and what really is used without a lease (GiB)."""
    leases, processes, table = [], {}, []
    for number, (budget, eighths, reported) in enumerate(truth["leases"], 100):
        used = budget * eighths / 8
        elsewhere = truth["sees"] == "processes of some namespaces" and number % 2
        leases.append(lease(str(number), budget, number, None if reported is None else used * reported, ELSEWHERE if elsewhere else HERE))
        processes[number] = used
        table.append(known(number, namespace=None if elsewhere else HERE))
    for number, used in enumerate(truth["strangers"], 200):
        processes[number] = used
        table.append(known(number, command=f"/usr/bin/{number}"))
    total = sum(processes.values()) + truth["nobody"]
    shown: Mapping[int, float | None] | None = {pid: used for pid, used in processes.items() if used}
    if truth["sees"] == "no memory":
        shown = dict.fromkeys(shown, None)
    elif truth["sees"] == "hidden":
        shown = {}
    elif truth["sees"] == "nothing":
        shown = None
    found = card(reading(total, shown, total=500), *leases, processes=table, peaks=peaks)
    return found, sum(truth["strangers"]) + truth["nobody"]


@given(truths)
def test_what_is_promised_or_used_is_never_counted_less_than_once(truth: dict[str, Any]) -> None:
    """The invariant on which Σ promised ≤ capacity rests, whatever can be seen of the truth."""
    found, external = see(truth)
    assert gib(found.committed_bytes) >= external + sum(budget for budget, _, _ in truth["leases"])
    assert found.committed_bytes >= (found.used_bytes or 0)
    assert 0 <= found.external_bytes <= found.external_counted_bytes
    if truth["sees"] == "processes":
        assert gib(found.committed_bytes) == external + sum(budget for budget, _, _ in truth["leases"])
        assert gib(found.external_bytes) == external


@given(truths)
def test_what_is_remembered_as_a_neighbour_s_is_no_lease_s(truth: dict[str, Any]) -> None:
    found, external = see(truth)
    seen = unleased([found])[UUID]
    assert gib(seen[ALL]) <= external
    if truth["sees"] != "processes of some namespaces":
        assert sum(used for key, used in seen.items() if key != ALL and not key.endswith(EACH)) <= external * GIB


@given(truths, truths)
def test_peaks_only_add(truth: dict[str, Any], before: dict[str, Any]) -> None:
    earlier = unleased([see(before)[0]])
    peaks = observe(observe({}, earlier, NOW - 20), earlier, NOW - 10)
    without, _ = see(truth)
    found, _ = see(truth, peaks)
    assert found.committed_bytes >= without.committed_bytes
    assert found.external_bytes == without.external_bytes


@given(truths, st.lists(st.integers(1, 40), max_size=20))
def test_leases_that_fit_never_promise_more_than_there_is(truth: dict[str, Any], wishes: list[int]) -> None:
    found, external = see(truth)
    found = replace(found, total_bytes=60 * GIB)
    made: list[Promise] = list(found.leases)
    room = max(60.0, external + sum(lease.bytes for lease in made) / GIB)
    for number, wish in enumerate(wishes):
        if wish * GIB <= found.left_bytes:
            made.append(lease(f"new{number}", wish))
            one = Reading(**{name: getattr(found, name) for name in Reading.__slots__})
            [found] = account([one], made, peaks={}, declared=(), now=NOW, processes=None, namespace=HERE)
        assert external + sum(lease.bytes for lease in made) / GIB <= room


def test_promises_that_are_newer_than_the_readings_are_counted_twice_rather_than_not_at_all() -> None:
    """Between the look at NVML and the lock, others lease, load, report and go."""
    old = lease("old", 4, seen=2)
    before = Snapshot([reading(12)], {old.id: old}, None, {}, Settings(), NOW, 0.0)

    def committed(*promises: Promise) -> float:
        (found,) = before.cards(promises)
        return gib(found.committed_bytes)

    assert committed(old) == 10 + 4
    assert committed(lease("old", 4, seen=4)) == 10 + 4, "what it reported since is not in the reading: 10 GiB stay a neighbour's"
    assert committed(old, lease("new", 3, seen=3)) == 10 + 4 + 3
    assert committed() == 12, "it may have gone without its memory being free yet"
