"""Findings as SARIF 2.1.0, which code hosts and editors show next to the lines."""

from typing import Any

from mlops_build import __version__
from mlops_build.finding import Finding
from mlops_build.verify.catalogue import Rule
from mlops_build.verify.report import Report

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
DOCS = "https://github.com/mlops-build/mlops-build/blob/main/docs/reference/verify-rules.md"


def document(report: Report) -> dict[str, Any]:
    """One SARIF log with one run. Ignored findings become suppressed results.

    Paths are relative to the checked folder. Only rules with results are described.
    """
    used = sorted({finding.rule for finding in [*report.findings, *(finding for finding, _ in report.ignored)]})
    index = {rule: number for number, rule in enumerate(used)}
    results = [_result(finding, index) for finding in report.findings]
    results += [
        {**_result(finding, index), "suppressions": [{"kind": "inSource", "status": "accepted", "justification": why}]}
        for finding, why in report.ignored
    ]
    driver = {
        "name": "mlops-build verify",
        "semanticVersion": __version__,
        "informationUri": DOCS,
        "rules": [_rule(report.rules[rule]) for rule in used],
    }
    run = {"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": rule.why},
        "help": {"text": rule.remedy},
        "helpUri": f"{DOCS}#{rule.id}",
        "defaultConfiguration": {"level": "error"},
    }


def _result(finding: Finding, index: dict[str, int]) -> dict[str, Any]:
    location = {"physicalLocation": {"artifactLocation": {"uri": finding.file}, "region": {"startLine": finding.line or 1}}}
    return {
        "ruleId": finding.rule,
        "ruleIndex": index[finding.rule],
        "level": "error",
        "message": {"text": f"{finding.subject}: {finding.why}. {finding.remedy[:1].upper()}{finding.remedy[1:]}"},
        "locations": [location],
    }
