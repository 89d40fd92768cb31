"""The check whether rows influence each other, with models of which each is a function of an array."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from mlops_build.model import independence
from mlops_build.model.independence import TOLERANCES, Inconclusive, Verdict, check

Array = np.ndarray[Any, Any]
ROWS = [np.array([[float(number), number * number, -1.0]]) for number in range(1, 9)]
CHANGES = "changes with the other rows"


def outcome(predict: Callable[[Array], Any], rows: Sequence[Array] = ROWS[:2], precision: str = "float32") -> Verdict:
    return check(rows, np.concatenate, predict, TOLERANCES[precision])


def softmax(rows: Array) -> Any:
    return (np.exp(rows - rows.max()) / np.exp(rows - rows.max()).sum()).tolist()


DEPENDENT: dict[str, Callable[[Array], Any]] = {
    "mean": lambda rows: (rows - rows.mean()).tolist(),
    "batch norm": lambda rows: ((rows - rows.mean(0)) / (rows.std(0) + 1e-5)).tolist(),
    "softmax over the batch": softmax,
    "rank": lambda rows: rows[:, 0].argsort().argsort().tolist(),
    "previous row": lambda rows: np.cumsum(rows[:, 0]).tolist(),
    "position": lambda rows: (rows[:, 0] + np.arange(len(rows))).tolist(),
    "number of rows": lambda rows: [float(len(rows))] * len(rows),
    "sorted": lambda rows: sorted(rows[:, 0].tolist()),
    "labels": lambda rows: [{"label": "high" if value > rows.mean() else "low"} for value in rows[:, 0]],
    "integers": lambda rows: [10_000_000 + len(rows)] * len(rows),
    "a time beside a score": lambda rows: [{"at": 1.7e9, "score": float(value - rows.mean())} for value in rows[:, 0]],
    "an id beside a score": lambda rows: [[float(value - rows.mean()), 123_456_789_012] for value in rows[:, 0]],
    "small numbers": lambda rows: (1e-7 * (rows - rows.mean())).tolist(),
    "random seed for each call": lambda rows: np.random.default_rng(1).permutation(np.arange(8.0) * rows[0, 0])[: len(rows)].tolist(),
}


@pytest.mark.parametrize("name", DEPENDENT)
def test_a_model_whose_rows_influence_each_other_is_found(name: str) -> None:
    for rows in (ROWS[:2], ROWS):
        verdict = outcome(DEPENDENT[name], rows)
        assert verdict.independent is False
        assert CHANGES in verdict.why


INDEPENDENT: dict[str, Callable[[Array], Any]] = {
    "numbers": lambda rows: (rows * 2).tolist(),
    "scalars": lambda rows: rows.sum(1).tolist(),
    "records": lambda rows: [{"label": "a" if row[0] > 1 else "b", "score": float(row[0]), "none": None} for row in rows],
    "lists of different lengths": lambda rows: [list(range(int(row[0]))) for row in rows],
    "not a number": lambda rows: [[float("nan"), float("inf"), row[0]] for row in rows],
    "rounding": lambda rows: (rows.sum(1) * (1 + 1e-5 * len(rows))).tolist(),
    "a small difference of large terms": lambda rows: [[1e4 * (row[0] - 1) + 1e-3 * len(rows)] for row in rows],
}  # fmt: skip


@pytest.mark.parametrize("name", INDEPENDENT)
def test_a_model_whose_rows_do_not_influence_each_other_is_shown_to_be_so(name: str) -> None:
    for rows in (ROWS[:2], ROWS[:5], ROWS):
        assert outcome(INDEPENDENT[name], rows) == Verdict(True)


def test_rows_that_cannot_show_an_influence_are_no_evidence() -> None:
    first = outcome(lambda rows: (rows - rows.mean(0))[:, 2].tolist())  # equal in all rows
    assert (first.independent, first.why) == (None, "the answers to the rows are equal, so an influence could not be seen")
    assert outcome(lambda rows: [0.0] * len(rows), ROWS[:1]) == independence.UNKNOWN
    assert outcome(lambda rows: [0.0] * len(rows), ROWS).independent, "many different rows are enough for a constant answer"


def test_a_model_with_random_answers_is_never_batched() -> None:
    dice = np.random.default_rng(1)
    for noise in (1.0, 1e-4):
        verdict = outcome(lambda rows, noise=noise: (rows + dice.normal(0, noise, rows.shape)).tolist())
        assert verdict == Verdict(False, "the model's output for the same row changes from one prediction to the next")


def test_arrays_and_lists_of_the_same_numbers_are_equal() -> None:
    for values in ([1.5, 2.5], [[1, 2], [3, 4]], [True, False], [[0.5], [1.5]]):
        array = np.array(values)
        for other in (array, list(array), [values[0], array[1]], array.astype("float32") if array.dtype.kind == "f" else array):
            assert independence.close(values, other, independence.FLOAT32, np.ones(1))
            assert not independence.close(values, array[::-1], independence.FLOAT32, np.ones(1))
    assert not independence.close([1], [1.0], independence.FLOAT32, np.ones(1)), "the JSON differs"


def test_models_that_fail_or_answer_another_number_of_rows() -> None:
    def single(rows: Array) -> Any:
        return [float(rows[:, 0].item())]

    def several(rows: Array) -> Any:
        if len(rows) == 1:
            raise ValueError("expected more than 1 value per channel when training")
        return rows.tolist()

    def full(rows: Array) -> Any:
        raise Inconclusive("no memory")

    assert outcome(single) == Verdict(False, "the model fails on several rows together (ValueError)")
    assert outcome(several) == Verdict(False, "the model fails on a single row (ValueError)")
    assert outcome(full) == Verdict(None, "no memory")
    for output in ([1.0, 2.0, 3.0], {"a": 1.0}, np.ones(3), 1.0):
        assert outcome(lambda _, output=output: output) == Verdict(False, "the model's output does not have one element per row")


def test_the_tolerance_for_bf16_is_larger() -> None:
    def half(rows: Array) -> Any:
        return (rows[:, 0] * (1 + 0.004 * (len(rows) > 1))).tolist()

    assert outcome(half).independent is False
    assert outcome(half, precision="bf16").independent
    assert outcome(DEPENDENT["mean"], precision="bf16").independent is False


class Slow:
    """A model that takes some seconds for each row, on a clock of its own."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now = seconds, 0.0
        self.sizes: list[int] = []

    def perf_counter(self) -> float:
        return self.now

    def __call__(self, rows: Array) -> Any:
        self.sizes.append(len(rows))
        self.now += self.seconds * len(rows)
        return rows.tolist()


@pytest.mark.parametrize(("seconds", "rows"), [(0.001, 8), (0.1, 8), (0.25, 4), (0.8, 2)])
def test_a_slow_model_is_checked_with_fewer_rows(seconds: float, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Slow(seconds)
    monkeypatch.setattr(independence, "time", model)
    assert check(ROWS, np.concatenate, model).independent
    assert model.sizes.count(1) == 2 * rows, "each row alone, twice"
    assert max(model.sizes) == 2 * rows
    assert model.now <= independence.SECONDS


@pytest.mark.parametrize(("seconds", "expected"), [(1.0, 0.0), (4.0, 0.0), (4.0, 4.0), (20.0, 20.0)])
def test_a_check_that_takes_too_long_shows_nothing(seconds: float, expected: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Slow(seconds)
    monkeypatch.setattr(independence, "time", model)
    verdict = check(ROWS, np.concatenate, model, expected=expected)
    assert (verdict.independent, verdict.why) == (None, "the check takes longer than 10 s")
    assert model.now <= independence.SECONDS
