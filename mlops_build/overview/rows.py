"""What the registry and the services' repositories say about each model in each environment."""

import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, TypeVar

from mlops_build.adapters.registry import RegisteredModel, RegisteredVersion, Registry, UnknownVersion
from mlops_build.inventory import Environment, Repository
from mlops_build.model import identity

# Requests to the registry, or listings of files, at the same time.
AT_ONCE = 8

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True)
class Row:
    """A model in an environment. Text is empty, and other values are None, where they are not known.

    environment: empty for a model that no alias points at; then the version is the newest. Without a service that follows the alias, it
    is the alias. newest: the model's newest version. registered_at, released_at: Unix time in seconds. released_version: what the
    service's repository says. data: a hash of the data's revision, "sha256:<64 hex>".
    """

    model: str
    environment: str
    alias: str
    version: int | None
    newest: int | None
    registered_at: int | None
    service: str
    owner: str
    size_bytes: int | None
    released_version: int | None
    released_at: int | None
    data: str
    metrics: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "metrics": {name: number(value) for name, value in self.metrics.items()}}


@dataclass(frozen=True)
class Chosen:
    """Patterns with * and ? for the columns; None matches everything."""

    model: str | None = None
    environment: str | None = None
    service: str | None = None
    owner: str | None = None

    def matches(self, row: Row) -> bool:
        return all(pattern is None or fnmatchcase(getattr(row, column), pattern) for column, pattern in asdict(self).items())


@dataclass(frozen=True)
class Overview:
    """versions: of each model in `rows`, oldest first. without_size: how many versions have files that cannot be listed."""

    rows: list[Row]
    versions: dict[str, list[RegisteredVersion]]
    without_size: int = 0


def number(value: float) -> float | str:
    """A metric for JSON, which has no NaN and no infinity: they are "nan", "inf" and "-inf"."""
    return value if math.isfinite(value) else str(value)


def read(registry: Registry, repositories: Sequence[Repository], chosen: Chosen) -> Overview:
    """Only the files and runs of the chosen rows are asked for. Raises RegistryUnreachable."""
    versions: dict[str, list[RegisteredVersion]] = defaultdict(list)
    for version in registry.every_version():
        versions[version.name].append(version)
    for listed in versions.values():
        listed.sort(key=lambda version: version.version)  # a server sends them in another order
    models = sorted(registry.models(), key=lambda model: model.name)
    rows = [row for model in models for row in _rows(model, versions[model.name], repositories) if chosen.matches(row)]
    shown = {(version.name, version.version): version for row in rows for version in versions[row.model] if version.version == row.version}
    sizes = _each(lambda version: _size(registry, version), shown)
    values = metrics(registry, shown.values())
    filled = [
        replace(row, size_bytes=sizes.get(key), metrics=values.get(key, {})) for row in rows for key in [(row.model, row.version or 0)]
    ]
    kept = {row.model: versions[row.model] for row in rows}
    return Overview(filled, kept, sum(size is None for size in sizes.values()))


def metrics(registry: Registry, versions: Iterable[RegisteredVersion]) -> dict[tuple[str, int], Mapping[str, float]]:
    """The last value of each metric of each version's run; nothing for a run that was erased."""

    def one(version: RegisteredVersion) -> Mapping[str, float]:
        run = registry.run(version.run_id) if version.run_id else None
        return {name: _infinite(value) for name, value in run.metrics.items()} if run else {}

    return _each(one, {(version.name, version.version): version for version in versions})


def _infinite(value: float) -> float:
    """MLflow's databases have the largest number for infinity."""
    return math.copysign(math.inf, value) if abs(value) >= sys.float_info.max else value


def _each(ask: Callable[[S], T], about: Mapping[tuple[str, int], S]) -> dict[tuple[str, int], T]:
    with ThreadPoolExecutor(AT_ONCE) as threads:
        return dict(zip(about, threads.map(ask, about.values()), strict=True))


def _size(registry: Registry, version: RegisteredVersion) -> int | None:
    """Bytes of the version's files, from their list; None if they cannot be listed."""
    try:
        return sum(file.size for file in registry.files(version))
    except UnknownVersion:
        return None


def _rows(model: RegisteredModel, versions: Sequence[RegisteredVersion], repositories: Sequence[Repository]) -> Iterator[Row]:
    numbered = {version.version: version for version in versions}
    newest = versions[-1].version if versions else None
    for repository, env in _places(model, repositories):
        released = env.record.version_of(model.name) if env.record else None
        version = numbered.get(model.aliases.get(env.alias, released or 0) if env.alias else newest or 0)
        service = repository.service if repository else None
        yield Row(
            model.name,
            env.name,
            env.alias,
            version.version if version else None,
            newest,
            version.created_ms // 1000 if version else None,
            service.name if service else version.tags.get(identity.SERVICE, "") if version else "",
            model.owner or (service.team if service else ""),
            None,
            released,
            env.released_at if released else None,
            version.tags.get(identity.DATA, "") if version else "",
        )


def _places(model: RegisteredModel, repositories: Sequence[Repository]) -> list[tuple[Repository | None, Environment]]:
    """Where a model is: environments whose alias it has or that have released it, then aliases that no environment follows."""
    users = [repository for repository in repositories if model.name in repository.models]
    places: list[tuple[Repository | None, Environment]] = [
        (repository, env)
        for repository in users
        for env in repository.environments
        if env.alias in model.aliases or (env.record and env.record.version_of(model.name))
    ]
    followed = {env.alias for _, env in places}
    first = users[0] if users else None
    places += [(first, Environment(alias, alias)) for alias in sorted(model.aliases) if alias not in followed]
    return places or [(first, Environment("", ""))]
