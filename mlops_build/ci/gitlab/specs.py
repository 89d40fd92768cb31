"""The check of .gitlab-ci.yml: the grammar, names of jobs and stages, secrets, and the conventions of a service.

The content of an `include:` is not read, so that names may be defined there.
"""

from collections.abc import Iterator, Sequence

from mlops_build.ci import commands, gitlab
from mlops_build.ci.gitlab import pipeline
from mlops_build.ci.gitlab.pipeline import GRAMMAR, Pipeline
from mlops_build.service import Service
from mlops_build.verify import catalogue, fields
from mlops_build.verify.document import File
from mlops_build.verify.schema import display, suggestion
from mlops_build.verify.security import secret_in
from mlops_build.verify.specs import Problem, SpecChecker
from mlops_build.verify.world import Fault, mapping, text

# A job runs something if it has one of these.
RUNS = ("script", "run", "trigger")


def checker(problem_of: Problem) -> SpecChecker:
    """The checker for `verify`. problem_of: see CiSystem.spec_checker."""

    def check(files: Sequence[File], service: Service | None) -> Iterator[Fault]:
        for file in files:
            if read := pipeline.read(file):
                for violation in fields.violations(GRAMMAR, "pipeline", read.data):
                    yield Fault(violation.rule, read.part, violation.path, violation.why, violation.remedy)
                yield from () if read.includes else _names(read)
                yield from _secrets(read)
                yield from _conventions(read, service, problem_of) if service else ()

    return SpecChecker(gitlab.SPECS, lambda _: False, check, catalogue.read("mlops_build.ci.gitlab"))


def _names(read: Pipeline) -> Iterator[Fault]:
    """Jobs that run nothing, and names of jobs and stages that do not exist."""
    for name, job in read.jobs.items():
        if isinstance(read.entries[name], dict) and not any(key in job for key in RUNS):
            yield Fault("gitlab-shape", read.part, (name,), f"the job {display(name)} runs nothing: it has no `script`")
    for name, entry in read.entries.items():
        stage = text(entry, "stage")
        if stage and "$" not in stage and stage not in read.stages and isinstance(read.data.get("stages", []), list):
            hint = suggestion(stage, read.stages) or f"one of {', '.join(read.stages[1:-1])}; or add it to `stages`"
            yield Fault("gitlab-missing-stage", read.part, (name, "stage"), f"there is no stage {display(stage)}", hint)
        for key in ("needs", "dependencies", "extends"):
            known = list(read.entries) if key == "extends" else list(read.jobs)
            for other in _named(entry, key):
                if other not in known and "$" not in other:
                    why = f"`{key}` names {display(other)}, which is not a job"
                    yield Fault("gitlab-missing-job", read.part, (name, key), why, suggestion(other, known))


def _named(entry: object, key: str) -> list[str]:
    """The jobs of this pipeline that a job names. A list that begins with a hidden job is a `!reference`."""
    listed = mapping(entry).get(key)
    if isinstance(listed, list) and key == "needs":
        here = [need for need in listed if not {"pipeline", "project"} & set(mapping(need)) and mapping(need).get("optional") is not True]
        listed = [need if isinstance(need, str) else text(need, "job") for need in here]
    named = [name for name in pipeline.names(listed) if name]
    return [] if key != "extends" and named and named[0].startswith(".") else named


def _secrets(read: Pipeline) -> Iterator[Fault]:
    for name, entry in (("", read.data), *read.entries.items()):
        where = (name,) if name else ()
        for path, value in pipeline.variables(entry, where):
            if "$" not in value and (reason := secret_in(str(path[-1]), value)):
                yield Fault("gitlab-secret", read.part, path, f"the variable {path[-1]} is in plain text; {reason}")
        yield from commands.secrets(pipeline.scripts(entry, where), read.part, "gitlab-secret")


def _conventions(read: Pipeline, service: Service, problem_of: Problem) -> Iterator[Fault]:
    for name, entry in read.entries.items():
        yield from commands.check(pipeline.scripts(entry, (name,)), read.part, "gitlab-command", problem_of)
    calling: dict[str, list[str]] = {"check": [], "image": []}
    for name, job in read.jobs.items():
        scripts = list(pipeline.scripts(job, (name,)))
        deployments = commands.calls(scripts, "ci", "deploy")
        yield from commands.overlays(deployments, read.part, "gitlab-overlay", service)
        environment = text(job, "environment") or text(job, "environment", "name")
        deployed = {word for _, words in deployments for word in words if "$" not in word} or {environment}
        if deployments and commands.PRODUCTION in deployed and not read.is_manual(name):
            yield Fault("gitlab-approval", read.part, (name,), f"{display(name)} deploys production without being started by a person")
        elif deployments and commands.PRODUCTION in deployed and not environment.startswith((commands.PRODUCTION, "$")):
            why = f"{display(name)} deploys production, but has no `environment: production`, which is the protected one"
            yield Fault("gitlab-approval", read.part, (name,), why, "write `environment: production` in the job")
        for step, jobs in calling.items():
            if commands.calls(scripts, "ci", step):
                jobs.append(name)
    for name in calling["image"]:
        if calling["check"] and not read.before(name) & set(calling["check"]):
            why = f"the job {display(name)} builds the image before {display(calling['check'][0])} has passed"
            yield Fault("gitlab-order", read.part, (name,), why)
