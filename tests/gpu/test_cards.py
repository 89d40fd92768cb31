"""The accounting of a card: promised memory, use without a lease, memory left."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.gpu.cards import Card, Snapshot, unleased
from mlops_build.gpu.declared import Declared, Settings
from mlops_build.gpu.neighbours import Known
from mlops_build.gpu.nvml import Process, Reading, Trouble
from mlops_build.gpu.peaks import ALL, EACH, Peak, Peaks, observe
from mlops_build.gpu.promise import Promise

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
    """Budget and observed memory in GiB."""
    report = {} if seen is None else {UUID: round(seen * GIB)}
    fields = {
        "uuids": (UUID,),
        "exclusive": False,
        "service": name,
        "uid": 0,
        "created": NOW - 100,
        "boot": 900.0,
        "loaded": seen is not None,
    }
    return Promise(**{"id": name, "bytes": round(budget * GIB), "pid": pid, "pid_namespace": namespace, "seen": report} | fields | more)


def known(pid: int, parent: int = 1, command: str = "/usr/bin/old", **more: Any) -> Known:
    fields = {"uid": 1000, "place": (HERE, pid), "started": 10.0, "cgroup": "/user.slice"}
    return Known(**{"pid": pid, "parent": parent, "command": command} | fields | more)


def card(
    card_reading: Reading,
    *leases: Promise,
    processes: Sequence[Known] | None = None,
    peaks: Peaks | None = None,
    declared: Sequence[Declared] = (),
    reserve: int = 0,
) -> Card:
    table = None if processes is None else {process.pid: process for process in processes}
    settings = Settings(tuple(declared), reserve_bytes=reserve)
    [accounted] = Snapshot([card_reading], leases, table, HERE, peaks or {}, settings, NOW).cards()
    return accounted


def gib(amount: int) -> float:
    return round(amount / GIB, 3)


def test_a_lease_that_has_not_loaded_is_counted_at_its_budget() -> None:
    empty = card(reading(0))
    assert (empty.committed_bytes, empty.left_bytes, empty.headroom) == (0, 24 * GIB, 1.0)
    assert empty.neighbours == empty.leases == ()
    accounted = card(reading(0), lease("a", 6), lease("b", 4))
    assert (gib(accounted.committed_bytes), gib(accounted.left_bytes)) == (10, 14)
    assert gib(card(reading(2), reserve=GIB).left_bytes) == 21, "a reserve is kept on each card"


def test_a_loaded_lease_is_not_counted_twice() -> None:
    """With the owner's report if processes are hidden, with NVML if they are visible."""
    hidden = card(reading(7), lease("a", 6, seen=5))
    assert (gib(hidden.external_bytes), gib(hidden.committed_bytes)) == (2, 8)
    shown = card(reading(7, {10: 5, 20: 2}), lease("a", 6, pid=10), processes=[known(10), known(20)])
    assert (gib(shown.external_bytes), gib(shown.committed_bytes)) == (2, 8)
    assert shown.leases[0].seen == {UUID: 5 * GIB}


def test_the_memory_of_a_loading_lease_counts_twice_if_it_cannot_be_attributed() -> None:
    accounted = card(reading(3), lease("a", 6))
    assert gib(accounted.committed_bytes) == 9
    # But it is not stored as a neighbour's peak.
    assert unleased([accounted]) == {UUID: {ALL: 0}}


def test_a_lease_above_its_budget_counts_with_its_use() -> None:
    assert gib(card(reading(9), lease("a", 6, seen=9)).committed_bytes) == 9
    assert gib(card(reading(9, {10: 9}), lease("a", 6, pid=10), processes=[known(10)]).committed_bytes) == 9


def test_a_report_above_the_use_of_the_card_hides_no_neighbour() -> None:
    """An outdated report; the card's own reading counts."""
    assert gib(card(reading(4), lease("a", 6, seen=5)).committed_bytes) == 6
    stale = card(reading(4, {10: 1, 20: 3}), lease("a", 2, pid=10, seen=4), processes=[known(10), known(20)])
    assert (gib(stale.external_bytes), gib(stale.committed_bytes)) == (3, 5)
    # NVML would show the owner's processes if they used memory there.
    freed = card(reading(3, {20: 3}), lease("a", 2, pid=10, seen=2), processes=[known(20)])
    assert gib(freed.committed_bytes) == 5


def test_workers_belong_to_the_nearest_lease_of_their_ancestors() -> None:
    processes = [known(10), known(11, 10), known(12, 11), known(30, 1)]
    accounted = card(reading(6, {11: 2, 12: 2, 30: 2}), lease("a", 5, pid=10), processes=processes)
    assert (gib(accounted.external_bytes), gib(accounted.committed_bytes)) == (2, 7)
    assert [neighbour.pid for neighbour in accounted.neighbours] == [30]
    accounted = card(reading(4, {10: 1, 11: 3}), lease("outer", 2, pid=10), lease("inner", 3, pid=11), processes=processes)
    assert [gib(promise.seen[UUID]) for promise in accounted.leases] == [1, 3]


def test_the_newest_lease_of_a_pid_owns_its_process() -> None:
    """The owner of the older one has ended, a descendant keeps it alive, and its pid is in use again."""
    older = lease("older", 4, pid=10, boot=100.0)
    accounted = card(reading(2, {10: 2}), older, lease("newer", 3, pid=10), processes=[known(10, started=800.0)])
    assert [promise.seen for promise in accounted.leases] == [{}, {UUID: 2 * GIB}]
    assert (gib(accounted.committed_bytes), gib(accounted.external_bytes)) == (7, 0)


def test_the_host_recognises_the_lease_of_a_container() -> None:
    processes = [known(9000, place=(ELSEWHERE, 1)), known(9001, 9000, place=(ELSEWHERE, 8))]
    accounted = card(reading(3, {9001: 3}), lease("pod", 4, pid=1, namespace=ELSEWHERE), processes=processes)
    assert (gib(accounted.external_bytes), gib(accounted.committed_bytes), accounted.neighbours) == (0, 4, ())
    # A process with the same pid in another namespace does not belong to the lease.
    accounted = card(reading(3, {1: 3}), lease("pod", 4, pid=1, namespace=ELSEWHERE), processes=[known(1)])
    assert gib(accounted.committed_bytes) == 7


def test_a_reused_pid_is_not_the_owner_of_the_lease() -> None:
    accounted = card(reading(3, {10: 3}), lease("a", 4, pid=10), processes=[known(10, started=950.0)])
    assert gib(accounted.committed_bytes) == 7
    for created in (NOW - 1e6, NOW + 1e6):  # for releases before 0.7; a change of the wall clock, as before NTP, changes no owner
        accounted = card(reading(3, {10: 3}), lease("a", 4, pid=10, created=created), processes=[known(10)])
        assert gib(accounted.committed_bytes) == 4


def test_a_lease_on_another_card_does_not_cover_this_one() -> None:
    """A program that leases one card and hardcodes another."""
    elsewhere = replace(lease("a", 4, pid=10), uuids=("GPU-b",))
    accounted = card(reading(3, {10: 3}), elsewhere, processes=[known(10)])
    assert (gib(accounted.committed_bytes), accounted.leases) == (3, ())
    assert [(neighbour.pid, neighbour.name) for neighbour in accounted.neighbours] == [(10, "a (its lease is for another card)")]


def test_process_memory_that_nvml_does_not_report() -> None:
    """The owner's report counts, and a neighbour gets the rest."""
    accounted = card(reading(9, {10: None, 20: None}), lease("a", 6, pid=10, seen=5), processes=[known(10), known(20)])
    assert (gib(accounted.external_bytes), gib(accounted.committed_bytes)) == (4, 10)
    assert {neighbour.name: gib(neighbour.used_bytes) for neighbour in accounted.neighbours} == {"old": 0, "nobody that can be seen": 4}


def test_a_hostile_promise_or_report_does_not_block_the_card() -> None:
    accounted = card(reading(2), lease("huge", 1000), lease("a", 3))
    assert gib(accounted.committed_bytes) == 5
    assert gib(card(reading(4), lease("a", 2, seen=500)).committed_bytes) == 4
    # Both report more than the use that NVML shows for processes.
    accounted = card(reading(4, {}), lease("a", 2, pid=10, seen=3), lease("b", 2, pid=11, seen=3), processes=[known(10), known(11)])
    assert gib(accounted.committed_bytes) == 5


def test_neighbours_are_named_and_counted_at_their_peak() -> None:
    peaks = {UUID: {"1000:old": Peak(6 * GIB, NOW, 0, NOW), "1000:gone": Peak(9 * GIB, NOW, 0, NOW), ALL: Peak(20 * GIB, NOW, 0, NOW)}}
    used = reading(5, {20: 1.5, 21: 0.5, 30: 2})
    processes = [known(20), known(21, 20), known(30, command="python -m ipykernel_launcher -f k.json", uid=1001)]
    accounted = card(used, processes=processes, peaks=peaks)
    assert [(n.name, n.uid, n.pid, gib(n.used_bytes), gib(n.counted_bytes), n.why) for n in accounted.neighbours] == [
        ("old", 1000, 20, 2, 6, "peak"),
        ("ipykernel_launcher", 1001, 30, 2, 2, "used"),
        ("nobody that can be seen", None, None, 1, 1, "used"),
    ]
    assert (gib(accounted.external_bytes), gib(accounted.external_counted_bytes), gib(accounted.committed_bytes)) == (5, 9, 9)
    # If processes are hidden, the peak of the whole card counts, since ended processes are not known.
    hidden = card(reading(5), peaks=peaks)
    assert (gib(hidden.external_counted_bytes), hidden.neighbours[0].why) == (20, "peak")


def test_closed_notebooks_do_not_count() -> None:
    """Ten notebooks of a user had 30 GiB together; one is left."""

    def notebooks(*sizes: float) -> tuple[Reading, list[Known]]:
        pids = range(20, 20 + len(sizes))
        return reading(sum(sizes), dict(zip(pids, sizes, strict=True)), 80), [known(pid, command="ipykernel") for pid in pids]

    def looked(peaks: Peaks, *sizes: float) -> tuple[Card, Peaks]:
        nonlocal now
        used, processes = notebooks(*sizes)
        accounted = card(used, processes=processes, peaks=peaks)
        now += 10
        return accounted, observe(peaks, unleased([accounted]), now)

    now = NOW - 100
    peaks: Peaks = {}
    for sizes in ([3.0] * 10, [3.0] * 10, [1.0]):
        accounted, peaks = looked(peaks, *sizes)
    assert gib(accounted.committed_bytes) == pytest.approx(3, abs=0.1)
    # A large and nine small notebooks do not count as ten large ones.
    peaks = {}
    for sizes in ([12.0, *[1.0] * 9], [12.0, *[1.0] * 9], [1.0] * 10):
        accounted, peaks = looked(peaks, *sizes)
    assert gib(accounted.committed_bytes) == pytest.approx(21, abs=0.1)


@pytest.mark.parametrize(("used", "counted"), [(2, 6), (6, 6), (8, 8)])
def test_a_declaration_replaces_a_peak_but_not_the_use(used: float, counted: float) -> None:
    peaks = {UUID: {"1000:old": Peak(20 * GIB, NOW, 0, NOW)}}
    accounted = card(
        reading(used, {20: used / 2, 21: used / 2}),
        processes=[known(20), known(21, command="/usr/bin/other")],
        peaks=peaks,
        declared=[Declared("billing", 6 * GIB, uid=1000), Declared("late", 20 * GIB, command="*old*")],
    )
    assert [(neighbour.name, gib(neighbour.counted_bytes), neighbour.why) for neighbour in accounted.neighbours] == [
        ("billing", counted, "declared")
    ]
    assert gib(accounted.committed_bytes) == counted


def test_all_keys_of_a_declaration_must_match() -> None:
    used, processes = reading(2, {20: 2}), [known(20, cgroup="/system.slice/billing.service", command="python score.py")]
    for declared, fits in (
        (Declared("d", 6 * GIB, cgroup="/system.slice/billing*"), True),
        (Declared("d", 6 * GIB, cgroup="billing*"), False),
        (Declared("d", 6 * GIB, command="*score.py*"), True),
        (Declared("d", 6 * GIB, uid=1000, command="*train.py*"), False),
        (Declared("d", 6 * GIB, uid=0), False),
    ):
        assert gib(card(used, processes=processes, declared=[declared]).committed_bytes) == (6 if fits else 2)


def test_nothing_is_left_on_a_card_with_a_trouble() -> None:
    accounted = card(Reading(UUID, 0, "unknown", trouble=Trouble.LOST), lease("a", 4))
    assert (accounted.left_bytes, accounted.headroom, gib(accounted.committed_bytes)) == (0, 0.0, 4)
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
    accounted = Snapshot(parts, leases, {10: known(10)}, HERE).cards()
    assert [gib(part.committed_bytes) for part in accounted] == [9, 9, 3]


# The true state of a card, and the visible part of it.
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
    """The accounted card, and the true use without a lease (GiB)."""
    leases, processes, table = [], {}, []
    for number, (budget, eighths, reported) in enumerate(truth["leases"], 100):
        used = budget * eighths / 8
        elsewhere = truth["sees"] == "processes of some namespaces" and number % 2
        leases.append(lease(str(number), budget, number, None if reported is None else used * reported, ELSEWHERE if elsewhere else HERE))
        processes[number] = used
        table.append(known(number, place=(None if elsewhere else HERE, number)))
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
    accounted = card(reading(total, shown, total=500), *leases, processes=table, peaks=peaks)
    return accounted, sum(truth["strangers"]) + truth["nobody"]


@given(truths)
def test_promised_and_used_memory_is_counted_at_least_once(truth: dict[str, Any]) -> None:
    """Required for Σ promised ≤ capacity, for each visible part of the true state."""
    accounted, external = see(truth)
    assert gib(accounted.committed_bytes) >= external + sum(budget for budget, _, _ in truth["leases"])
    assert accounted.committed_bytes >= (accounted.used_bytes or 0)
    assert 0 <= accounted.external_bytes <= accounted.external_counted_bytes
    if truth["sees"] == "processes":
        assert gib(accounted.committed_bytes) == external + sum(budget for budget, _, _ in truth["leases"])
        assert gib(accounted.external_bytes) == external


@given(truths)
def test_stored_peaks_contain_no_memory_of_leases(truth: dict[str, Any]) -> None:
    accounted, external = see(truth)
    seen = unleased([accounted])[UUID]
    assert gib(seen[ALL]) <= external
    if truth["sees"] != "processes of some namespaces":
        assert sum(used for key, used in seen.items() if key != ALL and not key.endswith(EACH)) <= external * GIB


@given(truths, truths)
def test_peaks_only_add(truth: dict[str, Any], before: dict[str, Any]) -> None:
    earlier = unleased([see(before)[0]])
    peaks = observe(observe({}, earlier, NOW - 20), earlier, NOW - 10)
    without, _ = see(truth)
    accounted, _ = see(truth, peaks)
    assert accounted.committed_bytes >= without.committed_bytes
    assert accounted.external_bytes == without.external_bytes


def test_promises_newer_than_the_readings_count_twice_rather_than_not_at_all() -> None:
    """Between the reading and the lock, other services lease, load, report and end."""
    old = lease("old", 4, seen=2)
    before = Snapshot([reading(12)], [old])

    def committed(*promises: Promise) -> float:
        (accounted,) = before.cards(promises)
        return gib(accounted.committed_bytes)

    assert committed(old) == 10 + 4
    assert committed(lease("old", 4, seen=4)) == 10 + 4, "its later report is not in the reading: 10 GiB count as a neighbour's"
    assert committed(old, lease("new", 3, seen=3)) == 10 + 4 + 3
    assert committed() == 12, "its memory may not be free yet"


def test_a_visible_process_without_a_lease_is_never_a_lease_s_memory() -> None:
    """A container attributes growth to its lease. A process that is visible here proves that this growth was not the lease's."""
    container = lease("a", 10, seen=8, namespace=ELSEWHERE)
    accounted = card(reading(8, {10: 8}), container, processes=[known(10)])
    assert (gib(accounted.committed_bytes), gib(accounted.external_bytes), gib(accounted.foreign_bytes)) == (18, 8, 8)
    unreadable = card(reading(8, {10: 8}), container, processes=[known(10, place=(None, 10))])
    assert gib(unreadable.committed_bytes) == 10, "another user's process, which may be the lease's"


def test_a_lease_of_another_user_owns_no_process() -> None:
    """Its file can name any pid. With hidepid, NVML shows the pid, /proc does not show the process, and the owner's report counts."""
    hidden = card(reading(8, {10: 8}), lease("a", 10, pid=10, seen=8), processes=[])
    assert gib(hidden.committed_bytes) == 10
    accounted = card(reading(8, {10: 8}), lease("a", 10, pid=10, uid=1001), processes=[known(10)])
    assert gib(accounted.committed_bytes) == 18
    named = card(reading(8, {10: 8}), lease("a", 10, pid=11, uid=1001), processes=[known(10, lease="a")])
    assert gib(named.committed_bytes) == 18
