"""Point an environment's alias at a model version; the bridge, or `mlops-build release`, then writes the release into Git.

It is stored in MLflow as a promotion: who, when, why, and the versions of all models of the service. The bridge releases them together, and
`mlops-build history` lists them. The previous version is stored, so that `mlops-build rollback` needs no number.
"""

import argparse
import re

from mlops_build.cli.output import result, say

EXAMPLE = (
    '  mlops-build promote digits 3 --to staging --why "fewer false alarms"\n'
    "  mlops-build promote digits staging --to production\n"
    "  mlops-build promote digits=3 letters=7 --to staging"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        nargs="+",
        metavar="MODEL VERSION | MODEL=VERSION",
        help="a registered model and its version's number or another alias; MODEL=VERSION for several models of a service at once",
    )
    parser.add_argument("--to", required=True, metavar="ENV", dest="env", help="the environment, such as staging")
    parser.add_argument("--why", default="", metavar="TEXT", help="the reason, for the release's commit and `mlops-build history`")
    parser.add_argument("--force-dirty", action="store_true", help="allow a version with uncommitted changes in production")


def run(args: argparse.Namespace) -> int:
    from mlops_build import tracking
    from mlops_build.release import alias

    wanted = parsed(args.what)
    service = alias.service_here()
    moves, made = alias.promote_all(tracking.registry(), service, wanted, args.env, why=args.why, force_dirty=args.force_dirty)
    for move in moves:
        for line in alias.remarks(move, service):
            say(line)
    document = moves[0].as_json() if len(moves) == 1 else {"moves": [move.as_json() for move in moves]}
    result(args, {**document, "promotion": made.id}, "\n".join(map(str, moves)))
    return 0


def parsed(words: list[str]) -> dict[str, int | str]:
    """MODEL VERSION, or MODEL=VERSION words, as model → version. Raises UsageError."""
    from mlops_build.errors import UsageError

    pairs = [tuple(word.split("=", 1)) for word in words] if all("=" in word for word in words) else [tuple(words)]
    models = {pair[0]: pair[1] for pair in pairs if len(pair) == 2 and all(pair)}
    if len(models) != len(pairs):
        raise UsageError(
            f"{' '.join(words)!r:.200} is neither MODEL VERSION nor MODEL=VERSION words for different models",
            remedy="mlops-build promote MODEL VERSION --to ENV, or: mlops-build promote MODEL=VERSION MODEL=VERSION --to ENV",
        )
    for version in models.values():
        if not re.fullmatch(r"[\w-]+", version):
            raise UsageError(
                f"{version[:200]!r} is neither the number of a version nor an alias", remedy="mlops-build promote MODEL VERSION --to ENV"
            )
    return dict(models)
