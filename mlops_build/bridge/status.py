"""The state of each environment of many repositories: what it should run, what Git says, what runs, and why they differ."""

from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from itertools import chain

from mlops_build.adapters import http
from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.bridge.reconcile import Outcome
from mlops_build.fleet.rules import NONE, Rules
from mlops_build.release import image_time
from mlops_build.release.history import span

# A service that does not answer within this time is shown as unknown.
SECONDS = 3.0
AT_ONCE = 16
UNKNOWN = "-"


@dataclass(frozen=True)
class Row:
    """An environment: models and versions as text, "-" for what is not known.

    image: how long that took to make, since the commit of the release that it was made for. running: what the service answers.
    request: the open pull request. checks: the result of its builds. reason: why Git differs.
    """

    repository: str
    environment: str
    wanted: str
    git: str
    image: str
    running: str
    state: str
    request: str
    checks: str
    reason: str


def read(
    urls: Iterable[str], registry: Registry, *, branch: str = "main", rules: Rules = NONE, discovered: Collection[str] = ()
) -> list[Row]:
    """A row for each environment, in the order of the repositories; nothing is changed. Raises RegistryUnreachable.

    discovered: the repositories that may have no service.
    """
    aliases = registry.alias_map()

    def examine(url: str) -> list[Outcome]:
        return reconcile.repository(url, branch, registry, aliases, rules, dry_run=True, is_optional=url in discovered)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        outcomes = chain.from_iterable(threads.map(examine, dict.fromkeys(urls)))
        return list(threads.map(partial(_row, registry), outcomes))


def table(rows: Sequence[Row]) -> str:
    """The rows as columns under a heading."""
    cells = [[field.name for field in fields(Row)], *([str(cell) for cell in vars(row).values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells)


def _row(registry: Registry, outcome: Outcome) -> Row:
    made = image_time.read(registry, outcome.there)
    reason = outcome.problem.splitlines()[0] if outcome.error else outcome.why or ""
    return Row(
        outcome.repository,
        outcome.environment or UNKNOWN,
        outcome.wanted or UNKNOWN,
        outcome.before or UNKNOWN,
        f"+{span(made.seconds)}" if made else UNKNOWN,
        _running(outcome),
        outcome.state,
        outcome.request.url if outcome.request else UNKNOWN,
        outcome.checks or UNKNOWN,
        reason,
    )


def _running(outcome: Outcome) -> str:
    """The versions that the service answers with at /v2/models/NAME, as services since 0.4 do."""
    if not outcome.host:
        return UNKNOWN
    versions = [(model, _version(f"http://{outcome.host}/v2/models/{model}")) for model in outcome.models]
    return ", ".join(f"{model} {version}" for model, version in versions) if any(version != UNKNOWN for _, version in versions) else UNKNOWN


def _version(url: str) -> str:
    try:
        document = http.call("GET", url, seconds=SECONDS).document
        version = str(document["versions"][0])
    except (http.NoAnswer, LookupError, TypeError):
        return UNKNOWN
    return version if version.isdecimal() and len(version) <= 10 else UNKNOWN
