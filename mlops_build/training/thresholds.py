"""The gate before registration: metrics against the thresholds in params.yaml.

evaluate:
  thresholds:
    accuracy: {min: 0.95}
    loss: {max: 0.3}
"""

import math
from collections.abc import Mapping
from typing import Any

from mlops_build.errors import Refused
from mlops_build.finding import Finding

# By metric, where no better model helps.
REMEDIES = {
    "recorded_answers": "correct the predictor; or, if the new answers are right, correct data/adopted/recorded.json and run:"
    " dvc add data/adopted && git commit --message 'Correct the recorded answers' data/adopted.dvc"
}


def of(params: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The checked thresholds in params.yaml. Raises Refused if there are none, because the gate would check nothing."""
    thresholds = (params.get("evaluate") or {}).get("thresholds")
    if not isinstance(thresholds, Mapping) or not thresholds:
        raise Refused("params.yaml has no evaluate.thresholds", remedy="add for example `evaluate: {thresholds: {accuracy: {min: 0.9}}}`")
    for metric, bounds in thresholds.items():
        if (
            not isinstance(bounds, Mapping)
            or not bounds
            or set(bounds) - {"min", "max"}
            or not all(_is_number(value) for value in bounds.values())
        ):
            raise Refused(
                f"params.yaml: evaluate.thresholds.{metric}: {bounds!r} is not a valid threshold",
                remedy="write {min: NUMBER}, {max: NUMBER} or both",
            )
    return {str(metric): {str(side): float(value) for side, value in bounds.items()} for metric, bounds in thresholds.items()}


def failures(metrics: Mapping[str, Any], thresholds: Mapping[str, Mapping[str, float]]) -> list[Finding]:
    """A finding for each metric that is missing, not a number, or outside its threshold."""
    findings = []
    for metric, bounds in thresholds.items():
        value = metrics.get(metric)
        wanted = " and ".join(f"{'≥' if side == 'min' else '≤'} {bound:g}" for side, bound in sorted(bounds.items(), reverse=True))
        if value is None or not _is_number(value) or math.isnan(value):
            why = f"{metric} is missing" if value is None else f"{metric} is {value!r}, not a number"
        elif value < bounds.get("min", -math.inf) or value > bounds.get("max", math.inf):
            why = f"{metric} is {value:g}, required {wanted}"
        else:
            continue
        remedy = REMEDIES.get(metric, f"improve the model, or change evaluate.thresholds.{metric} in params.yaml")
        findings.append(Finding(metric, "threshold", why, remedy))
    return findings


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
