"""The value of a setting, from a flag, an environment variable or a default. Errors name the flag or variable."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from mlops_build.errors import UsageError
from mlops_build.quantity import NotAnAmount, parse_bytes

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


def boolean(setting: Given) -> bool:
    """The value as a boolean: true, false, 1 or 0. Raises UsageError."""
    value, source = setting
    if str(value).lower() not in ("true", "false", "1", "0"):
        raise UsageError(f"{source} is {value!r}, which is not a boolean", remedy="set it to true or false")
    return str(value).lower() in ("true", "1")


def number(setting: Given, kind: type[int] | type[float], least: float, *, above: bool = False) -> Any:
    """The value as a number of at least `least`, or with `above` more than it, and below 1e9. Raises UsageError."""
    value, source = setting
    try:
        parsed = kind(value)
    except ValueError:
        parsed = -1
    if not least <= parsed < 1e9 or (above and parsed == least):  # excludes nan
        raise UsageError(
            f"{source} is {value!r}, which is not a valid number",
            remedy=f"set it to a {'whole ' * (kind is int)}number {'above' if above else 'of at least'} {least} and below 1e9",
        )
    return parsed


def memory_amount(setting: Given, least: str, example: str) -> int:
    """The value as an amount of memory, in bytes. least: the smallest valid amount. Raises UsageError."""
    text, source = str(setting[0]), setting[1]
    try:
        amount = parse_bytes(text)
    except NotAnAmount:
        amount = -1
    if amount < parse_bytes(least):
        raise UsageError(
            f"{source} is {text[:100]!r}, which is not a valid amount of memory",
            remedy=f"set it to {least} or more, with the unit KiB, MiB, GiB or TiB, such as {example}",
        )
    return amount
