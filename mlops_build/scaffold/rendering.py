"""Render several versions of a template, in one process of its own (child.py).

Copier takes a second to be imported and changes the working directory while it works, so one child renders everything, one after the
other. It has no way to the network: the template's address leads to the clone that was fetched already, while the answers file goes on
naming the real one. Nobody's settings reach it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlops_build.errors import Failed
from mlops_build.scaffold.render import ScaffoldError
from mlops_build.scaffold.source import Source

SECONDS = 300


@dataclass(frozen=True)
class Job:
    """One rendering. folder: made here. commit: of the template. answers: by question. exclude: patterns beside the template's own."""

    folder: str
    commit: str
    answers: Mapping[str, Any]
    exclude: Sequence[str] = ()


@dataclass(frozen=True)
class Problem:
    """An answer that a version of the template does not take. value: what it is, or None where it is missing."""

    name: str
    why: str
    value: Any = None


class BadAnswers(ScaffoldError):
    """Answers that the template does not take: `problems` has them all."""

    def __init__(self, problems: Sequence[Problem], *, message: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.problems = tuple(problems)


def render(source: Source, jobs: Sequence[Job], scratch: Path) -> list[list[Problem]]:
    """Do these jobs; for each the answers that were not taken, in which case its folder is of no use.

    Raises ScaffoldError where the template itself cannot be rendered.
    """
    request = json.dumps({"source": source.recorded, "clone": str(source.clone), "jobs": [asdict(job) for job in jobs]})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "mlops_build.scaffold.child"],
            input=request,
            env=_environment(source, scratch),
            cwd=scratch,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"copier did not end within {SECONDS} s", remedy="try again on a machine that is less busy") from None
    try:
        replies = json.loads(done.stdout)
    except ValueError:
        last = (done.stderr.strip().splitlines() or ["no word"])[-1]
        if "No module named 'copier'" in done.stderr:
            raise ModuleNotFoundError("No module named 'copier'", name="copier") from None
        raise Failed(f"copier ended with {done.returncode}: {last}", remedy="this should not happen; please report it") from None
    for reply in replies:
        if reply["error"]:
            raise ScaffoldError(f"the template cannot be rendered: {reply['error']}", remedy="name another version: --to VERSION")
    return [[Problem(**problem) for problem in reply["problems"]] for reply in replies]


def _environment(source: Source, scratch: Path) -> dict[str, str]:
    settings = scratch / "settings.yml"
    settings.write_text("{}\n", encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    git = {
        f"url.{source.clone}.insteadOf": source.url,
        "safe.directory": source.url,
        "protocol.allow": "never",
        "protocol.file.allow": "always",
    }
    pairs = enumerate(git.items())
    return {
        **kept,
        # The package that this process runs, wherever it was found.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
        "COPIER_SETTINGS_PATH": str(settings),
        "COPIER_CACHE_DIR": str(scratch / "copier"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_COUNT": str(len(git)),
        **{name: text for n, (key, value) in pairs for name, text in ((f"GIT_CONFIG_KEY_{n}", key), (f"GIT_CONFIG_VALUE_{n}", value))},
        "GIT_TERMINAL_PROMPT": "0",
    }
