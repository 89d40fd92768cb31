"""What can be seen on an agent itself: whether Bamboo started this, its programs, the package index, the variables that hold secrets."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlops_build.checklist.look import SECONDS, Seen, last_line, no, ok, unseen
from mlops_build.checklist.names import Names

OUTSIDE = "this was not started by Bamboo: run it as a script of a job"


def plan(names: Names) -> Seen:
    """A build of one of our plans proves project, linked repository and specs."""
    key = os.environ.get("bamboo_planKey")  # noqa: SIM112 # Bamboo's spelling
    if not key:
        return unseen(OUTSIDE)
    if key in names.plans:
        return ok(f"this is a build of {key}")
    return no(f"this is a build of {key[:60]}, while bamboo-specs names {', '.join(names.plans)}")


def capability(name: str) -> Seen:
    """Bamboo exports an agent's capabilities to its scripts."""
    if f"bamboo_capability_{name.replace('.', '_')}" in os.environ:
        return ok(f"this agent has {name}")
    if "bamboo_buildNumber" in os.environ:
        return no(f"this agent lacks {name}; its jobs run on another, or wait")
    return unseen(OUTSIDE)


def programs(commands: Sequence[str]) -> Seen:
    missing = [command for command in commands if not shutil.which(command)]
    return no(f"not on PATH: {', '.join(missing)}") if missing else ok(", ".join(commands))


def package_index() -> Seen:
    """Resolve one small package, as the lock of a model version is resolved."""
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        (Path(scratch) / "wanted.txt").write_text("hatchling\n")
        command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-deps", "--no-header", "--no-cache", "wanted.txt"]
        from mlops_build.model.environment import uv_environment

        try:
            done = subprocess.run(
                command, cwd=scratch, env=uv_environment(), capture_output=True, text=True, timeout=2 * SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return no(f"the package index did not answer within {2 * SECONDS} s")
    if done.returncode:
        return no(f"the package index does not answer: {last_line(done)}")
    return ok("the package index answers: " + next((line for line in done.stdout.splitlines() if "==" in line), "hatchling"))


def variables(wanted: Sequence[str]) -> Seen:
    """Whether they are set; what they hold is nobody's business."""
    missing = [name for name in wanted if not os.environ.get(name)]
    return no(f"not set: {', '.join(missing)}") if missing else ok(f"set: {', '.join(wanted)}")
