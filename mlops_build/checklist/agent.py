"""Checks of the agent itself: the Bamboo plan, programs, package index, variables with secrets."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlops_build.checklist.names import Names
from mlops_build.checklist.result import SECONDS, Result, last_line, no, ok, unseen

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
    from mlops_build.model.environment import uv_environment

    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        (Path(scratch) / "requirements.in").write_text("hatchling\n")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-cache", "requirements.in"]
        try:
            done = subprocess.run(
                command, cwd=scratch, env=uv_environment(), capture_output=True, text=True, timeout=2 * SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return no(f"the package index did not answer within {2 * SECONDS} s")
    if done.returncode:
        return no(f"the package index is not reachable: {last_line(done)}")
    return ok("the package index is reachable: " + next((line for line in done.stdout.splitlines() if "==" in line), "hatchling"))


def variables(required: Sequence[str]) -> Result:
    """Whether variables are set. Their values are not read."""
    missing = [name for name in required if not os.environ.get(name)]
    return no(f"not set: {', '.join(missing)}") if missing else ok(f"set: {', '.join(required)}")
