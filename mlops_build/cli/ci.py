"""The steps of the CI plans. They contain all of the logic, so that they run the same way on a laptop.

check: service.yaml, lint, tests, manifests. train: like `mlops-build train`, with the commit on a branch retrain/N and a pull request.
image: make the missing images of the release records. deploy ENV: apply one environment by digest and check the recorded
examples.
"""

import argparse

from mlops_build.cli.output import result, say
from mlops_build.cli.parser import problem_of

EXAMPLE = "  mlops-build ci check\n  mlops-build ci train --build 12\n  mlops-build ci deploy staging"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    steps.add_parser("check", help="service.yaml, lint, tests, manifests and specs; needs no secret")
    train = steps.add_parser("train", help="run the pipeline, commit on retrain/N, push, register, open a pull request")
    train.add_argument("--build", metavar="N", help="the number in retrain/N (default: the CI build's number, else the next free one)")
    train.add_argument("--force", action="store_true", help="run every stage, even if nothing changed")
    steps.add_parser("image", help="make the missing images of the release records")
    deploy = steps.add_parser("deploy", help="apply one environment's release and check its answers")
    deploy.add_argument("env", metavar="ENV", help="an environment of service.yaml")
    deploy.add_argument("--if-released", action="store_true", help="do nothing if nothing is released there yet, instead of an error")
    deploy.add_argument("--url", help="where to send the recorded examples (default: http://HOST of service.yaml)")
    deploy.add_argument(
        "--timeout",
        type=int,
        metavar="SECONDS",
        help="time limit of the rollout (default: 600, or more, computed from replicas and startup_seconds)",
    )
    for step in steps.choices.values():
        step.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    from mlops_build import service

    root = service.find_root()
    if args.step == "check":
        from mlops_build.ci import check, systems

        result(args, {"checks": check.run(root, specs=systems.spec_checkers(problem_of), say=say)}, "")
    elif args.step == "train":
        from mlops_build.ci import train

        result(args, train.run(root, build=args.build, force=args.force, say=say), "")
    elif args.step == "image":
        from mlops_build.ci import image

        result(args, image.run(root, say=say), "")
    else:
        from mlops_build.ci import deploy

        result(args, deploy.run(root, args.env, url=args.url, timeout_s=args.timeout, say=say, if_released=args.if_released), "")
    return 0
