"""Point an environment's alias at a model version; the bridge, or `mlops-build release`, then writes the release into Git.

The previous version is stored, so that `mlops-build rollback` needs no number.
"""

import argparse

from mlops_build.cli.output import result, say

EXAMPLE = "  mlops-build promote digits 3 --to staging\n  mlops-build promote digits staging --to production"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="the registered model's name")
    parser.add_argument("version", metavar="VERSION", help="its version's number, or another alias")
    parser.add_argument("--to", required=True, metavar="ENV", dest="env", help="the environment, such as staging")
    parser.add_argument("--force-dirty", action="store_true", help="allow a version with uncommitted changes in production")


def run(args: argparse.Namespace) -> int:
    from mlops_build import tracking
    from mlops_build.release import alias

    service = alias.service_here()
    move = alias.promote(tracking.registry(), service, args.model, args.version, args.env, force_dirty=args.force_dirty)
    for line in alias.remarks(move, service):
        say(line)
    result(args, move.as_json(), str(move))
    return 0
