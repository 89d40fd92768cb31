"""Bamboo: what differs from other CI systems (see systems.py)."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from mlops_build.checklist.plans import Plans
    from mlops_build.verify.specs import Problem, SpecChecker

SPECS = "bamboo-specs/bamboo.yaml"
# Our variables: Bamboo's.
VARIABLES = {
    "MLOPS_GIT_BRANCH": "bamboo_planRepository_branchName",
    "MLOPS_CI_REPOSITORY": "bamboo_planRepository_repositoryUrl",
    "MLOPS_CI_BUILD": "bamboo_buildNumber",
}


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    return {ours: environment[name] for ours, name in VARIABLES.items() if environment.get(name)}


def spec_checker(problem_of: "Problem") -> "SpecChecker":
    from mlops_build.ci.bamboo import specs

    return specs.checker(problem_of)


def plans(root: "Path") -> "Plans":
    from mlops_build.ci.bamboo import setup

    return setup.read(root)
