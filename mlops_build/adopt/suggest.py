"""Which model and service a file may belong to: by its content, by repositories that name it, or by its own name."""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from mlops_build import inventory
from mlops_build.adapters.git.mirror import Mirror
from mlops_build.adapters.registry import RegisteredVersion, Registry
from mlops_build.adopt import kind
from mlops_build.adopt.table import Row
from mlops_build.errors import MlopsBuildError
from mlops_build.inventory import Repository
from mlops_build.model import identity

BRANCH = "main"
# Parts of a file's name that tell its state, not what it is.
STATE = re.compile(r"(?:^|-)(?:best|final|last|latest|model|weights|checkpoint|ckpt|state|dict|epoch-?\d*|v?\d+)(?=-|$)")


@dataclass(frozen=True)
class Mention:
    """A repository whose files name a model file. where: for people."""

    service: str
    where: str


@dataclass(frozen=True)
class Known:
    """What suggestions come from. models: registered ones. versions: SHA-256 of a file → a version with it. mentions: file name → where."""

    models: Collection[str] = ()
    versions: Mapping[str, RegisteredVersion] = field(default_factory=dict)
    mentions: Mapping[str, Sequence[Mention]] = field(default_factory=dict)


def filled(rows: Iterable[Row], known: Known) -> Iterator[Row]:
    """The rows with a model and a service. What is filled in already stays: people may have written it."""
    first: dict[str, Row] = {}
    for row in rows:
        suggestion = None if row.model or row.kind in (*kind.NEVER, kind.OTHER) else _suggestion(row, known, first)
        if suggestion:
            model, service, why = suggestion
            row = replace(row, model=model, service=row.service or service, suggested_by=why[:1000])
        if row.sha256:
            first.setdefault(row.sha256, row)
        yield row


def _suggestion(row: Row, known: Known, first: Mapping[str, Row]) -> tuple[str, str, str] | None:
    if version := known.versions.get(row.sha256):
        service = version.tags.get(identity.SERVICE, "")
        return _named(version.name), _named(service), f"hash: the same file as in {version.uri}"
    if row.sha256 and (same := first.get(row.sha256)) and same.model:
        return same.model, same.service, f"hash: the same file as {same.path}"
    mentions = known.mentions.get(PurePosixPath(row.path).name, ())
    named = _by_name(row.path, known.models)
    if mentions:
        where = ", ".join(mention.where for mention in mentions[:3])
        services = {mention.service for mention in mentions}
        service = mentions[0].service if len(services) == 1 else ""
        return named or service, service, f"reference: {where}" if service else f"reference, ambiguous: {where}"
    return (named, "", "name") if named else None


def _by_name(path: str, models: Collection[str]) -> str:
    """A registered model whose name is in the path, the longest; else a name made of the file's."""
    words = f"-{_slug(path)}-"
    if known := [model for model in models if f"-{model}-" in words and identity.NAME.fullmatch(model)]:
        return max(known, key=len)
    parts = PurePosixPath(path).parts
    stems = [STATE.sub("", _slug(part.partition(".")[0])).strip("-") for part in reversed(parts)]
    return _named(next((stem for stem in stems if stem), "")[:63].strip("-"))


def _slug(text: str) -> str:
    """In lower-case ASCII: é becomes e, and what has no such letter becomes -."""
    plain = unicodedata.normalize("NFKD", text.casefold().replace("\xf8", "o").replace("\xe6", "ae"))
    return re.sub(r"[^a-z0-9]+", "-", "".join(letter for letter in plain if not unicodedata.combining(letter))).strip("-")


def _named(text: str) -> str:
    return text if identity.NAME.fullmatch(text) else ""


def versions(registry: Registry, rows: Iterable[Row], say: Callable[[str], None]) -> dict[str, RegisteredVersion]:
    """Versions that have a file with the same content as a row. Files of versions are only read if a row has their size."""
    wanted: dict[int, set[str]] = {}
    for row in rows:
        if row.sha256:
            wanted.setdefault(row.size, set()).add(row.sha256)
    same: dict[str, RegisteredVersion] = {}
    for version in registry.every_version():
        if sha256 := version.tags.get(identity.FILE_TAG):
            same.setdefault(sha256, version)
            continue
        try:
            for file in registry.files(version):
                if file.size in wanted and not wanted[file.size] <= same.keys():
                    with file.open() as content:
                        same.setdefault(hashlib.file_digest(content, "sha256").hexdigest(), version)  # type: ignore[arg-type]
        except MlopsBuildError as error:
            say(f"{version.shown} is not compared: {error.message}")
    return same


def mentions(urls: Iterable[str], names: Collection[str], say: Callable[[str], None]) -> dict[str, list[Mention]]:
    """Where the heads of repositories name one of these files. A repository that cannot be read is a remark."""
    suffixes = {suffix for name in names if "." in name and re.fullmatch(r"[A-Za-z0-9]{1,12}", suffix := name.rpartition(".")[2])}
    pattern = rf"[A-Za-z0-9_.-]+\.({'|'.join(sorted(suffixes))})"

    def search(repository: Repository, mirror: Mirror | None) -> list[tuple[str, Mention]]:
        if mirror is None or repository.commit is None:
            say(f"{repository.url} is not searched: {repository.error.message if repository.error else 'it has no commit'}")
            return []
        url = repository.url.rstrip("/").removesuffix(".git")
        service = repository.service.name if repository.service else _named(_slug(re.split("[/:]", url)[-1])[:63].strip("-"))
        places = {text: path for path, text in reversed(mirror.matches(repository.commit, pattern)) if text in names}
        return [(text, Mention(service, f"{repository.url[:200]} ({path[:200]})")) for text, path in places.items()]

    mentioned: dict[str, list[Mention]] = {}
    for results in inventory.examine(urls, BRANCH, search) if suffixes else ():
        for name, mention in results:
            mentioned.setdefault(name, []).append(mention)
    return mentioned
