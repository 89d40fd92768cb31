"""Read options, imports and written files from the syntax tree of a Python file. The file is never imported or run.

These values are resolved: literals, names that are assigned once, defaults of command line options (`args.out`), os.path.join,
Path(…) / …, f-strings and sums of these. Any other value is None, and becomes a task in TODO.md.
"""

import ast
import io
import os
import re
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlops_build.errors import NotFound, Refused, UsageError

LARGEST = 1_000_000  # bytes; a syntax tree takes a hundred times as much memory
# Methods and functions that write a file, with the position of the path argument.
WRITERS = {
    "torch.save": 1,
    "torch.jit.save": 1,
    "torch.onnx.export": 2,
    "save_file": 1,
    "joblib.dump": 1,
    "numpy.save": 0,
    "np.save": 0,
    "np.savez": 0,
    "np.savetxt": 0,
    ".savefig": 0,
    ".to_csv": 0,
    ".to_parquet": 0,
    ".to_pickle": 0,
    ".to_feather": 0,
    ".save_pretrained": 0,
    ".save_vocabulary": 0,
}
PATH_KEYWORDS = ("f", "path", "filename", "fname", "file", "path_or_buf", "save_directory")


class BadScript(Refused):
    """A file that cannot be read as Python."""


@dataclass(frozen=True)
class Written:
    """A file that a script writes. path: None if it is not known; target: its expression. what: the saved expression (torch.save only)."""

    script: "Script" = field(repr=False, compare=False)
    path: str | None
    by: str
    line: int
    source: str
    what: ast.expr | None = field(default=None, repr=False, compare=False)
    target: ast.expr | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Import:
    """An imported module: its dotted name, the names imported from it, and the number of leading dots."""

    module: str
    names: tuple[str, ...]
    level: int
    node: ast.Import | ast.ImportFrom = field(compare=False)


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

    def imports(self) -> list[Import]:
        """Every import in the file, also inside functions."""
        imports = []
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                imports += [Import(alias.name, (), 0, node) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                imports.append(Import(node.module or "", tuple(alias.name for alias in node.names), node.level, node))
        return imports

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """Every call with its dotted name, where "…" stands for an expression that is not a name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Call):
                yield dotted(node.func), node

    def strings(self) -> list[ast.Constant]:
        """Every string literal that is a value: not a docstring, and not a piece of an f-string."""
        pieces = {id(part) for node in ast.walk(self.tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
        prose = {id(node.value) for node in ast.walk(self.tree) if isinstance(node, ast.Expr)}
        return [
            node
            for node in ast.walk(self.tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in pieces | prose
        ]

    def is_guarded(self) -> bool:
        """Whether importing it runs nothing: its top level has only definitions, imports, assignments and `if __name__ == …`."""
        quiet = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
        for node in self.tree.body:
            if isinstance(node, ast.If) and "__name__" in ast.dump(node.test):
                continue
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                continue
            if not isinstance(node, quiet) or (isinstance(node, ast.Assign) and _is_costly(node.value)):
                return False
        return True

    def classes(self) -> set[str]:
        return {node.name for node in self.tree.body if isinstance(node, ast.ClassDef)}


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
    if path.stat().st_size > LARGEST:
        raise BadScript(
            f"{path} has {path.stat().st_size:,} bytes; the limit is {LARGEST:,}", remedy="move data out of the code, then try again"
        )
    content = path.read_bytes()
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


def written(script: Script, arguments: Mapping[str, object]) -> list[Written]:
    """The files that the script writes, in order. arguments: dest → default of the options of all modules."""
    known = constants(script, arguments)
    files = []
    for called, call in sorted(script.calls(), key=lambda pair: pair[1].lineno):
        if called.lower().endswith("sentencepiecetrainer.train"):
            prefix = next((known.path(keyword.value) for keyword in call.keywords if keyword.arg == "model_prefix"), None)
            paths = [f"{prefix}{suffix}" for suffix in (".model", ".vocab")] if prefix else [None]
            files += [Written(script, path, "SentencePieceTrainer.train", call.lineno, script.source(call)) for path in paths]
            continue
        target = _target(called, call, known)
        if called == "torch.save" and len(call.args) > 1 and isinstance(call.args[1], ast.Name):
            target = _opened(script, call.args[1].id) or call.args[1]
        if target is not None:
            path = known.path(target)
            what = call.args[0] if called == "torch.save" and call.args else None
            files.append(Written(script, path, called.replace("….", "."), call.lineno, script.source(call), what, target))
    return files


@dataclass(frozen=True)
class Constants:
    """Names with known values in a file. arguments: the default of `args.NAME`."""

    names: Mapping[str, ast.expr]
    arguments: Mapping[str, object]

    def value(self, node: ast.expr, depth: int = 0) -> object:
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
        if isinstance(node, ast.Name) and node.id in self.names:
            return self.value(self.names[node.id], depth + 1)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id not in ("self", "cls"):
            return self.arguments.get(node.attr)
        if isinstance(node, ast.Name):
            return self.arguments.get(node.id)  # click passes its options as parameters
        return None

    def path(self, node: ast.expr, depth: int = 0) -> str | None:
        """The path that an expression evaluates to; None if it is not known."""
        if depth > 20:
            return None
        parts: Sequence[ast.expr] | None = None
        if isinstance(node, ast.Call) and not node.keywords:
            called = dotted(node.func)
            if called in ("os.path.join", "path.join", "join", "Path", "pathlib.Path", "PurePath", "str", "os.fspath"):
                parts = node.args
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            parts = [node.left, node.right]
        elif isinstance(node, ast.JoinedStr) or (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add)):
            values = node.values if isinstance(node, ast.JoinedStr) else [node.left, node.right]
            pieces = [self.path(part.value if isinstance(part, ast.FormattedValue) else part, depth + 1) for part in values]
            return None if None in pieces else "".join(map(str, pieces))
        elif isinstance(node, ast.Name) and node.id in self.names:
            return self.path(self.names[node.id], depth + 1)
        if parts is not None:
            paths = [self.path(part, depth + 1) for part in parts]
            return None if not paths or None in paths else os.path.join(*map(str, paths))  # noqa: PTH118  (paths of the script, kept as text)
        value = self.value(node, depth)
        return str(value) if isinstance(value, str | int) and not isinstance(value, bool) and str(value).strip() else None


def constants(script: Script, arguments: Mapping[str, object] | None = None) -> Constants:
    """The names that a file assigns exactly once, with their values."""
    assigned: dict[str, ast.expr] = {}
    counts: dict[str, int] = {}
    for node in ast.walk(script.tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
            counts[node.id] = counts.get(node.id, 0) + 1
        elif isinstance(node, ast.arg):
            counts[node.arg] = counts.get(node.arg, 0) + 1
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            assigned[node.targets[0].id] = node.value
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            assigned[node.target.id] = node.value
    return Constants({name: value for name, value in assigned.items() if counts.get(name) == 1}, arguments or {})


def assigned(script: Script, name: str) -> ast.Call | None:
    """The first constructor call assigned to a name: `Net(…)` for `model = Net(…).to(device)`."""
    for value in _values(script.tree, name):
        while isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and isinstance(value.func.value, ast.Call):
            value = value.func.value
        if isinstance(value, ast.Call) and dotted(value.func).rpartition(".")[2] not in ("load", "to", "cuda", "DataParallel", "compile"):
            return value
    return None


def value_at(script: Script, name: str, line: int) -> ast.expr | None:
    """The last value assigned to a name above a line in the same function, else its only assignment in the file."""
    functions = [
        node
        for node in ast.walk(script.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    for scope in sorted(functions, key=lambda node: -node.lineno):
        if above := [value for value in _values(scope, name) if value.lineno <= line]:
            return above[-1]
    return constants(script).names.get(name)


def conditions(script: Script, line: int) -> list[str]:
    """The names of the conditions around a line: `save` for a line below `if args.save:`."""
    return [
        node.test.attr if isinstance(node.test, ast.Attribute) else node.test.id
        for node in ast.walk(script.tree)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Attribute | ast.Name)
        and node.body[0].lineno <= line <= (node.body[-1].end_lineno or 0)
    ]


def _target(called: str, call: ast.Call, known: Constants) -> ast.expr | None:
    """The expression of the path that a call writes; None for a call that writes no file."""
    method = f".{called.rpartition('.')[2]}"
    if called in ("open", "io.open") or method == ".open":
        if called in ("webbrowser.open", "Image.open", "os.open", "urllib.request.urlopen"):
            return None
        place = 1 if called in ("open", "io.open", "gzip.open", "bz2.open") else 0
        mode = next(
            (keyword.value for keyword in call.keywords if keyword.arg == "mode"), call.args[place] if len(call.args) > place else None
        )
        text = known.value(mode) if mode is not None else "r"
        if not isinstance(text, str) or not re.fullmatch(r"[rwaxbt+]{1,4}", text) or not set(text) & set("wax"):
            return None
        if place == 0:
            return call.func.value if isinstance(call.func, ast.Attribute) else None
        return call.args[0] if call.args else None
    if method in (".write_text", ".write_bytes"):
        return call.func.value if isinstance(call.func, ast.Attribute) else None
    place = WRITERS.get(called, WRITERS.get(method, -1))
    if place < 0 and method == ".save" and call.args and str(known.path(call.args[0])).endswith(".json"):
        return call.args[0]  # Tokenizer.save of the package tokenizers
    if place < 0:
        return None
    named = next((keyword.value for keyword in call.keywords if keyword.arg in PATH_KEYWORDS), None)
    target = call.args[place] if len(call.args) > place else named
    # An open file or a buffer: the call of open() is handled above.
    return None if target is None or (isinstance(target, ast.Name) and target.id in ("f", "file", "fh", "buffer", "out_file")) else target


def _values(scope: ast.AST, name: str) -> list[ast.expr]:
    """All values assigned to a name in a scope, in line order."""
    values = [
        node.value
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
    return sorted(values, key=lambda value: value.lineno)


def _opened(script: Script, name: str) -> ast.expr | None:
    """The path of `with open(PATH, …) as NAME`."""
    for node in ast.walk(script.tree):
        if isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name) and node.optional_vars.id == name:
            call = node.context_expr
            if isinstance(call, ast.Call) and dotted(call.func) in ("open", "io.open") and call.args:
                return call.args[0]
    return None


def _is_costly(node: ast.expr) -> bool:
    return any(
        isinstance(part, ast.Call) and dotted(part.func).rpartition(".")[2] in ("parse_args", "read_csv", "load", "open")
        for part in ast.walk(node)
    )


def quote(script: Script, node: ast.Constant) -> str | None:
    """The opening quote of a string literal, with its prefix; None for a concatenated or triple-quoted literal."""
    text = ast.get_source_segment(script.text, node) or ""
    match = re.match(r"""[rRuU]?(["'])""", text)
    if not match or node.lineno != node.end_lineno or text.startswith(('"""', "'''")) or text.count(match[1]) != 2:
        return None
    return match[0]


def uses_of_file(script: Script) -> list[int]:
    """The lines that use `__file__`."""
    return [node.lineno for node in ast.walk(script.tree) if isinstance(node, ast.Name) and node.id == "__file__"]
