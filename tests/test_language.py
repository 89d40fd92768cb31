"""Plain technical English: some words and names do not occur in the package and its docs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The parts of mlops_build without these words and names. Add a part when it has been rewritten.
PARTS = [
    "adopt",
    "__main__.py",
    "adapters",
    "bridge",
    "checklist",
    "ci",
    "cli",
    "doctor.py",
    "errors.py",
    "finding.py",
    "gpu",
    "lineage",
    "model",
    "packaging",
    "quantity.py",
    "release",
    "scaffold",
    "service",
    "serving",
    "training",
    "verify",
    "watch",
]
PHRASES = re.compile(
    r"\bmend(?:s|ed|ing)?\b|(?<!there )(?<!There )\bis no (?!longer\b)|\bwhole road\b|\bare told\b"
    # Write: no longer, rarely, at the same time, does not need, have passed, make Kubernetes restart it.
    r"|\bany more\b|\bseldom\b|\bat one time\b|\bneeds not\b|\b(?:time|has) come\b|\blet Kubernetes\b",
    re.IGNORECASE,
)
PACKAGE_AS_HOUSE = re.compile(r"\b(?:map of the house|rooms? that|room of the package|house)\b", re.IGNORECASE)
NAMES = {"one", "found"}


def sources(part: str) -> list[Path]:
    path = ROOT / "mlops_build" / part
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def bound_names(tree: ast.AST) -> set[str]:
    """Variables and parameters."""
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return stored | {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}


@pytest.mark.parametrize("part", PARTS)
def test_names_and_phrases_of_the_package(part: str) -> None:
    files = sources(part)
    assert files
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not bound_names(ast.parse(text)) & NAMES, f"{file}: name variables after what they hold"
        assert PHRASES.findall(text) == [], file


def test_phrases_of_the_docs() -> None:
    pages = sorted((ROOT / "docs").rglob("*.md"))
    assert pages
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert PHRASES.findall(text) + PACKAGE_AS_HOUSE.findall(text) == [], page
