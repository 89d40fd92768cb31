"""How a service takes requests: batches, queue, bounds. From the environment (a patch of the Deployment), or from `mlops-build serve`'s
flags."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlops_build.errors import UsageError
from mlops_build.quantity import parse_bytes

PREFIX = "MLOPS_SERVE_"


@dataclass(frozen=True)
class Settings:
    """max_batch, max_queue: rows. max_delay_ms: ms that a batch may wait for company under load. deadline: s from the request's last byte
    to its answer. body_limit: bytes, also after decompression. read: s in which a request must arrive. nan, ragged:
    docs/reference/http-contract.md. connections: at most so many at once. compile, precision: of the model's networks (network.py). tokens:
    the file of callers' tokens (tokens.py); empty for none."""

    max_batch: int = 128
    max_delay_ms: float = 0.0
    max_queue: int = 4096
    deadline: float = 30.0
    body_limit: int = 16 << 20
    read: float = 30.0
    connections: int = 4096
    nan: str = "null"
    ragged: str = "refuse"
    access_log: bool = True
    compile: bool = False
    precision: str = "float32"
    tokens: str = ""


CHOICES = {"nan": ("null", "literal"), "ragged": ("refuse", "pad"), "precision": ("float32", "bf16")}


def settings(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """Flags first (None: not given), then MLOPS_SERVE_<NAME>, then the defaults. Raises UsageError."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(Settings):
        variable = PREFIX + field.name.upper()
        said, where = flags.get(field.name), f"--{field.name.replace('_', '-')}"
        if said is None and environment.get(variable):
            said, where = environment[variable], variable
        if said is not None:
            found[field.name] = _value(field.name, field.default, said, where)
    return Settings(**found)


def _value(name: str, default: Any, said: Any, where: str) -> Any:
    if isinstance(default, bool):
        if str(said).lower() not in ("true", "false", "1", "0"):
            raise UsageError(f"{where} is {said!r}", remedy="true or false")
        return str(said).lower() in ("true", "1")
    if name == "tokens":
        return str(said)
    if name in CHOICES:
        if said not in CHOICES[name]:
            raise UsageError(f"{where} is {said!r}", remedy=" or ".join(CHOICES[name]))
        return said
    if name == "body_limit":
        return parse_bytes(str(said))
    try:
        value = type(default)(said)
    except ValueError:
        value = -1
    least = 0 if name == "max_delay_ms" else 1 if isinstance(default, int) else 0.001
    if not least <= value < 1e9:
        raise UsageError(f"{where} is {said!r}, which is no sensible number", remedy=f"the default is {default}")
    return value
