"""The files that a model's code receives by name as MLflow's `context.artifacts`: its weights and further files."""

import re
from collections.abc import Mapping
from pathlib import Path

from mlops_build.errors import NotFound, Refused, UsageError
from mlops_build.finding import Finding

WEIGHTS = "weights"
NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")


class UnsafeArtifact(Refused):
    """A file that could run code when it is loaded; packaging would refuse such a version."""


def named(root: Path, weights: Path, others: Mapping[str, Path | str], unsafe_pickle: str | None) -> dict[str, Path]:
    """Absolute paths by name, the weights first. Relative paths start at `root`. unsafe_pickle: the reason why pickles are accepted.

    Raises UsageError for a name that is not valid or already used, and for two files with the same name, which would overwrite each other
    in the model's folder; NotFound; UnsafeArtifact.
    """
    paths = {WEIGHTS: root / weights}
    for name, path in others.items():
        _check_name(name)
        paths[name] = root / path
    base_names: dict[str, str] = {}
    for name, path in paths.items():
        if name != WEIGHTS:
            _check_content(name, path, unsafe_pickle)
        base_name = path.name.casefold()
        if base_name in base_names:
            raise UsageError(
                f"the artifacts {base_names[base_name]} and {name} both have the file name {path.name}",
                remedy="rename one of the two files",
            )
        base_names[base_name] = name
    return paths


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a valid name of an artifact",
            remedy="use 1 to 63 lower-case letters, digits and _ that start with a letter, for example vocabulary",
        )
    if name == WEIGHTS:
        raise UsageError(f"the artifact {WEIGHTS} is given by weights=", remedy="give the other file another name")


def _check_content(name: str, path: Path, unsafe_pickle: str | None) -> None:
    from mlops_build.model import scan

    if not path.exists():
        raise NotFound(f"{path}, the artifact {name}, does not exist", remedy="write it before log_model")
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if not file.is_dir()]
    if not files or not all(file.is_file() for file in files):
        raise UsageError(
            f"{path}, the artifact {name}, is not a file and not a folder with files",
            remedy="give a file, or a folder that contains only files and folders",
        )
    if findings := scan.refused(scan.scan(path), unsafe_pickle):
        raise UnsafeArtifact(
            f"the artifact {name} cannot be logged: {_described(path, findings[0])}",
            remedy="save numbers and words instead of Python objects: json.dump, numpy.savez, or the tokenizer's own files"
            " (docs/how-to/log-a-tokenizer-or-scaler.md in the repository of mlops-build)"
            + ("; if you trust the pickle, set serving.unsafe_pickle: REASON in service.yaml" if findings[0].rule in scan.PICKLED else ""),
        )


def _described(path: Path, finding: Finding) -> str:
    where = path.as_posix() if path.is_file() else f"{path.as_posix()}/{finding.subject}"
    return f"{where}: {finding.why}"
