"""Where the files of a registry are: the stores that its database names, and what of them belongs to it."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mlops_build.adapters.storage.address import folder, place
from mlops_build.adapters.storage.place import NoPlace
from mlops_build.backup import manifest
from mlops_build.backup.manifest import Store
from mlops_build.errors import UsageError

# The server hands out these files itself; where it keeps them is a setting of the server, not in its database.
PROXY = re.compile(r"mlflow-artifacts:(?://[^/]*)?/*")
REFERENCE = re.compile(r"(?:models|runs):")
OTHER = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(?!//)(?<!file:)")


@dataclass
class Found:
    """stores: none is in another one. units: store and folder in it ("" is all of it). unseen: addresses that cannot be copied."""

    stores: list[Store] = field(default_factory=list)
    units: list[tuple[int, str]] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)

    def placed(self, uri: str | None) -> tuple[int, str] | None:
        """The store of a plain address, and the path in it."""
        for number, store in enumerate(self.stores):
            if uri is not None and _is_below(uri, store.uri):
                return number, uri[len(store.uri) + 1 :]
        return None


class Locations:
    """artifacts: the places that may be copied; the server's proxy keeps its files in the first one. is_embedded: no server, so that
    folders are the user's own; else a folder is read only if it is one of `artifacts`: whoever can make an experiment chooses its address.
    """

    def __init__(self, artifacts: Sequence[str], without: Sequence[str], *, is_embedded: bool) -> None:
        self._artifacts = [folder(uri).uri for uri in artifacts]
        plain = [uri for location in without if (uri := _uri(location))]
        self._without = [
            *(location.rstrip("/") for location in without),
            *plain,
            *(Path(uri).as_uri() for uri in plain if "://" not in uri),
        ]
        self._is_embedded = is_embedded

    def plain(self, location: str) -> str | None:
        """One spelling of an address; None if it refers to another address, or cannot be copied. Raises UsageError without --artifacts."""
        if match := PROXY.match(location):
            if not self._artifacts:
                raise UsageError(
                    f"the MLflow server keeps files itself ({location[:100]!a}), and its database does not say where",
                    remedy="add --artifacts URI: the value of the server's --artifacts-destination; or --without mlflow-artifacts:",
                )
            location = f"{self._artifacts[0]}/{location[match.end() :]}"
        if REFERENCE.match(location) or OTHER.match(location) or ".." in location.split("/") or not location.isprintable():
            return None
        uri = _uri(location)
        if not uri or not manifest.is_text(uri):
            return None
        is_listed = any(_is_below(uri, root) for root in self._artifacts)
        return uri if is_listed or (not self._artifacts and (self._is_embedded or "://" in uri)) else None

    def is_left_out(self, location: str) -> bool:
        """Whether people said --without for it."""
        return any(_is_below(location, root) for root in self._without)

    def found(self, locations: Iterable[str], also: Sequence[str]) -> Found:
        """locations: the experiments' first, so that their runs are in them."""
        plain: dict[str, str] = {}
        unseen: list[str] = []
        roots: set[str] = set()
        units: set[str] = set()
        for location in locations:
            if self.is_left_out(location):
                continue
            uri = self.plain(location)
            if uri is None:
                if not REFERENCE.match(location) and not any(_is_below(location, other) for other in unseen[:100]):
                    unseen.append(location)
                continue
            plain[location] = uri
            if not _has_above(uri, units):
                units.add(uri)
                above, _, last = uri.rpartition("/")
                roots.add(above if last.isdecimal() and above.rstrip("/").rpartition("/")[2] not in ("", "s3:") else uri)
        others = list(dict.fromkeys(folder(uri).uri for uri in also))
        found = Found([Store(uri, []) for uri in sorted(roots) if not _has_above(_above(uri), roots)], unseen=unseen)
        for location, uri in plain.items():
            number, path = found.placed(uri) or (0, "")
            store = found.stores[number]
            if not PROXY.match(location) and (spelling := _beginning(location, path)) not in store.spellings:
                if _uri(spelling) != store.uri:
                    found.unseen.append(location)
                    continue
                store.spellings.append(spelling)
            if uri in units and not _has_above(_above(uri), units):
                found.units.append((number, path))
        found.units = sorted(set(found.units))
        for uri in others:
            found.units.append((len(found.stores), ""))
            found.stores.append(Store(uri, [], is_registry=False))
        return found


def _uri(location: str) -> str | None:
    """The plain address; None where nothing can be."""
    try:
        return place(location).uri
    except (UsageError, NoPlace):
        return None


def _beginning(location: str, path: str) -> str:
    """An address without the folders of `path` at its end, as it is written: in a URI they may be quoted."""
    rest = location.rstrip("/")
    for _ in path.split("/") if path else ():
        while rest.rpartition("/")[2] in ("", ".") and rest:
            rest = rest.rpartition("/")[0]
        rest = rest.rpartition("/")[0]
    return rest.rstrip("/")


def _is_below(uri: str, root: str) -> bool:
    return uri == root or uri.startswith(f"{root}/")


def _above(uri: str) -> str:
    return uri.rpartition("/")[0]


def _has_above(uri: str, roots: set[str]) -> bool:
    """Whether it is one of the roots, or below one."""
    while uri:
        if uri in roots:
            return True
        uri = _above(uri)
    return False
