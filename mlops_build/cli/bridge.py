"""Update the release records of many repositories to the registry's aliases, with a commit only if they differ.

once: one pass, then end. run: a pass every INTERVAL and after each delivery of MLflow's webhook, until SIGTERM; it answers /health,
/metrics and POST /webhook. setup: create the webhook at the MLflow server, with the secret in MLOPS_BRIDGE_WEBHOOK_SECRET (or the file in
MLOPS_BRIDGE_WEBHOOK_SECRET_FILE), or update it; exit code 4 if a test delivery fails.
status: a line for each environment: where its aliases point at, what Git says, what the service answers, the open pull request with the
result of its builds, and why they differ.
files: write the manifests to run it in Kubernetes, its Dockerfile, Prometheus' rules, a Grafana dashboard and a Zabbix template.

It is safe to run at any time, repeatedly, and in several places at once. A held environment is not changed. A release with
findings of `mlops-build verify` is reported and not written, unless it returns to older versions. So is one in a freeze of fleet.yaml. Exit
code of `once`: 0, or the code of the failures if all have the same, else 1; without a failure that of fleet.yaml, if it cannot be read.
"""

import argparse
from typing import TYPE_CHECKING

from mlops_build.cli import repositories
from mlops_build.cli.output import result, say
from mlops_build.cli.parser import interval, port, whole

if TYPE_CHECKING:
    from mlops_build.fleet.repositories import Repositories
    from mlops_build.fleet.rules import Rules


EXAMPLE = (
    "  mlops-build bridge once --repo https://git.example.com/ml/digits.git --repo https://git.example.com/ml/spam.git\n"
    "  mlops-build bridge run --repo https://git.example.com/ml/digits.git --interval 60\n"
    "  mlops-build bridge status --repo https://git.example.com/ml/digits.git\n"
    "  mlops-build bridge setup --url https://bridge.example.com/webhook\n"
    "  mlops-build bridge files --output bridge/"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    once = actions.add_parser("once", help="one pass, then end")
    run = actions.add_parser("run", help="passes until SIGTERM")
    status = actions.add_parser("status", help="what each environment should run, what Git says, and what runs")
    setup = actions.add_parser("setup", help="create the webhook at the MLflow server")
    setup.add_argument("--url", required=True, metavar="URL", help="of /webhook, as the MLflow server reaches it")
    files = actions.add_parser("files", help="write the files to run and to watch it")
    files.add_argument("-o", "--output", required=True, metavar="DIR", help="the folder to write")
    files.add_argument("--force", action="store_true", help="replace files with other content")
    setup.add_argument("--tracking-uri", metavar="URI", help=repositories.MLFLOW)
    for action in (once, run, status):
        action.add_argument(
            "--repo", action="append", default=argparse.SUPPRESS, metavar="URL", help="a service's repository; may be repeated"
        )
        action.add_argument("--fleet", metavar="FILE|URL", help="fleet.yaml: freezes, and more repositories (default: MLOPS_FLEET)")
        action.add_argument("--branch", default=argparse.SUPPRESS, metavar="NAME", help="the branch to release from (default: main)")
        action.add_argument("--tracking-uri", default=argparse.SUPPRESS, metavar="URI", help=repositories.MLFLOW)
    once.add_argument(
        "--despite-findings", default=argparse.SUPPRESS, action="store_true", help="also release with findings of `mlops-build verify`"
    )
    once.add_argument("--dry-run", default=argparse.SUPPRESS, action="store_true", help="show what would be released without writing it")
    # Releases before 0.9 had these options before `once`, too.
    parser.add_argument("--repo", action="append", default=[], help=argparse.SUPPRESS)
    parser.add_argument("--branch", default="main", help=argparse.SUPPRESS)
    parser.add_argument("--tracking-uri", help=argparse.SUPPRESS)
    parser.add_argument("--despite-findings", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help=argparse.SUPPRESS)
    run.add_argument("--interval", type=interval, default=60.0, metavar="SECONDS", help="between two passes (default: 60)")
    run.add_argument(
        "--workers", type=whole(1, 64), default=4, metavar="N", help="repositories of a Git host at the same time (default: 4)"
    )
    run.add_argument("--port", type=port, default=9401, metavar="N", help="of /health, /metrics and /webhook (default: 9401; 0: any)")
    run.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="the address to listen on (default: 127.0.0.1)")
    for action in actions.choices.values():
        action.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    return {"once": _once, "run": _run, "status": _status, "setup": _setup, "files": _files}[args.action](args)


def _status(args: argparse.Namespace) -> int:
    from mlops_build.bridge import status
    from mlops_build.fleet import rules

    known = rules.read(args.fleet)
    listed = repositories.find(args.repo, known)
    _warn(listed, known)
    rows = status.read(listed.urls, repositories.registry(args), branch=args.branch, rules=known, discovered=listed.discovered)
    result(args, {"environments": [vars(row) for row in rows]}, status.table(rows))
    return 0


def _once(args: argparse.Namespace) -> int:
    from mlops_build.bridge import notices, reconcile
    from mlops_build.fleet import rules

    known = rules.read(args.fleet)
    listed = repositories.find(args.repo, known)
    _warn(listed, known)
    options = {"dry_run": args.dry_run, "despite_findings": args.despite_findings, "discovered": listed.discovered}
    outcomes = reconcile.once(listed.urls, repositories.registry(args), branch=args.branch, rules=known, **options)
    for outcome in outcomes:
        if known.fleet and notices.is_new(outcome):
            notices.send(known.fleet.notify, outcome, say)
        for remark in outcome.remarks:
            say(f"mlops-build bridge: {outcome.where}: {remark}")
        if outcome.error:
            say(f"mlops-build bridge: {outcome.where}: {outcome.problem}")
            if outcome.error.remedy:
                say(f"    {outcome.error.remedy}")
    environments = {outcome.environment for outcome in outcomes}
    if not listed.error and None not in environments and (remark := known.without_effect(environments)):
        say(f"mlops-build bridge: {remark}")
    result(args, {"outcomes": [outcome.as_json() for outcome in outcomes]}, "\n".join(map(str, outcomes)))
    return reconcile.exit_code(outcomes) or (listed.error.exit_code if listed.error else 0)


def _run(args: argparse.Namespace) -> int:
    from mlops_build import tracking
    from mlops_build.adapters.registry import Registry, checked_address
    from mlops_build.bridge import server, webhook
    from mlops_build.bridge.loop import Loop
    from mlops_build.fleet import repositories as fleet_repositories
    from mlops_build.fleet import rules
    from mlops_build.serving import listen

    if not args.repo and not rules.configured(args.fleet):
        raise repositories.none_given()
    uri = checked_address(args.tracking_uri or tracking.find().uri)
    loop = Loop(
        tuple(args.repo),
        lambda: Registry(uri),
        branch=args.branch,
        interval=args.interval,
        workers=args.workers,
        rules=lambda: rules.read(args.fleet),
        listed=lambda known: fleet_repositories.find(args.repo, known),
        say=_log,
    )
    has_secret = bool(webhook.secrets())
    bound = listen.bind(args.host, args.port, is_ready=True)
    where = listen.url(args.host, bound)
    result(args, {"url": where, "repositories": len(loop.repositories)}, "")
    _log(f"watches {len(loop.repositories)} repositories; listens on {where}")
    if not has_secret:
        _log(f"{webhook.SECRET} is not set, so /webhook refuses every request")
    server.serve(loop, bound)
    return 0


def _warn(listed: "Repositories", rules: "Rules") -> None:
    """Print why the rules or the repositories of fleet.yaml are not known."""
    if error := listed.error:
        effect = "production is not changed, except to go back" if rules.error else "not all repositories of fleet.yaml are known"
        say(f"mlops-build bridge: {effect}: {error.message}")
        if error.remedy:
            say(f"    {error.remedy}")


def _setup(args: argparse.Namespace) -> int:
    from mlops_build import finding
    from mlops_build.bridge.setup import setup

    is_new, findings = setup(repositories.registry(args), args.url)
    text = f"{'created' if is_new else 'updated'}: MLflow's webhook to {args.url}"
    document = {"url": args.url, "created": is_new, "findings": finding.as_json(findings)}
    result(args, document, f"{text}\n{finding.show(findings)}".strip())
    if not args.json:
        say("The workers of the MLflow server notice a change of a webhook within 60 s.")
    return 4 if findings else 0


def _files(args: argparse.Namespace) -> int:
    from pathlib import Path

    from mlops_build.bridge import shipped
    from mlops_build.watch.shipped import write_files

    written = [str(path) for path in write_files(Path(args.output), shipped.texts(), force=args.force)]
    result(args, {"written": written}, "\n".join(written))
    return 0


def _log(line: str) -> None:
    # A Git host chooses what its messages contain.
    say("mlops-build bridge: " + "".join(character if character.isprintable() else "\ufffd" for character in line))
