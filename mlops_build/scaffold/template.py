"""A version of the template: its questions, and the owners of its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from mlops_build.errors import UsageError
from mlops_build.scaffold import ownership
from mlops_build.scaffold.ownership import Owner
from mlops_build.scaffold.rendering import BadAnswers, Problem
from mlops_build.scaffold.source import NoSuchVersion, Source


@dataclass(frozen=True)
class Template:
    """A version of a fetched template. copier_yml: a copy of its questions; `at` writes it."""

    source: Source
    commit: str
    copier_yml: Path

    @classmethod
    def at(cls, source: Source, commit: str, scratch: Path) -> "Template":
        """The template at this commit. scratch: a folder for its questions. Raises NoSuchVersion if it has none."""
        content = source.file(commit, "copier.yml")
        if content is None:
            raise NoSuchVersion(f"the template has no copier.yml at {commit[:12]}", remedy="give another version: --to VERSION")
        (scratch / "copier.yml").write_bytes(content)
        source.keep(commit)
        return cls(source, commit, scratch / "copier.yml")

    @cached_property
    def name(self) -> str:
        """The version as copier records it."""
        return self.source.describe(self.commit)

    def owner(self, path: str) -> Owner:
        """The owner of a file of a service."""
        return ownership.owner_of(path, self.copier_yml)

    def together(self, path: str) -> str:
        """The folder that its owner manages as a unit, else the path itself."""
        return ownership.owned_together(path, self.copier_yml)

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """Questions and settings by name; empty if only copier can read them (`!include`)."""
        try:
            parts = ownership.documents(self.copier_yml)
        except YAMLError:
            return {}
        merged = {name: value for part in parts for name, value in part.items()}
        return merged | {"_exclude": [pattern for part in parts for pattern in part.get("_exclude", [])]}

    @property
    def questions(self) -> Mapping[str, Any]:
        """The questions by name; empty if only copier can read them."""
        return {name: value for name, value in self.settings.items() if not name.startswith("_")}

    def check_names(self, data: Mapping[str, str]) -> None:
        """Raises UsageError for an answer without a question."""
        for name in data:
            if self.questions and name not in self.questions:
                raise UsageError(f"--data {name}: the template has no such question", remedy=f"its questions: {', '.join(self.questions)}")

    def refuse_answers(self, problems: Sequence[Problem], answers: Mapping[str, Any]) -> None:
        """Raises BadAnswers with all refused and all missing answers, if there are problems."""
        if not problems:
            return
        known = {*answers, *(problem.name for problem in problems)}
        missing = [
            name
            for name, question in self.questions.items()
            if name not in known and isinstance(question, dict) and not question.keys() & {"default", "when"}
        ]
        refused = [*problems, *(Problem(name, "this question is new and has no default") for name in missing)]
        raise BadAnswers(
            refused,
            message="the new version refuses these answers:\n    " + "\n    ".join(map(str, refused)),
            remedy="give them: mlops-build update " + " ".join(f"--data {problem.name}=VALUE" for problem in refused),
        )
