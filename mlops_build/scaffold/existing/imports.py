"""The modules that a script imports: local ones, which are copied, and packages, which must be installed.

A local module is one that Python finds when the script is run from a shell, in the script's folder first. In the service the local
modules form one package, so their imports of each other get the package's name; nothing else in them changes.
"""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from mlops_build.errors import Refused
from mlops_build.scaffold.existing.script import Script, read

MOST = 200  # modules; more is a project, not a script


@dataclass(frozen=True)
class Edit:
    """A replacement in a file's text, from line and column to line and column (from 1 and 0, as ast counts; columns in UTF-8)."""

    start: tuple[int, int]
    end: tuple[int, int]
    text: str


@dataclass(frozen=True)
class Import:
    """An imported module. name: as written. local: its dotted name below the script's folder, None for other modules.

    files: the local files that the import loads. above: whether it is relative to a folder above the script's.
    """

    node: ast.Import | ast.ImportFrom
    name: str
    local: str | None
    files: tuple[Path, ...] = ()
    above: bool = False


@dataclass(frozen=True)
class Module:
    """A file to copy. inside: its path in the service's package, such as `layers/conv.py`. folder: that of the training script."""

    script: Script
    inside: str
    folder: Path

    @property
    def name(self) -> str:
        """Its dotted name in the package; "" for the package itself."""
        return ".".join(Path(self.inside).with_suffix("").parts).removesuffix(".__init__")

    @cached_property
    def imports(self) -> Sequence[Import]:
        """Its imports, also those inside functions."""
        return [
            *(self._resolved(node, alias.name, 0, ()) for node in self.script.nodes(ast.Import) for alias in node.names),
            *(
                self._resolved(node, node.module or "", node.level, [alias.name for alias in node.names])
                for node in self.script.nodes(ast.ImportFrom)
            ),
        ]

    def _resolved(self, node: ast.Import | ast.ImportFrom, name: str, level: int, names: Sequence[str]) -> Import:
        parents = Path(self.inside).parent.parts
        if level > len(parents) + 1:
            return Import(node, name, None, above=True)
        parts = [part for part in name.split(".") if part]
        if level:
            parts = [*parents[: len(parents) - (level - 1)], *parts]
        elif (self.folder / "__init__.py").is_file() and parts[0] == self.folder.name:
            # `project.model` in project/train.py is the local module `model`.
            parts = parts[1:]
            level = not parts
        files = tuple(_files(self.folder, parts, names))
        return Import(node, name, ".".join(parts) if files or level else None, files)

    def edits(self, package: str) -> Iterator[Edit]:
        """The edits that add the package's name to its imports of local modules."""
        for node in {statement.node: None for statement in self.imports if statement.local is not None}:
            if isinstance(node, ast.ImportFrom):
                if node.level == 0:
                    (local,) = (statement.local for statement in self.imports if statement.node is node)
                    yield _module_name(self.script, node, f"{package}.{local}".rstrip("."))
                continue
            statements = self._plain_import(node, package)
            end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
            yield Edit((node.lineno, node.col_offset), end, f"\n{' ' * node.col_offset}".join(statements))

    def _plain_import(self, node: ast.Import, package: str) -> list[str]:
        """The statements that replace `import a, b.c, d as e`."""
        statements = []
        for alias, statement in zip(node.names, (statement for statement in self.imports if statement.node is node), strict=True):
            renamed = f" as {alias.asname}" if alias.asname else ""
            if not statement.local:
                statements.append(f"import {alias.name}{renamed}")
            elif alias.asname:
                parent, _, last = f"{package}.{statement.local}".rpartition(".")
                statements.append(f"from {parent} import {last}" + (renamed if alias.asname != last else ""))
            else:
                # `import a.b` binds a, which has the attribute b.
                statements += [f"import {package}.{statement.local}"] if "." in statement.local else []
                statements.append(f"from {package} import {statement.local.partition('.')[0]}")
        return statements


def collect(script: Script) -> list[Module]:
    """The script and every local module that it imports directly or indirectly. Raises Refused for more than MOST, and as `read`."""
    folder = script.path.parent
    # Another module may have the script's valid name: train_v2.py next to train-v2.py.
    own = _own_name(script.path)
    stem, number = own.removesuffix(".py"), 2
    while own != script.path.name and (folder / own).exists():
        own, number = f"{stem}_{number}.py", number + 1
    modules = {script.path: Module(script, own, folder)}
    waiting = [script.path]
    while waiting:
        for path in (path for statement in modules[waiting.pop()].imports for path in statement.files if path not in modules):
            modules[path] = Module(read(path), path.relative_to(folder).as_posix(), folder)
            waiting.append(path)
        if len(modules) > MOST:
            raise Refused(
                f"{script.path} imports more than {MOST} local modules: that is a project, not a script",
                remedy="start from the template (copier copy) and move the code into its package",
            )
    return sorted(modules.values(), key=lambda module: (module.script is not script, module.inside))


def reached(start: Module, modules: Sequence[Module]) -> list[Module]:
    """A module and the others that importing it loads."""
    by_path = {module.script.path: module for module in modules}
    reached = [start]
    for module in reached:
        loaded = (by_path[path] for statement in module.imports for path in statement.files)
        reached += dict.fromkeys(other for other in loaded if other not in reached)
    return reached


def third_party(modules: Sequence[Module]) -> dict[str, tuple[Script, int]]:
    """Import name → place of its first import, for packages that are neither local nor in the standard library."""
    first_import: dict[str, tuple[Script, int]] = {}
    for module in modules:
        for statement in module.imports:
            top = statement.name.partition(".")[0]
            if statement.local is None and not statement.above and top not in sys.stdlib_module_names:
                first_import.setdefault(top, (module.script, statement.node.lineno))
    return first_import


@cache
def installed_packages() -> Mapping[str, Sequence[str]]:
    """The distributions in this environment, by the packages that they provide. Reading them takes 0.2 s, once for a process."""
    return importlib.metadata.packages_distributions()


def distribution(name: str, installed: Mapping[str, Sequence[str]]) -> tuple[str, str | None] | None:
    """The distribution that provides an import, with the installed version (MAJOR.MINOR); None if neither the environment nor packages.toml
    has it. A name is never guessed: anyone could register an unused name on the package index.
    """
    known = sorted(set(installed.get(name, ())))
    if len(known) == 1:
        version = importlib.metadata.version(known[0]).partition("+")[0]
        return known[0].lower().replace("_", "-"), ".".join(version.split(".")[:2])
    packages = _packages()
    if name in packages["same"]:
        return name.replace("_", "-"), None
    return (packages["other"][name], None) if name in packages["other"] else None


def changed(script: Script, edits: Sequence[Edit]) -> str:
    """The file's text after the edits."""
    lines = [line.encode() for line in script.lines]
    for edit in sorted(edits, key=lambda edit: edit.start, reverse=True):
        (first, left), (last, right) = edit.start, edit.end
        lines[first - 1 : last] = [lines[first - 1][:left] + edit.text.encode() + lines[last - 1][right:]]
    return b"\n".join(lines).decode()


@cache
def _packages() -> Mapping[str, dict[str, str]]:
    packages: dict[str, dict[str, str]] = tomllib.loads(Path(__file__).with_name("packages.toml").read_text(encoding="utf-8"))
    return packages


def _own_name(path: Path) -> str:
    """The file name as a valid module name: `train-v2.py` becomes `train_v2.py`. Without a Latin letter or digit it is `train.py`."""
    stem = re.sub(r"[^A-Za-z0-9]" if path.stem.isascii() else r"[^A-Za-z0-9]+", "_", path.stem)
    if not stem.strip("_"):
        return "train.py"
    return f"{'_' if stem[:1].isdigit() else ''}{stem}.py"


def _files(folder: Path, parts: Sequence[str], names: Sequence[str]) -> list[Path]:
    """The files that an import of the module `parts`, and of `names` from it, loads; empty if it is not a local module."""
    place, files = folder, []
    for part in parts:
        place = place / part
        if (place / "__init__.py").is_file():
            files.append(place / "__init__.py")
        elif place.with_suffix(".py").is_file() and not place.is_dir():
            files.append(place.with_suffix(".py"))
        elif not place.is_dir() or not any(place.glob("*.py")):
            return []
    if place.is_dir():
        for name in names:
            files += [path for path in (place / f"{name}.py", place / name / "__init__.py") if path.is_file()]
            if name == "*" and place != folder:
                files += sorted(place.glob("*.py"))
    return files


def _module_name(script: Script, node: ast.ImportFrom, name: str) -> Edit:
    """The edit that replaces the name between `from` and `import`."""
    line, former = script.lines[node.lineno - 1].encode(), str(node.module).encode()
    start = line.index(former, node.col_offset + len("from"))
    return Edit((node.lineno, start), (node.lineno, start + len(former)), name)
