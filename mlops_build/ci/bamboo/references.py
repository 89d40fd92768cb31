"""References between the parts of Bamboo specs (references.yaml): what a value names must exist."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from mlops_build.ci.bamboo.spec import Document, Specs, values
from mlops_build.verify.document import Path, Tagged, parse
from mlops_build.verify.schema import display
from mlops_build.verify.world import Fault, at, mapping, mappings, text

FILE = "references.yaml"
# A plan and a deployment may be in another repository.
ELSEWHERE = ("plans", "deployments")


def check(specs: Specs, document: Document) -> Iterator[Fault]:
    names = _names(specs, document)
    for reference in _references():
        known = names.get(reference["names"]) if reference["kind"] == document.kind else None
        for path in reference["paths"] if known is not None else ():
            for where, value in values(document.data, path):
                yield from _fault(specs, document, reference, where, value, list(known or ()))
    if document.kind == "plan":
        yield from _subscriptions(document)


@cache
def _references() -> list[dict[str, Any]]:
    text = files("mlops_build.ci.bamboo").joinpath(FILE).read_text(encoding="utf-8")
    references: list[dict[str, Any]] = parse(text, FILE).documents[0].value
    return references


def _names(specs: Specs, document: Document) -> dict[str, Sequence[str] | None]:
    """What exists, by kind; None if that is unknown, because it is included or defined elsewhere."""
    plans = {plan.key: plan for plan in reversed(specs.plans)}
    if "project-key" in document.plan:
        plans |= {text(plan.plan.get("key")): plan for plan in specs.plans}
    deployments = {deployment.name: deployment for deployment in specs.deployments}
    source = plans.get(text(mapping(document.data.get("deployment")).get("source-plan")))
    target = deployments.get(document.name)
    has_all_artifacts = source and not any(isinstance(value, Tagged) for value in source.data.values())
    return {
        "jobs": [*document.entries, *document.overridden],
        "entries": list(document.entries),
        "plans": None if specs.includes else list(plans) or None,
        "deployments": None if specs.includes else list(deployments) or None,
        "environments": target.environments if target else None,
        "stages": [stage.name for stage in source.stages] if source else None,
        "artifacts": [name for name, _, _, shared in _artifacts(source) if shared] if source and has_all_artifacts else None,
    }


def _fault(
    specs: Specs, document: Document, reference: Mapping[str, Any], where: Path, value: object, known: Sequence[str]
) -> Iterator[Fault]:
    if isinstance(value, Mapping | list | Tagged) or value is None or "${" in (name := str(value)) or name in known:
        return
    if reference["names"] == "artifacts" and mapping(at(document.data, where[:-3])).get("source-plan"):
        return
    may_be_elsewhere = reference["names"] in ELSEWHERE and not specs.closed
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.8 if may_be_elsewhere else 0.6)
    if close or not may_be_elsewhere:
        hint = f"did you mean {close[0]!r}?" if close else f"there is {', '.join(known)}" if known else None
        yield Fault(reference["rule"], document.part, where, reference["why"].format(name=display(name)), hint)


def _artifacts(plan: Document) -> list[tuple[str, str, Path, bool]]:
    """Name, job and path of each artifact of a plan, and whether it is shared (the default)."""
    return [
        (text(artifact.get("name")), job, (job, "artifacts", index, "name"), artifact.get("shared", True) is not False)
        for job, settings in plan.entries.items()
        for index, artifact in enumerate(mappings(mapping(settings).get("artifacts")))
    ]


def _subscriptions(plan: Document) -> Iterator[Fault]:
    """An artifact that a job subscribes to must be shared by a job of an earlier stage. The names of shared artifacts are unique."""
    artifacts = _artifacts(plan)
    stages = {job: number for number, stage in reversed(list(enumerate(plan.stages))) for _, job in stage.jobs}
    first = {name: job for name, job, _, shared in reversed(artifacts) if shared}
    for name, job, where, shared in artifacts:
        if shared and first[name] != job:
            why = f"two jobs share an artifact named {display(name)}; within a plan the name must be unique"
            yield Fault("bamboo-artifact", plan.part, where, why)
    for where, wanted in values(plan.data, "*/artifact-subscriptions/#/artifact"):
        makers = {job: shared for name, job, _, shared in artifacts if name == wanted}
        if isinstance(wanted, str) and "${" not in wanted and (problem := _unavailable(plan, str(where[0]), wanted, makers, stages)):
            yield Fault("bamboo-artifact", plan.part, where, *problem)


def _unavailable(
    plan: Document, job: str, artifact: str, makers: Mapping[str, bool], stages: Mapping[str, int]
) -> tuple[str, str | None] | None:
    """Why a job cannot have an artifact, with the remedy. makers: the jobs that produce it, and whether they share it."""
    if not makers:
        close = difflib.get_close_matches(artifact, [name for name, *_ in _artifacts(plan)], n=1)
        included = any(isinstance(value, Tagged) for value in plan.entries.values())
        problem = (f"no job produces the artifact {display(artifact)}", f"did you mean {close[0]!r}?" if close else None)
        return None if included else problem
    maker = next(iter(makers))
    if not any(makers.values()):
        return f"the artifact {display(artifact)} of {maker} is not shared", f"set `shared: true` for the artifact of {maker}"
    if job in stages and not any(shared and stages.get(name, -1) < stages[job] for name, shared in makers.items()):
        return f"{maker} produces the artifact {display(artifact)} in the same stage or a later one", f"move {maker} to an earlier stage"
    return None
