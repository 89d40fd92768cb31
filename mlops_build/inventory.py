"""What the repositories of many services say: their models and environments, and what they release and ever released. Git alone is read."""

import re
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from mlops_build.adapters.git.command import masked
from mlops_build.adapters.git.mirror import Mirror, mirrored
from mlops_build.adapters.git.objects import Objects
from mlops_build.errors import MlopsBuildError
from mlops_build.release import record as records
from mlops_build.release.record import BadRecord, Record
from mlops_build.release.tree import OVERLAYS, NoService, Tree
from mlops_build.service import Service

AT_ONCE = 8
RECORDS = re.compile(rf"{OVERLAYS}/[^/]+/release/{re.escape(records.RECORD)}")

T = TypeVar("T")


@dataclass(frozen=True)
class Environment:
    """An environment of a service. alias: that it follows.

    record: the present release; None without one. released_at: when a commit last changed the record, Unix time in seconds.
    """

    name: str
    alias: str
    record: Record | None = None
    released_at: int | None = None


@dataclass(frozen=True)
class Repository:
    """The repository of a service at the head of a branch. url: without user and password.

    error: why it, or its service.yaml, cannot be read; then the other fields may be empty. records: every release that Git has ever had,
    the present ones included. unreadable: how many records cannot be read, in other files' places or of a newer mlops-build.
    """

    url: str
    service: Service | None = None
    error: MlopsBuildError | None = None
    commit: str | None = None
    environments: tuple[Environment, ...] = ()
    records: tuple[Record, ...] = ()
    unreadable: int = 0

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(model.name for model in self.service.models) if self.service else ()

    @property
    def released(self) -> frozenset[tuple[str, int]]:
        """Each model with each version that was ever released."""
        return frozenset(number for record in self.records for number in record.numbers)


def read(urls: Iterable[str], branch: str = "main", *, discovered: Collection[str] = ()) -> list[Repository]:
    """The repositories in their order; one that cannot be read has its error. Raises nothing.

    discovered: the addresses of those that may have no service, and are then left out.
    """
    return examine(urls, branch, lambda repository, _: repository, discovered=discovered)


def examine(
    urls: Iterable[str], branch: str, look: Callable[[Repository, Mirror | None], T], *, discovered: Collection[str] = ()
) -> list[T]:
    """As `read`, with what `look` returns for each of them while its mirror exists; None if it could not be fetched.

    The mirror has all branches and tags. `look` runs in several threads.
    """

    def one(url: str) -> list[T]:
        empty = Repository(masked(url))
        try:
            with mirrored(url, branch) as mirror:
                repository = _read(mirror, empty)
                if isinstance(repository.error, NoService) and url in discovered:
                    return []
                return [look(repository, mirror)]
        except MlopsBuildError as error:
            return [look(replace(empty, error=error), None)]

    with ThreadPoolExecutor(AT_ONCE) as threads:
        return [result for results in threads.map(one, dict.fromkeys(urls)) for result in results]


def _read(mirror: Mirror, empty: Repository) -> Repository:
    """Raises RemoteUnreachable."""
    return at(mirror, mirror.fetch_all(), empty.url)


def at(objects: Objects, head: str, url: str) -> Repository:
    """The repository at the commit `head` of a checkout or a mirror."""
    ever: list[Record] = []
    texts = objects.past(head, OVERLAYS, RECORDS)
    for text in texts:
        try:
            ever.append(records.parse(text.decode(errors="replace")))
        except BadRecord:
            continue
    known = Repository(masked(url), commit=head, records=tuple(ever), unreadable=len(texts) - len(ever))
    tree = Tree.at(objects, head)
    try:
        service = tree.service
    except MlopsBuildError as error:
        return replace(known, error=error)
    environments = tuple(_environment(objects, tree, service, env) for env in service.environments)
    return replace(known, service=service, environments=environments)


def _environment(objects: Objects, tree: Tree, service: Service, env: str) -> Environment:
    record = tree.record(env)
    if record is None or not record.models:
        return Environment(env, service.alias_of(env))
    newest = objects.messages(tree.commit, f"{records.folder(env)}/{records.RECORD}", most=1)
    return Environment(env, service.alias_of(env), record, newest[0][1] if newest else None)
