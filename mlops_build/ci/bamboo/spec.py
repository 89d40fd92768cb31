"""The documents of Bamboo specs, their top-level keys, and the check for unknown keys."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlops_build.verify.document import File, Node, Path, Tagged
from mlops_build.verify.schema import display, suggestion
from mlops_build.verify.world import Fault, Part, mapping, mappings, text

DOCUMENT = ["version", "server-name"]
OVERRIDES = ["stages", "variables", "labels", "docker", "triggers", "branches", "branch-config", "notifications", "repositories", "other"]
PLAN_ROOT = [*DOCUMENT, "plan", *OVERRIDES, "dependencies", "branch-overrides", "plan-permissions"]
DEPLOYMENT_ROOT = [*DOCUMENT, "deployment", "release-naming", "environments", "variables"]
PERMISSIONS = ["deployment-permissions", "default-environment-permissions", "environment-permissions"]
# Task types whose keys are not checked.
OTHER_TASKS = [
    "ant",
    "command",
    "docker",
    "dump-variables",
    "nodejs",
    "npm",
    "ssh",
    "scp",
    "vcs-branch",
    "vcs-commit",
    "vcs-push",
    "vcs-tag",
]
Stages = list[tuple[Path, str, Mapping[str, Any], list[tuple[Path, str]]]]


@dataclass(eq=False)
class Document:
    """One document of a spec with `version: 2`."""

    part: Part

    @property
    def data(self) -> Mapping[str, Any]:
        return self.part.data

    @cached_property
    def plan(self) -> Mapping[str, Any]:
        return mapping(self.data.get("plan"))

    @property
    def is_plan(self) -> bool:
        return "plan" in self.data and not self.is_permissions

    @property
    def is_deployment(self) -> bool:
        return "deployment" in self.data and not self.is_permissions

    @property
    def is_permissions(self) -> bool:
        return any(key in self.data for key in ("plan-permissions", *PERMISSIONS)) and "stages" not in self.data

    @property
    def key(self) -> str:
        """PROJECT-PLAN of a plan."""
        project, key = text(self.plan.get("project-key")), text(self.plan.get("key"))
        return f"{project}-{key}" if project else key

    @cached_property
    def stages(self) -> list[tuple[Path, str, Mapping[str, Any], list[tuple[Path, str]]]]:
        return list(stages_of(self.data.get("stages"), ("stages",)))


@dataclass(eq=False)
class Specs:
    """All documents that Bamboo reads together. closed: whether everything that they reference must be in them, as in a service."""

    documents: list[Document] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    closed: bool = False
    includes: bool = False

    @property
    def plans(self) -> list[Document]:
        return [document for document in self.documents if document.is_plan]

    @property
    def deployments(self) -> list[Document]:
        return [document for document in self.documents if document.is_deployment]


def looks_like(data: object) -> bool:
    """Whether a YAML document is a Bamboo spec."""
    keys = {"plan", "deployment", "plan-permissions", "deployment-permissions"}
    return isinstance(data, Mapping) and data.get("version") == 2 and bool(keys & set(data)) and "apiVersion" not in data


def read(files: Iterable[File], *, closed: bool) -> Specs:
    """Collect the specs of parsed files. closed: see Specs."""
    specs = Specs(closed=closed)
    for file in files:
        for node in file.documents:
            data = node.value
            if isinstance(data, Tagged):
                specs.includes = True
            elif isinstance(data, Mapping):
                part = Part(_title(data, file.name), data, _locator(file.name, node))
                if data.get("version") == 2:
                    specs.documents.append(Document(part))
                elif "version" not in data and ({"plan", "deployment"} & set(data)) and "project" not in data and closed:
                    specs.faults.append(Fault("bamboo-shape", part, (), "`version: 2` is missing"))
            elif closed:
                specs.faults.append(
                    Fault("bamboo-shape", Part(file.name, {}, _locator(file.name, node)), (), "the document is not a mapping")
                )
    return specs


def _title(data: Mapping[str, Any], name: str) -> str:
    for kind in ("plan", "deployment"):
        value = data.get(kind)
        if isinstance(value, Mapping):
            return f"{kind} {text(value.get('name')) or text(value.get('key'))}".strip()
        if isinstance(value, str):
            return f"{kind} {value}"
    return name


def _locator(name: str, node: Node) -> Any:
    return lambda path: (name, node.line_of(path)[0])


def stages_of(value: object, where: Path) -> Iterator[tuple[Path, str, Mapping[str, Any], list[tuple[Path, str]]]]:
    """(path, name, settings, jobs) of each stage, written as a list of jobs or as a mapping with `jobs`."""
    for index, entry in enumerate(mappings(value)):
        for name, settings in entry.items():
            at: Path = (*where, index, name)
            jobs = mapping(settings).get("jobs") if isinstance(settings, Mapping) else settings
            base: Path = (*at, "jobs") if isinstance(settings, Mapping) else at
            listed = jobs if isinstance(jobs, list) else []
            yield (
                at,
                name,
                mapping(settings),
                [((*base, number), str(job)) for number, job in enumerate(listed) if not isinstance(job, dict)],
            )


def is_job(value: object) -> bool:
    return isinstance(value, Tagged) or (isinstance(value, Mapping) and bool({"tasks", "final-tasks", "artifacts", "key"} & set(value)))


def unknown_root_keys(document: Document, known: list[str], entries: Mapping[str, Any], named: set[str]) -> Iterator[Fault]:
    """Root keys that are neither known nor a referenced job or environment."""
    for key, value in entries.items():
        if key in named or is_job(value):
            continue
        hint = suggestion(key, known) or suggestion(key, sorted(named))
        yield Fault("bamboo-unknown-key", document.part, (key,), f"{display(key)} is neither a known key nor a job", hint)


def unknown_keys(document: Document, where: Path, data: object, known: list[str], owner: str, *, is_open: bool = False) -> Iterator[Fault]:
    """Keys that Bamboo ignores. is_open: plugins may add keys, so only a key similar to a known one is a fault."""
    for key in mapping(data):
        if key in known or key == "<<":
            continue
        hint = suggestion(key, known)
        if is_open and (hint is None or key in OTHER_TASKS):
            continue
        why = f"{display(key)} is not a key of {owner}; Bamboo ignores it"
        yield Fault("bamboo-unknown-key", document.part, (*where, key), why, hint or f"known here: {', '.join(known)}")
