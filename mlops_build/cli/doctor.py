"""Check what is installed, reachable and configured, on this machine and for the service around the current folder.

With --ci, in a script of a CI job: also check every item of the manual setup of the CI system, Git host, image registry, cluster,
MLflow and S3, as far as an agent can (`??` if it cannot, with whom to ask). Nothing is changed. --checklist prints that list with this
service's names, without checks. With --pod, in the environment of a pod: check that its credentials can change neither data nor
artifacts. `--` marks what is not there, and need not be. Exit code 4 if something is wrong; each finding has a
remedy.
"""

import argparse
from typing import TYPE_CHECKING

from mlops_build.cli.output import result

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from mlops_build.checklist.names import Names
    from mlops_build.doctor import Check
    from mlops_build.errors import MlopsBuildError
    from mlops_build.finding import Finding

EXAMPLE = (
    "  mlops-build doctor\n  mlops-build doctor --deep\n  mlops-build doctor --ci\n  mlops-build doctor --ci --checklist > checklist.md"
)
MARKS = {"ok": "ok ", "absent": "-- ", "no": "NO ", "unseen": "?? "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ci", action="store_true", help="also check each item of the administrator's checklist, from an agent")
    parser.add_argument(
        "--deep", action="store_true", help="also compare the data remote with the data here, and test the bridge's webhook: seconds"
    )
    parser.add_argument("--pod", action="store_true", help="only check that the credentials here, those of a pod, write nowhere")
    parser.add_argument("--checklist", action="store_true", help="print that checklist as Markdown, without checks")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    root = next((folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "service.yaml").is_file()), None)
    return _print_checklist(args, root) if args.checklist else _examine(args, root)


def _print_checklist(args: argparse.Namespace, root: "Path | None") -> int:
    from mlops_build import service
    from mlops_build.checklist import items, names
    from mlops_build.ci import systems

    root = root or service.find_root()
    service_names = names.read(root, systems.used_by(root).plans(root))
    lines = [{key: getattr(item, key) for key in ("id", "where", "what", "how", "ask")} for item in items.items(service_names)]
    result(args, {"service": service_names.service.name, "checklist": lines}, items.markdown(service_names).rstrip("\n"))
    return 0


def _examine(args: argparse.Namespace, root: "Path | None") -> int:
    from pathlib import Path

    from mlops_build import doctor, finding

    if args.pod:
        from mlops_build import service
        from mlops_build.checklist import pod

        return _print(args, pod.examine(root or service.find_root()), [], [], {})
    names, error = _names(root) if args.ci and root else (None, None)
    checks = doctor.examine(root, ci=args.ci and error is None, deep=args.deep)
    is_valid = any(check.name == "service.yaml" and check.ok for check in checks)
    if error and root and is_valid:
        from mlops_build.ci import systems

        specs = Path(systems.used_by(root).SPECS).parts[0]
        wrong = finding.Finding(specs, specs, error.message, error.remedy or f"restore {specs} from Git")
        checks.append(doctor.Check(specs, "the checklist cannot be created", [wrong]))
    rows: list[tuple[str, str, str]] = []
    findings: list[finding.Finding] = []
    document: dict[str, object] = {}
    if names and is_valid:
        from mlops_build.checklist import checks as ci_checks

        checked = ci_checks.examine(names)
        rows = [(line.result.state, line.item.id, line.result.detail) for line in checked]
        findings = [finding.Finding(line.item.where, line.item.id, line.result.detail, line.item.how) for line in ci_checks.failed(checked)]
        document["checklist"] = [line.as_json() for line in checked]
    return _print(args, checks, rows, findings, document)


def _print(
    args: argparse.Namespace,
    checks: "Sequence[Check]",
    more_rows: list[tuple[str, str, str]],
    more_findings: "list[Finding]",
    document: dict[str, object],
) -> int:
    """Print the checks, then the rows of the checklist, then all findings."""
    from mlops_build import finding

    findings = [problem for check in checks for problem in check.findings] + more_findings
    rows = [("no" if check.findings else "absent" if check.absent else "ok", check.name, check.seen) for check in checks] + more_rows
    seen = [{"name": check.name, "ok": check.ok, "absent": check.absent, "seen": check.seen} for check in checks]
    width = max(len(name) for _, name, _ in rows)
    lines = [f"{MARKS[state]} {name:<{width}}  {text}" for state, name, text in rows]
    if findings:
        lines += ["", finding.show(findings)]
    result(args, {"checks": seen, **document, "findings": finding.as_json(findings)}, "\n".join(lines))
    return 4 if findings else 0


def _names(root: "Path") -> "tuple[Names | None, MlopsBuildError | None]":
    """The checklist's names, or the error. Both None if an extra is missing, which a check of the machine reports."""
    from mlops_build.errors import MlopsBuildError

    try:
        from mlops_build.checklist import names
        from mlops_build.ci import systems

        return names.read(root, systems.used_by(root).plans(root)), None
    except MlopsBuildError as error:
        return None, error
    except ModuleNotFoundError:
        return None, None
