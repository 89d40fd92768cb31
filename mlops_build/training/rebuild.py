"""Build a model's folder from the files of a version with the current code: same weights, same example.

    python -m mlops_build.training.rebuild VERSION SCRATCH

VERSION is a folder with the version's checked files. The new folder is SCRATCH/model. It runs in a separate process in the service's root,
with src/ importable, so that it uses the current code.
"""

import json
import re
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from mlops_build import service
from mlops_build.adapters.registry import quiet_mlflow
from mlops_build.errors import MlopsBuildError, Refused
from mlops_build.training import artifacts
from mlops_build.training.model import EXAMPLES, write_model

NAME = r"[A-Za-z_][A-Za-z0-9_]{0,100}"
IMPORT = re.compile(rf"^from ({NAME}(?:\.{NAME})*) import ({NAME})$", re.MULTILINE)
CODE = "predictor.py"


class NotRebuildable(Refused):
    """A version that `training.log_model` did not write, or whose predictor the code no longer has."""


def rebuild(version: Path, root: Path, scratch: Path) -> Path:
    """Build and return the new folder. Raises NotRebuildable, and the errors of the service's own code."""
    quiet_mlflow()
    from mlflow.models import Model
    from mlflow.pyfunc.scoring_server import infer_and_parse_data

    predictor = _predictor(version, root)
    known = Model.load(str(version))
    recorded = json.loads((version / EXAMPLES).read_text(encoding="utf-8"))
    example: Any = infer_and_parse_data(recorded["input"], known.get_input_schema())
    return write_model(predictor, _artifacts(known.flavors, version), example, root, scratch)


def _predictor(version: Path, root: Path) -> type[Any]:
    """The class that the version's predictor.py imports, from the current code of the service."""
    remedy = "train again: mlops-build train"
    try:
        text = (version / CODE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        text = ""
    imports = [statement for statement in IMPORT.findall(text) if statement[0].partition(".")[0] != "mlflow"]
    if len(imports) != 1:
        raise NotRebuildable(f"the version's {CODE} is not what training.log_model writes", remedy=remedy)
    module, name = imports[0]
    package = root / "src" / module.partition(".")[0]
    if not package.is_dir() and not package.with_suffix(".py").is_file():
        raise NotRebuildable(f"the version's predictor is {module}.{name}, and src/ has no {package.name}", remedy=remedy)
    try:
        return getattr(import_module(module), name)  # type: ignore[no-any-return]
    except (ModuleNotFoundError, AttributeError) as error:
        raise NotRebuildable(f"the version's predictor is {module}.{name}, which is no longer in src/: {error}", remedy=remedy) from None


def _artifacts(flavors: dict[str, Any], version: Path) -> dict[str, Path]:
    """The files that the version's predictor receives by name, including the weights."""
    remedy = "train again: mlops-build train"
    try:
        recorded = flavors["python_function"]["artifacts"]
        paths = {str(name): (version / str(entry["path"])).resolve() for name, entry in recorded.items()}
    except (KeyError, TypeError, AttributeError):
        paths = {}
    if artifacts.WEIGHTS not in paths:
        raise NotRebuildable("the version's MLmodel names no weights", remedy=remedy)
    for name, path in paths.items():
        if not artifacts.NAME.fullmatch(name):
            raise NotRebuildable(f"the version's MLmodel names an artifact {name!r}, which log_model does not write", remedy=remedy)
        if not path.is_relative_to(version.resolve()) or not path.exists():
            raise NotRebuildable(f"the version's artifact {name} is not among its files", remedy=remedy)
    return paths


if __name__ == "__main__":
    try:
        rebuild(Path(sys.argv[1]), service.find_root(), Path(sys.argv[2]))
    except MlopsBuildError as problem:
        raise SystemExit(f"error: {problem.message}") from None
