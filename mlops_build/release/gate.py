"""Before a release lands: are the manifests that it makes right? `mlops-build verify` of the environment's overlay, as the commit has it.

A release that goes back is never refused: whoever rolls back is in need, and what is wrong has mostly been wrong before. Its findings are
said, and land all the same. `rollback --from-git` asks nothing at all. For everything else there is --despite-findings.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from mlops_build import service as service_file
from mlops_build.errors import Refused
from mlops_build.finding import Finding, show_by_file
from mlops_build.git.repository import Objects
from mlops_build.model import contract
from mlops_build.model.openapi import FILE
from mlops_build.release.record import Record
from mlops_build.verify import Report
from mlops_build.verify import check as check_manifests


class Faulty(Refused):
    """A release whose manifests have findings."""

    def __init__(self, env: str, findings: list[Finding]) -> None:
        count = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"
        super().__init__(
            f"the manifests of {env} are not right, {count}:\n{show_by_file(findings)}",
            remedy="mend them and commit, or say --despite-findings; `mlops-build verify` shows them here",
        )
        self.findings = findings


def check(objects: Objects, commit: str, before: Record | None, after: Record, *, despite_findings: bool = False) -> list[str]:
    """Remarks on a release that is to land. Raises Faulty where it has findings, goes forward, and nobody said --despite-findings.

    objects: where `commit` is, which makes Git say `after` instead of `before`.
    """
    report = examined(objects, commit, after.environment)
    report.findings += contract_findings(objects, before, after)
    if report.findings and not despite_findings and not goes_back(before, after):
        raise Faulty(after.environment, report.findings)
    found = [f"{one.file} line {one.line}: {one.why} [{one.rule}]; released all the same" for one in report.findings]
    return [*report.notes, *found]


def contract_findings(objects: Objects, before: Record | None, after: Record) -> list[Finding]:
    """What breaks callers, by the openapi.json of the two released commits; `promote` asks the versions themselves.

    Nothing where one of them cannot be had, or has none.
    """
    if before is None or before.commit is None or after.commit in (None, before.commit):
        return []
    texts = [objects.read(commit, FILE) if objects.bring(commit) else None for commit in (before.commit, after.commit)]
    try:
        was, now = [contract.of_text(text) if text is not None else None for text in texts]
    except contract.BadContract:
        return []
    if was is None or now is None or now.major > was.major:
        return []
    return [replace(found, file=FILE, line=1) for found in contract.breaks(was, now)]


def examined(objects: Objects, commit: str, env: str) -> Report:
    """What `verify` says about one environment at a commit, without a checkout."""
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        tree = Path(scratch) / "tree"
        objects.export(commit, tree, service_file.FILE, "deploy")
        return check_manifests(tree, environments=[env], specs=False)


def goes_back(before: Record | None, after: Record) -> bool:
    """Whether no model becomes newer, and one older."""
    if before is None or not before.models:
        return False
    steps = [(before.version_of(model.name), model.version) for model in after.models]
    return all(old is not None and new <= old for old, new in steps) and any(old is not None and new < old for old, new in steps)
