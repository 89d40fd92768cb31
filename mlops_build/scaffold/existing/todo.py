"""The tasks that are left to the script's author. Their texts are in tasks.yaml."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mlops_build.scaffold.existing.copied import Copied
from mlops_build.scaffold.existing.script import Script


@dataclass(frozen=True)
class Task:
    """A task. file, line: in the service. needed: the pipeline fails without it. example: code or a command; "" for none."""

    number: int
    file: str
    line: int
    what: str
    needed: bool
    example: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def as_text(self) -> str:
        """Two lines for a terminal."""
        return f"{self.number:>3}. {self.file}:{self.line}{'' if self.needed else ' (recommended)'}\n     {self.what}"


class Todo:
    """The tasks of a service. copied: the copies of the script's modules, by the path of the original."""

    def __init__(self, copied: Mapping[Path, Copied]) -> None:
        self.copied = copied
        self.tasks: list[Task] = []

    def add(self, name: str, place: str | Script, line: int = 0, /, **values: object) -> int:
        """Add a task of tasks.yaml, and return its number.

        place: a file of the service, or a module of the script, whose copy has the line. line: 0 if the file has a mark `TODO NUMBER`.
        values: to be filled into the texts.
        """
        if isinstance(place, Script):
            copied = self.copied[place.path]
            place, line = copied.path, copied.line(line)
        text = _texts()[name]
        what, example = (str(text.get(part, "")).format(**values).rstrip("\n") for part in ("what", "example"))
        self.tasks.append(Task(len(self.tasks) + 1, place, line, what, bool(text.get("needed")), example))
        return len(self.tasks)

    def find_marks(self, root: Path) -> None:
        """Set the lines of the tasks whose files at `root` have marks."""
        self.tasks = [task if task.line else replace(task, line=_marked(root / task.file, task.number)) for task in self.tasks]


def _marked(file: Path, number: int) -> int:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((index for index, line in enumerate(lines, 1) if re.search(rf"\bTODO {number}\b", line)), 1)


@cache
def _texts() -> Mapping[str, Mapping[str, Any]]:
    texts: Mapping[str, Mapping[str, Any]] = YAML(typ="safe").load(Path(__file__).with_name("tasks.yaml"))
    return texts
