"""Checks of the agent itself: the Bamboo plan, programs, package index, variables with secrets."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlops_build.adapters import installer, program
from mlops_build.checklist.names import Names
from mlops_build.checklist.result import SECONDS, Result, no, ok, unseen

OUTSIDE = "not run by Bamboo: run it as a script of a job"


def plan(names: Names) -> Result:
    """Project, linked repository and specs work if this is a build of one of the plans."""
    key = os.environ.get("bamboo_planKey")  # noqa: SIM112 # Bamboo's spelling
    if not key:
        return unseen(OUTSIDE)
    if key in names.plans:
        return ok(f"this is a build of {key}")
    return no(f"this is a build of {key[:60]}, but the plans in bamboo-specs are {', '.join(names.plans)}")


def capability(name: str) -> Result:
    """Whether the agent has a capability, which Bamboo exports to scripts."""
    if f"bamboo_capability_{name.replace('.', '_')}" in os.environ:
        return ok(f"this agent has {name}")
    if "bamboo_buildNumber" in os.environ:
        return no(f"this agent does not have {name}; its jobs run on another agent or wait")
    return unseen(OUTSIDE)


def programs(commands: Sequence[str]) -> Result:
    """Whether programs are on PATH."""
    missing = [command for command in commands if not shutil.which(command)]
    return no(f"not on PATH: {', '.join(missing)}") if missing else ok(", ".join(commands))


def package_index() -> Result:
    """Resolve one small package, like the lock of a model version."""
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        (Path(scratch) / "requirements.in").write_text("hatchling\n")
        try:
            done = installer.resolve(["--no-deps", "--no-cache", "requirements.in"], folder=Path(scratch), seconds=2 * SECONDS)
        except program.DoesNotEnd:
            return no(f"the package index did not answer within {2 * SECONDS} s")
    if done.code:
        return no(f"the package index is not reachable: {done.last_line}")
    return ok("the package index is reachable: " + next((line for line in done.text.splitlines() if "==" in line), "hatchling"))


def variables(required: Sequence[str]) -> Result:
    """Whether variables are set. Their values are not read."""
    missing = [name for name in required if not os.environ.get(name)]
    return no(f"not set: {', '.join(missing)}") if missing else ok(f"set: {', '.join(required)}")
