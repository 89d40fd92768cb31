"""The result of checking one item of the checklist."""

import subprocess
from collections.abc import Sequence
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


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str] | None":
    """Run a program; None if it is not installed or does not end within SECONDS."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def last_line(done: "subprocess.CompletedProcess[str]") -> str:
    """The last line of a program's stderr, or of its stdout if stderr is empty."""
    return ((done.stderr.strip() or done.stdout.strip()).splitlines() or ["no output"])[-1][:300]
