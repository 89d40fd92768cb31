"""Faults become findings: each once, in order, without those that somebody chose to ignore."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mlops_build.finding import Finding
from mlops_build.verify.catalogue import RULES
from mlops_build.verify.document import File
from mlops_build.verify.schema import meant
from mlops_build.verify.world import Fault


@dataclass
class Report:
    """What was looked at and what is wrong. findings are in order of file and line.

    ignored: findings that a comment or service.yaml takes as they are, each with the reason. notes: what could not be looked at, and why.
    """

    findings: list[Finding] = field(default_factory=list)
    ignored: list[tuple[Finding, str]] = field(default_factory=list)
    files: int = 0
    objects: int = 0
    notes: list[str] = field(default_factory=list)


@dataclass
class Gathered:
    """Files and faults of one look, each fault with the environment whose overlay showed it."""

    files: dict[str, File] = field(default_factory=dict)
    faults: list[tuple[Fault, str | None]] = field(default_factory=list)


def finish(report: Report, gathered: Gathered, envs: Sequence[str], ignore: Mapping[str, str], settings: File | None) -> Report:
    """Put the findings into a report. envs: the overlays that were rendered. ignore: service.yaml's; settings: its parsed file."""
    report.files = len(gathered.files)
    shown_in: dict[tuple[str, str, int, str, str, str], list[str]] = {}
    for fault, env in gathered.faults:
        file, line = fault.about.where(fault.path)
        key = (file, fault.rule, line, fault.why, fault.remedy or RULES[fault.rule].remedy, str(fault.about))
        shown_in.setdefault(key, []).append(env or "")
    findings = []
    for (file, rule, line, why, remedy, subject), seen in shown_in.items():
        # Said only where the others differ.
        only = ", ".join(dict.fromkeys(filter(None, seen)))
        where = f"{subject} in {only}" if only and 0 < len(set(seen)) < len(envs) else subject
        findings.append(Finding(where, rule, why, remedy, file, line))
    for file_ in gathered.files.values():
        findings += [
            Finding(file_.name, trouble.rule, trouble.why, RULES[trouble.rule].remedy, file_.name, trouble.line)
            for trouble in file_.troubles
        ]
    findings += _bad_ignores(gathered.files.values(), ignore, settings)
    comments = {(file.name, one.line, one.rule): one.why for file in gathered.files.values() for one in file.ignored if one.why}
    for finding in sorted(findings, key=lambda one: (one.file or "", one.line or 0, one.rule, one.why)):
        reason = comments.get((finding.file or "", finding.line or 0, finding.rule)) or ignore.get(finding.rule)
        if reason and finding.rule != "bad-ignore":
            report.ignored.append((finding, reason))
        else:
            report.findings.append(finding)
    return report


def _bad_ignores(files: Iterable[File], ignore: Mapping[str, str], settings: File | None) -> list[Finding]:
    found = []
    for file in files:
        for one in file.ignored:
            problem = (
                f"there is no rule {one.rule!r}"
                if one.rule not in RULES
                else None
                if one.why
                else f"{one.rule} is ignored, and no reason is given"
            )
            if problem:
                hint = meant(one.rule, list(RULES)) or RULES["bad-ignore"].remedy if one.rule not in RULES else RULES["bad-ignore"].remedy
                found.append(Finding(file.name, "bad-ignore", problem, hint, file.name, one.comment_line))
    for rule in ignore:
        if rule not in RULES and settings and settings.documents:
            line = settings.documents[0].line_of(("verify", "ignore", rule))[0]
            hint = meant(rule, list(RULES)) or RULES["bad-ignore"].remedy
            found.append(Finding(settings.name, "bad-ignore", f"there is no rule {rule!r}", hint, settings.name, line))
    return found
