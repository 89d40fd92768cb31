"""List the registered models and what each environment runs: version, age, service, owner, size, last release, data and metrics.

An environment is a service's, where the repositories of fleet.yaml or --repo have one that follows the alias; without them, that of the
service in the current folder; else the alias itself. The last release is what the service's repository says: if it is another version
than the alias's, its number is in parentheses. Sizes are from the lists of files; nothing is downloaded or changed. --html writes one
page for a browser, which needs no network.

Exit code: 5 if a repository was not read, else 0.
"""

import argparse
from typing import TYPE_CHECKING

from mlops_build.cli import repositories
from mlops_build.cli.output import result, say, written

if TYPE_CHECKING:
    from mlops_build.fleet.repositories import Repositories
    from mlops_build.inventory import Repository

EXAMPLE = (
    "  mlops-build models --fleet fleet.yaml\n"
    "  mlops-build models --model 'digits*' --env production --json\n"
    "  mlops-build models --fleet fleet.yaml --html models.html"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    repositories.add_options(parser)
    for option, what in (("model", "registered model"), ("env", "environment"), ("service", "service"), ("owner", "owner")):
        parser.add_argument(f"--{option}", metavar="PATTERN", help=f"only rows with this {what}; * is any text")
    parser.add_argument("--html", metavar="FILE", help="also write a page with this table and plots of the metrics over all versions")


def run(args: argparse.Namespace) -> int:
    import time
    from pathlib import Path

    from mlops_build.fleet import repositories as fleet_repositories
    from mlops_build.fleet import rules
    from mlops_build.overview import rows, text

    registry = repositories.registry(args)
    listed = fleet_repositories.find(args.repo, rules.read(args.fleet))
    known = _read(listed, args.branch)
    unread = [f"{each.url}: {each.error.message}" for each in known if each.error]
    if listed.error:
        unread.insert(0, listed.error.message)
    for line in unread:
        say(f"not read: {line}")
    overview = rows.read(registry, known, rows.Chosen(args.model, args.env, args.service, args.owner))
    if overview.without_size:
        say(f"the files of {overview.without_size} versions cannot be listed, so their size is not known")
    now = time.time()
    if args.html:
        from mlops_build.overview import page

        every = [version for listed in overview.versions.values() for version in listed]
        written(Path(args.html), page.render(overview, rows.metrics(registry, every), registry.shown, now))
    document = {"models": [row.as_json() for row in overview.rows], "not_read": unread}
    result(args, document, text.table(overview.rows, now))
    return 5 if unread else 0


def _read(listed: "Repositories", branch: str) -> "list[Repository]":
    """The listed repositories; if there are none, that of the service around the current folder, as it is here."""
    from mlops_build import inventory
    from mlops_build.errors import NotFound
    from mlops_build.release.write import checkout_of
    from mlops_build.service import find_root

    if listed.urls or listed.error:
        return inventory.read(listed.urls, branch, discovered=listed.discovered)
    try:
        checkout, head = checkout_of(find_root())
    except NotFound:
        return []
    return [inventory.at(checkout, head, checkout.origin_url() or "")]
