"""The template's example, which a generated service replaces by its own files."""

import re
from pathlib import Path

MODULES = ("data.py", "model.py", "train.py", "evaluate.py")


def remove(root: Path) -> str:
    """Remove the modules of the example and their tests; returns the name of the service's package."""
    package = next(path.parent.name for path in sorted((root / "src").glob("*/__init__.py")))
    for path in [*(root / "src" / package / name for name in MODULES), *(root / "tests").glob("test_*.py")]:
        path.unlink(missing_ok=True)
    return package


def replace_texts(root: Path, package: str, *, origin: str, rows: str, pipeline: str) -> None:
    """Replace the texts about the example in README.md, and the recipe that fetches its data.

    origin: what the service was generated from. rows: of the table of files, without the line end of the last one. pipeline: its stages.
    """
    recipe = "data: $(INSTALLED) ## fetch the data that DVC has\n\t$(BIN)/python -m dvc pull\n"
    replace(root / "README.md", r"(?ms)^The example is a small synthetic problem.*?\n(?=\n)", f"{origin}\n")
    replace(root / "README.md", rf"(?ms)^\| `src/{package}/data\.py`.*?(?=^\| `params\.yaml`)", f"{rows}\n")
    replace(root / "README.md", "the pipeline: prepare → train → evaluate", f"the pipeline: {pipeline}")
    replace(root / "README.md", r"(?ms)^```\n\$ curl .*?^```\n\n", "")
    replace(root / "Makefile", r"(?m)^data: .*\n(?:\t.*\n)+", recipe)


def replace(file: Path, pattern: str, text: str) -> None:
    """Replace a text in a file. In another template with other texts nothing is replaced."""
    file.write_text(re.sub(pattern, lambda _: text, file.read_text(encoding="utf-8")), encoding="utf-8")
