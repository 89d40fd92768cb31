"""A new service in a folder of its own: built beside the destination, and moved there when it is complete."""

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from mlops_build.adapters.git import command as git
from mlops_build.errors import Failed, NotFound, Refused
from mlops_build.scaffold import render

NAME_LENGTH = 40  # of project_name, as copier.yml allows it


class NotEmpty(Refused):
    """The destination is not empty."""


class BadName(Refused):
    """The folder's name is not a valid service name, and no answer gives another name."""


@contextmanager
def new_service(destination: Path, answers: Mapping[str, object], template: str, version: str | None) -> Iterator[Path]:
    """Yield the folder of a service rendered from the template, with Git initialized; without an error it then moves to `destination`.

    Raises NotEmpty, BadName, NotFound, ScaffoldError, Failed, and the errors of Git.
    """
    try:
        _check(destination)
        # The whole name might be too long with what mkdtemp appends.
        with tempfile.TemporaryDirectory(prefix=f".{destination.name[:NAME_LENGTH]}-", dir=destination.parent) as folder:
            root = Path(folder) / destination.name
            try:
                render.copy(template, root, {"project_name": destination.name, **answers}, version=version)
            except render.TemplateUnreachable as error:
                remedy = "give a copy of the template that this machine reaches: --template PATH|URL, or MLOPS_BUILD_TEMPLATE"
                raise render.TemplateUnreachable(error.message, remedy=f"{remedy}; or {error.remedy}") from None
            except render.ScaffoldError as error:
                raise error if "project_name" in answers else _named_by_folder(destination.name, error) from None
            git.run(root, "init", "--quiet", "--initial-branch=main")
            yield root
            shutil.rmtree(root / ".dvc/tmp", ignore_errors=True)  # it contains the path of the temporary folder
            _place(root, destination)
    except OSError as error:
        raise _unwritable(destination, error) from None


def _unwritable(destination: Path, error: OSError) -> Failed:
    too_long = error.errno == errno.ENAMETOOLONG
    remedy = "choose a folder with a shorter name" if too_long else "check the free disk space and your permissions"
    return Failed(f"{destination} cannot be written: {error.strerror or error}", remedy=remedy)


def _named_by_folder(name: str, error: render.ScaffoldError) -> render.ScaffoldError | BadName:
    """The template's error about `project_name`, reworded for a name that was taken from the folder; any other error unchanged."""
    _, refused, why = error.message.partition("project_name: ")
    if not refused:
        return error
    words = re.findall(r"[a-z0-9]+", name.lower())
    valid = re.sub(r"^[0-9-]+", "", "-".join(words)) or "fraud-score"
    # A single word could be the name of a Python package, and mlops-build is one.
    valid = (f"{valid}-service" if "-" not in valid or valid == "mlops-build" else valid)[:NAME_LENGTH].rstrip("-")
    return BadName(
        f"the service would be named after its folder, but {name!r} is not a valid name: {why}",
        remedy=f"give it a name: add --answer project_name={valid} to the command, or choose another folder",
    )


def _place(root: Path, destination: Path) -> None:
    """Move the service to its destination. An existing empty folder is kept, because it may be somebody's working directory."""
    if not destination.exists():
        root.rename(destination)
        return
    for path in root.iterdir():
        path.rename(destination / path.name)


def _check(destination: Path) -> None:
    if destination.is_symlink() or (destination.exists() and (not destination.is_dir() or any(destination.iterdir()))):
        raise NotEmpty(f"{destination} is not empty, so nothing was written", remedy="give a folder that does not exist yet")
    if not destination.parent.is_dir():
        raise NotFound(f"{destination.parent} does not exist", remedy=f"mkdir --parents {destination.parent}")
