"""Deployments with their environments, and documents of permissions."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.ci.bamboo.job import TASKS, check_docker, check_tasks, check_triggers, check_value, check_variables
from mlops_build.ci.bamboo.spec import DEPLOYMENT_ROOT, DOCUMENT, PERMISSIONS, Document, Specs, is_job, unknown_keys, unknown_root_keys
from mlops_build.verify.document import Path, Tagged
from mlops_build.verify.schema import display, suggestion
from mlops_build.verify.world import Fault, mapping, mappings, text

DEPLOYMENT = ["name", "source-plan", "description"]
RELEASE_NAMING = ["next-version-name", "applies-to-branches", "auto-increment", "auto-increment-variables"]
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
PERMISSION = ["users", "groups", "roles", "permissions"]
PERMISSION_NAMES = [
    "view",
    "view-configuration",
    "edit",
    "build",
    "clone",
    "admin",
    "deploy",
    "create",
    "create-repository",
    "approve-release",
]


def check_deployment(specs: Specs, document: Document) -> Iterator[Fault]:
    yield from unknown_keys(document, ("deployment",), document.data.get("deployment"), DEPLOYMENT, "a deployment")
    yield from unknown_keys(document, ("release-naming",), document.data.get("release-naming"), RELEASE_NAMING, "release-naming")
    yield from check_variables(document, ("variables",), document.data.get("variables"))
    source = text(mapping(document.data.get("deployment")).get("source-plan"))
    plans = {plan.key: plan for plan in reversed(specs.plans)}
    if source and source not in plans and plans and not isinstance(source, Tagged):
        close = difflib.get_close_matches(source, list(plans), n=1, cutoff=0.75)
        if specs.closed or close:
            hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(plans)}"
            why = f"the source plan is {display(source)}, but no plan has this project-key and key"
            yield Fault("bamboo-source-plan", document.part, ("deployment", "source-plan"), why, hint)
    yield from _environments(document, plans.get(source))


def _environments(document: Document, plan: Document | None) -> Iterator[Fault]:
    listed = document.data.get("environments")
    named = [str(name) for name in listed] if isinstance(listed, list) else []
    entries = {key: value for key, value in document.data.items() if key not in DEPLOYMENT_ROOT}
    yield from unknown_root_keys(document, DEPLOYMENT_ROOT, entries, set(named))
    for index, name in enumerate(named):
        if name not in entries:
            close = difflib.get_close_matches(name, list(entries), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"define {name!r} at the document's root"
            why = f"the environment {display(name)} is not defined"
            yield Fault("bamboo-missing-environment", document.part, ("environments", index), why, hint)
    for name, settings in entries.items():
        if name not in named and is_job(settings) and named:
            why = f"{display(name)} is not in `environments`, so nothing is deployed to it"
            yield Fault("bamboo-unused-environment", document.part, (name,), why)
        if isinstance(settings, Mapping):
            yield from unknown_keys(document, (name,), settings, ENVIRONMENT, f"the environment {display(name)}")
            yield from check_tasks(document, (name,), settings)
            yield from check_docker(document, (name,), settings)
            yield from check_variables(document, (name, "variables"), settings.get("variables"))
            yield from check_triggers(document, (name, "triggers"), settings.get("triggers"), plan)
            prerequisite = settings.get("release-approval-prerequisite")
            yield from check_value(document, (name, "release-approval-prerequisite"), prerequisite, "release-approval-prerequisite")
            yield from _downloads(document, (name,), settings, plan)


def _downloads(document: Document, where: Path, settings: Mapping[str, Any], plan: Document | None) -> Iterator[Fault]:
    """A deployment can download only shared artifacts of its source plan."""
    if plan is None or any(isinstance(value, Tagged) for value in plan.data.values()):
        return
    shared = {
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
            if name and name not in shared and "${" not in name:
                at: Path = (*where, "tasks", index, "artifact-download", "artifacts", number, "name")
                why = f"the plan {plan.key} shares no artifact {display(name)}"
                yield Fault("bamboo-artifact", document.part, at, why, f"it shares {', '.join(sorted(shared))}" if shared else None)


def check_permissions(specs: Specs, document: Document) -> Iterator[Fault]:
    known = [*DOCUMENT, "plan", "plan-permissions", "deployment", *PERMISSIONS]
    yield from unknown_keys(document, (), document.data, known, "a permissions document")
    for key in ("plan-permissions", *PERMISSIONS[:2]):
        yield from _entries(document, (key,), document.data.get(key))
    for index, entry in enumerate(mappings(document.data.get("environment-permissions"))):
        for name, entries in entry.items():
            yield from _entries(document, ("environment-permissions", index, name), entries)
    yield from _permission_targets(specs, document)


def _entries(document: Document, where: Path, entries: object) -> Iterator[Fault]:
    for index, entry in enumerate(mappings(entries)):
        yield from unknown_keys(document, (*where, index), entry, PERMISSION, "a permission")
        permissions = entry.get("permissions")
        for number, word in enumerate(permissions if isinstance(permissions, list) else [permissions]):
            if isinstance(word, str) and word.lower() not in PERMISSION_NAMES and (hint := suggestion(word.lower(), PERMISSION_NAMES)):
                at: Path = (*where, index, "permissions", number)
                yield Fault("bamboo-value", document.part, at, f"{display(word)} is not a permission", hint)


def _permission_targets(specs: Specs, document: Document) -> Iterator[Fault]:
    """Permissions must be for a plan or deployment that is defined here."""
    plan, deployment = document.data.get("plan"), document.data.get("deployment")
    if plan is not None:
        named = plan if isinstance(plan, str) else document.key
        at: Path = ("plan", "key") if isinstance(plan, Mapping) else ("plan",)
        yield from _target(specs, document, at, "plan", named, [other.key for other in specs.plans])
    if deployment is not None:
        named = deployment if isinstance(deployment, str) else text(mapping(deployment).get("name"))
        where: Path = ("deployment", "name") if isinstance(deployment, Mapping) else ("deployment",)
        names = {_name_of(other): other for other in specs.deployments}
        yield from _target(specs, document, where, "deployment", named, list(names))
        target = names.get(named)
        environments = target.data.get("environments") if target else None
        for index, entry in enumerate(mappings(document.data.get("environment-permissions"))):
            for name in entry:
                if isinstance(environments, list) and name not in map(str, environments):
                    why = f"the deployment {named} has no environment {display(name)}"
                    yield Fault("bamboo-permissions", document.part, ("environment-permissions", index, name), why)


def _name_of(document: Document) -> str:
    deployment = document.data.get("deployment")
    return deployment if isinstance(deployment, str) else text(mapping(deployment).get("name"))


def _target(specs: Specs, document: Document, where: Path, kind: str, named: str, names: list[str]) -> Iterator[Fault]:
    if not named or named in names or specs.includes or not names:
        return
    close = difflib.get_close_matches(named, names, n=1, cutoff=0.8)
    if specs.closed or close:
        hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(names)}"
        why = f"these are permissions of the {kind} {display(named)}, which is not defined"
        yield Fault("bamboo-permissions", document.part, where, why, hint)
