"""Update the release records of many repositories to the registry's aliases: one pass, with a commit only if they differ.

It is safe to run at any time, repeatedly, and in several places at once. An environment held in service.yaml is not changed. A release with
findings of `mlops-build verify` is reported and not written, unless it returns to older versions. Exit code: 0, or the code of the
failures if all have the same, else 1.
"""

import argparse

from mlops_build.cli.output import result, say

EXAMPLE = "  mlops-build bridge once --repo https://git.example.com/ml/digits.git --repo https://git.example.com/ml/spam.git"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["once"], help="once: one pass, then end")
    parser.add_argument("--repo", action="append", required=True, metavar="URL", help="a service's repository; may be repeated")
    parser.add_argument("--branch", default="main", metavar="NAME", help="the branch to release from (default: main)")
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: MLFLOW_TRACKING_URI)")
    parser.add_argument("--despite-findings", action="store_true", help="also release with findings of `mlops-build verify`")
    parser.add_argument("--dry-run", action="store_true", help="show what would be released without writing it")


def run(args: argparse.Namespace) -> int:
    from mlops_build import tracking
    from mlops_build.adapters.registry import Registry
    from mlops_build.bridge import reconcile

    registry = Registry(args.tracking_uri) if args.tracking_uri else tracking.registry()
    outcomes = reconcile.once(args.repo, registry, branch=args.branch, dry_run=args.dry_run, despite_findings=args.despite_findings)
    for outcome in outcomes:
        for remark in outcome.remarks:
            say(f"mlops-build bridge: {outcome.where}: {remark}")
        if outcome.error:
            say(f"mlops-build bridge: {outcome.where}: {outcome.error.message}")
            if outcome.error.remedy:
                say(f"    {outcome.error.remedy}")
    result(args, {"outcomes": [outcome.as_json() for outcome in outcomes]}, "\n".join(map(str, outcomes)))
    return reconcile.exit_code(outcomes)
