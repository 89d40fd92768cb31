"""What jobs and environments have in common: tasks, conditions, Docker, triggers, variables; and secrets in them."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.ci.bamboo.spec import OTHER_TASKS, Document, unknown_keys
from mlops_build.verify.document import Path, Tagged
from mlops_build.verify.schema import display, suggestion
from mlops_build.verify.security import ARGUMENT, secret_in
from mlops_build.verify.world import Fault, mapping, mappings, text

TASKS = ["tasks", "final-tasks", "docker", "requirements"]
JOB = [*TASKS, "key", "name", "description", "enabled", "artifacts", "artifact-subscriptions", "other"]
ARTIFACT = ["name", "location", "pattern", "required", "shared", "httpCompressionOn", "http-compression-on"]
SUBSCRIPTION = ["artifact", "destination", "required"]
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
ENCRYPTED = "BAMSCRT@"


def check_job(document: Document, where: Path, name: str, job: object) -> Iterator[Fault]:
    if not isinstance(job, Mapping):
        return
    yield from unknown_keys(document, where, job, JOB, f"the job {display(name)}")
    yield from check_tasks(document, where, job)
    yield from check_docker(document, where, job)
    for key, keys, subject in (
        ("artifacts", ARTIFACT, "an artifact"),
        ("artifact-subscriptions", SUBSCRIPTION, "an artifact subscription"),
    ):
        for index, entry in enumerate(mappings(job.get(key))):
            yield from unknown_keys(document, (*where, key, index), entry, keys, subject)
            needed = "name" if key == "artifacts" else "artifact"
            if entry and not entry.get(needed):
                yield Fault("bamboo-shape", document.part, (*where, key, index), f"{subject} without {needed}")


def check_docker(document: Document, where: Path, job: Mapping[str, Any]) -> Iterator[Fault]:
    yield from unknown_keys(document, (*where, "docker"), job.get("docker"), DOCKER, "docker", is_open=True)
    if isinstance(job.get("docker"), Mapping) and not mapping(job["docker"]).get("image"):
        yield Fault("bamboo-shape", document.part, (*where, "docker"), "docker without an image")


def check_tasks(document: Document, where: Path, job: Mapping[str, Any]) -> Iterator[Fault]:
    for section in ("tasks", "final-tasks"):
        listed = job.get(section)
        if listed is not None and not isinstance(listed, list | Tagged):
            yield Fault("bamboo-shape", document.part, (*where, section), f"{section} is {display(listed)}, but must be a list")
        for index, task in enumerate(listed if isinstance(listed, list) else []):
            yield from _task(document, (*where, section, index), task)


def _task(document: Document, where: Path, task: object) -> Iterator[Fault]:
    if isinstance(task, str) and not isinstance(task, Tagged):
        if task not in TASK and task not in OTHER_TASKS and (hint := suggestion(task, list(TASK))):
            yield Fault("bamboo-unknown-key", document.part, where, f"{display(task)} is not a task", hint)
        return
    for kind, settings in mapping(task).items():
        if kind not in TASK:
            if kind not in OTHER_TASKS and (hint := suggestion(kind, list(TASK))):
                yield Fault("bamboo-unknown-key", document.part, (*where, kind), f"{display(kind)} is not a type of task", hint)
            continue
        at: Path = (*where, kind)
        yield from unknown_keys(document, at, settings, TASK[kind], f"the task {kind}")
        if isinstance(settings, Mapping):
            yield from _conditions(document, (*at, "conditions"), settings.get("conditions"))
            yield from _task_values(document, at, kind, settings)
        yield from _scripts(document, at, settings if kind == "script" else None)


def _task_values(document: Document, at: Path, kind: str, settings: Mapping[str, Any]) -> Iterator[Fault]:
    if kind == "script" and not any(settings.get(key) for key in ("scripts", "script", "file")):
        yield Fault("bamboo-shape", document.part, at, "the script task has neither scripts nor file")
    if kind == "any-task" and not settings.get("plugin-key"):
        yield Fault("bamboo-shape", document.part, at, "any-task needs a plugin-key")
    if kind == "inject-variables":
        yield from check_value(document, (*at, "scope"), settings.get("scope"), "scope of inject-variables")
    if kind == "test-parser":
        yield from check_value(document, (*at, "type"), settings.get("type"), "type of test-parser")


def check_value(document: Document, where: Path, value: object, setting: str) -> Iterator[Fault]:
    if isinstance(value, str) and value.lower() not in VALUES[setting] and not isinstance(value, Tagged) and "${" not in value:
        yield Fault("bamboo-value", document.part, where, f"the {setting} is {display(value)}", f"one of {', '.join(VALUES[setting])}")


def _conditions(document: Document, where: Path, conditions: object) -> Iterator[Fault]:
    """Check `- variable: {equals: {name: value}}`. A task with an unreadable condition runs unconditionally."""
    if conditions is None or isinstance(conditions, Tagged):
        return
    if not isinstance(conditions, list):
        yield Fault("bamboo-condition", document.part, where, "conditions must be a list")
        return
    for index, condition in enumerate(conditions):
        at: Path = (*where, index)
        if not isinstance(condition, Mapping):
            yield Fault("bamboo-condition", document.part, at, f"a condition must be a mapping, not {display(condition)}")
            continue
        for key, value in condition.items():
            if key not in CONDITIONS and (hint := suggestion(key, CONDITIONS)):
                yield Fault("bamboo-condition", document.part, (*at, key), f"{display(key)} is not a condition", hint)
            if key == "variable":
                yield from _variable_condition(document, (*at, key), value)


def _variable_condition(document: Document, at: Path, value: object) -> Iterator[Fault]:
    if not isinstance(value, Mapping) or not value:
        yield Fault("bamboo-condition", document.part, at, "a condition on a variable must name it: `equals: {NAME: VALUE}`")
        return
    for operator, operand in value.items():
        name = operator.replace("_", "-")
        if name not in OPERATORS and (hint := suggestion(name, OPERATORS)):
            yield Fault("bamboo-condition", document.part, (*at, operator), f"{display(operator)} is not an operator", hint)
        elif name in ("equals", "not-equals", "matches") and not isinstance(operand, Mapping):
            why = f"{operator} must name a variable and a value, not {display(operand)}"
            yield Fault("bamboo-condition", document.part, (*at, operator), why, f"{operator}: {{NAME: VALUE}}")


def check_triggers(document: Document, where: Path, triggers: object, plan: Document | None) -> Iterator[Fault]:
    names = document.data.get("environments")
    for index, trigger in enumerate(triggers if isinstance(triggers, list) else []):
        kinds: Mapping[str, Any] = {trigger: None} if isinstance(trigger, str) else mapping(trigger)
        for kind, settings in kinds.items():
            at: Path = (*where, index, kind) if isinstance(trigger, Mapping) else (*where, index)
            if kind not in TRIGGERS and (hint := suggestion(kind, TRIGGERS)):
                yield Fault("bamboo-unknown-key", document.part, at, f"{display(kind)} is not a trigger", hint)
            elif kind == "environment-success" and isinstance(names, list):
                target = settings if isinstance(settings, str) else text(mapping(settings).get("environment"))
                if target and target not in map(str, names):
                    why = f"it waits for the environment {display(target)}, which is not in `environments`"
                    yield Fault("bamboo-missing-environment", document.part, at, why)
            elif kind == "stage-success" and plan is not None:
                target = settings if isinstance(settings, str) else text(mapping(settings).get("stage"))
                if target and target not in [stage[1] for stage in plan.stages]:
                    why = f"it waits for the stage {display(target)}, which the plan {plan.key} does not have"
                    stages = ", ".join(stage[1] for stage in plan.stages)
                    yield Fault("bamboo-missing-environment", document.part, at, why, f"its stages: {stages}")


def check_variables(document: Document, where: Path, variables: object) -> Iterator[Fault]:
    for name, value in mapping(variables).items():
        if (
            isinstance(value, str)
            and not isinstance(value, Tagged)
            and not value.startswith(ENCRYPTED)
            and (reason := secret_in(name, value))
        ):
            yield Fault("bamboo-secret", document.part, (*where, name), f"the variable {name} is in plain text; {reason}")


def _scripts(document: Document, at: Path, settings: object) -> Iterator[Fault]:
    if settings is None:
        return
    texts: list[tuple[Path, object]] = []
    if isinstance(settings, Mapping):
        for key in ("scripts", "script", "argument", "environment"):
            value = settings.get(key)
            texts += [((*at, key, index), item) for index, item in enumerate(value)] if isinstance(value, list) else [((*at, key), value)]
    else:
        texts = [((*at, index), item) for index, item in enumerate(settings)] if isinstance(settings, list) else [(at, settings)]
    for where, value in texts:
        if not isinstance(value, str) or len(value) > 100_000:
            continue
        for line in value.splitlines():
            arguments = [(match["name"], match["value"]) for match in ARGUMENT.finditer(line)]
            # Quoted values and variables are not secrets: `--password "$PASSWORD"` is correct.
            literal = [
                name
                for name, value_text in arguments
                if value_text[:1] not in "\"'$" and secret_in(name, value_text) and "$" not in value_text
            ]
            if secret_in("", line) or literal:
                yield Fault("bamboo-secret", document.part, where, "the script contains a secret in plain text")
                break
