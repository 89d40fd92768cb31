"""Plans: stages, jobs in them, keys, artifacts and branch overrides."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.ci.bamboo.job import DOCKER, ENCRYPTED, check_job, check_triggers, check_variables
from mlops_build.ci.bamboo.spec import OVERRIDES, PLAN_ROOT, Document, Specs, Stages, is_job, stages_of, unknown_keys, unknown_root_keys
from mlops_build.verify.document import Path, Tagged
from mlops_build.verify.schema import display, suggestion
from mlops_build.verify.security import secret_in
from mlops_build.verify.world import Fault, mapping, mappings, text

PLAN = ["project-key", "key", "name", "description", "master-branch", "enabled"]
STAGE = ["manual", "final", "jobs", "description"]
BRANCHES = ["create", "delete", "integration", "link-to-jira", "notifications"]
DEPENDENCIES = ["require-all-stages-passing", "enabled-for-branches", "block-strategy", "plans", "dependencies"]
SECRET_FIELDS = ("password", "ssh-key", "ssh-key-passphrase", "passphrase", "private-key")


def check_plan(specs: Specs, document: Document) -> Iterator[Fault]:
    yield from unknown_keys(document, ("plan",), document.data.get("plan"), PLAN, "a plan")
    for key in ("project-key", "key"):
        value = document.plan.get(key)
        if (
            isinstance(value, str)
            and not (value.isascii() and value.isalnum() and value.isupper() and value[0].isalpha())
            and "$" not in value
        ):
            why = f"{key} is {display(value)}; it must be capital letters and digits, starting with a letter"
            yield Fault("bamboo-value", document.part, ("plan", key), why)
    jobs = {key: value for key, value in document.data.items() if key not in PLAN_ROOT}
    yield from unknown_root_keys(document, PLAN_ROOT, jobs, named={name for _, _, _, names in document.stages for _, name in names})
    yield from _stages_and_jobs(specs, document, document.stages, jobs, ())
    yield from check_variables(document, ("variables",), document.data.get("variables"))
    yield from _repositories(document)
    yield from unknown_keys(document, ("branches",), document.data.get("branches"), BRANCHES, "branches", is_open=True)
    yield from unknown_keys(document, ("dependencies",), document.data.get("dependencies"), DEPENDENCIES, "dependencies", is_open=True)
    yield from unknown_keys(document, ("docker",), document.data.get("docker"), DOCKER, "docker", is_open=True)
    yield from check_triggers(document, ("triggers",), document.data.get("triggers"), None)
    for name, job in jobs.items():
        yield from check_job(document, (name,), name, job)
    yield from _same_job_key(document, jobs)
    yield from _artifacts(document, document.stages, jobs)
    for index, override in enumerate(mappings(document.data.get("branch-overrides"))):
        for pattern, settings in override.items():
            yield from _override(specs, document, ("branch-overrides", index, pattern), mapping(settings), jobs)


def _override(specs: Specs, document: Document, where: Path, settings: Mapping[str, Any], base: Mapping[str, Any]) -> Iterator[Fault]:
    """The settings of a branch, which Bamboo merges over the plan's, key by key."""
    jobs = {key: value for key, value in settings.items() if key not in OVERRIDES}
    for key, value in jobs.items():
        if not (isinstance(value, Mapping | Tagged) or value is None):
            hint = suggestion(key, OVERRIDES)
            yield Fault("bamboo-unknown-key", document.part, (*where, key), f"{display(key)} is not a key of a branch override", hint)
        yield from check_job(document, (*where, key), key, value)
    stages = list(stages_of(settings.get("stages"), (*where, "stages")))
    yield from _stages_and_jobs(specs, document, stages, {**base, **jobs}, where, own=set(jobs) if stages else set())
    yield from check_variables(document, (*where, "variables"), settings.get("variables"))


def _stages_and_jobs(
    specs: Specs, document: Document, stages: Stages, jobs: Mapping[str, Any], where: Path, own: set[str] | None = None
) -> Iterator[Fault]:
    named: set[str] = set()
    misspelt: set[str] = set()
    for at, name, settings, listed in stages:
        yield from unknown_keys(document, at, settings, STAGE, "a stage")
        if not listed and not isinstance(settings.get("jobs"), Tagged):
            yield Fault("bamboo-shape", document.part, at, f"the stage {display(name)} has no job")
        for path, job in listed:
            named.add(job)
            if job not in jobs:
                close = difflib.get_close_matches(job, list(jobs), n=1)
                misspelt.update(close)
                hint = f"did you mean {close[0]!r}?" if close else f"define {job!r} at the document's root"
                why = f"the stage {display(name)} names the job {display(job)}, which is not defined"
                yield Fault("bamboo-missing-job", document.part, path, why, hint)
    if specs.closed:
        yield from _manual(document, stages)
    if not stages and not where and "stages" not in document.data:
        if document.plan:
            yield Fault("bamboo-shape", document.part, ("plan",), "the plan has no stages, so it runs nothing")
        return
    for job in own if own is not None else jobs:
        if job not in named | misspelt and is_job(jobs[job]) and stages:
            yield Fault("bamboo-unused-job", document.part, (*where, job), f"the job {display(job)} is in no stage, so it never runs")


def _manual(document: Document, stages: Stages) -> Iterator[Fault]:
    for index, (at, name, settings, _) in enumerate(stages[:-1]):
        if settings.get("manual") is True:
            after = ", ".join(display(stage[1]) for stage in stages[index + 1 :])
            why = f"the stage {display(name)} is manual, so until a person starts it no later stage runs, not even a final one: {after}"
            yield Fault("bamboo-manual-stage", document.part, (*at, "manual"), why)


def _same_job_key(document: Document, jobs: Mapping[str, Any]) -> Iterator[Fault]:
    names: dict[str, str] = {}
    for name, job in jobs.items():
        key = text(mapping(job).get("key"))
        if key and key in names:
            yield Fault(
                "bamboo-duplicate-key",
                document.part,
                (name, "key"),
                f"the jobs {display(names[key])} and {display(name)} both have the key {key}",
            )
        names.setdefault(key, name)


def check_plan_keys(specs: Specs) -> Iterator[Fault]:
    plans: dict[tuple[str, str], Document] = {}
    for document in specs.plans:
        identity = (document.key, text(document.data.get("server-name")))
        if document.plan.get("key") and identity in plans:
            first = plans[identity].part.where(("plan", "key"))
            why = f"two plans have the key {document.key}; the other one is in {first[0]}, line {first[1]}"
            yield Fault("bamboo-duplicate-key", document.part, ("plan", "key"), why)
        plans.setdefault(identity, document)


def _artifacts(document: Document, stages: Stages, jobs: Mapping[str, Any]) -> Iterator[Fault]:
    """An artifact that a job subscribes to must be shared by a job of an earlier stage. `shared` defaults to true."""
    stage_of = {job: index for index, (_, _, _, listed) in reversed(list(enumerate(stages))) for _, job in listed}
    artifacts: dict[str, list[tuple[str, bool]]] = {}
    for name, job in jobs.items():
        for index, artifact in enumerate(mappings(mapping(job).get("artifacts"))):
            title, shared = text(artifact.get("name")), artifact.get("shared", True) is not False
            if shared and title and any(other_shared and maker != name for maker, other_shared in artifacts.get(title, [])):
                why = f"two jobs share an artifact named {display(title)}; within a plan the name must be unique"
                yield Fault("bamboo-artifact", document.part, (name, "artifacts", index, "name"), why)
            artifacts.setdefault(title, []).append((name, shared))
    for name, job in jobs.items():
        for index, subscription in enumerate(mappings(mapping(job).get("artifact-subscriptions"))):
            title = text(subscription.get("artifact"))
            if title and "${" not in title and (problem := _problem_of(title, artifacts, stage_of, name, jobs)):
                yield Fault("bamboo-artifact", document.part, (name, "artifact-subscriptions", index, "artifact"), *problem)


def _problem_of(
    title: str, artifacts: Mapping[str, list[tuple[str, bool]]], stage_of: Mapping[str, int], name: str, jobs: Mapping[str, Any]
) -> tuple[str, str | None] | None:
    makers = artifacts.get(title)
    if not makers:
        if any(isinstance(job, Tagged) for job in jobs.values()):
            return None
        close = difflib.get_close_matches(title, list(artifacts), n=1, cutoff=0.5)
        return f"no job produces the artifact {display(title)}", f"did you mean {close[0]!r}?" if close else None
    if not any(shared for _, shared in makers):
        return f"the artifact {display(title)} of {makers[0][0]} is not shared", f"set `shared: true` for the artifact of {makers[0][0]}"
    before = [maker for maker, shared in makers if shared and stage_of.get(maker, -1) < stage_of.get(name, 1_000)]
    if not before and name in stage_of:
        return (
            f"{makers[0][0]} produces the artifact {display(title)} in the same stage or a later one",
            f"move {makers[0][0]} to an earlier stage",
        )
    return None


def _repositories(document: Document) -> Iterator[Fault]:
    for index, entry in enumerate(mappings(document.data.get("repositories"))):
        for name, settings in entry.items():
            for key, value in mapping(settings).items():
                secret = key in SECRET_FIELDS and isinstance(value, str) and value and not value.startswith((ENCRYPTED, "${"))
                if secret or (key == "url" and isinstance(value, str) and secret_in("", value)):
                    where: Path = ("repositories", index, name, key)
                    why = f"{key} of the repository {display(name)} contains a secret in plain text"
                    yield Fault("bamboo-secret", document.part, where, why)
