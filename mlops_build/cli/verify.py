"""Check Kubernetes manifests and CI specs before they are applied. Each finding has a file, line and remedy.

In a service every overlay is rendered (with kubectl) and checked as a whole, and so are the specs of its CI plans. Any other folder or
file is read as plain manifests or specs. Exit code 4 with findings, 0 without. A finding is ignored by a comment on its line or the line
before, `# mlops-build: ignore RULE: why`, or for a whole service in service.yaml, `verify: {ignore: {RULE: why}}`. The rules:
docs/reference/verify-rules.md
"""

import argparse

from mlops_build.cli.output import result, say, written
from mlops_build.cli.parser import problem_of

EXAMPLE = "  mlops-build verify\n  mlops-build verify deploy/extra.yaml --json\n  mlops-build verify --sarif findings.sarif"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", nargs="?", metavar="PATH", help="a service, or a folder or file of YAML (default: the service around here)")
    parser.add_argument("--sarif", metavar="FILE", help="also write the findings as SARIF 2.1.0; - for stdout, instead of the text")
    parser.add_argument("--kubernetes", metavar="VERSION", help="use this version's schemas, such as 1.31 (default: the newest known)")


def run(args: argparse.Namespace) -> int:
    import json
    from pathlib import Path

    from mlops_build import finding, service
    from mlops_build.ci import systems
    from mlops_build.errors import UsageError
    from mlops_build.verify import check, sarif

    if args.json and args.sarif == "-":
        raise UsageError("--json and --sarif - would both write to stdout", remedy="write SARIF to a file")
    root = Path(args.path) if args.path else service.find_root()
    report = check(root, kubernetes=args.kubernetes, specs=systems.spec_checkers(problem_of))
    for note in report.notes:
        say(note)
    for ignored, why in report.ignored:
        say(f"ignored: {ignored.file} line {ignored.line} [{ignored.rule}]: {why}")
    if args.sarif:
        log = json.dumps(sarif.document(report), indent=2, ensure_ascii=False) + "\n"
        if args.sarif == "-":
            print(log, end="")
        else:
            written(Path(args.sarif), log)
    count = len(report.findings)
    say(f"{report.files} files, {report.objects} objects: {count or 'no'} finding{'' if count == 1 else 's'}")
    if args.sarif != "-":
        document = {
            "findings": finding.as_json(report.findings),
            "ignored": [{**finding.as_json([ignored])[0], "reason": why} for ignored, why in report.ignored],
            "files": report.files,
            "objects": report.objects,
            "notes": report.notes,
        }
        result(args, document, finding.show_by_file(report.findings))
    return 4 if report.findings else 0
