"""Hold an environment: no bridge and no `release` changes what it runs until the hold is removed. Rolling back stays possible.

The hold is a commit that is pushed to main, like a rollback from Git. --remove is refused while the environment's aliases point at other
versions than Git's release (exit code 4), such as the bad version after `rollback --from-git`, or while MLflow does not answer (exit
code 5).
"""

import argparse
from typing import TYPE_CHECKING

from mlops_build.cli.output import result, say

if TYPE_CHECKING:
    from mlops_build.release.protected import Landed

EXAMPLE = '  mlops-build hold production --why "the audit reads it until Friday"\n  mlops-build hold production --remove'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env", metavar="ENV", help="the environment, such as production")
    act = parser.add_mutually_exclusive_group(required=True)
    act.add_argument("--why", metavar="TEXT", help="hold it, for this reason")
    act.add_argument("--remove", action="store_true", help="end its hold")
    parser.add_argument("--release", action="store_true", help="with --remove: also if other versions may be released then")
    parser.add_argument("--repo", metavar="URL", help="this remote instead of the origin of the checkout around the current folder")
    parser.add_argument("--branch", default="main", metavar="NAME", help="the branch of the releases (default: main)")


def say_where(landed: "Landed", branch: str) -> None:
    """Say what remains to be done after a commit was landed."""
    if landed.request:
        say(f"{branch} is protected: merge {landed.request.url}")
    elif landed.commit and not landed.pushed:
        say("no Git remote called origin: the commit stays on this machine, and nothing is deployed")
    elif landed.is_elsewhere:
        say(f"pushed to {branch}; this checkout does not have it yet: git pull origin {branch}")


def run(args: argparse.Namespace) -> int:
    from mlops_build import service, tracking
    from mlops_build.errors import UsageError
    from mlops_build.release import holding, protected

    if args.release and not args.remove:
        raise UsageError("--release needs --remove", remedy=f"mlops-build hold {args.env} --remove --release")
    land = protected.at(args.repo or service.find_root(), args.branch)
    if args.remove:
        landed = holding.end(land, args.env, tracking.registry, release=args.release)
    else:
        landed = holding.begin(land, args.env, args.why)
    say_where(landed, args.branch)
    document = {
        "environment": args.env,
        "hold": args.why,
        "commit": landed.commit,
        "pushed": landed.pushed,
        "request": landed.request and landed.request.as_json(),
    }
    will_be = "will be, after the merge," if landed.request else "is"
    state = f"{will_be} no longer held" if args.remove else f"{will_be} held: {args.why}"
    result(args, document, f"{args.env} {state}  commit {landed.commit[:12]}" if landed.commit else f"{args.env} is not held")
    return 0
