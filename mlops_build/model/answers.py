"""Compare a model's predictions with those that were recorded with its example."""

import json
import math

# Allowed difference between a prediction and the recorded one: other processors and thread counts round differently.
TOLERANCE = 1e-4


def differences(
    recorded: object,
    answered: object,
    where: str = "predictions",
    *,
    relative: float = TOLERANCE,
    absolute: float = TOLERANCE,
    names: tuple[str, str] = ("recorded", "answered"),
) -> list[str]:
    """Return one line for each place where two answers differ.

    Numbers may differ by `absolute`, and by `relative` times the recorded one; the larger applies. Everything else must be equal. where:
    the path of the value in the answer, for the lines. names: of the two answers in the lines.
    """

    def compare(left: object, right: object, where: str) -> list[str]:
        if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
            return [line for key in left for line in compare(left[key], right[key], f"{where}.{key}")]
        if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
            return [line for index, pair in enumerate(zip(left, right, strict=True)) for line in compare(*pair, f"{where}[{index}]")]
        if _number(left) and _number(right):
            close = left == right or _close(float(str(left)), float(str(right)), relative, absolute)
        else:
            close = left == right and type(left) is type(right)
        return [] if close else [f"{where}: {names[0]} {_short(left)}, {names[1]} {_short(right)}"]

    return compare(recorded, answered, where)


def _close(left: float, right: float, relative: float, absolute: float) -> bool:
    if not (math.isfinite(left) and math.isfinite(right)):  # a difference from Infinity is within any relative tolerance
        return math.isnan(left) and math.isnan(right)
    return abs(left - right) <= max(absolute, relative * abs(left))


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
