"""Answer like a service, without its model: for tests of its callers.

It checks requests against the service's contract, and answers with the recorded example, a prediction for each row. The request header
`X-Stub-Status: 429` (400, 413, 429, 500, 503, 504) gives that status, and `X-Stub-Delay-Ms: 1500` a slow answer; --fail-every lets every
Nth request fail. It needs only Python, no torch and no MLflow.
"""

import argparse

from mlops_build.cli.output import result, say
from mlops_build.cli.parser import port

EXAMPLE = "  mlops-build stub openapi.json --port 8080\n  mlops-build stub ../digits --fail-every 10 --status 429"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="DIR|FILE", help="an openapi.json, a folder with one (a service's, a model's), or a build context")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=port, default=8080, help="the port; 0 for a free one (default: 8080)")
    parser.add_argument("--fail-every", type=int, metavar="N", help="let every Nth request fail; 1: all of them")
    parser.add_argument("--status", type=int, default=503, help="the status of a failing request (default: 503)")
    parser.add_argument("--delay-ms", type=int, default=0, metavar="MS", help="the delay of each answer (default: 0)")


def run(args: argparse.Namespace) -> int:
    import signal
    import sys
    from pathlib import Path

    from mlops_build.errors import UsageError
    from mlops_build.stub import answer
    from mlops_build.stub.server import Server

    if args.what.startswith("models:"):
        raise UsageError("a stub needs no registry", remedy="give the service's openapi.json, or its folder")
    if args.status not in answer.FAULTS:
        raise UsageError(f"--status {args.status} is not supported", remedy=f"use one of {', '.join(map(str, answer.FAULTS))}")
    if (args.fail_every is not None and args.fail_every < 1) or not 0 <= args.delay_ms <= answer.LONGEST_DELAY_MS:
        raise UsageError("--fail-every must be at least 1, --delay-ms at most 120000", remedy="see mlops-build stub --help")
    answers = answer.Stub(answer.document_of(Path(args.what)), answer.Faults(args.fail_every, args.status, args.delay_ms))

    def end(*_: object) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    with Server(answers, args.host, args.port) as server:
        names = [model.name for model in answers.models]
        say(f"stub of {', '.join(names)} on {server.url}")
        result(args, {"models": names, "url": server.url}, "")
        sys.stdout.flush()  # the parent process may wait for this
        server.serve_forever()
    return 0
