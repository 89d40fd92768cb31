"""Check what is installed, reachable and configured, on this machine and for the service around the current folder.

Exit code 4 when something is wrong; each finding says what to do.
"""

import argparse

from mlops_build.cli.output import result

EXAMPLE = "  mlops-build doctor"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ci", action="store_true", help="also ask for what a CI agent needs: an engine, kubectl, a committed lock")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from mlops_build import doctor, finding

    root = next((folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "service.yaml").is_file()), None)
    checks = doctor.examine(root, ci=args.ci)
    findings = [found for check in checks for found in check.findings]
    width = max(len(check.name) for check in checks)
    lines = [f"{'ok ' if check.ok else 'NO '} {check.name:<{width}}  {check.seen}" for check in checks]
    if findings:
        lines += ["", finding.show(findings)]
    document = {
        "checks": [{"name": check.name, "ok": check.ok, "seen": check.seen} for check in checks],
        "findings": finding.as_json(findings),
    }
    result(args, document, "\n".join(lines))
    return 4 if findings else 0
