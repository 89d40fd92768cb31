"""The value of a setting, from a flag, an environment variable or a default. Errors name the flag or variable."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mlops_build.errors import UsageError

Given = tuple[Any, str]  # the value, and the flag or variable that it comes from


def given(flag: str, value: Any, variable: str, default: Any = None, environment: Mapping[str, str] = os.environ) -> Given:
    """value: of the flag; None: the flag is not given. A variable that is empty is not given either."""
    return (value, flag) if value is not None else (environment.get(variable) or default, variable)


def choice(setting: Given, choices: Sequence[str]) -> Any:
    """The value, if it is one of the choices. Raises UsageError."""
    value, source = setting
    if value not in choices:
        raise UsageError(f"{source} is {value!r}, which is not a valid choice", remedy=f"set it to {' or '.join(choices)}")
    return value


def number(setting: Given, kind: type[int] | type[float], least: float) -> Any:
    """The value as a number from `least` to below 1e9. Raises UsageError."""
    value, source = setting
    try:
        parsed = kind(value)
    except ValueError:
        parsed = -1
    if not least <= parsed < 1e9:  # excludes nan
        raise UsageError(
            f"{source} is {value!r}, which is not a valid number",
            remedy=f"set it to a {'whole ' * (kind is int)}number from {least} to below 1e9",
        )
    return parsed
