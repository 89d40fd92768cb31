"""The manifest of a backup, written last: a backup without one does not exist. Everything in it is checked before it is used."""

import gzip
import hashlib
import hmac
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from mlops_build.adapters.registry.dump import POSTGRESQL, SQLITE
from mlops_build.errors import Refused, UsageError

FORMAT = 1
# UTC to the millisecond, so that they sort by time.
ID = re.compile(r"20[0-9]{6}T[0-9]{9}Z-[0-9a-f]{8}")
SHA256 = re.compile(r"[0-9a-f]{64}")
SCHEMA = re.compile(r"[0-9a-f]{6,40}")
STAMP = re.compile(r"[0-9a-z-]{1,64}")
MOST_BYTES = 1 << 24
LINE = 1 << 16
# In a path. Surrogates are the bytes of a name that is not UTF-8.
ODD = re.compile(r"[\0\\\ud800-\udfff]")
KEY = "MLOPS_BUILD_BACKUP_KEY"


class Tampered(Refused):
    """A backup that is damaged, or was changed by somebody."""


@dataclass(frozen=True)
class Store:
    """A place that was copied. spellings: how the database writes it. is_registry: false for a place beside the registry (--also).

    files: how many.
    """

    uri: str
    spellings: list[str]
    is_registry: bool = True
    files: int = 0


@dataclass(frozen=True)
class Copied:
    """A file of a store, by its number. stamp: what the store's list said of its content: time of change and MD5."""

    store: int
    path: str
    size: int
    sha256: str
    stamp: str


@dataclass(frozen=True)
class Manifest:
    """database, listing: SHA-256 of the dump, and of the list of files. files, size: how many, and their bytes. damaged: versions whose
    files were not those that were registered.
    """

    id: str
    mlops_build: str
    mlflow: str
    schema: str
    kind: str
    database: str
    listing: str
    files: int
    size: int
    stores: list[Store]
    damaged: list[str]


def key() -> bytes | None:
    """The key of MLOPS_BUILD_BACKUP_KEY, or of the file that MLOPS_BUILD_BACKUP_KEY_FILE names. Raises UsageError for a short one."""
    text = os.environ.get(KEY, "").encode()
    if file := os.environ.get(f"{KEY}_FILE"):
        try:
            text = Path(file).read_bytes().strip()
        except OSError as error:
            raise UsageError(f"{KEY}_FILE: {file}: {error.strerror}", remedy="check the path, and who may read it") from None
    if (text or file) and len(text) < 16:
        raise UsageError(f"{KEY} has fewer than 16 bytes", remedy="openssl rand -hex 32 makes a good key")
    return text or None


def written(manifest: Manifest, secret: bytes | None) -> bytes:
    """Raises Refused for one that could not be read."""
    if not _is_valid(manifest):
        raise Refused("this backup would have a manifest that is not valid", remedy="report this with the addresses of your experiments")
    document = {"format": FORMAT, **asdict(manifest)}
    return json.dumps({**document, **_seals(document, secret)}, indent=1).encode()


def read(content: bytes, name: str, secret: bytes | None) -> Manifest:
    """The manifest of the backup `name`. Raises Tampered."""
    try:
        document = json.loads(content)
        digest, code = document.pop("digest"), document.pop("hmac", None)
        if document["format"] != FORMAT:
            raise Tampered(
                f"backup {name} has format {document['format']!a}", remedy="restore it with the release of mlops-build that wrote it"
            )
        seals = _seals(document, secret)
        if digest != seals["digest"]:
            raise _tampered(name, "its manifest is not the one that was written")
        if secret and not hmac.compare_digest(str(code).encode(), seals["hmac"].encode()):
            raise _tampered(name, f"its manifest is not signed with the key of {KEY}")
        stores = [Store(**store) for store in document.pop("stores")]
        manifest = Manifest(stores=stores, **{field: value for field, value in document.items() if field != "format"})
        if not _is_valid(manifest) or manifest.id != name:
            raise _tampered(name, "its manifest is not valid")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _tampered(name, "its manifest is not valid") from error
    return manifest


def lines(file: Path, manifest: Manifest) -> Iterator[Copied]:
    """The files of a backup, from its list. Raises Tampered; no path leads out of the place that it is joined to."""
    try:
        with gzip.open(file, "rb") as content:
            for _ in range(manifest.files):
                entry = Copied(*json.loads(content.readline(LINE)))
                numbers = isinstance(entry.store, int) and isinstance(entry.size, int)
                if not (numbers and 0 <= entry.store < len(manifest.stores) and 0 <= entry.size < 1 << 60 and is_path(entry.path)):
                    raise _tampered(manifest.id, f"its list has {entry.path!a}")
                if not (SHA256.fullmatch(entry.sha256) and STAMP.fullmatch(entry.stamp)):
                    raise _tampered(manifest.id, "its list is not valid")
                yield entry
            if content.read(1):
                raise _tampered(manifest.id, "its list has more files than its manifest")
    except (ValueError, TypeError, OSError, EOFError, RecursionError) as error:
        raise _tampered(manifest.id, "its list is not valid") from error


def is_path(path: str) -> bool:
    """Whether this is a plain path below a folder, which every store writes in the same way."""
    parts = PurePosixPath(path).parts
    return bool(path) and ".." not in parts and not path.startswith("/") and path == "/".join(parts) and not ODD.search(path)


def is_text(text: str) -> bool:
    """Whether a manifest can have it."""
    return isinstance(text, str) and 0 < len(text) < 2000 and text.isprintable()


def _is_valid(manifest: Manifest) -> bool:
    texts = [manifest.mlops_build, manifest.mlflow, *manifest.damaged]
    texts += [text for store in manifest.stores for text in (store.uri, *store.spellings)]
    numbers = [manifest.files, manifest.size, *(store.files for store in manifest.stores)]
    return (
        all(map(is_text, texts))
        and all(isinstance(store.is_registry, bool) for store in manifest.stores)
        and all(isinstance(number, int) and 0 <= number < 1 << 60 for number in numbers)
        and bool(ID.fullmatch(manifest.id) and SCHEMA.fullmatch(manifest.schema))
        and bool(SHA256.fullmatch(manifest.database) and SHA256.fullmatch(manifest.listing))
        and manifest.kind in (SQLITE, POSTGRESQL)
    )


def _seals(document: dict[str, Any], secret: bytes | None) -> dict[str, str]:
    content = json.dumps(document, sort_keys=True).encode()
    seals = {"digest": hashlib.sha256(content).hexdigest()}
    return {**seals, "hmac": hmac.new(secret, content, "sha256").hexdigest()} if secret else seals


def _tampered(name: str, why: str) -> Tampered:
    return Tampered(
        f"backup {name}: {why}", remedy=f"use another backup: mlops-build backup DEST --list; or delete backups/{name}.json there"
    )
