"""`ci check`: what every commit and pull request must pass. Needs no secret and no service that answers.

service.yaml is valid, the code is linted and formatted, the tests pass, and every overlay renders.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mlops_build import data, service
from mlops_build.errors import Refused

STEP_SECONDS = 3600
RENDER_SECONDS = 60
# Where CI systems look for what the tests said (Bamboo's test-parser, in bamboo-specs); ignored by Git.
REPORT = "build/test-reports/tests.xml"


class CheckFailed(Refused):
    """One of the checks failed; what it printed stands above."""


def run(root: Path, *, say: Callable[[str], None]) -> list[str]:
    """Run every check, also after one has failed; returns the names of those that ran. Raises CheckFailed naming all that failed."""
    service.load(root)
    say("check service.yaml: ok")
    steps: list[tuple[str, Sequence[str]]] = [
        ("lint", [sys.executable, "-m", "ruff", "check", "."]),
        ("format", [sys.executable, "-m", "ruff", "format", "--check", "."]),
        ("tests", [sys.executable, "-m", "pytest", "-q", f"--junitxml={REPORT}"]),
    ]
    failed = [name for name, command in steps if not _passes(name, command, root, say)]
    for overlay in sorted((root / "deploy" / "overlays").glob("*/kustomization.yaml")):
        if not renders(overlay.parent, say):
            failed.append(f"overlay {overlay.parent.name}")
    if failed:
        raise CheckFailed(
            f"{len(failed)} of the checks failed: {', '.join(failed)}",
            remedy="mend what they say above; `mlops-build ci check` runs them here",
        )
    return ["service.yaml", *(name for name, _ in steps), "overlays"]


def renders(overlay: Path, say: Callable[[str], None]) -> bool:
    """Whether `kubectl kustomize` renders an overlay. Where there is no kubectl this says so: the release plan's agents have one."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        say(f"check overlay {overlay.name}: not rendered, kubectl is not installed here")
        return True
    done = subprocess.run([kubectl, "kustomize", str(overlay)], capture_output=True, text=True, timeout=RENDER_SECONDS, check=False)
    say(f"check overlay {overlay.name}: {'ok' if done.returncode == 0 else done.stderr.strip()}")
    return done.returncode == 0


def _passes(name: str, command: Sequence[str], root: Path, say: Callable[[str], None]) -> bool:
    say(f"check {name}: {' '.join(['python', *command[1:]])}")
    done = subprocess.run(command, cwd=root, env=data.environment(root), stdout=sys.stderr, timeout=STEP_SECONDS, check=False)
    return done.returncode == 0
