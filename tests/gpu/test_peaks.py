"""Observed peaks of processes without a lease."""

import json

from hypothesis import example, given
from hypothesis import strategies as st

from mlops_build.gpu.peaks import (
    FADE_SECONDS,
    MOST_KEYS,
    REFRESH_SECONDS,
    SETTLE_SECONDS,
    Peaks,
    as_document,
    counted,
    from_documents,
    observe,
)

GIB = 2**30
DAY = 86400.0
START = 1_800_000_000.0


def after(*looks: tuple[float, int], key: str = "k", peaks: Peaks | None = None) -> Peaks:
    peaks = {} if peaks is None else peaks
    for seconds, used in looks:
        peaks = observe(peaks, {"GPU-a": {key: used}}, START + seconds)
    return peaks


def counts(peaks: Peaks, used: int, seconds: float, key: str = "k") -> int:
    return counted(peaks, "GPU-a", key, used, START + seconds)


def test_a_neighbour_counts_with_its_peak_which_fades_over_seven_days() -> None:
    peaks = after((0, 6 * GIB), (10, 6 * GIB), (20, 2 * GIB))
    assert counts(peaks, 2 * GIB, 10) == 6 * GIB
    assert counts(peaks, 2 * GIB, 10 + 3.5 * DAY) == 3 * GIB
    assert counts(peaks, 2 * GIB, 10 + 6.9 * DAY) == 2 * GIB
    assert counts(peaks, 0, 10 + 7 * DAY) == 0
    assert counts(peaks, 8 * GIB, 20) == 8 * GIB


def test_memory_at_a_single_read_is_not_a_peak() -> None:
    """For example the memory of a lease whose process has just been killed."""
    peaks = after((0, 0), (10, 20 * GIB), (10.1, 20 * GIB), (20, 0), (30, 0))
    assert counts(peaks, 0, 30) == 0


def test_memory_that_stays_is_a_peak_at_any_read_interval() -> None:
    looks = [(step / 10, 5 * GIB) for step in range(int(SETTLE_SECONDS * 10) + 2)]
    assert counts(after(*looks), 0, SETTLE_SECONDS + 0.2) > 4.9 * GIB
    assert counts(after((0, 3 * GIB), (2, 9 * GIB), (10, 4 * GIB)), 0, 10) == 3 * GIB, "the minimum between reads"


def test_unchanged_peaks_are_the_same_object() -> None:
    """So that not every read writes the lease directory."""
    peaks = after((0, 4 * GIB), (10, 4 * GIB))
    assert after((20, 4 * GIB), (30, 4 * GIB), (40, 4 * GIB), peaks=peaks) is peaks
    assert after((20 + REFRESH_SECONDS, 4 * GIB), peaks=peaks) is not peaks
    empty: Peaks = {}
    assert observe(empty, {"GPU-a": {"k": 0}}, START) is empty


def test_a_clock_that_was_set_back() -> None:
    peaks = after((100 * DAY, 4 * GIB), (100 * DAY + 10, 4 * GIB))
    assert counts(peaks, 0, 0) == 4 * GIB
    read = from_documents([json.loads(json.dumps(as_document(peaks)))], START)  # a time in the future would not fade
    assert counted(read, "GPU-a", "k", 0, START + 7 * DAY) == 0


def test_the_greater_peak_of_several_observers_counts() -> None:
    old, new = after((0, 6 * GIB), (10, 6 * GIB)), after((3 * DAY, 5 * GIB), (3 * DAY + 10, 5 * GIB))
    documents = [json.loads(json.dumps(as_document(peaks))) for peaks in (old, new)]
    assert counts(from_documents(documents, START + DAY), 0, DAY + 10) > 5.1 * GIB
    assert counts(from_documents(documents, START + 4 * DAY), 0, 4 * DAY) > 4.2 * GIB


def test_the_file_of_a_release_before_0_7_is_read() -> None:
    document = {"schema": 1, "cards": {"GPU-a": {"k": [6 * GIB, START - 0.5, 2 * GIB, START]}}}
    assert counts(from_documents([document], START), 0, -0.5) == 6 * GIB
    assert json.loads(json.dumps(as_document(from_documents([document], START)))) == document


def test_invented_names_do_not_fill_the_directory() -> None:
    peaks: Peaks = {}
    for number in range(5 * MOST_KEYS):
        peaks = observe(peaks, {"GPU-a": {f"{number}": number + 1}}, START + number)
    assert len(peaks["GPU-a"]) == MOST_KEYS
    many = {f"GPU-{number:036}": {f"{key:060}": 2**40 for key in range(MOST_KEYS)} for number in range(8)}
    full = observe(observe({}, many, START), many, START + 60)
    assert len(json.dumps(as_document(full))) < 64 * 1024


numbers = st.one_of(st.integers(-5, 2**60), st.floats(), st.none(), st.text(max_size=3), st.booleans())
documents = st.recursive(
    st.one_of(numbers, st.just(1)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.sampled_from(["schema", "cards", "GPU-a", "k"]), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.fixed_dictionaries({"schema": st.one_of(st.just(1), numbers), "cards": documents}))
@example({})
@example({"schema": 1, "cards": {"GPU-a": {"k": [10**400, 1, 10**400, 1]}}})
def test_arbitrary_documents_are_read(document: dict[str, object]) -> None:
    peaks = from_documents([document], START)
    assert counted(peaks, "GPU-a", "k", 0, START) >= 0
    observe(peaks, {"GPU-a": {"k": 1}}, START)


@given(st.lists(st.tuples(st.floats(0, 2 * DAY), st.integers(0, 40 * GIB)), max_size=12))
def test_a_peak_never_exceeds_the_observed_memory_and_survives_the_file(looks: list[tuple[float, int]]) -> None:
    peaks: Peaks = {}
    now = 0.0
    most = 0
    for gap, used in looks:
        now += gap
        most = max(most, used)
        peaks = after((now, used), peaks=peaks)
        assert counts(peaks, used, now) >= used
        assert counts(peaks, 0, now) <= most
    again = from_documents([json.loads(json.dumps(as_document(peaks)))], START + now)
    assert abs(counts(again, 0, now) - counts(peaks, 0, now)) <= 40 * GIB * 0.2 / FADE_SECONDS + 1
