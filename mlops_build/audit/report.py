"""Audit everything, in the order registry, repositories, artifact stores, DVC remotes; and say what was not looked at."""

import csv
import io
import os
from dataclasses import dataclass, field

from mlops_build import inventory
from mlops_build.adapters.registry import Registry
from mlops_build.audit import artifacts, data, known, registered
from mlops_build.audit.known import Known, Say, commit, is_from, resolved
from mlops_build.audit.policy import Policy
from mlops_build.finding import Finding
from mlops_build.fleet.repositories import Repositories
from mlops_build.model import identity
from mlops_build.spreadsheet import cell


@dataclass
class Report:
    """unseen: what was not looked at, and why. unsure: why it is not fully known which data is needed."""

    findings: list[Finding]
    unseen: list[str]
    stores: list[artifacts.Store] = field(default_factory=list)
    remotes: list[data.Listed] = field(default_factory=list)
    unsure: list[str] = field(default_factory=list)


def run(
    registry: Registry, listed: Repositories, branch: str, policy: Policy, say: Say, *, store: str = "", is_deep: bool = False
) -> Report:
    """store: where the MLflow server's proxy keeps its files. is_deep: read all files of all versions. Raises RegistryUnreachable."""
    facts = known.read(registry, store, say)
    looked = inventory.examine(
        listed.urls, branch, lambda repository, mirror: data.look(facts, repository, mirror), discovered=listed.discovered
    )
    say(f"{len(looked):,} repositories")
    repositories = [each.repository for each in looked]
    unseen = [line for each in looked for line in each.unseen]
    is_whole = listed.error is None and all(repository.commit for repository in repositories)
    if not is_whole:
        why = f": {listed.error.message}" if listed.error else ""
        unseen.append(f"whether services, owners and repositories exist that were not read{why}")
    report = Report([*registered.check(facts, repositories, is_whole)], unseen)
    report.findings += [about for each in looked for about in each.findings]
    endpoint = os.environ.get("MLFLOW_S3_ENDPOINT_URL") or next(
        (each.service.tracking.s3_endpoint_url for each in repositories if each.service and each.service.tracking.s3_endpoint_url), None
    )
    released_runs = {model.run for repository in repositories for record in repository.records for model in record.models}
    remotes = [resolved(each.remote.url, "") for each in looked if each.remote]
    checked = artifacts.check(facts, released_runs, remotes, endpoint, say)
    report.findings += checked.findings
    report.unseen += checked.unseen
    report.stores = checked.stores
    about, report.remotes, not_listed = data.check(looked, facts.roots, None, policy.keep_days, say)
    report.findings += about
    report.unseen += not_listed
    if is_deep:
        without = {each.subject for each in checked.findings if each.rule in ("files-missing", "source-unknown")}
        altered, not_read = artifacts.deep(registry, facts, without, say)
        read = {each.subject for each in altered}
        report.findings = [each for each in report.findings if each.rule != "files-newer" or each.subject in read] + altered
        report.unseen += not_read
    report.unsure = [line for each in looked for line in each.unsure] + _unsure(facts, repositories, report.findings)
    report.findings.sort(key=lambda each: (each.rule, each.subject))
    return report


def _unsure(facts: Known, repositories: list[inventory.Repository], findings: list[Finding]) -> list[str]:
    """Why the data of some version or release is not known, so that none may be deleted."""
    # Of a missing folder, the list of its files is missing, too.
    rules = ("data-missing", "record-unreadable", "service-invalid", "remote-missing", "remote-in-checkout")
    reasons = [f"{each.subject}: {each.why}" for each in findings if each.rule in rules]
    for record in (record for repository in repositories for record in repository.records):
        # A record has the commit of its first model.
        reasons += [
            f"{model} was deleted, and its commit with it"
            for model in record.models[1:]
            if (model.name, model.version) not in facts.numbered
        ]
    for version in facts.versions:
        is_placed = commit(version) and any(is_from(version, repository) for repository in repositories)
        is_without_code = identity.ARCHIVED in version.tags and commit(version) is None
        if not is_placed and not is_without_code and not known.is_adopted(version):
            reasons.append(f"{known.label(version.name, version.version)}: its commit or its repository is not known")
    return reasons


def table(findings: list[Finding], policy: Policy) -> str:
    """Findings as columns, each with its remedy below."""
    if not findings:
        return ""
    widths = [max(len(each.rule) for each in findings), max(len(each.subject) for each in findings)]
    lines = [f"{'':5}  {'rule':{widths[0]}}  {'subject':{min(widths[1], 60)}}  why"]
    for each in findings:
        mark = "FAIL" if policy.fails(each.rule) else "note"
        lines.append(f"{mark:5}  {each.rule:{widths[0]}}  {each.subject:{min(widths[1], 60)}}  {each.why}\n{'':7}{each.remedy}")
    return "\n".join(lines)


def as_csv(findings: list[Finding], policy: Policy) -> str:
    """Findings as CSV for a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["rule", "fails", "subject", "why", "remedy"])
    for each in findings:
        cells = [each.rule, "yes" if policy.fails(each.rule) else "no", each.subject, each.why, each.remedy]
        writer.writerow([*map(cell, cells)])
    return text.getvalue()
