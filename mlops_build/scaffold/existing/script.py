"""A Python file as a syntax tree. It is never imported or run.

These values are known: literals, names that are assigned once, defaults of command line options (`args.out`), os.path.join, Path(…) / …,
f-strings and sums of these. Any other value is None, and becomes a task in TODO.md.
"""

import ast
import io
import os
import re
import tokenize
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from mlops_build.errors import NotFound, Refused, UsageError

LARGEST = 1_000_000  # bytes; a syntax tree takes a hundred times as much memory
JOINS = {"os.path.join", "path.join", "join", "Path", "pathlib.Path", "PurePath", "str", "os.fspath"}
Node = TypeVar("Node", bound=ast.AST)


class BadScript(Refused):
    """A file that cannot be read as Python."""


@dataclass(frozen=True)
class Script:
    """A parsed file. text: decoded, with \\n line ends. encoding, line_end: of the file on disk."""

    path: Path
    text: str
    tree: ast.Module
    encoding: str = "utf-8"
    line_end: str = "\n"

    def write(self, text: str, path: Path) -> None:
        """Write a changed text with the encoding and line ends of the original."""
        path.write_bytes(text.replace("\n", self.line_end).encode(self.encoding))

    @property
    def lines(self) -> list[str]:
        return self.text.split("\n")

    def source(self, node: ast.AST) -> str:
        """The text of a node on one line, shortened."""
        text = " ".join((ast.get_source_segment(self.text, node) or "").split())
        return text if len(text) <= 120 else f"{text[:117]}…"

    def nodes(self, kind: type[Node]) -> list[Node]:
        """All statements or expressions of a kind, in line order."""
        nodes = [node for node in ast.walk(self.tree) if isinstance(node, kind)]
        return sorted(nodes, key=lambda node: (getattr(node, "lineno", 0), getattr(node, "col_offset", 0)))

    @cached_property
    def calls(self) -> Sequence[tuple[str, ast.Call]]:
        """All calls with their dotted names, in line order."""
        return [(dotted(call.func), call) for call in self.nodes(ast.Call)]

    @cached_property
    def strings(self) -> Sequence[ast.Constant]:
        """All string literals that are values: no docstrings, and no parts of f-strings."""
        parts = {id(part) for node in self.nodes(ast.JoinedStr) for part in ast.walk(node)}
        parts |= {id(node.value) for node in self.nodes(ast.Expr)}
        return [node for node in self.nodes(ast.Constant) if isinstance(node.value, str) and id(node) not in parts]

    @cached_property
    def assigned(self) -> Mapping[str, Sequence[ast.expr]]:
        """The values that are assigned to each name, in line order."""
        assigned: dict[str, list[ast.expr]] = {}
        for node in self.nodes(ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    assigned.setdefault(target.id, []).append(node.value)
        return assigned

    def value_before(self, name: str, line: int) -> ast.expr | None:
        """The last value that is assigned to a name up to a line, else the first one after it."""
        values = self.assigned.get(name, ())
        return next((value for value in reversed(values) if value.lineno <= line), values[0] if values else None)

    @cached_property
    def constants(self) -> Mapping[str, ast.expr]:
        """The names that are assigned exactly once, with their values."""
        counts = Counter(node.id for node in self.nodes(ast.Name) if not isinstance(node.ctx, ast.Load))
        counts.update(node.arg for node in self.nodes(ast.arg))
        return {name: values[0] for name, values in self.assigned.items() if counts[name] == 1}

    def conditions(self, line: int) -> list[str]:
        """The names of the conditions around a line: `save` for a line below `if args.save:`."""
        around = [node for node in self.nodes(ast.If) if node.body[0].lineno <= line <= (node.body[-1].end_lineno or 0)]
        return [dotted(node.test).rpartition(".")[2] for node in around]

    def is_guarded(self) -> bool:
        """Whether importing it runs nothing: its top level has only definitions, imports, assignments and `if __name__ == …`."""
        quiet = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.AnnAssign)
        for node in self.tree.body:
            if isinstance(node, ast.Assign):
                called = {dotted(part.func).rpartition(".")[2] for part in ast.walk(node) if isinstance(part, ast.Call)}
                is_quiet = not called & {"parse_args", "read_csv", "load", "open"}
            elif isinstance(node, ast.If):
                is_quiet = "__name__" in ast.dump(node.test)
            else:
                is_quiet = isinstance(node, quiet) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
            if not is_quiet:
                return False
        return True


def read(path: Path) -> Script:
    """Parse a Python file. Raises NotFound, UsageError for a file that is not a script, BadScript with file and line."""
    if not path.is_file():
        raise NotFound(
            f"{path} does not exist" if not path.exists() else f"{path} is not a file", remedy="give the training script, such as train.py"
        )
    if path.suffix == ".ipynb":
        raise UsageError(
            f"{path} is a notebook; a pipeline runs scripts",
            remedy=f"jupyter nbconvert --to script {path.name}, remove what only displays data, then use {path.stem}.py",
        )
    if path.suffix != ".py":
        raise UsageError(f"{path} is not a Python file", remedy="give the training script, such as train.py")
    if not re.fullmatch(r"[\w .-]+", path.name):
        raise UsageError(f"{path.name!r} is not a valid file name of a module", remedy="rename it with letters, digits and _")
    content = path.read_bytes()
    if len(content) > LARGEST:
        raise BadScript(f"{path} has {len(content):,} bytes; the limit is {LARGEST:,}", remedy="move data out of the code, then try again")
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(content).readline)
        decoded = content.decode(encoding)
        text = decoded.replace("\r\n", "\n").replace("\r", "\n")
        return Script(path, text, ast.parse(text), encoding, "\r\n" if "\r\n" in decoded else "\n")
    except SyntaxError as error:
        where = f"{path}:{error.lineno}" if error.lineno else str(path)
        raise BadScript(f"{where}: {error.msg}", remedy="fix it; `python -m py_compile` shows the same error") from None
    except (UnicodeDecodeError, ValueError) as error:
        raise BadScript(f"{path} cannot be decoded: {error}", remedy="save it as UTF-8") from None
    except (RecursionError, MemoryError):
        raise BadScript(f"{path} is nested too deeply to be read", remedy="if it is generated code, move its data to a file") from None


def dotted(node: ast.expr) -> str:
    """The dotted name of an expression, such as `torch.save`; `….save` if the part before the dot is not a name."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return "…"


@dataclass(frozen=True)
class Values:
    """What the expressions of a file evaluate to. options: the default of each command line option, by its name in the code."""

    script: Script
    options: Mapping[str, object]

    def of(self, node: ast.expr, depth: int = 0) -> object:
        """The value of an expression; None if it is not known."""
        if depth > 20:
            return None
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.UnaryOp | ast.List | ast.Tuple):
            try:
                return ast.literal_eval(node)
            except (ValueError, TypeError, RecursionError):
                return None
        if isinstance(node, ast.Name):
            # click passes its options as parameters
            return self.of(self.script.constants[node.id], depth + 1) if node.id in self.script.constants else self.options.get(node.id)
        if isinstance(node, ast.Attribute):
            return self.options.get(node.attr) if isinstance(node.value, ast.Name) and node.value.id not in ("self", "cls") else None
        return self._text(node, depth + 1)

    def path(self, node: ast.expr) -> str | None:
        """The path that an expression evaluates to; None if it is not known."""
        value = self.of(node)
        return value if isinstance(value, str) and value.strip() else None

    def _text(self, node: ast.expr, depth: int) -> str | None:
        """The value of an f-string, a sum of strings, or an expression that joins a path."""
        parts: Sequence[ast.expr] = ()
        kinds: tuple[type, ...] = (str,)
        if isinstance(node, ast.JoinedStr):
            parts, kinds = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values], (str, int)
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Div):
            parts = [node.left, node.right]
        elif isinstance(node, ast.Call) and dotted(node.func) in JOINS and not node.keywords:
            parts = node.args
        values = [self.of(part, depth) for part in parts]
        if not values or not all(isinstance(value, kinds) for value in values):
            return None
        is_path = isinstance(node, ast.Call) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div))
        return os.path.join(*map(str, values)) if is_path else "".join(map(str, values))  # noqa: PTH118  (text of the script)
