"""What an update merges into a service: the template's version that the service was generated from, rendered, and the new version.

Both are rendered with the service's answers. Answers that a version refuses, or that differ from the service's files, end the update.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build.adapters.git.objects import Objects
from mlops_build.errors import Refused
from mlops_build.scaffold import answers, tree
from mlops_build.scaffold.answers import Answers, Origin
from mlops_build.scaffold.rendering import BadAnswers, Job, Problem, render
from mlops_build.scaffold.template import Template
from mlops_build.scaffold.tree import Tree, shown


class Drift(Refused):
    """The record of answers and the service's files differ."""


@dataclass(frozen=True)
class Inputs:
    """The two renderings that an update merges into a service, and what they are made from."""

    repository: Path
    scratch: Path
    template: Template
    head: str
    ours: str
    prefix: str
    name: str

    def notes(self, record: Answers, data: Mapping[str, str]) -> list[str]:
        """Notes about answers that have no effect, are no longer asked, or would be refused in a new service."""
        otherwise = self.otherwise({**record.values, **data})
        unused = [
            f"service.yaml has {name}: {value}; change it there if you want the new answer"
            for name, value in otherwise.items()
            if name in data
        ]
        dropped = [name for name in record.values if self.template.questions and name not in self.template.questions]
        package = re.sub("[ -]", "_", str(record.values.get("project_name", ""))).lower()
        module_names = str(self.template.questions.get("module_names", {}).get("default", "")).split()
        hidden = [f"the package {package} hides a module of Python or of a dependency: `import {package}` finds only one of them"]
        if package not in module_names:
            hidden = []
        return hidden + unused + [f"{name}: no longer asked; the answer {record.values[name]!r} is dropped" for name in dropped]

    def otherwise(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The answers that have another value in service.yaml, with that value."""
        content = Objects(self.repository).read(self.ours, "service.yaml")
        return answers.of_service(wanted, content.decode(errors="replace") if content else None)

    def renderings(
        self, record: Answers, origin: Origin, candidates: Sequence[str], data: Mapping[str, str]
    ) -> tuple[str, tuple[Tree, Tree]]:
        """The commit that the service was generated from, and both renderings. Raises BadAnswers, Drift, UsageError."""
        new = self.template.commit
        self.template.check_names(data)
        excluded = self.template.settings.get("_exclude", [])
        wanted = {**record.values, **data}
        service = tree.read(self.repository, self.ours)
        seeded = {name: value for name, value in self.otherwise(wanted).items() if name not in data}
        jobs = {"new": Job(self._folder("new"), new, wanted)}
        jobs |= {commit: Job(self._folder(commit), commit, record.values, excluded) for commit in candidates}
        if answers.differing(origin.values, record.values):
            jobs["answered"] = Job(self._folder("answered"), candidates[0], origin.values, excluded)
        if seeded:
            jobs["service.yaml"] = Job(self._folder("service.yaml"), new, {**wanted, **seeded})
        problems = dict(zip(jobs, render(self.template.source, list(jobs.values()), self.scratch), strict=True))
        self.template.refuse_answers(problems["new"], wanted)
        usable = [commit for commit in candidates if not problems[commit]]
        if not usable:
            _refuse_record(record, problems[candidates[0]])
        attributes = self._attributes()
        trees = {name: self._store(job, attributes) for name, job in jobs.items() if not problems[name]}
        old = usable[0] if len(usable) == 1 else max(usable, key=lambda commit: self._alike(trees[commit], service))
        if "answered" in trees:
            self._refuse_edited_record(record, origin, trees["answered"], trees[old], service)
        if "service.yaml" in trees:
            self._refuse_service(wanted, seeded, trees["new"], trees["service.yaml"])
        return old, (trees[old], trees["new"])

    def _folder(self, name: str) -> str:
        return str(self.scratch / "rendered" / name / (self.prefix or self.name))

    def _store(self, job: Job, attributes: Mapping[str, bytes]) -> Tree:
        folder = Path(job.folder)
        worktree = folder if not self.prefix else folder.parents[len(Path(self.prefix).parts) - 1]
        return tree.store(self.repository, worktree, self.prefix, attributes)

    def _attributes(self) -> dict[str, bytes]:
        """The .gitattributes that apply to the service, including those of the folders above it, by path in the repository."""
        store = Objects(self.repository)
        above = [f"{parent}/.gitattributes" for parent in Path(self.prefix).parents if str(parent) != "."] if self.prefix else []
        contents = {path: store.read(self.head, path) for path in ([".gitattributes", *above] if self.prefix else [])}
        for path in tree.read(self.repository, self.ours):
            if Path(path).name == ".gitattributes":
                contents[self.prefix + path] = store.read(self.head, self.prefix + path)
        return {path: content for path, content in contents.items() if content is not None}

    def _alike(self, rendered: Tree, service: Tree) -> int:
        return sum(service.get(path) == entry for path, entry in rendered.items() if self.template.owners.of(path) == "template")

    def _differing(self, rendered: Tree, other: Tree) -> list[str]:
        """The template's own files that differ between two renderings, without the answers."""
        paths = sorted(path for path in rendered.keys() | other.keys() if rendered.get(path) != other.get(path))
        return [path for path in paths if path != answers.FILE and self.template.owners.of(path) == "template"]

    def _refuse_edited_record(self, record: Answers, origin: Origin, answered: Tree, recorded: Tree, service: Tree) -> None:
        """Raises Drift if files still match the former answers and not the recorded ones."""
        stale = [path for path in self._differing(answered, recorded) if path in service and service[path] == answered.get(path)]
        if stale:
            changed = answers.differing(origin.values, record.values)
            gone = answers.differing(record.values, origin.values)
            names = sorted(changed.keys() | gone.keys())
            back = {name: origin.values.get(name) for name in names}
            raise Drift(
                f"{answers.FILE} was edited by hand: it has {_listed(changed)}, but {_some(stale)} were rendered with {_listed(back)}",
                remedy=f"restore its former content with git checkout, then: mlops-build update {_arguments(changed)}",
            )

    def _refuse_service(self, wanted: Mapping[str, Any], seeded: Mapping[str, Any], new: Tree, as_service_says: Tree) -> None:
        """Raises Drift if service.yaml and the answers differ in a value from which template files are rendered."""
        if files := self._differing(new, as_service_says):
            raise Drift(
                f"service.yaml has {_listed(seeded)}, the answers have {_listed({name: wanted[name] for name in seeded})}; "
                f"{_some(files)} are rendered from the answers",
                remedy=f"use the values of service.yaml: mlops-build update {_arguments(seeded)}\n"
                f"    or keep the answers: mlops-build update {_arguments({name: wanted[name] for name in seeded})}",
            )


def _refuse_record(record: Answers, problems: Sequence[Problem]) -> None:
    details = "; ".join(map(str, problems))
    raise BadAnswers(
        problems,
        message=f"{answers.FILE} has answers that {record.version} refuses: {details}",
        remedy="it was edited by hand; restore it from Git's history",
    )


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in values.items())


def _arguments(values: Mapping[str, Any]) -> str:
    return " ".join(f"--data {shlex.quote(f'{name}={value}')}" for name, value in values.items())


def _some(paths: Sequence[str]) -> str:
    head = ", ".join(map(shown, paths[:3]))
    return head if len(paths) <= 3 else f"{head} and {len(paths) - 3} more files"
