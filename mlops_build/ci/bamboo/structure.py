"""The structure of Bamboo specs beyond the grammar: keys at the root, jobs and environments that are never used, and keys used twice."""

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlops_build.ci.bamboo.spec import Document, Specs, Stage, is_job
from mlops_build.verify.document import Path
from mlops_build.verify.schema import display, suggestion
from mlops_build.verify.world import Fault, mapping, text


def check(specs: Specs) -> Iterator[Fault]:
    for document in specs.plans:
        yield from _plan(specs, document)
    for document in specs.deployments:
        listed = document.environments or []
        yield from _unknown_roots(document, listed)
        for name, settings in document.entries.items():
            if listed and name not in listed and is_job(settings):
                why = f"{display(name)} is not in `environments`, so nothing is deployed to it"
                yield Fault("bamboo-unused-environment", document.part, (name,), why)
    yield from _plan_keys(specs)


def _plan(specs: Specs, document: Document) -> Iterator[Fault]:
    yield from _unknown_roots(document, [job for stage in document.stages for _, job in stage.jobs])
    if not document.stages and "stages" not in document.data and document.plan:
        yield Fault("bamboo-shape", document.part, ("plan",), "the plan has no stages, so it runs nothing")
    first: dict[str, str] = {}
    for name, job in document.entries.items():
        key = text(mapping(job).get("key"))
        if key and first.setdefault(key, name) != name:
            why = f"the jobs {display(first[key])} and {display(name)} both have the key {key}"
            yield Fault("bamboo-duplicate-key", document.part, (name, "key"), why)
    jobs = {**document.entries, **document.overridden}
    for where, stages, own in ((), document.stages, document.entries), *document.overrides:
        yield from _unused(document, stages, jobs, own, where)
        if specs.closed:
            yield from _manual(document, stages)


def _unknown_roots(document: Document, named: Iterable[str]) -> Iterator[Fault]:
    """Keys at the root that are neither known nor a referenced job or environment."""
    for key, value in document.entries.items():
        if key not in named and not is_job(value):
            hint = suggestion(key, document.known_keys) or suggestion(key, sorted(named))
            yield Fault("bamboo-unknown-key", document.part, (key,), f"{display(key)} is neither a known key nor a job", hint)


def _unused(document: Document, stages: list[Stage], jobs: Mapping[str, Any], own: Iterable[str], where: Path) -> Iterator[Fault]:
    """Jobs in no stage, except those whose names a stage misspells. own: the jobs that are checked."""
    named = {job for stage in stages for _, job in stage.jobs}
    named |= {close for job in named - set(jobs) for close in difflib.get_close_matches(job, list(jobs), n=1)}
    for job in own if stages else ():
        if job not in named and is_job(jobs[job]):
            yield Fault("bamboo-unused-job", document.part, (*where, job), f"the job {display(job)} is in no stage, so it never runs")


def _manual(document: Document, stages: list[Stage]) -> Iterator[Fault]:
    for index, stage in enumerate(stages[:-1]):
        if stage.is_manual:
            after = ", ".join(display(later.name) for later in stages[index + 1 :])
            why = (
                f"the stage {display(stage.name)} is manual, so no later stage runs until a person starts it, not even a final one: {after}"
            )
            yield Fault("bamboo-manual-stage", document.part, (*stage.path, "manual"), why)


def _plan_keys(specs: Specs) -> Iterator[Fault]:
    plans: dict[tuple[str, str], Document] = {}
    for document in specs.plans:
        first = plans.setdefault((document.key, text(document.data.get("server-name"))), document)
        if document.plan.get("key") and first is not document:
            file, line = first.part.where(("plan", "key"))
            why = f"two plans have the key {document.key}; the other one is in {file}, line {line}"
            yield Fault("bamboo-duplicate-key", document.part, ("plan", "key"), why)
