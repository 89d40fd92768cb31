"""What our modules import, found by reading them: also what they import inside functions, on a path that no test takes."""

import ast
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]


class Imports(NamedTuple):
    """modules: of ours. packages: of others, by the name that is imported; those of the standard library are left out."""

    modules: frozenset[str]
    packages: frozenset[str]


def closure(module: str) -> Imports:
    """All that a module of ours imports, and the modules that it imports in turn."""
    modules: set[str] = set()
    packages: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in modules:
            continue
        modules.add(name)
        parents = [name.rsplit(".", levels)[0] for levels in range(1, name.count(".") + 1)]
        for imported in [*_imported(name), *parents]:
            top = imported.partition(".")[0]
            if top == "mlops_build":
                todo.append(imported)
            elif top not in sys.stdlib_module_names:
                packages.add(top)
    return Imports(frozenset(modules), frozenset(packages))


@cache
def _imported(module: str) -> frozenset[str]:
    path = _file(module)
    if path is None:
        return frozenset()
    names: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            todo += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module)
            names |= {name for alias in node.names if _file(name := f"{node.module}.{alias.name}")}
        todo += ast.iter_child_nodes(node)
    return frozenset(names)


def _file(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    candidates = (path.with_suffix(".py"), path / "__init__.py") if module.startswith("mlops_build") else ()
    return next((candidate for candidate in candidates if candidate.is_file()), None)
