"""What the specs of a service made from the template must keep to: its commands, environments, approval, and the order of its steps."""

from collections.abc import Iterator

from mlops_build.ci import commands
from mlops_build.ci.bamboo.spec import Document, Specs, scripts
from mlops_build.service import Service
from mlops_build.verify.document import Path
from mlops_build.verify.schema import display
from mlops_build.verify.specs import Problem
from mlops_build.verify.world import Fault, mapping, text


def check(specs: Specs, service: Service, problem_of: Problem) -> Iterator[Fault]:
    for document in specs.plans:
        yield from _order(document)
    for document in specs.deployments:
        for name in document.environments or []:
            yield from _environment(document, name, service)
    for document in (*specs.plans, *specs.deployments):
        for name, owner in document.entries.items():
            yield from commands.check(scripts(owner, (name,)), document.part, "bamboo-command", problem_of)


def _environment(document: Document, name: str, service: Service) -> Iterator[Fault]:
    owner = document.entries.get(name)
    deployments = commands.calls(scripts(owner, (name,)), "ci", "deploy")
    deployed = {word for _, words in deployments for word in words} or {name}
    yield from commands.overlays(deployments, document.part, "bamboo-overlay", service)
    approval = text(mapping(owner).get("release-approval-prerequisite")).lower()
    if owner is not None and commands.PRODUCTION in deployed and approval in ("", "none", "not-broken"):
        yield Fault("bamboo-approval", document.part, (name,), f"{display(name)} deploys production, but needs no approval")


def _order(document: Document) -> Iterator[Fault]:
    """Images are not built in an earlier stage than the check."""
    stages: dict[str, list[tuple[int, Path, str]]] = {"check": [], "image": []}
    for number, stage in enumerate(document.stages):
        for path, job in stage.jobs:
            for step, where in stages.items():
                if commands.calls(scripts(document.entries.get(job), (job,)), "ci", step):
                    where.append((number, path, job))
    for number, path, job in stages["image"]:
        if stages["check"] and all(checked > number for checked, _, _ in stages["check"]):
            why = f"the job {display(job)} builds the image before {display(stages['check'][0][2])} has passed"
            yield Fault("bamboo-order", document.part, path, why)
