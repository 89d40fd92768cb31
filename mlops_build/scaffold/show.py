"""Compare a file of the team with the template. An update does not change such a file."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from mlops_build.adapters.git import command
from mlops_build.errors import NotFound, Refused
from mlops_build.scaffold import answers
from mlops_build.scaffold.ownership import Owner
from mlops_build.scaffold.render import recordable
from mlops_build.scaffold.rendering import Job, render
from mlops_build.scaffold.source import fetch
from mlops_build.scaffold.template import Template

# Folders with the two files; their names are in the difference.
YOURS, TEMPLATE = "yours", "template"
NOT_OF_TEAM: Mapping[Owner, str] = {
    "template": "belongs to the template: an update merges the template's changes into it",
    "machine": "is written by mlops-build, the bridge or DVC",
}


@dataclass(frozen=True)
class Shown:
    """A file compared with the template's. version: the template's. diff: from the service's file to the template's; "" if equal."""

    file: str
    version: str
    diff: str

    def as_json(self) -> dict[str, str]:
        return asdict(self)

    def as_text(self) -> str:
        return self.diff.rstrip("\n") or f"{self.file} is equal to the template's ({self.version})"


def show(service: Path, file: str, *, to: str | None = None, data: Mapping[str, str] | None = None, template: str | None = None) -> Shown:
    """Render the template with the service's answers, and compare a file with it. Nothing in the service changes.

    file: its path in the service. to, data, template: as for `update`.

    Raises NotFound for a file that the template does not have, Refused for a file that the team does not own, and the errors of `update`.
    """
    service = service.resolve()
    path = os.path.relpath(service / file, service)
    record = answers.in_folder(service)
    with tempfile.TemporaryDirectory(prefix="mlops-build-show-") as folder:
        scratch = Path(folder)
        source = fetch(recordable(template) if template else record.source, scratch / "template.git")
        version = Template.at(source, source.target(to))
        version.check_names(data or {})
        given = {**record.values, **(data or {})}
        (problems,) = render(source, [Job(str(scratch / TEMPLATE), version.commit, given)], scratch)
        version.refuse_answers(problems, given)
        _check(path, scratch / TEMPLATE, version)
        return Shown(path, version.name, _difference(service, path, scratch))


def _check(path: str, rendered: Path, version: Template) -> None:
    paths = sorted(other.relative_to(rendered).as_posix() for other in rendered.rglob("*") if other.is_file())
    if path not in paths:
        of_team = [other for other in paths if version.owners.of(other) == "team"]
        raise NotFound(f"the template ({version.name}) has no file {path}", remedy=f"its files of the team: {', '.join(of_team)}")
    if (owner := version.owners.of(path)) != "team":
        raise Refused(f"{path} {NOT_OF_TEAM[owner]}", remedy="mlops-build update --dry-run lists what an update changes")


def _difference(service: Path, path: str, scratch: Path) -> str:
    mine = os.devnull
    if (service / path).is_file():
        mine = f"{YOURS}/{path}"
        (scratch / mine).parent.mkdir(parents=True)
        shutil.copy(service / path, scratch / mine)
    arguments = ["--no-index", "--no-prefix", "--no-color", "--no-ext-diff", "--no-textconv", "--ignore-cr-at-eol"]
    return command.run(scratch, "diff", *arguments, "--", mine, f"{TEMPLATE}/{path}", good=(0, 1)).decode(errors="replace")
