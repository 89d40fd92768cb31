"""Check a backup, and delete old ones."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from mlops_build.adapters.registry.dump import check_dump
from mlops_build.adapters.storage.folder import PART
from mlops_build.adapters.storage.place import NoPlace
from mlops_build.backup import index as indexes
from mlops_build.backup import manifest
from mlops_build.backup.destination import AGAIN, PRUNING_MS, Destination
from mlops_build.backup.manifest import Manifest, Tampered
from mlops_build.errors import Refused
from mlops_build.finding import Finding

Say = Callable[[str], None]
THREADS = 8
BATCH = 512
# An object without a backup can be that of one that was interrupted and will be completed.
GRACE_SECONDS = 24 * 3600
REMEDY = "back up again, which copies what the registry still has; or use another copy of the backups"


@dataclass(frozen=True)
class Checked:
    """findings: what is missing or has another content. read: objects that were read."""

    manifest: Manifest
    findings: list[Finding]
    read: int


def verify(destination: Destination, name: str | None, sample: int | None, say: Say) -> Checked:
    """Check the manifest, the database, and whether every file is there; read `sample` of them, or all. Raises Tampered."""
    chosen = destination.manifest(name)
    findings = []
    with tempfile.TemporaryDirectory(prefix="mlops-build-verify-") as scratch, indexes.opened(Path(scratch), "index") as index:
        index.hold((entry.path.rpartition("/")[2], entry.size) for entry in destination.held())
        with destination.opened(chosen.listing) as listing:
            entries = manifest.lines(listing, chosen)
            while batch := list(islice(entries, BATCH)):
                missing = [entry for entry in batch if not index.holds(entry.sha256, entry.size)]
                for entry in missing:
                    findings.append(Finding(entry.path, "missing", f"there is no object {entry.sha256} of {entry.size} bytes", REMEDY))
                index.add(sorted(set(batch) - set(missing), key=lambda entry: entry.path), [store.uri for store in chosen.stores])
        try:
            with destination.opened(chosen.database) as dump:
                if why := check_dump(chosen.kind, dump):
                    findings.append(Finding("the database", "unreadable", f"its dump cannot be read: {why}", REMEDY))
        except (Tampered, NoPlace) as error:
            findings.append(Finding("the database", "altered", error.message, AGAIN))
        read, contents = 0, index.contents(sample)
        with ThreadPoolExecutor(THREADS) as pool:
            while pairs := list(islice(contents, BATCH)):
                for (_, path), wrong in zip(pairs, pool.map(destination.wrong, (sha256 for sha256, _ in pairs)), strict=True):
                    findings += [Finding(path, "altered", wrong.message, AGAIN)] if wrong else []
                read += len(pairs)
                say(f"{read:,} contents read")
    return Checked(chosen, findings, read)


@dataclass(frozen=True)
class Pruned:
    """backups: deleted ones. objects, size: deleted contents, and their bytes."""

    backups: list[str]
    objects: int = 0
    size: int = 0

    def __str__(self) -> str:
        return f"deleted {len(self.backups)} old backups, and {self.objects:,} objects with {self.size / 1e6:,.1f} MB"


def prune(destination: Destination, keep: int | None, days: int | None, say: Say) -> Pruned:
    """Delete the backups that are neither one of the newest `keep` nor younger than `days`, then what no other one needs.

    The newest backup, and the newest one without damaged versions, are always kept. Raises Tampered if a manifest cannot be read: what
    it needs is not known.
    """
    manifests = [destination.manifest(name) for name in destination.names()]
    limit = time.time() - days * 86400 if days is not None else float("inf")
    kept = {made.id for made in (manifests[-keep:] if keep else manifests[-1:])}
    kept |= {made.id for made in manifests if days is not None and taken_at(made.id).timestamp() > limit}
    kept |= {made.id for made in [made for made in manifests if not made.damaged][-1:]}
    old = [made.id for made in manifests if made.id not in kept]
    if not old:
        return Pruned([])
    with tempfile.TemporaryDirectory(prefix="mlops-build-prune-") as scratch, destination.pruning() as (marker, running):
        if running:
            say(f"nothing is deleted: {running[0]} is being written or deleted, or was killed in the last six hours")
            return Pruned([])
        for name in old:
            destination.place.delete(f"backups/{name}.json")
        with indexes.opened(Path(scratch), "index") as index:
            for made in (made for made in manifests if made.id in kept):
                with destination.opened(made.listing) as listing:
                    index.hold((entry.sha256, 0) for entry in manifest.lines(listing, made))
                index.hold([(made.database, 0), (made.listing, 0)])
                destination.renew(marker)
            return _delete(destination, index, old, marker)


def _delete(destination: Destination, index: indexes.Index, old: list[str], marker: str) -> Pruned:
    count = size = 0
    oldest = (time.time() - GRACE_SECONDS) * 1000
    renewed = time.monotonic()
    for entry in destination.place.objects("objects"):
        name = entry.path.rpartition("/")[2]
        is_object = bool(manifest.SHA256.fullmatch(name))
        if entry.modified_ms > oldest or index.holds(name, 0) or not (is_object or name.startswith(PART)):
            continue
        if time.monotonic() - renewed > PRUNING_MS / 1000:
            raise Refused(f"{destination.place.uri} answers too slowly to delete safely", remedy="run it again: it continues")
        destination.renew(marker)
        renewed = time.monotonic()
        destination.place.delete(entry.path)
        count, size = count + 1, size + entry.size
    return Pruned(old, count, size)


def taken_at(name: str) -> datetime:
    return datetime.strptime(name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
