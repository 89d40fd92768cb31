"""List who released which versions to an environment, when and why, and what it runs now. It reads Git alone.

For each new version it shows the time to market: when its code was committed, when it was registered, and when it was released to each
environment. Who promoted it is what MLflow was told: a claim, unless its server authenticates users. Times are UTC. With --images it
also asks MLflow how long it took from the release until the image registry had the image.
"""

import argparse

from mlops_build.cli.output import result
from mlops_build.cli.parser import whole

EXAMPLE = "  mlops-build history\n  mlops-build history production --most 5 --images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("env", metavar="ENV", nargs="?", help="one environment (default: all)")
    parser.add_argument(
        "--most", type=whole(1, 1_000_000), default=20, metavar="N", help="the newest N releases of each environment (default: 20)"
    )
    parser.add_argument("--images", action="store_true", help="also ask MLflow how long it took until a release had its image")


def run(args: argparse.Namespace) -> int:
    from mlops_build import service, tracking
    from mlops_build.errors import Refused
    from mlops_build.release import history
    from mlops_build.release.write import checkout_of

    checkout, head = checkout_of(service.find_root())
    if checkout.is_shallow():
        raise Refused("this clone is shallow, so it does not have the history", remedy="git fetch --unshallow")
    entries = {env: listed[: args.most] for env, listed in history.read(checkout, head, args.env).items()}
    if args.images:
        registry = tracking.registry()
        entries = {env: history.with_images(checkout, listed, registry) for env, listed in entries.items()}
    lines = []
    for env, listed in entries.items():
        nothing = f"{env}: nothing released yet in this checkout, at commit {head[:12]} (to update it: git pull)"
        lines += [env, *("  " + str(entry).replace("\n", "\n  ") for entry in listed)] if listed else [nothing]
    result(args, {env: [entry.as_json() for entry in listed] for env, listed in entries.items()}, "\n".join(lines))
    return 0
