"""The CI systems that mlops-build knows. Another one is a subpackage beside bamboo/ and an entry in SYSTEMS.

Everything that differs between CI systems is in these subpackages: the variables of their agents, the rules about their specs, and the
items of the administrator's checklist.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from mlops_build.ci import bamboo, gitlab

if TYPE_CHECKING:
    from pathlib import Path

    from mlops_build.checklist.plans import Plans
    from mlops_build.verify.specs import Problem, SpecChecker


class CiSystem(Protocol):
    """What the subpackage of a CI system defines. Importing it is quick: its functions import what they need."""

    @property
    def SPECS(self) -> str:  # noqa: N802 # a constant of the module
        """The file with its plans in a service."""

    def variables(self, environment: Mapping[str, str], /) -> dict[str, str]:
        """Our variables for a build that its agent runs (see `variables` below), from its own; empty elsewhere."""

    def spec_checker(self, problem_of: "Problem", /) -> "SpecChecker":
        """The check of its specs, and of the commands in them."""

    def plans(self, root: "Path", /) -> "Plans":
        """The plans of the service at `root`, for the checklist. Raises NotFound or Refused if its specs cannot be used."""


SYSTEMS: tuple[CiSystem, ...] = (bamboo, gitlab)


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """What the CI system that runs this process says of its build, in variables that are the same for all systems.

    MLOPS_GIT_BRANCH: the branch. MLOPS_CI_REPOSITORY: the repository's address. MLOPS_CI_BUILD: the number of the build. MLOPS_GIT_URL: the
    address to push to, if the checkout's does not accept pushes. A variable that is set already is not in the result.
    """
    return {name: value for system in SYSTEMS for name, value in system.variables(environment).items() if not environment.get(name)}


def spec_checkers(problem_of: "Problem") -> "list[SpecChecker]":
    """The checks of all systems' specs, and of the commands in them."""
    return [system.spec_checker(problem_of) for system in SYSTEMS]


def used_by(root: "Path") -> CiSystem:
    """The system whose specs the service at `root` has; the first one if it has none."""
    return next((system for system in SYSTEMS if (root / system.SPECS).is_file()), SYSTEMS[0])
