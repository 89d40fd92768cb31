"""Change many entries of the registry at once.

migrate-stages: set the alias production for the newest version of each model with the stage Production, and staging for Staging. Archived
versions are left out. An alias that exists is never moved. Without --apply it only shows them. The bridge releases a version whose alias
an environment follows, so read the list first.
"""

import argparse

from mlops_build.cli import repositories
from mlops_build.cli.output import result, say

EXAMPLE = "  mlops-build registry migrate-stages\n  mlops-build registry migrate-stages --apply"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    stages = actions.add_parser("migrate-stages", help="set aliases from stages, which are deprecated")
    stages.add_argument("--apply", action="store_true", help="set the aliases; without it they are only shown")
    stages.add_argument("--tracking-uri", metavar="URI", help=repositories.MLFLOW)
    stages.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    from mlops_build.audit import stages

    registry = repositories.registry(args)
    wanted = stages.moves(registry)
    if args.apply:
        stages.apply(registry, wanted, lambda move: say(f"set: {move}"))
    result(args, {"applied": args.apply, "aliases": [vars(move) for move in wanted]}, "\n".join(map(str, wanted)))
    if not args.apply and not args.json:
        say("Nothing was changed: add --apply to set the aliases that do not exist.")
    return 0
