"""The documents of Bamboo specs: plans, deployments and permissions."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlops_build.verify.document import File, Node, Path, Tagged
from mlops_build.verify.fields import definitions
from mlops_build.verify.world import Fault, Part, mapping, text

GRAMMAR = "ci/bamboo/grammar.yaml"
# Where a script task has texts: a list or one text, in a mapping or not.
SCRIPTS = ("", "/#", "/scripts|script|argument|environment", "/scripts|script|argument|environment/#")
PERMISSIONS = ("plan-permissions", "deployment-permissions", "default-environment-permissions", "environment-permissions")


@dataclass(frozen=True)
class Stage:
    """A stage of a plan. jobs: path and name of each."""

    path: Path
    name: str
    is_manual: bool
    jobs: list[tuple[Path, str]]


@dataclass(eq=False)
class Document:
    """One document of a spec with `version: 2`. kind: the name of its definition in the grammar; empty for another document."""

    part: Part
    kind: str

    @property
    def data(self) -> Mapping[str, Any]:
        return self.part.data

    @cached_property
    def plan(self) -> Mapping[str, Any]:
        return mapping(self.data.get("plan"))

    @property
    def key(self) -> str:
        """PROJECT-PLAN of a plan."""
        project, key = text(self.plan.get("project-key")), text(self.plan.get("key"))
        return f"{project}-{key}" if project else key

    @property
    def name(self) -> str:
        """The name of a deployment."""
        deployment = self.data.get("deployment")
        return deployment if isinstance(deployment, str) else text(mapping(deployment).get("name"))

    @cached_property
    def stages(self) -> list[Stage]:
        return stages_of(self.data.get("stages"), ("stages",))

    @property
    def known_keys(self) -> list[str]:
        """Those at the root that Bamboo knows."""
        return list(definitions(GRAMMAR)[self.kind]["properties"]) if self.kind else []

    @cached_property
    def entries(self) -> dict[str, Any]:
        """What stands at the root beside the known keys: the jobs of a plan, the environments of a deployment."""
        return {key: value for key, value in self.data.items() if key not in self.known_keys}

    @cached_property
    def overrides(self) -> list[tuple[Path, list[Stage], dict[str, Any]]]:
        """Path, stages and jobs of each branch override. Bamboo merges them over the plan's, key by key."""
        known = definitions(GRAMMAR)["override"]["properties"]
        return [
            (where, stages_of(settings.get("stages"), (*where, "stages")), {key: settings[key] for key in settings if key not in known})
            for where, settings in values(self.data, "branch-overrides/#/*")
            if isinstance(settings, Mapping)
        ]

    @property
    def overridden(self) -> dict[str, Any]:
        """The jobs of all branch overrides."""
        return {name: job for _, _, jobs in self.overrides for name, job in jobs.items()}

    @property
    def environments(self) -> list[str] | None:
        """The listed environments; None if there is no list."""
        listed = self.data.get("environments")
        return [str(name) for name in listed] if isinstance(listed, list) else None


@dataclass(eq=False)
class Specs:
    """All documents that Bamboo reads together. closed: whether everything that they reference must be in them, as in a service."""

    documents: list[Document] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    closed: bool = False
    includes: bool = False

    @property
    def plans(self) -> list[Document]:
        return [document for document in self.documents if document.kind == "plan"]

    @property
    def deployments(self) -> list[Document]:
        return [document for document in self.documents if document.kind == "deployment"]


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
                    specs.documents.append(Document(part, _kind(data)))
                elif "version" not in data and ({"plan", "deployment"} & set(data)) and "project" not in data and closed:
                    specs.faults.append(Fault("bamboo-shape", part, (), "`version: 2` is missing"))
            elif closed:
                part = Part(file.name, {}, _locator(file.name, node))
                specs.faults.append(Fault("bamboo-shape", part, (), "the document is not a mapping"))
    return specs


def _kind(data: Mapping[str, Any]) -> str:
    if any(key in data for key in PERMISSIONS) and "stages" not in data:
        return "permissions"
    return "plan" if "plan" in data else "deployment" if "deployment" in data else ""


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


def stages_of(listed: object, where: Path) -> list[Stage]:
    """The stages in a list; each is written as a list of jobs or as a mapping with `jobs`."""
    stages = []
    for path, settings in values(listed, "#/*", where):
        jobs = [(at, str(job)) for pattern in ("#", "jobs/#") for at, job in values(settings, pattern, path) if not isinstance(job, dict)]
        stages.append(Stage(path, str(path[-1]), mapping(settings).get("manual") is True, jobs))
    return stages


def is_job(value: object) -> bool:
    """Whether a value at the root is a job or an environment."""
    return isinstance(value, Tagged) or (isinstance(value, Mapping) and bool({"tasks", "final-tasks", "artifacts", "key"} & set(value)))


def values(data: object, pattern: str, where: Path = ()) -> Iterator[tuple[Path, object]]:
    """The values that match a pattern such as `*/tasks|final-tasks/#`, with their paths.

    `*` is any key, `#` any index, `a|b` one of these keys, and a final `**` the keys themselves.
    """
    head, _, rest = pattern.partition("/")
    if not head:
        yield where, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            if head == "**":
                yield (*where, key), key
            elif head == "*" or key in head.split("|"):
                yield from values(value, rest, (*where, key))
    elif isinstance(data, list) and head == "#":
        for index, value in enumerate(data):
            yield from values(value, rest, (*where, index))


def scripts(owner: object, where: Path) -> Iterator[tuple[Path, str]]:
    """The texts in the script tasks of a job or an environment, with their paths."""
    for pattern in SCRIPTS:
        for path, value in values(owner, f"tasks|final-tasks/#/script{pattern}", where):
            if isinstance(value, str) and not isinstance(value, Tagged):
                yield path, value
