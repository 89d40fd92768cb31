"""A version of the template: its questions, and the owners of its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlops_build.errors import UsageError
from mlops_build.scaffold import ownership
from mlops_build.scaffold.ownership import Owners
from mlops_build.scaffold.rendering import BadAnswers, Problem
from mlops_build.scaffold.source import NoSuchVersion, Source


@dataclass(frozen=True)
class Template:
    """A version of a fetched template. settings: of its copier.yml, with the questions; empty if only copier can read them."""

    source: Source
    commit: str
    settings: Mapping[str, Any]
    owners: Owners

    @classmethod
    def at(cls, source: Source, commit: str) -> "Template":
        """The template at this commit. Raises NoSuchVersion if it has no copier.yml."""
        content = source.file(commit, "copier.yml")
        if content is None:
            raise NoSuchVersion(f"the template has no copier.yml at {commit[:12]}", remedy="give another version: --to VERSION")
        source.keep(commit)
        settings = ownership.settings(content)
        return cls(source, commit, settings, ownership.owners(settings))

    @cached_property
    def name(self) -> str:
        """The version as copier records it."""
        return self.source.describe(self.commit)

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
