"""Make a backup: the database first, then every file that it names. Files that are known by place, size and time are not read again."""

import gzip
import json
import re
import secrets
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path

from mlops_build import __version__
from mlops_build.adapters.registry.dump import Dumped, Sql
from mlops_build.adapters.storage.address import place
from mlops_build.adapters.storage.place import NoPlace, Place, StoredObject
from mlops_build.backup import index as indexes
from mlops_build.backup import manifest
from mlops_build.backup.destination import Destination
from mlops_build.backup.index import Index
from mlops_build.backup.manifest import Copied, Manifest, Tampered
from mlops_build.backup.places import Found, Locations
from mlops_build.errors import Refused
from mlops_build.finding import Finding
from mlops_build.model.files import digest_of, file_digest
from mlops_build.model.identity import DIGEST_TAG

Say = Callable[[str], None]
THREADS = 8
BATCH = 512
MOUNT = "mount the disk, or check the bucket, and back up again; if it is gone: --without URI"
LINK = "replace a link by the file or folder that it names"
# MLflow writes it when it loads a version from a folder; it is not a part of the version.
META = "registered_model_meta"
REMEDY = (
    "train it again, or restore an older backup into an empty folder and copy its files from there:"
    " mlops-build restore DEST --backup ID --database sqlite:///EMPTY/mlflow.db --artifacts EMPTY/mlartifacts"
)


@dataclass
class Made:
    """A backup that was made. new, sent: objects that the destination did not have, and their bytes. reused: files that were not read."""

    manifest: Manifest
    new: int = 0
    sent: int = 0
    reused: int = 0
    findings: list[Finding] = field(default_factory=list)


@dataclass
class Making:
    """What the steps of one backup share. known: files of the backup before. taken: files of this one."""

    destination: Destination
    name: str
    folder: Path
    known: Index
    taken: Index
    made: Made
    say: Say
    lock: threading.Lock = field(default_factory=threading.Lock)


def run(destination: Destination, sql: Sql, locations: Locations, also: Sequence[str], endpoint: str | None, say: Say) -> Made:
    """Copy the database and its files into `destination`. Nothing is a backup before the manifest, which is written last.

    also: places beside the registry. endpoint: the S3 gateway of the registry's files.
    """
    now = datetime.now(UTC)
    name = f"{now:%Y%m%dT%H%M%S}{now.microsecond // 1000:03}Z-{secrets.token_hex(4)}"
    newest = next(iter(destination.names()[-1:]), "")
    if not manifest.ID.fullmatch(name) or newest > f"{now + timedelta(hours=1):%Y%m%dT%H%M%S}":
        after = f", and backup {newest} is after it" if newest > name else ", and backups are sorted by time"
        remedy = f"set the clock{f', or delete backups/{newest}.json in DEST' if newest > name else ''}"
        raise Refused(f"the clock of this machine is at {now:%Y-%m-%d %H:%M}{after}", remedy=remedy)
    with tempfile.TemporaryDirectory(prefix="mlops-build-backup-") as scratch, destination.running(name):
        folder = Path(scratch)
        dumped = sql.dump(folder / "dump", DIGEST_TAG)
        found = locations.found(dumped.locations, also)
        copied = [f"{found.stores[number].uri}/{path}".rstrip("/") for number, path in found.units]
        if around := [uri for uri in copied if _is_in(destination.place.uri, uri)]:
            remedy = f"back up to another place, or leave this one out: --without {around[0]}"
            raise Refused(f"{destination.place.uri} is in {around[0]}, which is copied", remedy=remedy)
        say(f"database: {len(dumped.versions):,} versions, {len(found.stores)} places with files")
        blank = Manifest(name, __version__, _mlflow(), dumped.schema, sql.kind, "", "", 0, 0, found.stores, [])
        with indexes.opened(folder, "known") as known, indexes.opened(folder, "taken") as taken:
            making = Making(destination, name, folder, known, taken, Made(blank), say)
            known.hold((entry.path.rpartition("/")[2], entry.size) for entry in destination.held())
            _remember(making)
            _copy(making, found, endpoint)
            made = making.made
            made.findings = [*_unseen(found), *_damaged(making, dumped, locations, found)]
            damaged = sorted({ascii(finding.subject)[1:-1][:1000] for finding in made.findings})[:1000]
            database, listing = (_store(making, folder / each, is_checked=True)[0] for each in ("dump", "list"))
            made.manifest = replace(made.manifest, database=database, listing=listing, damaged=damaged)
            destination.save(made.manifest)
    return made


def _is_in(uri: str, store: str) -> bool:
    """Whether a place is in another one, also behind symbolic links."""
    if "://" in uri or "://" in store:
        return f"{uri}/".startswith(f"{store}/")
    return Path(uri).resolve().is_relative_to(Path(store).resolve())


def _remember(making: Making) -> None:
    """Read the list of the newest backup that can be read."""
    for name in reversed(making.destination.names()):
        try:
            before = making.destination.manifest(name)
            with making.destination.opened(before.listing) as file:
                making.known.add(manifest.lines(file, before), [store.uri for store in before.stores])
        except (Tampered, NoPlace) as error:
            making.say(f"not used: {error.message}")
            continue
        return


def _copy(making: Making, found: Found, endpoint: str | None) -> None:
    uris = [store.uri for store in found.stores]
    count = size = 0
    files = [0] * len(uris)
    told = time.monotonic()
    with gzip.GzipFile(making.folder / "list", "wb", 6, mtime=0) as listing, ThreadPoolExecutor(THREADS) as pool:
        places = [place(store.uri, endpoint if store.is_registry else None) for store in found.stores]
        for number, path in found.units:
            at = places[number]
            objects = _objects(at, path, may_be_missing=found.stores[number].is_registry)
            while batch := list(islice(objects, BATCH)):
                copied = [entry for entry in pool.map(partial(_file, making, at, number), batch) if entry]
                making.taken.add(copied, uris)
                files[number] += len(copied)
                for entry in copied:
                    listing.write(f"{json.dumps(astuple(entry))}\n".encode())
                    count, size = count + 1, size + entry.size
                if time.monotonic() - told > 5:
                    told = time.monotonic()
                    making.say(f"{count:,} files, {size / 1e6:,.0f} MB; {making.made.sent / 1e6:,.0f} MB sent")
    for path in (path for at in places for path in at.left_out):
        making.made.findings.append(Finding(ascii(path)[1:-1], "not-copied", "it is a symbolic link, or not a file", LINK))
    stores = [replace(store, files=many) for store, many in zip(found.stores, files, strict=True)]
    making.made.manifest = replace(making.made.manifest, stores=stores, files=count, size=size)


def _objects(at: Place, path: str, *, may_be_missing: bool = True) -> Iterator[StoredObject]:
    if may_be_missing and "://" not in at.uri and not Path(at.uri).exists():
        return iter(())  # of an experiment without runs; _damaged looks whether there were files before
    return at.objects(path)


def _file(making: Making, at: Place, number: int, entry: StoredObject) -> Copied | None:
    """Copy one file, unless its content is there already; None if it has been deleted since it was listed."""
    making.destination.renew(f"running/{making.name}")
    if not manifest.is_path(entry.path):
        making.made.findings.append(
            Finding(ascii(at.shown(entry.path))[1:-1], "not-copied", "its path is not a plain one", "rename this file")
        )
        return None
    stamp = f"{entry.modified_ms}-{entry.md5 or ''}"
    sha256 = making.known.sha256(at.uri, entry.path, entry.size, stamp)
    if sha256 and making.known.holds(sha256, entry.size):
        making.made.reused += 1
        return Copied(number, entry.path, entry.size, sha256, stamp)
    with tempfile.TemporaryDirectory(dir=making.folder) as scratch:
        try:
            at.save(entry.path, Path(scratch) / "file")
        except NoPlace:
            above = entry.path.rpartition("/")[0]
            if any(each.path == entry.path for each in _objects(at, above)):
                raise
            return None
        sha256, size = _store(making, Path(scratch) / "file")
    # A file that was changed meanwhile is read again by the next backup.
    return Copied(number, entry.path, size, sha256, stamp if size == entry.size else "0")


def _store(making: Making, file: Path, *, is_checked: bool = False) -> tuple[str, int]:
    """is_checked: also read an object that is there already; without it nothing of the backup can be used."""
    sha256, size = file_digest(file), file.stat().st_size
    with making.lock:  # another thread may have a file with the same content
        is_new = not making.known.holds(sha256, size) or (is_checked and making.destination.wrong(sha256) is not None)
        if is_new:
            making.known.hold([(sha256, size)])
            making.made.new += 1
            making.made.sent += size
    if is_new:
        making.destination.put(file, sha256)
    return sha256, size


def _unseen(found: Found) -> Iterator[Finding]:
    for location in found.unseen[:100]:
        yield Finding(
            ascii(location[:200])[1:-1],
            "not-copied",
            "files at this address were not copied",
            "add --artifacts URI, or leave it out: --without URI",
        )


def _damaged(making: Making, dumped: Dumped, locations: Locations, found: Found) -> Iterator[Finding]:
    yield from making.made.findings
    for uri in (store.uri for store in found.stores):
        if making.known.has(uri) and not making.taken.has(uri):
            yield Finding(uri, "no-files", "the backup before has files of this place, and now none is there", MOUNT)
    for name, number, source, digest in dumped.versions:
        if locations.is_left_out(source):
            continue
        at = found.placed(locations.plain(source))
        files = making.taken.below(found.stores[at[0]].uri, at[1]) if at else []
        subject = f"models:/{re.sub(r'[^ -~]', '?', name[:200])}/{number}"
        if not files:
            yield Finding(subject, "no-files", "none of its files was found", REMEDY)
        elif digest and digest not in (digest_of(files), digest_of(file for file in files if file[0] != META)):
            yield Finding(subject, "files-altered", "its files are not those that were registered", REMEDY)


def _mlflow() -> str:
    for package in ("mlflow", "mlflow-skinny"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    return "unknown"
