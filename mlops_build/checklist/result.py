"""The result of checking one item of the checklist."""

from dataclasses import dataclass
from typing import Literal

# Of one program or request.
SECONDS = 15


@dataclass(frozen=True)
class Result:
    """state: ok, no, or unseen if it cannot be checked from here. detail: what was found, or why it cannot be checked."""

    state: Literal["ok", "no", "unseen"]
    detail: str


def ok(detail: str) -> Result:
    return Result("ok", detail)


def no(detail: str) -> Result:
    return Result("no", detail)


def unseen(detail: str) -> Result:
    return Result("unseen", detail)
