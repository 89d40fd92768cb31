"""Compare a model's predictions with those that were recorded with its example."""

import json
import math

# Allowed difference between a prediction and the recorded one: other processors and thread counts round differently.
TOLERANCE = 1e-4


def differences(recorded: object, answered: object, where: str = "predictions") -> list[str]:
    """Return one line for each place where two answers differ.

    Numbers may differ by TOLERANCE: relative for values above 1, absolute below. Everything else must be equal. where: the path of the
    value in the answer, for the lines.
    """
    if isinstance(recorded, dict) and isinstance(answered, dict) and recorded.keys() == answered.keys():
        return [line for key in recorded for line in differences(recorded[key], answered[key], f"{where}.{key}")]
    if isinstance(recorded, list) and isinstance(answered, list) and len(recorded) == len(answered):
        return [line for index, pair in enumerate(zip(recorded, answered, strict=True)) for line in differences(*pair, f"{where}[{index}]")]
    if _number(recorded) and _number(answered):
        left, right = float(str(recorded)), float(str(answered))
        close = abs(left - right) <= TOLERANCE * max(1.0, abs(left)) or left == right or (math.isnan(left) and math.isnan(right))
        return [] if close else [f"{where}: recorded {recorded}, answered {answered}"]
    return (
        []
        if recorded == answered and type(recorded) is type(answered)
        else [f"{where}: recorded {_short(recorded)}, answered {_short(answered)}"]
    )


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}…"
