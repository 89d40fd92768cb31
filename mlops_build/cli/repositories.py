"""The options for a registry and the repositories of many services, and what they name."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlops_build.errors import UsageError

if TYPE_CHECKING:
    from mlops_build.adapters.registry import Registry
    from mlops_build.fleet.repositories import Repositories
    from mlops_build.fleet.rules import Rules

MLFLOW = "MLflow (default: MLFLOW_TRACKING_URI)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """--repo, --fleet, --branch and --tracking-uri."""
    parser.add_argument("--repo", action="append", default=[], metavar="URL", help="a service's repository; may be repeated")
    parser.add_argument("--fleet", metavar="FILE|URL", help="fleet.yaml, which lists repositories (default: MLOPS_FLEET)")
    parser.add_argument("--branch", default="main", metavar="NAME", help="the branch that has the releases (default: main)")
    parser.add_argument("--tracking-uri", metavar="URI", help=MLFLOW)


def registry(args: argparse.Namespace) -> "Registry":
    """That of --tracking-uri, of the environment, or of the service around the current folder."""
    from mlops_build import tracking
    from mlops_build.adapters.registry import Registry

    return Registry(args.tracking_uri) if args.tracking_uri else tracking.registry()


def find(options: Sequence[str], rules: "Rules") -> "Repositories":
    """The repositories of the options and of fleet.yaml. Raises UsageError without any, or the error why there are none."""
    from mlops_build.fleet import repositories

    listed = repositories.find(options, rules)
    if not listed.urls:
        raise listed.error or none_given()
    return listed


def none_given() -> UsageError:
    return UsageError("no repository is given", remedy="add --repo URL, or --fleet with `repositories: {urls: […]}`")
