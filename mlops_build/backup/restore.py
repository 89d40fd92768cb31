"""Restore a backup into an empty place: the files first, then the database, with the addresses of the new place."""

import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from mlops_build.adapters.registry.dump import Sql, check_dump
from mlops_build.adapters.storage.address import folder as folder_at
from mlops_build.adapters.storage.folder import PART
from mlops_build.adapters.storage.place import NoPlace, Place
from mlops_build.backup import index as indexes
from mlops_build.backup import manifest
from mlops_build.backup.destination import Destination
from mlops_build.backup.index import Index
from mlops_build.backup.manifest import Copied, Manifest, Tampered
from mlops_build.errors import Refused, UsageError

Say = Callable[[str], None]
THREADS = 8
BATCH = 512
MARKER = ".mlops-build-restore"


@dataclass(frozen=True)
class Restored:
    """places: former address → where its files are now; "" for a place that was left out."""

    manifest: Manifest
    files: int
    places: dict[str, str]


def run(
    source: Destination, name: str | None, sql: Sql, artifacts: str, also: Mapping[str, str], endpoint: str | None, say: Say
) -> Restored:
    """Restore a backup, or go on with that after it was interrupted. also: former address → new one, of places beside the registry.

    Raises Refused if the database or a place is not empty, and Tampered for a damaged backup. The database is the last to be written.
    """
    state = sql.state()
    chosen = source.manifest(name or (state[0] if state else None))
    if sql.kind != chosen.kind:
        raise UsageError(
            f"backup {chosen.id} is one of {chosen.kind}, and {sql} is not", remedy="give a database of this kind: --database URI"
        )
    if state and state[0] != chosen.id:
        raise Refused(f"{sql}: backup {state[0]} is being restored into it", remedy=f"add --backup {state[0]}, or use an empty database")
    targets = _targets(chosen, artifacts, also, endpoint)
    if any(target and f"{target.uri}/".startswith(f"{source.place.uri}/") for target in targets):
        raise UsageError(f"{source.place.uri} has the backups", remedy="restore into another place: --artifacts URI")
    places = {store.uri: target.uri if target else "" for store, target in zip(chosen.stores, targets, strict=True)}
    if not (state and state[1]):
        with tempfile.TemporaryDirectory(prefix="mlops-build-restore-") as scratch, source.opened(chosen.database) as dump:
            if why := check_dump(chosen.kind, dump):
                raise Tampered(f"backup {chosen.id}: its database cannot be read: {why}", remedy="use another backup")
            _files(source, chosen, targets, Path(scratch), say)
            # A copy: the addresses are changed in it.
            source.place.save(f"objects/{chosen.database[:2]}/{chosen.database}", Path(scratch) / "dump")
            sql.load(Path(scratch) / "dump", chosen.id, _changes(chosen, targets))
    for target in targets:
        if target:
            target.delete(MARKER)
    sql.finish()
    return Restored(chosen, chosen.files, places)


def _targets(chosen: Manifest, artifacts: str, also: Mapping[str, str], endpoint: str | None) -> list[Place | None]:
    """Where each store goes: the registry's only one with files to `artifacts`, with those without; one of several to a folder in it."""
    others = {store.uri for store in chosen.stores if not store.is_registry}
    if unknown := set(also) - others:
        raise UsageError(
            f"backup {chosen.id} has no place {min(unknown)!a} beside the registry",
            remedy="see its places: mlops-build backup DEST --list --json",
        )
    names = [store.uri.rpartition("/")[2] for store in chosen.stores if store.is_registry]
    is_together = sum(store.files > 0 for store in chosen.stores if store.is_registry) <= 1
    targets: list[Place | None] = []
    for number, store in enumerate(chosen.stores):
        if not store.is_registry:
            targets.append(folder_at(also[store.uri]) if store.uri in also else None)
            continue
        is_plain = manifest.is_path(names[number]) and names.count(names[number]) == 1
        folder = names[number] if is_plain else str(number)
        targets.append(folder_at(artifacts if is_together else f"{artifacts.rstrip('/')}/{folder}", endpoint))
    return targets


def _changes(chosen: Manifest, targets: list[Place | None]) -> dict[str, str]:
    """The beginnings of addresses in the database: former → new."""
    changes: dict[str, str] = {}
    for store, target in zip(chosen.stores, targets, strict=True):
        if target:
            as_uri = target.uri if "://" in target.uri else Path(target.uri).as_uri()
            changes |= {spelling: as_uri if spelling.startswith("file:") else target.uri for spelling in store.spellings}
    return changes


def _files(source: Destination, chosen: Manifest, targets: list[Place | None], scratch: Path, say: Say) -> None:
    uris = [store.uri for store in chosen.stores]
    with (
        indexes.opened(scratch, "wanted") as wanted,
        indexes.opened(scratch, "present") as present,
        source.opened(chosen.listing) as listing,
    ):
        wanted.add(manifest.lines(listing, chosen), uris)
        for store, target in zip(chosen.stores, targets, strict=True):
            if target and store.files:
                _begin(chosen, store.uri, target, wanted, present, scratch)

        def write(entry: Copied) -> None:
            target = targets[entry.store]
            if target and present.size(uris[entry.store], entry.path) is None:
                with source.opened(entry.sha256) as file:
                    target.put(entry.path, file)

        done = 0
        entries = manifest.lines(listing, chosen)
        with ThreadPoolExecutor(THREADS) as pool:
            while batch := list(islice(entries, BATCH)):
                done += len(list(pool.map(write, batch)))
                say(f"{done:,} of {chosen.files:,} files")


def _begin(chosen: Manifest, uri: str, target: Place, wanted: Index, present: Index, scratch: Path) -> None:
    """Mark an empty place; find what an interrupted restore of this backup has written. Raises Refused for other files."""
    is_folder = "://" not in target.uri
    if is_folder:
        try:
            Path(target.uri).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NoPlace(f"{target.uri}: {error.strerror}", remedy="restore into another place: --artifacts URI") from None
    try:
        begun = target.read(MARKER, 64).decode(errors="replace")
    except NoPlace:
        begun = ""
    is_marked = begun == chosen.id
    if manifest.ID.fullmatch(begun) and not is_marked:
        raise Refused(f"{target.uri}: backup {begun} is being restored into it", remedy=f"add --backup {begun}, or use an empty place")
    for entry in target.objects():
        if is_marked and entry.path == MARKER:
            continue
        is_part = is_folder and entry.path.rpartition("/")[2].startswith(PART)
        if not is_marked or not (is_part or wanted.size(uri, entry.path) == entry.size):
            raise Refused(f"{target.uri} is not empty: it has {entry.path[:200]!a}", remedy="restore into an empty place: --artifacts URI")
        if is_part:
            target.delete(entry.path)
        else:
            present.add([Copied(0, entry.path, entry.size, "", "")], [uri])
    if not is_marked:
        (scratch / "marker").write_text(chosen.id)
        target.put(MARKER, scratch / "marker")
