"""Whether a model answers as it did when its example was recorded."""

import json
import math

# How far an answer may be from the recorded one: other processors and thread counts round differently.
TOLERANCE = 1e-4


def differences(recorded: object, answered: object, where: str = "predictions") -> list[str]:
    """Where two answers differ: numbers by more than TOLERANCE (relative from 1 on, absolute below), all else at all."""
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
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 200 else f"{text[:200]}…"
