"""The tasks that are left to the script's author, each with file, line, description and an example."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

HEAD = """\
# Remaining tasks

`mlops-build scaffold` generated this service from `{script}`. It only reads code, so these tasks are left to you. Generated code
is marked with `TODO` and the number of the task. When all tasks are done, run `mlops-build train` and delete this file.
"""


@dataclass(frozen=True)
class Left:
    """A task. file, line: in the service. needed: the pipeline fails without it. example: code or a command; "" for none."""

    number: int
    file: str
    line: int
    what: str
    needed: bool
    example: str = ""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Todo:
    """The list of tasks. `add` returns the task's number; the generated file names it, so that its line can be found later."""

    left: list[Left] = field(default_factory=list)

    def add(self, file: str, what: str, example: str = "", *, line: int = 0, needed: bool = True) -> int:
        """Add a task. line: 0 if the file is marked with TODO and the number."""
        self.left.append(Left(len(self.left) + 1, file, line, what, needed, example))
        return len(self.left)

    def placed(self, root: Path) -> list[Left]:
        """The list with the line numbers of the marks in the files at `root`."""
        return [item if item.line else replace(item, line=_line(root / item.file, item.number)) for item in self.left]


def _line(file: Path, number: int) -> int:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((index for index, line in enumerate(lines, 1) if re.search(rf"\bTODO {number}\b", line)), 1)


def page(script: str, left: Sequence[Left]) -> str:
    """TODO.md."""
    parts = [HEAD.format(script=script)]
    for title, needed in (("Needed before the first training", True), ("Recommended", False)):
        some = [item for item in left if item.needed is needed]
        parts += [f"\n## {title}\n"] if some else []
        for item in some:
            parts.append(f"\n{item.number}. [ ] `{item.file}:{item.line}`: {item.what}\n")
            if item.example:
                language = "console" if item.example.startswith("$ ") else "python" if item.file.endswith(".py") else "yaml"
                indented = "\n".join(f"    {line}".rstrip() for line in item.example.splitlines())
                parts.append(f"\n    ```{language}\n{indented}\n    ```\n")
    return "".join(parts)


def listing(left: Sequence[Left]) -> str:
    """The list for a terminal, two lines for each task."""
    return "\n".join(
        f"{item.number:>3}. {item.file}:{item.line}{'' if item.needed else ' (recommended)'}\n     {item.what}" for item in left
    )
