"""GitLab CI/CD: what differs from other CI systems (see systems.py)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mlops_build.checklist.plans import Plans
    from mlops_build.verify.specs import Problem, SpecChecker

SPECS = ".gitlab-ci.yml"
# Our variables: GitLab's.
VARIABLES = {"MLOPS_GIT_BRANCH": "CI_COMMIT_BRANCH", "MLOPS_CI_BUILD": "CI_PIPELINE_IID"}


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """MLOPS_GIT_URL replaces the checkout's origin: its address contains a token of the job, which may not push."""
    if not environment.get("GITLAB_CI"):
        return {}
    known = {ours: environment[name] for ours, name in VARIABLES.items() if environment.get(name)}
    if project := environment.get("CI_PROJECT_URL"):
        known["MLOPS_CI_REPOSITORY"] = f"{project}.git"
        if environment.get("MLOPS_GIT_TOKEN"):
            known["MLOPS_GIT_URL"] = f"{project}.git"
    return known


def spec_checker(problem_of: "Problem") -> "SpecChecker":
    from mlops_build.ci.gitlab import specs

    return specs.checker(problem_of)


def plans(root: "Path") -> "Plans":
    from mlops_build.ci.gitlab import setup

    return setup.read(root)
