"""Generate a service from an existing training script: `mlops-build scaffold --from train.py`.

The author's files are not changed, moved or run. The script and the modules next to it are copied into the service's package. The train
stage runs the script with its own arguments, and DVC tracks the data. What cannot be derived from the code goes into TODO.md. The service
is built in a folder next to the destination and moved there when it is complete.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build.errors import UsageError
from mlops_build.scaffold import render
from mlops_build.scaffold.destination import new_service
from mlops_build.scaffold.existing import data as sources
from mlops_build.scaffold.existing import script as scripts
from mlops_build.scaffold.existing.copied import Copied
from mlops_build.scaffold.existing.data import Source
from mlops_build.scaffold.existing.generated import Generated
from mlops_build.scaffold.existing.imports import collect
from mlops_build.scaffold.existing.todo import Task


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
    if "example" in answers:
        raise UsageError("--answer example=… cannot be used with --from: your script replaces the example", remedy="remove this answer")
    modules = collect(scripts.read(script.absolute()))
    planned = sources.plan(data, script, by_reference=by_reference)
    given = {"example": "none", "description": "Serves the model of a training script", **answers}
    with new_service(destination, given, template, version) as root:
        service = Generated(root, modules, planned)
        service.write()
        for source in planned:
            say(source.progress())
            sources.put(source, root, sources.endpoint_of(given))
        service.write_todo()
    copied = [service.copied[module.script.path] for module in modules]
    return Made(destination, service.name, service.package, service.model, service.command, copied, planned, service.todo.tasks)
