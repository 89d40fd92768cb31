"""Bring old model files into the registry: list them, edit the list, register.

`adopt list SOURCE` writes adopt.csv and nothing else: what each file is, and a model and a service that it may belong to. Edit it: `model`,
`service`, `action` (adopt or skip) and `decided_by`. `adopt register adopt.csv` says what would be registered; with --yes it does it. Both
can be stopped and run again. Files are read, and never changed or unpickled.
A registered file is archived: no environment can release it. --code PATH and --example FILE make the versions of a model servable.
"""

import argparse
from pathlib import Path

from mlops_build.cli.output import result, say
from mlops_build.cli.parser import whole

TIMEOUT = 600  # seconds
EXAMPLE = (
    "  mlops-build adopt list s3://old-models/2021 --csv adopt.csv\n"
    "  mlops-build adopt register adopt.csv\n"
    "  mlops-build adopt register adopt.csv --yes\n"
    "  mlops-build adopt register adopt.csv --model digits --code net.py --example rows.csv --yes"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="list | register")
    listing = actions.add_parser("list", help="write what the files of a place are into a CSV file")
    listing.add_argument("source", metavar="SOURCE", help="a folder or file, s3://BUCKET/PREFIX or swift://CONTAINER/PREFIX")
    listing.add_argument("--csv", type=Path, default=Path("adopt.csv"), metavar="FILE", help="default: adopt.csv")
    listing.add_argument("--match", default="*", metavar="PATTERN", help="only paths that match, such as '*.pth' (default: all)")
    listing.add_argument("--repo", action="append", default=[], metavar="URL", help="a repository that may name files; may be repeated")
    listing.add_argument("--fleet", metavar="FILE|URL", help="fleet.yaml, whose repositories may name files (default: MLOPS_FLEET)")
    register = actions.add_parser("register", help="register the files whose action is adopt; without --yes, say what would be")
    register.add_argument("csv", type=Path, metavar="FILE", help="the edited adopt.csv")
    register.add_argument("--yes", action="store_true", help="register; without it nothing is written")
    register.add_argument("--model", metavar="NAME", help="only the rows of this model")
    register.add_argument("--code", type=Path, metavar="PATH", help="a Python file or package with the predictor; it is run")
    register.add_argument("--example", type=Path, metavar="FILE", help="rows for the predictor, as JSON or CSV")
    register.add_argument("--timeout", type=whole(1, 86400), default=TIMEOUT, metavar="SECONDS", help="of the predictor (default: 600)")
    for action in (listing, register):
        action.add_argument("--endpoint-url", metavar="URL", help="the S3 gateway of the source (default: AWS_ENDPOINT_URL)")
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    return _list(args) if args.action == "list" else _register(args)


def _list(args: argparse.Namespace) -> int:
    from pathlib import PurePosixPath

    from mlops_build import tracking
    from mlops_build.adapters.storage.address import place
    from mlops_build.adopt import listing, suggest, summary, table
    from mlops_build.errors import MlopsBuildError
    from mlops_build.fleet import repositories, rules

    source = place(args.source, args.endpoint_url)
    rows = listing.run(source, args.csv, args.match, say)
    listed = repositories.find(args.repo, rules.read(args.fleet))
    if listed.error:
        say(f"fleet.yaml: {listed.error.message}")
    mentions = suggest.mentions(listed.urls, {PurePosixPath(row.path).name for row in rows.values()}, say)
    try:
        registry = tracking.registry()
        known = suggest.Known([model.name for model in registry.models()], suggest.versions(registry, rows.values(), say), mentions)
    except MlopsBuildError as error:
        say(f"no suggestions from a registry: {error.message}")
        known = suggest.Known(mentions=mentions)
    filled = list(suggest.filled(rows.values(), known))
    table.write(args.csv, filled)
    result(
        args,
        {"csv": str(args.csv), **summary.document(filled)},
        f"{summary.text(filled)}\nnext: edit {args.csv}, then: mlops-build adopt register {args.csv}",
    )
    return 0


def _register(args: argparse.Namespace) -> int:
    from collections import Counter
    from dataclasses import asdict

    from mlops_build import tracking
    from mlops_build.adapters.registry import NoDatabase
    from mlops_build.adopt import register, table
    from mlops_build.adopt.servable import Code
    from mlops_build.errors import NotFound, UsageError

    if (args.code is None) != (args.example is None) or (args.code and not args.model):
        raise UsageError(
            "--code, --example and --model belong together", remedy="add the missing one: --model NAME --code PATH --example FILE"
        )
    code = Code(args.code, args.example, args.timeout) if args.code else None
    if code and args.yes:
        say(f"this runs {args.code}, for at most {args.timeout} s for each file")
    listed = table.read(args.csv).values()
    rows = [row for row in listed if args.model in (None, row.model)]
    if args.model and not rows:
        models = ", ".join(sorted({row.model for row in listed if row.model})[:20]) or "none"
        raise NotFound(f"{args.csv} has no row of the model {args.model[:100]!a}; models: {models}", remedy="correct --model")
    registry = None
    try:
        registry = tracking.registry(create=args.yes)
    except NoDatabase as error:
        say(f"{error.message}: --yes creates it")
    outcomes = register.run(registry, rows, code=code, endpoint_url=args.endpoint_url, say=say, yes=args.yes)
    counts = Counter(outcome.outcome for outcome in outcomes)
    counts["no action"] += sum(row.action == "" for row in rows)
    counts["skipped"] += sum(row.action == table.SKIP for row in rows)
    text = "\n".join(f"{count:7}  {outcome}" for outcome, count in counts.items() if count)
    result(args, {"registered": args.yes, "files": [asdict(outcome) for outcome in outcomes]}, text)
    if not args.yes and counts[register.WOULD]:
        not_run = f", and {args.code} was not run" if code else ""
        say(f"nothing was registered{not_run}; to do it: {_command(args)} --yes")
    return 4 if counts[register.REFUSED] else 0


def _command(args: argparse.Namespace) -> str:
    """The command as it was given, without --yes."""
    import shlex

    options = {"--model": args.model, "--code": args.code, "--example": args.example, "--endpoint-url": args.endpoint_url}
    if args.timeout != TIMEOUT:
        options["--timeout"] = args.timeout
    given = [str(word) for name, value in options.items() if value is not None for word in (name, value)]
    return shlex.join(["mlops-build", "adopt", "register", str(args.csv), *given])
