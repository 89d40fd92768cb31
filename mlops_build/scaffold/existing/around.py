"""Generate a service from an existing training script: `mlops-build scaffold --from train.py`.

The author's files are not changed, moved or run. The script and the modules next to it are copied into the service's package. The train
stage runs the script with its own arguments, and DVC tracks the data. What cannot be derived from the code goes into TODO.md. The service
is built in a folder next to the destination and moved there when it is complete.
"""

import errno
import re
import shlex
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build.adapters.git import command as git
from mlops_build.errors import Failed, NotFound, Refused, UsageError
from mlops_build.scaffold import render
from mlops_build.scaffold.existing import data as sources
from mlops_build.scaffold.existing import script as scripts
from mlops_build.scaffold.existing.copied import Copied
from mlops_build.scaffold.existing.data import Source
from mlops_build.scaffold.existing.generated import Generated
from mlops_build.scaffold.existing.imports import collect
from mlops_build.scaffold.existing.todo import Task

NAME_LENGTH = 40  # of project_name, as copier.yml allows it


class NotEmpty(Refused):
    """The destination is not empty."""


class BadName(Refused):
    """The folder's name is not a valid service name, and no answer gives another name."""


@dataclass(frozen=True)
class Made:
    """The generated service, and the remaining tasks (`left`)."""

    destination: Path
    script: str
    package: str
    model: str
    command: str
    copied: Sequence[Copied]
    data: Sequence[Source]
    left: Sequence[Task]

    def as_json(self) -> dict[str, Any]:
        return {
            "service": str(self.destination),
            "package": self.package,
            "model": self.model,
            "command": self.command,
            "files": [{"from": file.original, "path": file.path, "diff": file.diff} for file in self.copied],
            "data": [source.as_json() for source in self.data],
            "left": [item.as_json() for item in self.left],
        }

    def as_text(self) -> str:
        lines = [f"{self.destination}: a service generated from {self.script}", ""]
        for file in self.copied:
            count = file.changed_lines
            lines.append(f"  {file.path}: {file.original}, " + (f"{count} line{'s' * (count > 1)} changed" if file.diff else "unchanged"))
        lines += [f"  {source.inside}: {'a reference to' if source.by_reference else 'a copy of'} {source.place}" for source in self.data]
        lines += ["", *(file.diff for file in self.copied if file.diff), "The train stage runs:", f"  {self.command}", ""]
        lines += ["Remaining tasks (TODO.md lists them with examples):", *(task.as_text() for task in self.left), ""]
        lines += ["Then (Git is initialized, nothing is committed yet):", f"  cd {shlex.quote(str(self.destination))}"]
        lines += ['  git add --all && git commit --message "Generate the service from the script"', "  mlops-build train"]
        return "\n".join(lines)


def scaffold(
    destination: Path,
    script: Path,
    data: Sequence[str],
    answers: Mapping[str, object],
    *,
    template: str = render.TEMPLATE,
    version: str | None = None,
    by_reference: bool = False,
    say: Callable[[str], None],
) -> Made:
    """Generate the service. Raises NotEmpty, BadName, BadScript, NotFound, UsageError, ScaffoldError, and the errors of Git and DVC."""
    destination = destination.absolute()
    try:
        _check_destination(destination)
    except OSError as error:
        raise _unwritable(destination, error) from None
    if "example" in answers:
        raise UsageError("--answer example=… cannot be used with --from: your script replaces the example", remedy="remove this answer")
    modules = collect(scripts.read(script.absolute()))
    planned = sources.plan(data, script, by_reference=by_reference)
    given = {
        "example": "none",
        "project_name": destination.name,
        "description": "Serves the model of a training script",
        **answers,
    }
    try:
        # The whole name might be too long with what mkdtemp appends.
        with tempfile.TemporaryDirectory(prefix=f".{destination.name[:NAME_LENGTH]}-", dir=destination.parent) as folder:
            root = Path(folder) / destination.name
            try:
                render.copy(template, root, given, version=version)
            except render.ScaffoldError as error:
                raise error if "project_name" in answers else _named_by_folder(destination.name, error) from None
            git.run(root, "init", "--quiet", "--initial-branch=main")
            service = Generated(root, modules, planned)
            service.write()
            for source in planned:
                say(source.progress())
                sources.put(source, root, sources.endpoint_of(given))
            shutil.rmtree(root / ".dvc/tmp", ignore_errors=True)  # it contains the path of the temporary folder
            service.write_todo()
            _place(root, destination)
    except OSError as error:
        raise _unwritable(destination, error) from None
    copied = [service.copied[module.script.path] for module in modules]
    return Made(destination, service.name, service.package, service.model, service.command, copied, planned, service.todo.tasks)


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


def _check_destination(destination: Path) -> None:
    if destination.is_symlink() or (destination.exists() and (not destination.is_dir() or any(destination.iterdir()))):
        raise NotEmpty(f"{destination} is not empty, so nothing was written", remedy="give a folder that does not exist yet")
    if not destination.parent.is_dir():
        raise NotFound(f"{destination.parent} does not exist", remedy=f"mkdir --parents {destination.parent}")
