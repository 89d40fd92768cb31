"""Bamboo specs: do plans, jobs, stages, artifacts and environments name each other, and is every key one that Bamboo reads?

Bamboo ignores a key that it does not know, so a misspelt one changes nothing and nobody is told. The grammar below is that of Atlassian's
reference of Bamboo Specs (YAML, version 2, up to Bamboo 12). Levels that plugins extend (task types, repositories, triggers, `other`) are
open: there only a key that is nearly a known one is a fault. What `!include` stands for is not looked at.
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlops_build.verify.document import File, Node, Path, Tagged
from mlops_build.verify.schema import meant, shown
from mlops_build.verify.security import ARGUMENT, secret_in
from mlops_build.verify.world import Fault, Part, mapping, mappings, text

DOCUMENT = ["version", "server-name"]
OVERRIDES = ["stages", "variables", "labels", "docker", "triggers", "branches", "branch-config", "notifications", "repositories", "other"]
PLAN_ROOT = [*DOCUMENT, "plan", *OVERRIDES, "dependencies", "branch-overrides", "plan-permissions"]
DEPLOYMENT_ROOT = [*DOCUMENT, "deployment", "release-naming", "environments", "variables"]
PERMISSIONS = ["deployment-permissions", "default-environment-permissions", "environment-permissions"]

PLAN = ["project-key", "key", "name", "description", "master-branch", "enabled"]
DEPLOYMENT = ["name", "source-plan", "description"]
RELEASE_NAMING = ["next-version-name", "applies-to-branches", "auto-increment", "auto-increment-variables"]
STAGE = ["manual", "final", "jobs", "description"]
TASKS = ["tasks", "final-tasks", "docker", "requirements"]
JOB = [*TASKS, "key", "name", "description", "enabled", "artifacts", "artifact-subscriptions", "other"]
ENVIRONMENT = [
    *TASKS,
    "triggers",
    "variables",
    "notifications",
    "description",
    "release-approval-prerequisite",
    "other",
    "name",
    "permissions",
]
ARTIFACT = ["name", "location", "pattern", "required", "shared", "httpCompressionOn", "http-compression-on"]
SUBSCRIPTION = ["artifact", "destination", "required"]
PERMISSION = ["users", "groups", "roles", "permissions"]
BRANCHES = ["create", "delete", "integration", "link-to-jira", "notifications"]
DEPENDENCIES = ["require-all-stages-passing", "enabled-for-branches", "block-strategy", "plans", "dependencies"]
DOCKER = ["image", "volumes", "use-default-volumes", "docker-run-arguments"]

# Keys of every task.
ANY = ["description", "conditions", "enabled"]
TASK = {
    "script": [*ANY, "interpreter", "scripts", "script", "file", "argument", "environment", "working-dir"],
    "checkout": [*ANY, "repository", "path", "force-clean-build"],
    "clean": ANY,
    "inject-variables": [*ANY, "file", "scope", "namespace"],
    "artifact-download": [*ANY, "source-plan", "artifacts", "destination"],
    "test-parser": [*ANY, "type", "test-results", "ignore-time"],
    "maven": [*ANY, "executable", "jdk", "goal", "tests", "environment", "working-dir", "project-file", "use-return-code"],
    "any-task": [*ANY, "plugin-key", "configuration"],
}
# Task types that exist and are not described here.
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
TRIGGERS = [
    "polling", "remote", "cron", "tag", "after-deployment", "build-success", "stage-success", "environment-success",
    "bitbucket-server-trigger",
]  # fmt: skip
CONDITIONS = ["variable", "any-condition", "plugin-key", "configuration"]
OPERATORS = ["equals", "not-equals", "matches", "exists", "not-exists"]

VALUES: dict[str, list[str]] = {
    "release-approval-prerequisite": ["none", "approved", "not-broken"],
    "scope of inject-variables": ["local", "result"],
    "type of test-parser": ["junit", "mstest", "nunit", "mocha", "testng"],
    "block-strategy": ["none", "block_if_parent_in_progress", "block_if_parent_has_changes", "block_if_unbuilt_changes"],
}
WORDS = ["view", "view-configuration", "edit", "build", "clone", "admin", "deploy", "create", "create-repository", "approve-release"]
ENCRYPTED = "BAMSCRT@"
SECRET_FIELDS = ("password", "ssh-key", "ssh-key-passphrase", "passphrase", "private-key")


@dataclass(eq=False)
class Document:
    """One document of a spec that says `version: 2`."""

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
        return list(_stages(self.data.get("stages"), ("stages",)))


@dataclass(eq=False)
class Specs:
    """All documents that Bamboo reads together. closed: whether what they name must be among them (a service's own are)."""

    documents: list[Document] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    closed: bool = False
    includes: bool = False

    @property
    def plans(self) -> list[Document]:
        return [one for one in self.documents if one.is_plan]

    @property
    def deployments(self) -> list[Document]:
        return [one for one in self.documents if one.is_deployment]


def looks_like(data: object) -> bool:
    """Whether a YAML document is a Bamboo spec."""
    keys = {"plan", "deployment", "plan-permissions", "deployment-permissions"}
    return isinstance(data, Mapping) and data.get("version") == 2 and bool(keys & set(data)) and "apiVersion" not in data


def read(files: Iterable[File], *, closed: bool) -> Specs:
    """The specs in parsed files."""
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
                    specs.faults.append(Fault("bamboo-shape", part, (), "the document does not say `version: 2`"))
            elif closed:
                specs.faults.append(Fault("bamboo-shape", Part(file.name, {}, _locator(file.name, node)), (), "the document is no mapping"))
    return specs


def _title(data: Mapping[str, Any], name: str) -> str:
    for kind in ("plan", "deployment"):
        said = data.get(kind)
        if isinstance(said, Mapping):
            return f"{kind} {text(said.get('name')) or text(said.get('key'))}".strip()
        if isinstance(said, str):
            return f"{kind} {said}"
    return name


def _locator(name: str, node: Node) -> Any:
    return lambda path: (name, node.line_of(path)[0])


def check(specs: Specs) -> Iterator[Fault]:
    yield from specs.faults
    for document in specs.documents:
        if document.is_permissions:
            yield from _permissions(specs, document)
        elif document.is_plan:
            yield from _plan(specs, document)
        elif document.is_deployment:
            yield from _deployment(specs, document)
    yield from _same_plan(specs)


def _keys(document: Document, where: Path, data: object, known: list[str], what: str, *, is_open: bool = False) -> Iterator[Fault]:
    """Keys that Bamboo would ignore. is_open: others may know more, so only what is nearly a known key is a fault."""
    for key in mapping(data):
        if key in known or key == "<<":
            continue
        hint = meant(key, known)
        if is_open and (hint is None or key in OTHER_TASKS):
            continue
        why = f"{shown(key)} is no key of {what}; Bamboo ignores it"
        yield Fault("bamboo-unknown-key", document.part, (*where, key), why, hint or f"known here: {', '.join(known)}")


# Plans


def _plan(specs: Specs, document: Document) -> Iterator[Fault]:
    yield from _keys(document, ("plan",), document.data.get("plan"), PLAN, "a plan")
    for key in ("project-key", "key"):
        value = document.plan.get(key)
        if (
            isinstance(value, str)
            and not (value.isascii() and value.isalnum() and value.isupper() and value[0].isalpha())
            and "$" not in value
        ):
            why = f"{key} is {shown(value)}; a key is capital letters and digits, starting with a letter"
            yield Fault("bamboo-value", document.part, ("plan", key), why)
    jobs = {key: value for key, value in document.data.items() if key not in PLAN_ROOT}
    yield from _root(document, PLAN_ROOT, jobs, named={name for _, _, _, names in document.stages for _, name in names})
    yield from _stages_and_jobs(specs, document, document.stages, jobs, ())
    yield from _variables(document, ("variables",), document.data.get("variables"))
    yield from _repositories(document)
    yield from _keys(document, ("branches",), document.data.get("branches"), BRANCHES, "branches", is_open=True)
    yield from _keys(document, ("dependencies",), document.data.get("dependencies"), DEPENDENCIES, "dependencies", is_open=True)
    yield from _keys(document, ("docker",), document.data.get("docker"), DOCKER, "docker", is_open=True)
    yield from _triggers(document, ("triggers",), document.data.get("triggers"), None)
    for name, job in jobs.items():
        yield from _job(document, (name,), name, job)
    yield from _same_job_key(document, jobs)
    yield from _artifacts(document, document.stages, jobs)
    for index, override in enumerate(mappings(document.data.get("branch-overrides"))):
        for pattern, settings in override.items():
            yield from _override(specs, document, ("branch-overrides", index, pattern), mapping(settings), jobs)


def _override(specs: Specs, document: Document, where: Path, settings: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[Fault]:
    """A branch's own settings: merged over the plan's, key by key."""
    own = {key: value for key, value in settings.items() if key not in OVERRIDES}
    for key, value in own.items():
        if not (isinstance(value, Mapping | Tagged) or value is None):
            hint = meant(key, OVERRIDES)
            yield Fault("bamboo-unknown-key", document.part, (*where, key), f"{shown(key)} is no key of a branch override", hint)
        yield from _job(document, (*where, key), key, value)
    stages = list(_stages(settings.get("stages"), (*where, "stages")))
    yield from _stages_and_jobs(specs, document, stages, {**base, **own}, where, own=set(own) if stages else set())
    yield from _variables(document, (*where, "variables"), settings.get("variables"))


def _root(document: Document, known: list[str], others: Mapping[str, Any], named: set[str]) -> Iterator[Fault]:
    """A root key that is neither known nor a job or environment that something names."""
    for key, value in others.items():
        if key in named or _like_a_job(value):
            continue
        hint = meant(key, known) or meant(key, sorted(named))
        yield Fault("bamboo-unknown-key", document.part, (key,), f"{shown(key)} is neither a key that Bamboo knows nor a job", hint)


def _like_a_job(value: object) -> bool:
    return isinstance(value, Tagged) or (isinstance(value, Mapping) and bool({"tasks", "final-tasks", "artifacts", "key"} & set(value)))


def _stages(value: object, where: Path) -> Iterator[tuple[Path, str, Mapping[str, Any], list[tuple[Path, str]]]]:
    """(path, name, settings, jobs) of each stage; both forms, a list of jobs and a mapping with `jobs`."""
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


Stages = list[tuple[Path, str, Mapping[str, Any], list[tuple[Path, str]]]]


def _stages_and_jobs(
    specs: Specs, document: Document, stages: Stages, jobs: Mapping[str, Any], where: Path, own: set[str] | None = None
) -> Iterator[Fault]:
    named: set[str] = set()
    misspelt: set[str] = set()
    for at, name, settings, listed in stages:
        yield from _keys(document, at, settings, STAGE, "a stage")
        if not listed and not isinstance(settings.get("jobs"), Tagged):
            yield Fault("bamboo-shape", document.part, at, f"the stage {shown(name)} has no job")
        for path, job in listed:
            named.add(job)
            if job not in jobs:
                close = difflib.get_close_matches(job, list(jobs), n=1)
                misspelt.update(close)
                hint = f"did you mean {close[0]!r}?" if close else f"define {job!r} at the document's root"
                yield Fault(
                    "bamboo-missing-job", document.part, path, f"the stage {shown(name)} names the job {shown(job)}, which is nowhere", hint
                )
    if specs.closed:
        yield from _manual(document, stages)
    if not stages and not where and "stages" not in document.data:
        if document.plan:
            yield Fault("bamboo-shape", document.part, ("plan",), "the plan has no stages, so it runs nothing")
        return
    for job in own if own is not None else jobs:
        if job not in named | misspelt and _like_a_job(jobs[job]) and stages:
            yield Fault("bamboo-unused-job", document.part, (*where, job), f"the job {shown(job)} stands in no stage, so it never runs")


def _manual(document: Document, stages: Stages) -> Iterator[Fault]:
    for index, (at, name, settings, _) in enumerate(stages[:-1]):
        if settings.get("manual") is True:
            after = ", ".join(shown(stage[1]) for stage in stages[index + 1 :])
            why = f"the stage {shown(name)} waits for a person, and until then nothing after it runs, final stages included: {after}"
            yield Fault("bamboo-manual-stage", document.part, (*at, "manual"), why)


def _same_job_key(document: Document, jobs: Mapping[str, Any]) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    for name, job in jobs.items():
        key = text(mapping(job).get("key"))
        if key and key in seen:
            yield Fault(
                "bamboo-duplicate-key",
                document.part,
                (name, "key"),
                f"the jobs {shown(seen[key])} and {shown(name)} both have the key {key}",
            )
        seen.setdefault(key, name)


def _same_plan(specs: Specs) -> Iterator[Fault]:
    seen: dict[tuple[str, str], Document] = {}
    for document in specs.plans:
        known = (document.key, text(document.data.get("server-name")))
        if document.plan.get("key") and known in seen:
            first = seen[known].part.where(("plan", "key"))
            why = f"two plans have the key {document.key}; the other one is in {first[0]}, line {first[1]}"
            yield Fault("bamboo-duplicate-key", document.part, ("plan", "key"), why)
        seen.setdefault(known, document)


# Jobs and environments


def _job(document: Document, where: Path, name: str, job: object) -> Iterator[Fault]:
    if not isinstance(job, Mapping):
        return
    yield from _keys(document, where, job, JOB, f"the job {shown(name)}")
    yield from _tasks(document, where, job)
    yield from _docker(document, where, job)
    for key, known, what in (("artifacts", ARTIFACT, "an artifact"), ("artifact-subscriptions", SUBSCRIPTION, "an artifact subscription")):
        for index, entry in enumerate(mappings(job.get(key))):
            yield from _keys(document, (*where, key, index), entry, known, what)
            needed = "name" if key == "artifacts" else "artifact"
            if entry and not entry.get(needed):
                yield Fault("bamboo-shape", document.part, (*where, key, index), f"{what} without {needed}")


def _docker(document: Document, where: Path, job: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _keys(document, (*where, "docker"), job.get("docker"), DOCKER, "docker", is_open=True)
    if isinstance(job.get("docker"), Mapping) and not mapping(job["docker"]).get("image"):
        yield Fault("bamboo-shape", document.part, (*where, "docker"), "docker without an image")


def _tasks(document: Document, where: Path, job: Mapping[str, Any]) -> Iterator[Fault]:
    for section in ("tasks", "final-tasks"):
        listed = job.get(section)
        if listed is not None and not isinstance(listed, list | Tagged):
            yield Fault("bamboo-shape", document.part, (*where, section), f"{section} is {shown(listed)}, and must be a list")
        for index, task in enumerate(listed if isinstance(listed, list) else []):
            yield from _task(document, (*where, section, index), task)


def _task(document: Document, where: Path, task: object) -> Iterator[Fault]:
    if isinstance(task, str) and not isinstance(task, Tagged):
        if task not in TASK and task not in OTHER_TASKS and (hint := meant(task, list(TASK))):
            yield Fault("bamboo-unknown-key", document.part, where, f"{shown(task)} is no task", hint)
        return
    for kind, settings in mapping(task).items():
        if kind not in TASK:
            if kind not in OTHER_TASKS and (hint := meant(kind, list(TASK))):
                yield Fault("bamboo-unknown-key", document.part, (*where, kind), f"{shown(kind)} is no type of task", hint)
            continue
        at: Path = (*where, kind)
        yield from _keys(document, at, settings, TASK[kind], f"the task {kind}")
        if isinstance(settings, Mapping):
            yield from _conditions(document, (*at, "conditions"), settings.get("conditions"))
            yield from _task_values(document, at, kind, settings)
        yield from _scripts(document, at, settings if kind == "script" else None)


def _task_values(document: Document, at: Path, kind: str, settings: Mapping[str, Any]) -> Iterator[Fault]:
    if kind == "script" and not any(settings.get(key) for key in ("scripts", "script", "file")):
        yield Fault("bamboo-shape", document.part, at, "a script task with neither scripts nor file does nothing")
    if kind == "any-task" and not settings.get("plugin-key"):
        yield Fault("bamboo-shape", document.part, at, "any-task needs a plugin-key")
    if kind == "inject-variables":
        yield from _value(document, (*at, "scope"), settings.get("scope"), "scope of inject-variables")
    if kind == "test-parser":
        yield from _value(document, (*at, "type"), settings.get("type"), "type of test-parser")


def _value(document: Document, where: Path, value: object, what: str) -> Iterator[Fault]:
    if isinstance(value, str) and value.lower() not in VALUES[what] and not isinstance(value, Tagged) and "${" not in value:
        yield Fault("bamboo-value", document.part, where, f"the {what} is {shown(value)}", f"one of {', '.join(VALUES[what])}")


def _conditions(document: Document, where: Path, conditions: object) -> Iterator[Fault]:
    """`- variable: {equals: {name: value}}`; a condition that Bamboo cannot read does not hold anything back."""
    if conditions is None or isinstance(conditions, Tagged):
        return
    if not isinstance(conditions, list):
        yield Fault("bamboo-condition", document.part, where, "conditions must be a list")
        return
    for index, condition in enumerate(conditions):
        at: Path = (*where, index)
        if not isinstance(condition, Mapping):
            yield Fault("bamboo-condition", document.part, at, f"a condition is a mapping, not {shown(condition)}")
            continue
        for key, value in condition.items():
            if key not in CONDITIONS and (hint := meant(key, CONDITIONS)):
                yield Fault("bamboo-condition", document.part, (*at, key), f"{shown(key)} is no condition", hint)
            if key == "variable":
                yield from _variable_condition(document, (*at, key), value)


def _variable_condition(document: Document, at: Path, value: object) -> Iterator[Fault]:
    if not isinstance(value, Mapping) or not value:
        yield Fault("bamboo-condition", document.part, at, "a condition on a variable says which: `equals: {NAME: VALUE}`")
        return
    for operator, operand in value.items():
        known = operator.replace("_", "-")
        if known not in OPERATORS and (hint := meant(known, OPERATORS)):
            yield Fault("bamboo-condition", document.part, (*at, operator), f"{shown(operator)} is no comparison", hint)
        elif known in ("equals", "not-equals", "matches") and not isinstance(operand, Mapping):
            why = f"{operator} compares a variable with a value, and this is {shown(operand)}"
            yield Fault("bamboo-condition", document.part, (*at, operator), why, f"{operator}: {{NAME: VALUE}}")


# Artifacts


def _artifacts(document: Document, stages: Stages, jobs: Mapping[str, Any]) -> Iterator[Fault]:
    """What a job takes, a job of an earlier stage must have made and shared (Bamboo shares unless told not to)."""
    stage_of = {job: index for index, (_, _, _, listed) in reversed(list(enumerate(stages))) for _, job in listed}
    made: dict[str, list[tuple[str, bool]]] = {}
    for name, job in jobs.items():
        for index, artifact in enumerate(mappings(mapping(job).get("artifacts"))):
            title, shared = text(artifact.get("name")), artifact.get("shared", True) is not False
            if shared and title and any(other and maker != name for maker, other in made.get(title, [])):
                why = f"two jobs share an artifact named {shown(title)}; within a plan the name must be unique"
                yield Fault("bamboo-artifact", document.part, (name, "artifacts", index, "name"), why)
            made.setdefault(title, []).append((name, shared))
    for name, job in jobs.items():
        for index, subscription in enumerate(mappings(mapping(job).get("artifact-subscriptions"))):
            title = text(subscription.get("artifact"))
            if title and "${" not in title and (problem := _unmade(title, made, stage_of, name, jobs)):
                yield Fault("bamboo-artifact", document.part, (name, "artifact-subscriptions", index, "artifact"), *problem)


def _unmade(
    title: str, made: Mapping[str, list[tuple[str, bool]]], stage_of: Mapping[str, int], name: str, jobs: Mapping[str, Any]
) -> tuple[str, str | None] | None:
    makers = made.get(title)
    if not makers:
        if any(isinstance(job, Tagged) for job in jobs.values()):
            return None
        close = difflib.get_close_matches(title, list(made), n=1, cutoff=0.5)
        return f"no job makes the artifact {shown(title)}", f"did you mean {close[0]!r}?" if close else None
    if not any(shared for _, shared in makers):
        return f"the artifact {shown(title)} of {makers[0][0]} is not shared", f"write `shared: true` at the artifact of {makers[0][0]}"
    before = [maker for maker, shared in makers if shared and stage_of.get(maker, -1) < stage_of.get(name, 1_000)]
    if not before and name in stage_of:
        return f"{makers[0][0]} makes the artifact {shown(title)} in the same stage or a later one", "put it into an earlier stage"
    return None


# Deployments


def _deployment(specs: Specs, document: Document) -> Iterator[Fault]:
    yield from _keys(document, ("deployment",), document.data.get("deployment"), DEPLOYMENT, "a deployment")
    yield from _keys(document, ("release-naming",), document.data.get("release-naming"), RELEASE_NAMING, "release-naming")
    yield from _variables(document, ("variables",), document.data.get("variables"))
    source = text(mapping(document.data.get("deployment")).get("source-plan"))
    plans = {plan.key: plan for plan in reversed(specs.plans)}
    if source and source not in plans and plans and not isinstance(source, Tagged):
        close = difflib.get_close_matches(source, list(plans), n=1, cutoff=0.75)
        if specs.closed or close:
            hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(plans)}"
            why = f"the source plan is {shown(source)}, and there is no plan with that project-key and key"
            yield Fault("bamboo-source-plan", document.part, ("deployment", "source-plan"), why, hint)
    yield from _environments(document, plans.get(source))


def _environments(document: Document, plan: Document | None) -> Iterator[Fault]:
    listed = document.data.get("environments")
    named = [str(name) for name in listed] if isinstance(listed, list) else []
    others = {key: value for key, value in document.data.items() if key not in DEPLOYMENT_ROOT}
    yield from _root(document, DEPLOYMENT_ROOT, others, set(named))
    for index, name in enumerate(named):
        if name not in others:
            close = difflib.get_close_matches(name, list(others), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"define {name!r} at the document's root"
            yield Fault(
                "bamboo-missing-environment", document.part, ("environments", index), f"the environment {shown(name)} is nowhere", hint
            )
    for name, settings in others.items():
        if name not in named and _like_a_job(settings) and named:
            why = f"{shown(name)} is not in `environments`, so nothing is deployed to it"
            yield Fault("bamboo-unused-environment", document.part, (name,), why)
        if isinstance(settings, Mapping):
            yield from _keys(document, (name,), settings, ENVIRONMENT, f"the environment {shown(name)}")
            yield from _tasks(document, (name,), settings)
            yield from _docker(document, (name,), settings)
            yield from _variables(document, (name, "variables"), settings.get("variables"))
            yield from _triggers(document, (name, "triggers"), settings.get("triggers"), plan)
            prerequisite = settings.get("release-approval-prerequisite")
            yield from _value(document, (name, "release-approval-prerequisite"), prerequisite, "release-approval-prerequisite")
            yield from _downloads(document, (name,), settings, plan)


def _downloads(document: Document, where: Path, settings: Mapping[str, Any], plan: Document | None) -> Iterator[Fault]:
    """A deployment takes artifacts of its source plan."""
    if plan is None or any(isinstance(value, Tagged) for value in plan.data.values()):
        return
    made = {
        text(artifact.get("name"))
        for job in plan.data.values()
        for artifact in mappings(mapping(job).get("artifacts"))
        if artifact.get("shared", True) is not False
    }
    for index, task in enumerate(mappings(settings.get("tasks"))):
        download = mapping(task.get("artifact-download"))
        if download.get("source-plan"):
            continue
        for number, artifact in enumerate(mappings(download.get("artifacts"))):
            name = text(artifact.get("name"))
            if name and name not in made and "${" not in name:
                at: Path = (*where, "tasks", index, "artifact-download", "artifacts", number, "name")
                why = f"the plan {plan.key} shares no artifact {shown(name)}"
                yield Fault("bamboo-artifact", document.part, at, why, f"it shares {', '.join(sorted(made))}" if made else None)


def _triggers(document: Document, where: Path, triggers: object, plan: Document | None) -> Iterator[Fault]:
    names = document.data.get("environments")
    for index, trigger in enumerate(triggers if isinstance(triggers, list) else []):
        kinds: Mapping[str, Any] = {trigger: None} if isinstance(trigger, str) else mapping(trigger)
        for kind, settings in kinds.items():
            at: Path = (*where, index, kind) if isinstance(trigger, Mapping) else (*where, index)
            if kind not in TRIGGERS and (hint := meant(kind, TRIGGERS)):
                yield Fault("bamboo-unknown-key", document.part, at, f"{shown(kind)} is no trigger", hint)
            elif kind == "environment-success" and isinstance(names, list):
                wanted = settings if isinstance(settings, str) else text(mapping(settings).get("environment"))
                if wanted and wanted not in map(str, names):
                    why = f"it waits for the environment {shown(wanted)}, which is not in `environments`"
                    yield Fault("bamboo-missing-environment", document.part, at, why)
            elif kind == "stage-success" and plan is not None:
                wanted = settings if isinstance(settings, str) else text(mapping(settings).get("stage"))
                if wanted and wanted not in [stage[1] for stage in plan.stages]:
                    why = f"it waits for the stage {shown(wanted)}, which the plan {plan.key} does not have"
                    yield Fault(
                        "bamboo-missing-environment", document.part, at, why, f"its stages: {', '.join(stage[1] for stage in plan.stages)}"
                    )


# Permissions


def _permissions(specs: Specs, document: Document) -> Iterator[Fault]:
    known = [*DOCUMENT, "plan", "plan-permissions", "deployment", *PERMISSIONS]
    yield from _keys(document, (), document.data, known, "a permissions document")
    for key in ("plan-permissions", *PERMISSIONS[:2]):
        yield from _entries(document, (key,), document.data.get(key))
    for index, entry in enumerate(mappings(document.data.get("environment-permissions"))):
        for name, entries in entry.items():
            yield from _entries(document, ("environment-permissions", index, name), entries)
    yield from _permitted(specs, document)


def _entries(document: Document, where: Path, entries: object) -> Iterator[Fault]:
    for index, entry in enumerate(mappings(entries)):
        yield from _keys(document, (*where, index), entry, PERMISSION, "a permission")
        said = entry.get("permissions")
        for number, word in enumerate(said if isinstance(said, list) else [said]):
            if isinstance(word, str) and word.lower() not in WORDS and (hint := meant(word.lower(), WORDS)):
                yield Fault("bamboo-value", document.part, (*where, index, "permissions", number), f"{shown(word)} is no permission", hint)


def _permitted(specs: Specs, document: Document) -> Iterator[Fault]:
    """Permissions of a plan or deployment that is defined here."""
    plan, deployment = document.data.get("plan"), document.data.get("deployment")
    if plan is not None:
        named = plan if isinstance(plan, str) else document.key
        yield from _target(
            specs, document, ("plan", "key") if isinstance(plan, Mapping) else ("plan",), "plan", named, [one.key for one in specs.plans]
        )
    if deployment is not None:
        named = deployment if isinstance(deployment, str) else text(mapping(deployment).get("name"))
        where: Path = ("deployment", "name") if isinstance(deployment, Mapping) else ("deployment",)
        names = {_name_of(one): one for one in specs.deployments}
        yield from _target(specs, document, where, "deployment", named, list(names))
        target = names.get(named)
        known = target.data.get("environments") if target else None
        for index, entry in enumerate(mappings(document.data.get("environment-permissions"))):
            for name in entry:
                if isinstance(known, list) and name not in map(str, known):
                    why = f"the deployment {named} has no environment {shown(name)}"
                    yield Fault("bamboo-permissions", document.part, ("environment-permissions", index, name), why)


def _name_of(document: Document) -> str:
    deployment = document.data.get("deployment")
    return deployment if isinstance(deployment, str) else text(mapping(deployment).get("name"))


def _target(specs: Specs, document: Document, where: Path, what: str, named: str, known: list[str]) -> Iterator[Fault]:
    if not named or named in known or specs.includes or not known:
        return
    close = difflib.get_close_matches(named, known, n=1, cutoff=0.8)
    if specs.closed or close:
        hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(known)}"
        yield Fault(
            "bamboo-permissions", document.part, where, f"these are permissions of the {what} {shown(named)}, which is not here", hint
        )


# Secrets


def _variables(document: Document, where: Path, variables: object) -> Iterator[Fault]:
    for name, value in mapping(variables).items():
        if (
            isinstance(value, str)
            and not isinstance(value, Tagged)
            and not value.startswith(ENCRYPTED)
            and (reason := secret_in(name, value))
        ):
            yield Fault("bamboo-secret", document.part, (*where, name), f"the variable {name} is in plain text; {reason}")


def _repositories(document: Document) -> Iterator[Fault]:
    for index, entry in enumerate(mappings(document.data.get("repositories"))):
        for name, settings in entry.items():
            for key, value in mapping(settings).items():
                secret = key in SECRET_FIELDS and isinstance(value, str) and value and not value.startswith((ENCRYPTED, "${"))
                if secret or (key == "url" and isinstance(value, str) and secret_in("", value)):
                    where: Path = ("repositories", index, name, key)
                    yield Fault(
                        "bamboo-secret", document.part, where, f"{key} of the repository {shown(name)} holds a secret in plain text"
                    )


def _scripts(document: Document, at: Path, settings: object) -> Iterator[Fault]:
    if settings is None:
        return
    texts: list[tuple[Path, object]] = []
    if isinstance(settings, Mapping):
        for key in ("scripts", "script", "argument", "environment"):
            value = settings.get(key)
            texts += [((*at, key, index), one) for index, one in enumerate(value)] if isinstance(value, list) else [((*at, key), value)]
    else:
        texts = [((*at, index), one) for index, one in enumerate(settings)] if isinstance(settings, list) else [(at, settings)]
    for where, value in texts:
        if not isinstance(value, str) or len(value) > 100_000:
            continue
        for line in value.splitlines():
            arguments = [(found["name"], found["value"]) for found in ARGUMENT.finditer(line)]
            # A name alone proves nothing in a script: `--password "$PASSWORD"` is how it is done right.
            literal = [name for name, said in arguments if said[:1] not in "\"'$" and secret_in(name, said) and "$" not in said]
            if secret_in("", line) or literal:
                yield Fault("bamboo-secret", document.part, where, "the script holds a secret in plain text")
                break
