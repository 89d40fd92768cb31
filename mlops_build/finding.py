"""A finding: one thing that is wrong. `doctor`, `verify`, the scan of a model and the bridge's gates all speak in findings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Finding:
    """subject: what it is about (a file, a remote, a version). rule: the check's short name, stable, for machines.

    why: what is wrong. remedy: what to do.
    """

    subject: str
    rule: str
    why: str
    remedy: str


def show(findings: Sequence[Finding]) -> str:
    """Findings as text, two lines each."""
    return "\n".join(f"{finding.subject}: {finding.why} [{finding.rule}]\n    {finding.remedy}" for finding in findings)


def as_json(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """Findings as plain dicts, in the order given."""
    return [asdict(finding) for finding in findings]
