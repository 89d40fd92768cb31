"""Check a release before it is pushed: whether fleet.yaml freezes the environment, and `mlops-build verify` on its overlay at the commit.

A release that returns to older versions is never refused, because a rollback is urgent and the findings are mostly old: they are only
printed. `rollback --from-git` is not checked. For other releases there is --despite-findings.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path

from mlops_build import service as service_file
from mlops_build.adapters.git.objects import Objects
from mlops_build.errors import Refused
from mlops_build.finding import show_by_file
from mlops_build.fleet.rules import Rules
from mlops_build.release.record import Record
from mlops_build.verify import Report
from mlops_build.verify import check as check_manifests


def check(
    objects: Objects, commit: str, before: Record | None, after: Record, rules: Rules, *, despite_findings: bool = False
) -> list[str]:
    """Remarks on a release before it is pushed. Raises Frozen, or Refused if it has findings, unless it returns to older versions.

    objects: the store with `commit`, which changes the record from `before` to `after`. despite_findings: it may have findings.
    """
    rules.check(after.environment, goes_back=goes_back(before, after))
    report = examined(objects, commit, after.environment)
    if report.findings and not despite_findings and not goes_back(before, after):
        count = f"{len(report.findings)} finding{'s' if len(report.findings) > 1 else ''}"
        raise Refused(
            f"the manifests of {after.environment} have {count}:\n{show_by_file(report.findings)}",
            remedy="fix them and commit, or add --despite-findings; `mlops-build verify` shows them here",
        )
    released_anyway = [
        f"{finding.file} line {finding.line}: {finding.why} [{finding.rule}]; released all the same" for finding in report.findings
    ]
    return [*report.notes, *released_anyway]


def examined(objects: Objects, commit: str, env: str) -> Report:
    """The report of `verify` for an environment at a commit, without a checkout."""
    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        tree = Path(scratch) / "tree"
        objects.export(commit, tree, service_file.FILE, "deploy")
        return check_manifests(tree, environments=[env])


def goes_back(before: Record | None, after: Record) -> bool:
    """Whether at least one model becomes older and none newer."""
    return is_older(dict(before.numbers) if before else {}, dict(after.numbers))


def is_older(before: Mapping[str, int], after: Mapping[str, int]) -> bool:
    """Like `goes_back`, for the versions of models by name."""
    steps = [(before.get(name), version) for name, version in after.items()]
    return all(old is not None and new <= old for old, new in steps) and any(old is not None and new < old for old, new in steps)
