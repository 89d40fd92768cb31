"""Build a model's folder from code, weights and an example, and predict the example.

    python -m mlops_build.adopt.build CODE WEIGHTS EXAMPLE SCRATCH

CODE is a Python file, also one in a package, or the folder of a package. It defines one subclass of mlflow.pyfunc.PythonModel.
The folder is SCRATCH/model.
"""

import json
import sys
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from mlops_build.errors import MlopsBuildError, UsageError
from mlops_build.training.artifacts import WEIGHTS
from mlops_build.training.model import write_model

MOST_BYTES = 16 << 20
MOST_TEXT = 600  # characters of an error


def predictor(code: Path) -> tuple[type[Any], Path]:
    """The class in a file or a package, and what is copied to import it: of a file in a package, the package.

    Raises UsageError, and what the code raises.
    """
    from mlflow.pyfunc import PythonModel

    parts = [code.stem]
    while (code.parent / "__init__.py").is_file():
        code = code.parent
        parts.insert(0, code.name)
    if not all(part.isidentifier() for part in parts):
        raise UsageError(f"{'.'.join(parts)} is not the name of a Python module")
    sys.path.insert(0, str(code.parent))
    module = import_module(".".join(parts))
    classes = {
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, PythonModel) and value.__module__.partition(".")[0] == parts[0]
    }
    if len(classes) != 1:
        names = ", ".join(sorted(each.__name__ for each in classes)) or "none"
        raise UsageError(f"{code.name} must define one subclass of mlflow.pyfunc.PythonModel, it has {names}")
    return classes.pop(), code


def rows(example: Path) -> Any:
    """A table of CSV or of a JSON list of objects; an array of a JSON list of lists or numbers. Raises UsageError."""
    import numpy as np
    import pandas as pd

    try:
        if example.stat().st_size > MOST_BYTES:
            raise UsageError(f"{example.name} has more than {MOST_BYTES} bytes")
        if example.suffix.lower() == ".csv":
            table = pd.read_csv(example)
        else:
            document = json.loads(example.read_text(encoding="utf-8"))
            if not isinstance(document, list) or not document:
                raise UsageError(f"{example.name} is not a list of rows")
            if not isinstance(document[0], dict):
                return np.array(document)
            table = pd.DataFrame(document)
    except ValueError as error:
        raise UsageError(f"{example.name} cannot be read: {error}") from None
    if not len(table):
        raise UsageError(f"{example.name} has no rows")
    return table


def main(code: Path, weights: Path, example: Path, scratch: Path) -> None:
    """Raises UsageError, and what the code raises."""
    (scratch / "work").mkdir()
    kind, copied = predictor(code)
    made = write_model(kind, {WEIGHTS: weights}, rows(example), None, scratch / "work", copied)
    if beside := _beside(copied):
        raise UsageError(
            f"{beside[0]} is used, and lies beside {copied.name}, so it would not be in the version: make a package of them"
            f" (add __init__.py to the folder), and give --code a file or the folder of the package"
        )
    made.rename(scratch / "model")


def _beside(copied: Path) -> list[str]:
    """Names of imported files that are in the same folder as what is copied, and not in it."""
    imported = {Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))}
    ours = {path for path in imported if path.is_relative_to(copied.parent) and not path.is_relative_to(sys.prefix)}
    return sorted(path.name for path in ours if not path.is_relative_to(copied))


def described(problem: BaseException) -> str:
    """One line: the error, and the last line of the given code that it went through."""
    text = f"{type(problem).__name__}: {' '.join(str(problem).split())[:MOST_TEXT]}"
    ours = (sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]), "<")
    given = [frame for frame in traceback.extract_tb(problem.__traceback__) if not frame.filename.startswith(ours)]
    place = f" ({Path(given[-1].filename).name}, line {given[-1].lineno})" if given else ""
    missing = isinstance(problem, ModuleNotFoundError) and problem.name
    return f"{text}{place}{f'; install the package of {missing} here, such as: pip install {missing}' if missing else ''}"


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:5]))
    except MlopsBuildError as problem:
        raise SystemExit(f"error: {problem.message}") from None
    except Exception as problem:
        raise SystemExit(f"error: {described(problem)}") from None
