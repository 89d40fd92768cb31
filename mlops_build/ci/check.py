"""`ci check`: the checks of every commit and pull request. They need no secret and no running service.

service.yaml is valid, the code passes the linter and formatter, the tests pass, and `mlops-build verify` has no findings. Without
kubectl the overlays are not rendered, which is printed; the release plan's agents have kubectl. If kubectl reaches a cluster, its API
server checks the rendered objects too; if it does not, that is printed and nothing fails.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mlops_build import service, verify
from mlops_build.adapters import dvc, program
from mlops_build.ci import dry_run
from mlops_build.errors import Refused
from mlops_build.finding import Finding, show_by_file
from mlops_build.verify.specs import SpecChecker

STEP_SECONDS = 3600
# The test report for CI systems, whose plans read it; ignored by Git.
REPORT = "build/test-reports/tests.xml"


class CheckFailed(Refused):
    """At least one check failed; its output is above."""


def run(root: Path, *, specs: Sequence[SpecChecker], say: Callable[[str], None]) -> list[str]:
    """Run every check, also after a failure; returns the names of the checks. specs: the checkers of CI specs.

    Raises CheckFailed with the names of all failed checks.
    """
    service.load(root)
    say("check service.yaml: ok")
    steps: list[tuple[str, Sequence[str]]] = [
        ("lint", [sys.executable, "-m", "ruff", "check", "."]),
        ("format", [sys.executable, "-m", "ruff", "format", "--check", "."]),
        ("tests", [sys.executable, "-m", "pytest", "-q", f"--junitxml={REPORT}"]),
    ]
    failed = [name for name, command in steps if not _passes(name, command, root, say)]
    if not verified(root, specs, say):
        failed.append("manifests")
    if failed:
        raise CheckFailed(
            f"{len(failed)} of the checks failed: {', '.join(failed)}",
            remedy="fix the errors above; `mlops-build ci check` runs the checks on this machine",
        )
    return ["service.yaml", *(name for name, _ in steps), "manifests"]


def verified(root: Path, specs: Sequence[SpecChecker], say: Callable[[str], None]) -> bool:
    """Whether the manifests and CI specs have no findings; prints the findings."""
    report = verify.check(root, specs=specs)
    for note in report.notes:
        say(f"check manifests: {note}")
    for finding, why in report.ignored:
        say(f"check manifests: ignored: {finding.file} line {finding.line} [{finding.rule}]: {why}")
    findings = [*report.findings, *_refused_by_server(report, service.load(root).verify.ignore, say)]
    say(f"check manifests: {f'{len(findings)} findings' if findings else 'ok'} ({report.objects} objects)")
    if findings:
        say(show_by_file(findings))
    return not findings


def _refused_by_server(report: verify.Report, ignore: Mapping[str, str], say: Callable[[str], None]) -> list[Finding]:
    """The findings of the API server, if one can be reached; prints what it has and has not checked. ignore: that of service.yaml."""
    findings: list[Finding] = []
    for env, objects in report.rendered.items():
        answer = dry_run.ask(objects, env, ignore)
        if answer.accepted:
            say(f"check manifests: the API server accepts {answer.accepted} objects of {env}")
        for remark in answer.remarks:
            say(f"check manifests: {remark}")
        findings += answer.findings
        if not answer.reached:
            break
    return findings


def _passes(name: str, command: Sequence[str], root: Path, say: Callable[[str], None]) -> bool:
    say(f"check {name}: {' '.join(['python', *command[1:]])}")
    return program.run(command, folder=root, environment=dvc.environment(root), seconds=STEP_SECONDS, shown=True).code == 0
