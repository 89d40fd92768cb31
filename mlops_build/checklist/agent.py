"""Checks of the agent itself: programs, package index, variables with secrets."""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlops_build.adapters import installer, program
from mlops_build.checklist.result import SECONDS, Result, no, ok


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
