"""Render several versions of a template in a child process (child.py).

Importing copier takes a second, and copier changes the working directory while it works, so one child renders all versions in turn. It
has no network access: git maps the template's address to the clone that was fetched before, while the answers file still names the real
address. User settings do not affect it.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlops_build.adapters import program
from mlops_build.errors import Failed
from mlops_build.scaffold.render import ScaffoldError
from mlops_build.scaffold.source import Source

SECONDS = 300


@dataclass(frozen=True)
class Job:
    """A version to render. folder: to create. commit: of the template. answers: by question. exclude: patterns besides the template's."""

    folder: str
    commit: str
    answers: Mapping[str, Any]
    exclude: Sequence[str] = ()


@dataclass(frozen=True)
class Problem:
    """An answer that a version of the template refuses. value: the answer, or None if it is missing."""

    name: str
    why: str
    value: Any = None

    def __str__(self) -> str:
        return f"{self.name}: {self.why}" if self.value is None else f"{self.name}: {self.value!r}: {self.why}"


class BadAnswers(ScaffoldError):
    """Answers that the template refuses; `problems` has all of them."""

    def __init__(self, problems: Sequence[Problem], *, message: str, remedy: str) -> None:
        super().__init__(message, remedy=remedy)
        self.problems = tuple(problems)


def render(source: Source, jobs: Sequence[Job], scratch: Path) -> list[list[Problem]]:
    """Render these jobs; returns the refused answers of each. If there are any, the job's folder must not be used.

    Raises ScaffoldError if the template itself cannot be rendered.
    """
    request = json.dumps({"source": source.recorded, "clone": str(source.clone), "jobs": [asdict(job) for job in jobs]})
    try:
        done = program.run(
            [sys.executable, "-m", "mlops_build.scaffold.child"],
            seconds=SECONDS,
            stdin=request.encode(),
            environment=_environment(source, scratch),
            folder=scratch,
        )
    except program.DoesNotEnd:
        raise Failed(f"copier did not finish within {SECONDS} s", remedy="try again on a less busy machine") from None
    try:
        replies = json.loads(done.output)
    except ValueError:
        if "No module named 'copier'" in done.message:
            raise ModuleNotFoundError("No module named 'copier'", name="copier") from None
        raise Failed(
            f"copier exited with {done.code}: {done.last_line}", remedy="this is an error in mlops-build; please report it"
        ) from None
    for reply in replies:
        if reply["error"]:
            raise ScaffoldError(f"the template cannot be rendered: {reply['error']}", remedy="give another version: --to VERSION")
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
        # The child must import the same mlops_build as this process.
        "PYTHONPATH": os.pathsep.join(filter(None, [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")])),
        "COPIER_SETTINGS_PATH": str(settings),
        "COPIER_CACHE_DIR": str(scratch / "copier"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_COUNT": str(len(git)),
        **{name: text for n, (key, value) in pairs for name, text in ((f"GIT_CONFIG_KEY_{n}", key), (f"GIT_CONFIG_VALUE_{n}", value))},
        "GIT_TERMINAL_PROMPT": "0",
    }
