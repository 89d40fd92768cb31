"""Print how much there is to read: tokens of each package of mlops_build, and lines of the tests. Called by `make lint`.

A token is what Python's tokenizer returns, without comments, line ends and indentation. Fails if a module has more than MOST_LINES lines,
or a function more than MOST_FUNCTION_LINES, without its docstring.
"""

import ast
import sys
import tokenize
from pathlib import Path

MOST_LINES, MOST_FUNCTION_LINES = 400, 60
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENCODING,
    tokenize.ENDMARKER,
}
ROOT = Path(__file__).parent.parent


def tokens(module: Path) -> int:
    with module.open("rb") as file:
        return sum(token.type not in LAYOUT for token in tokenize.tokenize(file.readline))


def lines(module: Path) -> int:
    return len(module.read_text(encoding="utf-8").splitlines())


def long_functions(module: Path) -> list[str]:
    """The functions that are too long, with their place and length."""
    long = []
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) and node.body[1:] else node.body
            length = int(node.end_lineno or 0) - body[0].lineno + 1
            if length > MOST_FUNCTION_LINES:
                long.append(f"{module.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines")
    return long


def main() -> int:
    package = ROOT / "mlops_build"
    modules = sorted(package.rglob("*.py"))
    sizes: dict[str, int] = {}
    for module in modules:
        part = module.relative_to(package).parts[0]
        sizes[part] = sizes.get(part, 0) + tokens(module)
    for part, size in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"{size:9,} tokens  mlops_build/{part}")
    print(f"{sum(sizes.values()):9,} tokens  mlops_build, {len(modules)} files, {sum(map(lines, modules)):,} lines")
    print(f"{sum(map(lines, (ROOT / 'tests').rglob('*.py'))):9,} lines   tests")
    too_long = [f"{module.relative_to(ROOT)}: {lines(module)} lines" for module in modules if lines(module) > MOST_LINES]
    too_long += [function for module in modules for function in long_functions(module)]
    for what in too_long:
        print(f"too long: {what}", file=sys.stderr)
    return 1 if too_long else 0


if __name__ == "__main__":
    sys.exit(main())
