"""The settings of requests in `mlops-build serve`: each with its default, its bounds and its description.

The flags of `serve`, the variables MLOPS_SERVE_<NAME> and the keys of `serving` in service.yaml are made from them. Therefore they are in
a layer below service.yaml, and not in the package serving, which is above it.
"""

import dataclasses
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from mlops_build import reason
from mlops_build.errors import UsageError
from mlops_build.quantity import parse_bytes
from mlops_build.setting import Given, boolean, choice, given, memory_amount, number

PREFIX = "MLOPS_SERVE_"
Nan = Literal["null", "literal"]
Ragged = Literal["refuse", "pad"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True)
class Key:
    """How a setting is given.

    default: as it is written; empty for none. read: its value from a text. Raises UsageError. metavar: what stands for the value in a help
    text. bounds: pydantic's ge, gt and le; le holds in service.yaml only, since flags and variables have accepted more in earlier releases.
    note: more about it, for the help text of the flag.
    """

    description: str
    default: str
    read: Callable[[Given], Any]
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    bounds: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    note: str = ""

    @property
    def help(self) -> str:
        """The help text of the flag."""
        text = f"{self.description}; {self.note}" if self.note else self.description
        return f"{text} (default: {self.default})" if self.default else text


def _declared(value: Any, key: Key) -> Any:
    return dataclasses.field(default=value, metadata={"key": key})


def _number(default: float, metavar: str, description: str, **bounds: float) -> Any:
    above = "gt" in bounds
    read = partial(number, kind=type(default), least=bounds["gt" if above else "ge"], above=above)
    return _declared(default, Key(description, f"{default:g}", read, metavar, bounds=bounds))


def _choice(default: str, choices: Any, description: str, note: str = "") -> Any:
    values = get_args(choices)
    return _declared(default, Key(description, default, partial(choice, choices=values), choices=values, note=note))


def _boolean(default: bool, description: str) -> Any:
    return _declared(default, Key(description, str(default).lower(), boolean, choices=("true", "false")))


def _memory(default: str, least: str, description: str) -> Any:
    return _declared(parse_bytes(default), Key(description, default, partial(memory_amount, least=least, example=default), "AMOUNT"))


def _text(metavar: str, description: str, read: Callable[[Given], str]) -> Any:
    return _declared("", Key(description, "", read, metavar))


def _reason(setting: Given) -> str:
    value, source = setting
    try:
        return reason.checked(str(value))
    except ValueError as error:
        raise UsageError(f"{source}: {error}", remedy=f'give the reason in quotes: {source}="REASON"') from None


@dataclass(frozen=True)
class Settings:
    """The settings of a service.

    deadline: from the last byte of a request to its response. body_limit: bytes. nan, ragged: see docs/reference/http-contract.md.
    compile, precision: of the model's networks (serving/network.py). tokens: the path of the file (serving/http/tokens.py); empty for none.
    unsafe_pickle, rows_independent: a reason; empty for none.
    """

    # RUF009 does not see that a default of these types is text.

    max_batch: int = _number(128, "ROWS", "the most rows in a batch; 1: no batching", ge=1, le=65536)
    max_delay_ms: float = _number(0.0, "MS", "how long a batch under load waits for more rows, in ms", ge=0, le=10000)
    max_queue: int = _number(4096, "ROWS", "rows that may wait; further requests receive 429", ge=1, le=10**7)
    deadline: float = _number(30.0, "SECONDS", "how long a request may take, in seconds", gt=0, le=3600)
    stuck: float = _number(
        30.0, "SECONDS", "how long after the deadline a prediction that has not ended makes the probes fail, in seconds", gt=0
    )
    body_limit: int = _memory("16MiB", "1KiB", "the largest body, also after decompression")
    read: float = _number(30.0, "SECONDS", "how long a request may take to arrive, in seconds", gt=0)
    connections: int = _number(4096, "N", "concurrent connections; further ones receive 503", ge=1)
    nan: Nan = _choice("null", Nan, "how NaN is written in answers", "literal is MLflow's way and not valid JSON")  # noqa: RUF009
    ragged: Ragged = _choice("refuse", Ragged, "rows of different lengths", "pad is MLflow's way")  # noqa: RUF009
    tokens: str = _text("FILE", "file with hashes of the allowed bearer tokens; without it, no token is needed", lambda setting: setting[0])
    access_log: bool = _boolean(True, "a line of JSON for each request")
    compile: bool = _boolean(False, "torch.compile for the model's networks; loading then takes longer")
    precision: Precision = _choice("float32", Precision, "the precision of the networks")  # noqa: RUF009
    unsafe_pickle: str = _text(
        "REASON", "why pickled files are accepted; doctor and the annotation mlops-build/unsafe-pickle show it", _reason
    )
    rows_independent: str = _text(
        "REASON", "why rows do not influence each other: requests are batched before there is evidence for it", _reason
    )


KEYS: dict[str, Key] = {field.name: field.metadata["key"] for field in dataclasses.fields(Settings)}


def flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def variable(name: str) -> str:
    return PREFIX + name.upper()


def settings(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ, own: Mapping[str, str] = {}) -> Settings:
    """The settings from the flags (None: not given), then from the variables of the environment or of `own`, then the defaults.

    own: of the service. Raises UsageError.
    """
    values: dict[str, Any] = {}
    for name, key in KEYS.items():
        setting = given(flag(name), flags.get(name), variable(name), own.get(variable(name)), environment)
        if setting[0] is not None:
            values[name] = key.read(setting)
    return Settings(**values)
