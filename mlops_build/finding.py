"""A finding: a problem with its remedy. `doctor`, `verify`, the scan of a model and the bridge's gates return findings."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Finding:
    """subject: what it is about (a file, a remote, a version). rule: the check's short name, stable, for machines.

    why: what is wrong. remedy: what to do. file, line: the place in a file, if any (line from 1).
    """

    subject: str
    rule: str
    why: str
    remedy: str
    file: str | None = None
    line: int | None = None


def show(findings: Sequence[Finding]) -> str:
    """Findings as text, two lines each."""
    return "\n".join(f"{finding.subject}: {finding.why} [{finding.rule}]\n    {finding.remedy}" for finding in findings)


def show_by_file(findings: Sequence[Finding]) -> str:
    """Findings grouped by file: the file, then line, subject, reason and remedy of each."""
    lines: list[str] = []
    file = None
    for finding in findings:
        if finding.file != file:
            file = finding.file
            lines += [*([""] if lines else []), file or "(no file)"]
        subject = "" if finding.subject == file else f"{finding.subject}: "
        lines += [f"  line {finding.line}  {subject}{finding.why} [{finding.rule}]", f"      {finding.remedy}"]
    return "\n".join(lines)


def as_json(findings: Sequence[Finding]) -> list[dict[str, str | int]]:
    """Findings as plain dicts, in the given order, without empty fields."""
    return [{key: value for key, value in asdict(finding).items() if value is not None} for finding in findings]
