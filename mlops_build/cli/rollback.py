"""Point an environment's alias back at the previous version: the one stored by `promote`, or the one given by --to.

--from-git needs no MLflow: it restores the previous release in Git, and holds the environment so that the bridge does not undo it.
It pushes a commit to main of the checkout's origin, or of --repo, whatever the checkout has. If the branch is protected, it opens a pull
request from rollback/ENV, or prints the commands to run by hand (exit code 4).
"""

import argparse

from mlops_build.cli.hold import say_where
from mlops_build.cli.output import result, say

EXAMPLE = "  mlops-build rollback digits --env production\n  mlops-build rollback --from-git production"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", nargs="?", help="the registered model's name (not needed with --from-git)")
    parser.add_argument("--env", metavar="ENV", help="the environment, such as production")
    parser.add_argument("--to", type=int, metavar="VERSION", help="another version than the stored one")
    parser.add_argument("--force-dirty", action="store_true", help="with --to: allow a version with uncommitted changes in production")
    parser.add_argument(
        "--why", "--reason", default="", metavar="TEXT", help="the reason, for the release's commit and `mlops-build history`, and the hold"
    )
    parser.add_argument(
        "--from-git", nargs="?", const="", metavar="ENV", help="restore the environment's previous release in Git; MLflow may be down"
    )
    parser.add_argument("--repo", metavar="URL", help="with --from-git: this remote instead of the checkout around the current folder")
    parser.add_argument("--branch", default="main", metavar="NAME", help="with --from-git: the branch of the releases (default: main)")


def run(args: argparse.Namespace) -> int:
    from mlops_build import tracking
    from mlops_build.errors import UsageError

    if args.from_git is not None:
        if args.from_git and args.env not in (None, args.from_git):
            raise UsageError(f"--from-git {args.from_git} and --env {args.env} differ", remedy="give one of them")
        args.env = args.from_git or args.env
        if args.to is not None or args.model:
            raise UsageError("--from-git takes no MODEL and no --to", remedy="remove them: it restores the whole previous release in Git")
    if not args.env:
        raise UsageError("the environment is missing", remedy="mlops-build rollback MODEL --env ENV, or --from-git ENV")
    if args.from_git is not None:
        return _from_git(args)
    if args.repo:
        raise UsageError("--repo needs --from-git", remedy="mlops-build rollback --from-git ENV …")
    if not args.model:
        raise UsageError("MODEL is missing", remedy="mlops-build rollback MODEL --env ENV, or --from-git")
    from mlops_build.release import alias

    service = alias.service_here()
    move = alias.rollback(tracking.registry(), service, args.model, args.env, args.to, why=args.why, force_dirty=args.force_dirty)
    for line in alias.remarks(move, service):
        say(line)
    result(args, move.as_json(), str(move))
    return 0


def _from_git(args: argparse.Namespace) -> int:
    from mlops_build import service
    from mlops_build.release import protected, restore

    env = args.env
    restored, landed = restore.roll_back(protected.at(args.repo or service.find_root(), args.branch), env, args.why)
    say_where(landed, args.branch)
    if restored.is_broken:
        say(f"service.yaml is broken, so CI does not deploy; by hand: kubectl apply --kustomize deploy/overlays/{env}")
    then = "after the merge, " if landed.request else ""
    say(f"{then}the bridge does not change {env} until its hold is removed: mlops-build hold {env} --remove")
    document = {
        "environment": env,
        "before": restored.before and str(restored.before),
        "after": str(restored.after),
        "hold": restored.hold,
        "commit": restored.commit,
        "pushed": landed.pushed,
        "request": landed.request and landed.request.as_json(),
    }
    state = f"{env}{' after the merge' if landed.request else ''}: {restored.before or 'unknown'} → {restored.after}"
    result(args, document, f"{state}  commit {restored.commit[:12]}")
    return 0
