"""What a program cannot know about somebody's script, as a list for its author: where, what, and how it may look."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

HEAD = """\
# What is left to do

`mlops-build scaffold` put a service around `{script}`. It read the code and ran nothing, so it cannot know what stands here. Each
place that it wrote itself says `TODO` and its number. When all is done: `mlops-build train`. Then delete this file.
"""


@dataclass(frozen=True)
class Left:
    """One thing to do. file, line: in the service. needed: the pipeline fails without it. example: code, or a command; "" for none."""

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
    """The list while it grows. `add` gives the number that a text written to the file then names, by which its line is found."""

    left: list[Left] = field(default_factory=list)

    def add(self, file: str, what: str, example: str = "", *, line: int = 0, needed: bool = True) -> int:
        """line: 0 where the file says TODO and the number."""
        self.left.append(Left(len(self.left) + 1, file, line, what, needed, example))
        return len(self.left)

    def placed(self, root: Path) -> list[Left]:
        """The list with every line found in the files at `root`."""
        return [one if one.line else replace(one, line=_line(root / one.file, one.number)) for one in self.left]


def _line(file: Path, number: int) -> int:
    lines = file.read_text(encoding="utf-8").splitlines()
    return next((index for index, line in enumerate(lines, 1) if re.search(rf"\bTODO {number}\b", line)), 1)


def page(script: str, left: Sequence[Left]) -> str:
    """TODO.md."""
    parts = [HEAD.format(script=script)]
    for title, needed in (("Needed before the first training", True), ("Good to look at", False)):
        some = [one for one in left if one.needed is needed]
        parts += [f"\n## {title}\n"] if some else []
        for one in some:
            parts.append(f"\n{one.number}. [ ] `{one.file}:{one.line}`: {one.what}\n")
            if one.example:
                language = "console" if one.example.startswith("$ ") else "python" if one.file.endswith(".py") else "yaml"
                indented = "\n".join(f"    {line}".rstrip() for line in one.example.splitlines())
                parts.append(f"\n    ```{language}\n{indented}\n    ```\n")
    return "".join(parts)


def listing(left: Sequence[Left]) -> str:
    """The same for a terminal, two lines each."""
    return "\n".join(f"{one.number:>3}. {one.file}:{one.line}{'' if one.needed else ' (look at it)'}\n     {one.what}" for one in left)
