"""The steps that the Bamboo plans call. They hold all logic, so that they run the same on a laptop.

check: service.yaml, lint, tests, overlays. train: the same as `mlops-build train`. image: build and push the image of each
environment's release record, if it is not there yet. deploy ENV: apply one environment by digest and ask the recorded examples.
"""

import argparse

from mlops_build.cli.output import result, say

EXAMPLE = "  mlops-build ci check\n  mlops-build ci deploy staging"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    steps = parser.add_subparsers(dest="step", metavar="STEP", required=True)
    steps.add_parser("check", help="service.yaml, lint, tests, overlays; needs no secret")
    steps.add_parser("train", help="run the pipeline, commit, push, register")
    steps.add_parser("image", help="build and push what the release records name, if it is absent")
    deploy = steps.add_parser("deploy", help="apply one environment's release and check what it answers")
    deploy.add_argument("env", metavar="ENV", help="an environment of service.yaml")
    deploy.add_argument("--url", help="where the recorded examples are asked (default: http://HOST of service.yaml)")
    deploy.add_argument(
        "--timeout",
        type=int,
        metavar="SECONDS",
        help="how long the rollout may take (default: 600, or more where replicas and startup_seconds ask for it)",
    )
    for step in steps.choices.values():
        step.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def run(args: argparse.Namespace) -> int:
    from mlops_build import service

    root = service.find_root()
    if args.step == "check":
        from mlops_build.ci import check

        result(args, {"checks": check.run(root, say=say)}, "")
    elif args.step == "train":
        from mlops_build.training import pipeline

        result(args, {"models": [one.as_json() for one in pipeline.train(root, say=say)]}, "")
    elif args.step == "image":
        from mlops_build.ci import image

        result(args, image.run(root, say=say), "")
    else:
        from mlops_build.ci import deploy

        result(args, deploy.run(root, args.env, url=args.url, timeout_s=args.timeout, say=say), "")
    return 0
