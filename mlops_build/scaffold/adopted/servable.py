"""The files of an adopted version that a service needs. Nothing of them is run."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.errors import Refused
from mlops_build.finding import show
from mlops_build.model import files, identity, scan
from mlops_build.scaffold.existing.imports import MOST, Module
from mlops_build.scaffold.existing.script import BadScript, read

EXAMPLES = "examples/recorded.json"
# How predictor.py of a version imports its predictor, as `adopt register --code` writes it.
IMPORT = re.compile(r"^from ((?:[A-Za-z_][A-Za-z0-9_]*\.)*[A-Za-z_][A-Za-z0-9_]*) import ([A-Za-z_][A-Za-z0-9_]*)$", re.MULTILINE)
FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]*")
WEIGHTS = re.compile(r"weights(?:\.[a-z0-9]{1,16})?")
INIT = "__init__.py"


class NotServable(Refused):
    """A version without code or recorded answers, or with files that are not safe to load."""


@dataclass(frozen=True)
class Servable:
    """A version's files. modules: all of its code, `main` with the class `predictor` among them. others: paths in `code`, not Python."""

    version: RegisteredVersion
    code: Path
    modules: Sequence[Module]
    main: Module
    predictor: str
    others: Sequence[str]
    weights: Path
    examples: Path


def fetch(registry: Registry, version: RegisteredVersion, folder: Path) -> Servable:
    """Copy the version's files to `folder`, which does not exist yet, and check them.

    Raises NotServable, BadVersion (of an archived version), DigestMismatch, and the errors of the registry.
    """
    digest = version.checked().digest
    if version.expired:
        raise NotServable(f"{version.uri} has an unsafe file, and its exception expired on {version.expired!a}", remedy=scan.LOG_MODEL)
    registry.fetch(version, folder)
    files.check(files.digest(folder), digest, version.uri)
    if findings := scan.refused(scan.scan(folder), None):
        raise NotServable(f"the files of {version.uri} are not safe to load:\n{show(findings)}", remedy=scan.LOG_MODEL)
    module, predictor = _imported(version, folder)
    code = folder / "code"
    modules, others = _code(version, code)
    main = next((each for each in modules if each.name == module), None)
    weights = [path for path in (folder / "artifacts").glob("*") if path.is_file() and WEIGHTS.fullmatch(path.name)]
    if main is None or len(weights) != 1 or not _is_recorded(folder / EXAMPLES):
        raise _not_adopted(version)
    return Servable(version, code, modules, main, predictor, others, weights[0], folder / EXAMPLES)


def _imported(version: RegisteredVersion, folder: Path) -> tuple[str, str]:
    """The dotted name of the predictor's module, and the name of its class."""
    path = folder / "predictor.py"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    imports = [(module, name) for module, name in IMPORT.findall(text) if module != "mlflow.models"]
    if len(imports) != 1:
        raise _not_adopted(version)
    module, predictor = imports[0]
    return module, predictor


def _code(version: RegisteredVersion, code: Path) -> tuple[list[Module], list[str]]:
    paths = sorted(path for path in code.rglob("*") if path.is_file())
    inside = {path: path.relative_to(code) for path in paths}
    if odd := [path for path in inside.values() if not all(FILE.fullmatch(part) for part in path.parts) or path.as_posix() == INIT]:
        raise NotServable(
            f"{version.uri} has code with the name {odd[0].as_posix()[:200]!a}", remedy="rename the file, and adopt the model again"
        )
    sources = [path for path in paths if path.suffix == ".py"]
    if len(sources) > MOST:
        raise NotServable(f"{version.uri} has {len(sources)} Python files; the limit is {MOST}", remedy="adopt the model with less code")
    try:
        modules = [Module(read(path), inside[path].as_posix(), code) for path in sources]
    except BadScript as error:
        raise NotServable(
            f"the code of {version.uri} cannot be read: {error.message.replace(f'{code}/', '')}", remedy="fix it, and adopt the model again"
        ) from None
    return modules, [path.as_posix() for path in inside.values() if path.suffix != ".py"]


def _is_recorded(examples: Path) -> bool:
    try:
        recorded = json.loads(examples.read_text(encoding="utf-8"))
        return bool(recorded["predictions"]) and bool({"dataframe_split", "inputs"} & set(recorded["input"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _not_adopted(version: RegisteredVersion) -> NotServable:
    if identity.COMMIT_TAG in version.tags:
        repository = version.tags.get(identity.REPOSITORY, "")
        return NotServable(
            f"{version.uri} was registered by a service: its code is in {repository[:200]!a}", remedy="use the repository of that service"
        )
    return NotServable(f"{version.uri} was not registered by `mlops-build adopt register --code`", remedy=version.make_servable)
