"""The pipeline that .gitlab-ci.yml defines: its jobs, and the order in which they run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlops_build.verify.document import File, Path
from mlops_build.verify.fields import definitions
from mlops_build.verify.world import Part, mapping, select, text, texts

GRAMMAR = "ci/gitlab/grammar.yaml"
SCRIPTS = ("before_script", "script", "after_script")
DEFAULT_STAGES = ("build", "test", "deploy")


@dataclass(eq=False)
class Pipeline:
    """part: the document with the jobs."""

    part: Part

    @property
    def data(self) -> Mapping[str, Any]:
        return self.part.data

    @property
    def includes(self) -> bool:
        """Whether other files may define jobs and stages."""
        return "include" in self.data

    @cached_property
    def entries(self) -> dict[str, Any]:
        """The jobs as they are written, and the hidden ones, whose names begin with a dot, that jobs extend."""
        keywords = definitions(GRAMMAR)["pipeline"]["properties"]
        return {name: entry for name, entry in self.data.items() if name not in keywords}

    @cached_property
    def jobs(self) -> dict[str, Mapping[str, Any]]:
        """The jobs that GitLab runs, each with the keys of those that it extends."""
        return {name: self._extended(name, ()) for name in self.entries if not name.startswith(".")}

    def _extended(self, name: str, below: tuple[str, ...]) -> dict[str, Any]:
        own = mapping(self.entries.get(name))
        merged: dict[str, Any] = {}
        for parent in names(own.get("extends")) if name not in below else ():
            merged |= self._extended(parent, (*below, name))
        return merged | dict(own)

    @property
    def stages(self) -> list[str]:
        listed = self.data.get("stages")
        return [".pre", *(map(str, listed) if isinstance(listed, list) else DEFAULT_STAGES), ".post"]

    def needs(self, job: str) -> list[str] | None:
        """The jobs that a job names in `needs`; None if it waits for all earlier stages."""
        listed = self.jobs[job].get("needs")
        return [need if isinstance(need, str) else text(need, "job") for need in listed] if isinstance(listed, list) else None

    def before(self, job: str) -> set[str]:
        """The jobs that have ended when a job starts."""
        waiting, before = [job], set[str]()
        while waiting:
            direct = self.needs(current := waiting.pop())
            new = {name for name in (self._earlier(current) if direct is None else direct) if name in self.jobs} - before
            before |= new
            waiting += new
        return before

    def _earlier(self, job: str) -> list[str]:
        number = self._number(job)
        return [name for name in self.jobs if self._number(name) < number]

    def _number(self, job: str) -> int:
        stage = self.jobs[job].get("stage", "test")
        return self.stages.index(stage) if stage in self.stages else len(self.stages)

    def is_manual(self, job: str) -> bool:
        """Whether a person must start a job, in every case in which it is in the pipeline."""
        settings = self.jobs[job]
        by_default = settings.get("when", "on_success")
        rules = [mapping(rule).get("when", by_default) for rule in settings.get("rules") or [{}]]
        return all(when in ("manual", "never") for when in rules)


def read(file: File) -> Pipeline | None:
    """The pipeline of a file; None without one. A first document with `spec:` declares inputs."""
    documents = [document for document in file.documents if isinstance(document.value, Mapping)]
    if not documents:
        return None
    return Pipeline(Part("the pipeline", documents[-1].value, file.locator(documents[-1])))


def names(value: object) -> list[str]:
    """The names in a value that may be one name or a list."""
    return [value] if isinstance(value, str) else [name for name in value if isinstance(name, str)] if isinstance(value, list) else []


def scripts(job: object, where: Path) -> Iterator[tuple[Path, str]]:
    """The commands of a job, with their paths."""
    for key in SCRIPTS:
        for pattern in ((key,), (key, "*"), (key, "*", "*")):
            for path, script in texts(job, *pattern):
                yield (*where, *path), script


def variables(owner: object, where: Path) -> Iterator[tuple[Path, str]]:
    """The values of variables, with their paths."""
    for name in mapping(owner, "variables"):
        for path, value in select(owner, "variables", name):
            yield (*where, *path), text(value, "value") or str(value)
