"""Tasks of TODO.md that `mlops-build scaffold --from` left in a service's code, where the code raises until they are done."""

import re
from pathlib import Path

from mlops_build.errors import Refused

_OPEN = re.compile(r'^ *raise NotImplementedError\("(TODO [0-9]+), see TODO\.md"\)', re.MULTILINE)


class OpenTasks(Refused):
    """The code raises NotImplementedError for a task of TODO.md."""


def open_tasks(root: Path) -> dict[str, str]:
    """Task ("TODO 3") → the file of src/ that needs it."""
    tasks: dict[str, str] = {}
    for path in sorted((root / "src").rglob("*.py")):
        for task in _OPEN.findall(path.read_text(encoding="utf-8", errors="replace")):
            tasks.setdefault(task, path.relative_to(root).as_posix())
    return tasks


def check(root: Path) -> None:
    """Raises OpenTasks."""
    if tasks := open_tasks(root):
        raise OpenTasks(
            f"{', '.join(f'{task} ({path})' for task, path in tasks.items())} of TODO.md is not done yet, so training would fail",
            remedy="do what TODO.md says, commit, then run this again",
        )
