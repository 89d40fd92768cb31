"""Copy the script's modules into the service's package. Only imports of each other and paths to the data are changed."""

import difflib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlops_build.scaffold.existing import modules as modules_of
from mlops_build.scaffold.existing import script as scripts
from mlops_build.scaffold.existing.data import Source
from mlops_build.scaffold.existing.modules import Edit, Module
from mlops_build.scaffold.existing.script import Script


@dataclass(frozen=True)
class Copied:
    """A copied file. path: relative to the service. diff: unified, "" if the copy is identical."""

    original: str
    path: str
    diff: str
    edits: tuple[Edit, ...]

    def line(self, line: int) -> int:
        """The line number in the copy; an import that became two statements moves the following lines."""
        return line + sum(edit.text.count("\n") for edit in self.edits if edit.start[0] < line)

    @property
    def changed_lines(self) -> int:
        return sum(line.startswith("+") and not line.startswith("+++") for line in self.diff.splitlines())


def copy(modules: Sequence[Module], sources: Sequence[Source], root: Path, package: str) -> dict[Path, Copied]:
    """Copy the modules into `root`/src/PACKAGE. The result is keyed by the path of the original."""
    folder = modules[0].script.path.parent
    imports = modules_of.localized(modules, folder, package)
    copied = {}
    for module in modules:
        script = module.script
        edits = [*imports.get(script.path, []), *_places(script, sources)]
        path, original = f"src/{package}/{module.inside}", script.path.relative_to(folder).as_posix()
        new = modules_of.changed(script, edits)
        diff = "\n".join(difflib.unified_diff(script.lines, new.split("\n"), original, path, lineterm="", n=1))
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if edits:
            script.write(new, root / path)
            shutil.copymode(script.path, root / path)
        else:
            shutil.copy(script.path, root / path)
        copied[script.path] = Copied(original, path, diff + "\n" if diff else "", tuple(edits))
    return copied


def bases(script: Script) -> list[Path]:
    """The folders that a relative path in the script may start from: the script's folder and the working directory."""
    return list(dict.fromkeys([script.path.parent, Path.cwd()]))


def place(value: str, sources: Sequence[Source], start: Sequence[Path]) -> str | None:
    """The path in the service for a path to the data in the script; None for any other value."""
    if len(value) > 4096 or value.strip(f"{os.sep}. ") == "":
        return None
    return next((inside for source in sources if (inside := source.within(value, start)) is not None), None)


def _places(script: Script, sources: Sequence[Source]) -> list[Edit]:
    edits = []
    for node in script.strings():
        inside, quote = place(str(node.value), sources, bases(script)), scripts.quote(script, node)
        if inside is not None and quote is not None:
            end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
            edits.append(Edit((node.lineno, node.col_offset), end, f"{quote}{inside}{quote[-1]}"))
    return edits
