"""What a look at one line of the checklist found."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

SECONDS = 15


@dataclass(frozen=True)
class Seen:
    """state: ok; no; or unseen, where it cannot be told from here. what: what was seen, or why it cannot be."""

    state: Literal["ok", "no", "unseen"]
    what: str


def ok(what: str) -> Seen:
    return Seen("ok", what)


def no(what: str) -> Seen:
    return Seen("no", what)


def unseen(what: str) -> Seen:
    return Seen("unseen", what)


def run(command: Sequence[str]) -> "subprocess.CompletedProcess[str] | None":
    """A program's output; None where it is missing, or does not end within SECONDS."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None


def last_line(done: "subprocess.CompletedProcess[str]") -> str:
    """What a program said last, on stderr if it said anything there."""
    return ((done.stderr.strip() or done.stdout.strip()).splitlines() or ["it said nothing"])[-1][:300]
