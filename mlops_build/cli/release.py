"""Write an environment's release record from its alias, as a commit on the current branch, and push it if there is an origin.

It does the same as the bridge for one repository, and creates the same commit. Only the committed service.yaml is used. A release with
findings of `mlops-build verify`, or in a freeze of fleet.yaml, is refused (exit code 4), unless it returns to older versions.
"""

import argparse

from mlops_build.cli.output import result, say

EXAMPLE = "  mlops-build release staging"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env", metavar="ENV", help="the environment, such as staging")
    parser.add_argument("--fleet", metavar="FILE|URL", help="the company's fleet.yaml (default: MLOPS_FLEET)")
    parser.add_argument("--despite-hold", action="store_true", help="also if the environment is held")
    parser.add_argument("--despite-findings", action="store_true", help="also if `mlops-build verify` has findings")


def run(args: argparse.Namespace) -> int:
    from mlops_build import service, tracking
    from mlops_build.fleet import rules
    from mlops_build.release import write

    root = service.find_root()
    made = write.in_checkout(
        root,
        args.env,
        tracking.registry(root),
        rules=rules.read(args.fleet),
        despite_hold=args.despite_hold,
        despite_findings=args.despite_findings,
    )
    for remark in made.remarks:
        say(remark)
    if made.request:
        say(f"merge it to release: {made.request.url}")
    elif made.commit and not made.pushed:
        say("no Git remote called origin: the commit stays on this machine")
    result(args, made.as_json(), str(made))
    return 0
