"""Converts faults to findings: deduplicated, sorted, without the ignored ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mlops_build.finding import Finding
from mlops_build.verify import released
from mlops_build.verify.catalogue import RETIRED, RULES, Rule, by_name
from mlops_build.verify.document import File
from mlops_build.verify.schema import suggestion
from mlops_build.verify.specs import SpecChecker
from mlops_build.verify.world import Fault, Object


@dataclass
class Report:
    """The result of a check. findings: sorted by file and line.

    ignored: findings that a comment or service.yaml ignores, each with the reason. notes: what could not be checked, and why.
    rendered: the objects of each environment's overlay.
    rules: those that were checked. has_all_rules: whether a name that is not in them is not the name of any rule.
    """

    findings: list[Finding] = field(default_factory=list)
    ignored: list[tuple[Finding, str]] = field(default_factory=list)
    files: int = 0
    objects: int = 0
    notes: list[str] = field(default_factory=list)
    rendered: dict[str, list[Object]] = field(default_factory=dict)
    rules: dict[str, Rule] = field(default_factory=lambda: dict(RULES))
    has_all_rules: bool = True


def start(specs: Sequence[SpecChecker] | None) -> Report:
    """An empty report. specs: the checkers of CI specs; None: they are not checked, and the names of their rules are unknown."""
    report = Report(has_all_rules=specs is not None)
    for checker in specs or ():
        report.rules |= by_name(checker.families)
    return report


@dataclass
class Collected:
    """Files and faults of one check, each fault with the environment whose overlay has it."""

    files: dict[str, File] = field(default_factory=dict)
    faults: list[tuple[Fault, str | None]] = field(default_factory=list)

    def add(self, faults: Iterable[Fault], env: str | None = None) -> None:
        self.faults += [(fault, env) for fault in faults]


def finish(report: Report, collected: Collected, envs: Sequence[str], ignore: Mapping[str, str], settings: File | None) -> Report:
    """Add the findings to the report. envs: the overlays that were rendered. ignore: service.yaml's section; settings: its parsed file."""
    report.files = len(collected.files)
    # remedy: None for a new release to the environments.
    shown_in: dict[tuple[str, str, int, str, str | None, str], list[str]] = {}
    remarks = []
    for fault, env in collected.faults:
        file, line = fault.about.where(fault.path)
        if fault.remark:
            if fault.rule not in ignore:
                remarks.append(f"{file} line {line}: {fault.about}: {fault.why} [{fault.rule}]")
            continue
        remedy = None if env and released.removes(fault, env) else fault.remedy or report.rules[fault.rule].remedy
        key = (file, fault.rule, line, fault.why, remedy, str(fault.about))
        shown_in.setdefault(key, []).append(env or "")
    report.notes += dict.fromkeys(remarks)
    findings = []
    for (file, rule, line, why, remedy, subject), environments in shown_in.items():
        # Name the environments only if the finding is not in all of them.
        named = list(dict.fromkeys(filter(None, environments)))
        only = ", ".join(named)
        where = f"{subject} in {only}" if only and 0 < len(set(environments)) < len(envs) else subject
        findings.append(Finding(where, rule, why, remedy or released.remedy(named), file, line))
    for source in collected.files.values():
        findings += [
            Finding(source.name, problem.rule, problem.why, RULES[problem.rule].remedy, source.name, problem.line)
            for problem in source.problems
        ]
    findings += _bad_ignores(report, collected.files.values(), ignore, settings)
    comments = {(source.name, comment.line, comment.rule): comment.why for source in collected.files.values() for comment in source.ignored}
    for finding in sorted(findings, key=lambda finding: (finding.file or "", finding.line or 0, finding.rule, finding.why)):
        reason = comments.get((finding.file or "", finding.line or 0, finding.rule)) or ignore.get(finding.rule)
        if reason and finding.rule != "bad-ignore":
            report.ignored.append((finding, reason))
        else:
            report.findings.append(finding)
    return report


def _bad_ignores(report: Report, files: Iterable[File], ignore: Mapping[str, str], settings: File | None) -> Iterator[Finding]:
    """Comments and settings that ignore a rule that does not exist, and comments without a reason."""
    ignored = [(file.name, comment.rule, comment.comment_line, comment.why) for file in files for comment in file.ignored]
    if settings and settings.documents:
        root = settings.documents[0]
        ignored += [(settings.name, rule, root.line_of(("verify", "ignore", rule))[0], reason) for rule, reason in ignore.items()]
    for file, rule, line, reason in ignored:
        if rule not in {*report.rules, *RETIRED} and report.has_all_rules:
            remedy = suggestion(rule, list(report.rules)) or RULES["bad-ignore"].remedy
            yield Finding(file, "bad-ignore", f"the rule {rule!r} does not exist", remedy, file, line)
        elif not reason:
            yield Finding(file, "bad-ignore", f"{rule} is ignored without a reason", RULES["bad-ignore"].remedy, file, line)
