"""What an administrator sets up in GitLab for the pipeline of a service: the items of the checklist and the checks."""

import json
import os
from importlib.resources import files
from pathlib import Path

from mlops_build.checklist.plans import Plans
from mlops_build.checklist.result import Result, no, ok, unseen
from mlops_build.ci import gitlab
from mlops_build.ci.gitlab import pipeline
from mlops_build.errors import NotFound, Refused
from mlops_build.verify import document

OUTSIDE = "not run by GitLab: run it as a script of a job"


def read(root: Path) -> Plans:
    """The pipeline of the service at `root`. Raises NotFound or Refused."""
    path = root / gitlab.SPECS
    try:
        file = document.parse(document.read(path), gitlab.SPECS)
    except FileNotFoundError:
        raise NotFound(f"{path} is missing", remedy="restore it from Git, or update the service from its template") from None
    if file.problems:
        raise Refused(f"{path}: {file.problems[0].why}", remedy="fix it, or restore it from Git")
    specs = pipeline.read(file)
    if specs is None or not specs.jobs:
        raise NotFound(f"{path} has no job", remedy="restore it from Git, or update the service from its template")
    return Plans(
        system="GitLab",
        capabilities=tuple(sorted({tag for job in specs.jobs.values() for tag in pipeline.names(job.get("tags"))})),
        values={},
        items=files("mlops_build.ci.gitlab").joinpath("items.toml").read_text(encoding="utf-8"),
        checks={"protected": lambda _: _protected(), "tag": lambda values: _tag(values["capability"])},
    )


def _protected() -> Result:
    """Whether the branch of this job is protected, which gives it protected variables and runners."""
    branch, protected = os.environ.get("CI_COMMIT_BRANCH"), os.environ.get("CI_COMMIT_REF_PROTECTED")
    if not branch or protected is None:
        return unseen(OUTSIDE)
    if protected == "true":
        return (
            ok(f"{branch} is a protected branch") if branch == "main" else no(f"{branch[:60]} is protected, too: its jobs get credentials")
        )
    return no("main is not a protected branch") if branch == "main" else unseen(f"this job is of {branch[:60]}: run it in a job of main")


def _tag(name: str) -> Result:
    """Whether the runner of this job has a tag."""
    listed = os.environ.get("CI_RUNNER_TAGS")
    if listed is None:
        return unseen(OUTSIDE)
    try:
        tags = json.loads(listed)
    except ValueError:
        tags = [tag.strip() for tag in listed.split(",")]  # of GitLab before 16
    return (
        ok(f"this runner has {name}") if name in tags else no(f"this runner does not have {name}; its jobs run on another runner or wait")
    )
