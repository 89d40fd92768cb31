"""`ci check`: the checks of every commit and pull request. They need no secret and no running service.

service.yaml is valid, the code passes the linter and formatter, the tests pass, and `mlops-build verify` has no findings. Without
kubectl the overlays are not rendered, which is printed; the release plan's agents have kubectl.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mlops_build import service, verify
from mlops_build.adapters import dvc, program
from mlops_build.errors import Refused
from mlops_build.finding import show_by_file

STEP_SECONDS = 3600
# The test report for CI systems (Bamboo's test-parser, in bamboo-specs); ignored by Git.
REPORT = "build/test-reports/tests.xml"


class CheckFailed(Refused):
    """At least one check failed; its output is above."""


def run(root: Path, *, say: Callable[[str], None]) -> list[str]:
    """Run every check, also after a failure; returns the names of the checks. Raises CheckFailed with the names of all failed checks."""
    service.load(root)
    say("check service.yaml: ok")
    steps: list[tuple[str, Sequence[str]]] = [
        ("lint", [sys.executable, "-m", "ruff", "check", "."]),
        ("format", [sys.executable, "-m", "ruff", "format", "--check", "."]),
        ("tests", [sys.executable, "-m", "pytest", "-q", f"--junitxml={REPORT}"]),
    ]
    failed = [name for name, command in steps if not _passes(name, command, root, say)]
    if not verified(root, say):
        failed.append("manifests")
    if failed:
        raise CheckFailed(
            f"{len(failed)} of the checks failed: {', '.join(failed)}",
            remedy="fix the errors above; `mlops-build ci check` runs the checks on this machine",
        )
    return ["service.yaml", *(name for name, _ in steps), "manifests"]


def verified(root: Path, say: Callable[[str], None]) -> bool:
    """Whether the manifests and Bamboo specs have no findings; prints the findings."""
    report = verify.check(root)
    for note in report.notes:
        say(f"check manifests: {note}")
    for finding, why in report.ignored:
        say(f"check manifests: ignored: {finding.file} line {finding.line} [{finding.rule}]: {why}")
    say(f"check manifests: {f'{len(report.findings)} findings' if report.findings else 'ok'} ({report.objects} objects)")
    if report.findings:
        say(show_by_file(report.findings))
    return not report.findings


def _passes(name: str, command: Sequence[str], root: Path, say: Callable[[str], None]) -> bool:
    say(f"check {name}: {' '.join(['python', *command[1:]])}")
    return program.run(command, folder=root, environment=dvc.environment(root), seconds=STEP_SECONDS, shown=True).code == 0
