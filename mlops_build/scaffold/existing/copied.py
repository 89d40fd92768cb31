"""Copy the script's modules into the service's package. Only imports of each other and paths to the data are changed."""

import difflib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlops_build.scaffold.existing.data import Source
from mlops_build.scaffold.existing.imports import Edit, Module, changed
from mlops_build.scaffold.existing.script import Script


@dataclass(frozen=True)
class Copied:
    """A copied file. path: relative to the service. diff: unified, "" if the copy is identical."""

    original: str
    path: str
    diff: str
    edits: Sequence[Edit]

    def line(self, line: int) -> int:
        """The line number in the copy; an import that became two statements moves the following lines."""
        return line + sum(edit.text.count("\n") for edit in self.edits if edit.start[0] < line)

    @property
    def changed_lines(self) -> int:
        return sum(line.startswith("+") and not line.startswith("+++") for line in self.diff.splitlines())


def copy(modules: Sequence[Module], sources: Sequence[Source], root: Path, package: str) -> dict[Path, Copied]:
    """Copy the modules into `root`/src/PACKAGE. The result is keyed by the path of the original."""
    copied = {}
    for module in modules:
        script = module.script
        edits = [*module.edits(package), *_data_edits(script, sources)]
        path, original = f"src/{package}/{module.inside}", script.path.relative_to(module.folder).as_posix()
        new = changed(script, edits)
        diff = "\n".join(difflib.unified_diff(script.lines, new.split("\n"), original, path, lineterm="", n=1))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(script.path, root / path)
        if edits:
            script.write(new, root / path)
        copied[script.path] = Copied(original, path, diff + "\n" if diff else "", edits)
    return copied


def starts(script: Script) -> list[Path]:
    """The folders that a relative path in the script may start from: the script's folder and the working directory."""
    return list(dict.fromkeys([script.path.parent, Path.cwd()]))


def place(value: object, sources: Sequence[Source], script: Script) -> str | None:
    """The path in the service for a path to the data in the script; None for any other value."""
    if not isinstance(value, str) or len(value) > 4096 or value.strip(f"{os.sep}. ") == "":
        return None
    return next((inside for source in sources if (inside := source.within(value, starts(script))) is not None), None)


def _data_edits(script: Script, sources: Sequence[Source]) -> list[Edit]:
    return [
        Edit((node.lineno, node.col_offset), (node.lineno, node.end_col_offset or 0), json.dumps(inside))
        for node in script.strings
        if node.lineno == node.end_lineno and (inside := place(node.value, sources, script)) is not None
    ]
