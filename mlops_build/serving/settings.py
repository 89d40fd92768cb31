"""The settings for requests: batches, queue and limits, from the flags of `mlops-build serve`, the environment or service.yaml."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from mlops_build import reason
from mlops_build.errors import UsageError
from mlops_build.quantity import parse_setting
from mlops_build.setting import Given, choice, given, number

PREFIX = "MLOPS_SERVE_"


@dataclass(frozen=True)
class Settings:
    """The settings of a service.

    max_batch, max_queue: rows. max_delay_ms: how long a batch may wait for more requests under load, in ms. deadline: from the last byte of
    a request to its response, in seconds. stuck: a prediction that has not ended so many seconds after the deadline makes the probes fail.
    body_limit: bytes, also after decompression. read: how long a request may take to arrive, in seconds. connections: the limit at one
    time. nan, ragged: see docs/reference/http-contract.md. compile, precision: of the model's networks (network.py). tokens: the path of
    the file with hashes of tokens (tokens.py); empty for none. unsafe_pickle: the reason why pickled files are accepted; else empty.
    rows_independent: the reason why the rows of a batch do not influence each other, so that no evidence is needed (joining.py).
    """

    max_batch: int = 128
    max_delay_ms: float = 0.0
    max_queue: int = 4096
    deadline: float = 30.0
    body_limit: int = 16 << 20
    read: float = 30.0
    connections: int = 4096
    nan: Literal["null", "literal"] = "null"
    ragged: Literal["refuse", "pad"] = "refuse"
    access_log: bool = True
    compile: bool = False
    precision: Literal["float32", "bf16"] = "float32"
    tokens: str = ""
    stuck: float = 30.0
    unsafe_pickle: str = ""
    rows_independent: str = ""


CHOICES = {name: get_args(kind) for name, kind in get_type_hints(Settings).items() if get_args(kind)}


def settings(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ, own: Mapping[str, str] = {}) -> Settings:
    """The settings from the flags (None: not given), then from MLOPS_SERVE_<NAME> of the environment or of `own`, then the defaults.

    own: of the service. Raises UsageError.
    """
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        variable = PREFIX + field.name.upper()
        setting = given(f"--{field.name.replace('_', '-')}", flags.get(field.name), variable, own.get(variable), environment)
        if setting[0] is not None:
            values[field.name] = _value(field.name, field.default, setting)
    return Settings(**values)


def _value(name: str, default: Any, setting: Given) -> Any:
    value, source = setting
    if isinstance(default, bool):
        if str(value).lower() not in ("true", "false", "1", "0"):
            raise UsageError(f"{source} is {value!r}, which is not a boolean", remedy="set it to true or false")
        return str(value).lower() in ("true", "1")
    if name == "tokens":
        return str(value)
    if name in ("unsafe_pickle", "rows_independent"):
        try:
            return reason.checked(str(value))
        except ValueError as error:
            raise UsageError(f"{source}: {error}", remedy=f'give the reason in quotes: {source}="REASON"') from None
    if name in CHOICES:
        return choice(setting, CHOICES[name])
    if name == "body_limit":
        return parse_setting(source, str(value), "1KiB", "16MiB")
    return number(setting, type(default), 0 if name == "max_delay_ms" else 1 if isinstance(default, int) else 0.001)
