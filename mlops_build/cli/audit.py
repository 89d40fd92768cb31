"""Find what does not fit together in the registry, the artifact store, the DVC remotes and the services' repositories.

Nothing is changed and nothing is deleted. The rules: docs/reference/audit-rules.md; audit.yaml says which of them fail, and which findings
are ignored until a day. --deep also reads every file of every version, and compares the digests. --propose writes a script for people to
read, which deletes old files that no version, run, release or branch needs.

Exit code: 4 with a finding that fails, else 5 if something does not answer and was not looked at, else 0.
"""

import argparse

from mlops_build.cli import repositories
from mlops_build.cli.output import result, say, written

EXAMPLE = (
    "  mlops-build audit --fleet fleet.yaml\n"
    "  mlops-build audit --fleet fleet.yaml --artifacts s3://mlflow/artifacts --csv audit.csv\n"
    "  mlops-build audit --fleet fleet.yaml --propose delete.sh"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    repositories.add_options(parser)
    parser.add_argument("--artifacts", default="", metavar="URI", help="where the MLflow server keeps the files that it hands out itself")
    parser.add_argument("--policy", metavar="FILE", help="which findings fail (default: audit.yaml here, if it exists)")
    parser.add_argument("--deep", action="store_true", help="read every file of every version, and compare the digests")
    parser.add_argument("--csv", metavar="FILE", help="also write the findings as CSV")
    parser.add_argument("--propose", metavar="FILE", help="also write a script that deletes old files that nothing needs")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from mlops_build import finding
    from mlops_build.audit import policy, propose, report
    from mlops_build.errors import printable
    from mlops_build.fleet import rules

    file = Path(args.policy) if args.policy else Path(policy.FILE)
    chosen = policy.read(file if args.policy or file.is_file() else None)
    listed = repositories.find(args.repo, rules.read(args.fleet))
    made = report.run(repositories.registry(args), listed, args.branch, chosen, _progress, store=args.artifacts, is_deep=args.deep)
    findings, ignored = policy.split(chosen, made.findings)
    for over in policy.over(chosen):
        say(f"not ignored since {over.until} ended: {over.subject} [{over.rule}]: {over.why}")
    for each, entry in ignored:
        say(f"ignored until {entry.until}: {each.subject} [{each.rule}]: {entry.why}")
    for line in made.unseen:
        say(f"not looked at: {printable(line)}")
    if args.csv:
        written(Path(args.csv), report.as_csv(findings, chosen))
    refused = None
    if args.propose:
        try:
            written(Path(args.propose), propose.script(made, chosen.keep_days))
        except propose.NotAllSeen as error:
            refused = f"{printable(error.message)}; an older {args.propose} is not valid\n    {error.remedy}"
    failing = sum(chosen.fails(each.rule) for each in findings)
    say(f"{len(findings)} findings, of which {failing} fail")
    document = {
        "findings": [{**finding.as_json([each])[0], "fails": chosen.fails(each.rule)} for each in findings],
        "ignored": [{**finding.as_json([each])[0], "reason": entry.why, "until": str(entry.until)} for each, entry in ignored],
        "not_looked_at": made.unseen,
        **({"not_proposed": refused} if refused else {}),
    }
    result(args, document, report.table(findings, chosen))
    if refused:
        say(refused)
        return 4
    return 4 if failing else 5 if made.unseen else 0


def _progress(line: str) -> None:
    say(f"mlops-build audit: {ascii(line)[1:-1]}")
