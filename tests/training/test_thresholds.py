"""The gate: which metrics pass which thresholds."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.errors import Refused
from mlops_build.training import thresholds


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"accuracy": 0.9, "loss": 0.1}, []),
        ({"accuracy": 0.8, "loss": 0.1}, ["accuracy is 0.8, required ≥ 0.9"]),
        ({"accuracy": 0.95, "loss": 0.5}, ["loss is 0.5, required ≤ 0.3"]),
        ({"accuracy": math.nan, "loss": 0.1}, ["accuracy is nan, not a number"]),
        ({"loss": 0.1}, ["accuracy is missing"]),
        ({"accuracy": "0.99", "loss": True}, ["accuracy is '0.99', not a number", "loss is True, not a number"]),
    ],
)
def test_each_metric_beyond_its_bounds_is_a_finding(metrics: dict[str, object], said: list[str]) -> None:
    wanted = thresholds.of({"evaluate": {"thresholds": {"accuracy": {"min": 0.9}, "loss": {"max": 0.3}}}})
    assert [finding.why for finding in thresholds.failures(metrics, wanted)] == said


def test_other_answers_of_an_adopted_model_are_no_matter_of_a_better_model() -> None:
    (found,) = thresholds.failures({"recorded_answers": 0.5}, {"recorded_answers": {"min": 1.0}})
    assert "improve the model" not in found.remedy
    assert "correct data/adopted/recorded.json and run: dvc add data/adopted" in found.remedy


@pytest.mark.parametrize("params", [{}, {"evaluate": None}, {"evaluate": {"thresholds": {}}}, {"evaluate": {"thresholds": {"a": {}}}}])
def test_a_gate_that_is_always_open_is_refused(params: dict[str, object]) -> None:
    with pytest.raises(Refused):
        thresholds.of(params)


@pytest.mark.parametrize("bounds", [0.9, {"min": "0.9"}, {"above": 1}, {"min": True}])
def test_a_threshold_that_makes_no_sense_is_refused(bounds: object) -> None:
    with pytest.raises(Refused, match=r"evaluate\.thresholds\.accuracy"):
        thresholds.of({"evaluate": {"thresholds": {"accuracy": bounds}}})


@given(st.floats(), st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_what_passes_is_within_the_bounds(value: float, low: float, high: float) -> None:
    passed = not thresholds.failures({"m": value}, {"m": {"min": low, "max": high}})
    assert passed == (low <= value <= high)
