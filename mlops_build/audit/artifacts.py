"""The artifact stores: which versions' files are missing or altered, and which files belong to no run and no version."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from mlops_build.adapters.registry import RegisteredVersion, Registry, UnknownVersion
from mlops_build.adapters.storage.address import place as place_at
from mlops_build.adapters.storage.place import NoPlace, Place
from mlops_build.audit.known import Known, Say, below, label
from mlops_build.audit.listing import Orphans, objects
from mlops_build.audit.policy import finding
from mlops_build.errors import Refused, UsageError
from mlops_build.finding import Finding
from mlops_build.model import identity
from mlops_build.model.files import digest_of, file_digest_of
from mlops_build.release.history import span

# MLflow's logged models, which a version may name as its source; the audit does not know which of them exist.
LOGGED = re.compile(r"m-[0-9a-f]{32}")
# Of a run: what a script may delete as a whole.
UNIT = re.compile(r"((?:[0-9]+/)?([0-9a-f]{32})/artifacts)/.+")
RUN = re.compile(r"[0-9a-f]{32}")
# Of an experiment: those of traces, which are no runs.
TRACES = "traces"
MOST_UNITS = 200_000
# MLflow writes it when it loads a version from a folder.
META = "registered_model_meta"
# Clocks of the store and of the registry differ.
SLACK_MS = 600_000


@dataclass
class Held:
    """What a store lists of a version's files. large: those that its tag names, and that were not listed yet."""

    large: set[str]
    files: int = 0
    newest_ms: int = 0
    newest: str = ""
    has_model: bool = False

    def add(self, path: str, modified_ms: int) -> None:
        self.files += 1
        self.has_model |= path == "MLmodel"
        self.large.discard(path)
        if modified_ms > self.newest_ms and path != META:
            self.newest_ms, self.newest = modified_ms, path


@dataclass
class Store:
    """An artifact store that was listed. units: folder of an unknown run, or a file in one → its newest file, Unix time in ms.

    is_known: it has files of runs or versions of this registry.
    """

    place: Place
    endpoint: str | None
    units: dict[str, int] = field(default_factory=dict)
    is_known: bool = False


@dataclass
class Checked:
    findings: list[Finding] = field(default_factory=list)
    stores: list[Store] = field(default_factory=list)
    unseen: list[str] = field(default_factory=list)


def check(known: Known, released_runs: Collection[str], others: Collection[str], endpoint: str | None, say: Say) -> Checked:
    """List each store once. released_runs: of all releases. others: places in a store that are not the registry's, as DVC remotes."""
    checked = Checked()
    kept = set(known.runs) | set(released_runs)
    placed: dict[str, dict[str, list[RegisteredVersion]]] = {root: defaultdict(list) for root in known.roots}
    for version in known.versions:
        source = known.source(version)
        # Also where its run is erased, the address is another spelling of a known store's, or it is a copy of a deleted version.
        kept.update(RUN.findall(f"{version.run_id} {source}"))
        root = next((root for root in known.roots if below(source, root) is not None), None)
        logged = LOGGED.search(source) if source.startswith("models:") else None
        if root is not None:
            placed[root][str(below(source, root))].append(version)
        elif logged and len(known.roots) == 1:
            placed[known.roots[0]][logged[0]].append(version)
        elif logged or source.startswith("mlflow-artifacts:"):
            checked.unseen.append(f"the files of {label(version.name, version.version)}: it is not known which store has them")
        else:
            checked.findings.append(finding("source-unknown", label(version.name, version.version), source=ascii(source[:200])))
    for root, versions in placed.items():
        if root.startswith("mlflow-artifacts:"):
            checked.unseen.append("the files that the MLflow server hands out itself: name where it keeps them: --artifacts URI")
            continue
        try:
            inner = [path for other in [*others, *known.roots] if (path := below(other, root)) is not None]
            _list(Store(place_at(root, endpoint), endpoint), versions, kept, known.homes, inner, checked, say)
        except (NoPlace, UsageError) as error:
            checked.unseen.append(f"the artifact store {root}: {error.message}")
    return checked


def _list(
    store: Store,
    versions: dict[str, list[RegisteredVersion]],
    kept: set[str],
    homes: Collection[str],
    inner: list[str],
    checked: Checked,
    say: Say,
) -> None:
    held = {path: Held(_large(many)) for path, many in versions.items()}
    protected = {path[:end] for path in [*versions, *inner] for end in _ends(path)}
    orphans = Orphans("files-orphaned", store.place)
    for each in objects(store.place, inner, say):
        parts = each.path.split("/")
        owner = next((path for end in _ends(each.path) if (path := each.path[:end]) in held), None)
        logged = next((part for part in parts if LOGGED.fullmatch(part)), None)
        match = UNIT.fullmatch(each.path)
        if match and (owner or logged) and match[2] not in kept:
            protected.add(match[1])
        store.is_known |= bool(owner) or not kept.isdisjoint(parts)
        if owner:
            held[owner].add(each.path[len(owner) + 1 :], each.modified_ms)
        elif logged and logged in held:
            held[logged].add(each.path.partition(f"{logged}/")[2].removeprefix("artifacts/"), each.modified_ms)
        elif not logged and kept.isdisjoint(parts) and parts[1:2] != [TRACES]:
            orphans.add(parts[0] if len(parts) > 1 else "", each)
            # Another folder may be that of another MLflow.
            if match and store.place.shown(match[1]).rpartition(f"/{match[2]}/artifacts")[0] in homes:
                unit = each.path if match[1] in protected else match[1]
                if unit in store.units or len(store.units) < MOST_UNITS:
                    store.units[unit] = max(each.modified_ms, store.units.get(unit, 0))
    # What came after a folder was counted as a whole.
    store.units = {unit: newest for unit, newest in store.units.items() if unit not in protected}
    checked.stores.append(store)
    checked.findings += orphans.findings()
    if store.place.uri.startswith("/"):
        checked.findings.append(finding("single-copy-files", store.place.uri))
    links = [str(below(link, store.place.uri)) for link in store.place.left_out]
    checked.unseen += [f"what a symbolic link names: {ascii(store.place.shown(link))[1:-1]}" for link in links[:1]]
    for path, many in versions.items():
        is_linked = any(f"{path}/".startswith(f"{link}/") or link.startswith(f"{path}/") for link in links)
        for version in () if is_linked else many:
            checked.findings += _of_version(version, held[path], store.place.shown(path))


def _ends(path: str) -> Iterator[int]:
    """Where the folders around a path, and the path itself, end in it."""
    yield from (position for position, character in enumerate(path) if character == "/")
    yield len(path)


def _large(versions: list[RegisteredVersion]) -> set[str]:
    """The largest files of versions, which `mlops-build train` names in a tag."""
    names: set[str] = set()
    for version in versions:
        try:
            document = json.loads(version.tags.get(identity.LAYERS) or "{}")
            names |= {str(path) for path in document} if isinstance(document, dict) else set()
        except (ValueError, RecursionError):
            continue
    return names


def _of_version(version: RegisteredVersion, held: Held, source: str) -> Iterator[Finding]:
    subject = label(version.name, version.version)
    if not held.files:
        yield finding("files-missing", subject, what="all files are", source=ascii(source[:200]))
    elif missing := sorted(held.large) or ([] if held.has_model or identity.ARCHIVED in version.tags else ["MLmodel"]):
        yield finding("files-missing", subject, what=f"{missing[0][:100]!a} is", source=ascii(source[:200]))
    elif held.newest_ms > version.created_ms + SLACK_MS:
        age = span((held.newest_ms - version.created_ms) // 1000)
        yield finding("files-newer", subject, path=ascii(held.newest[:100]), age=age)


def deep(registry: Registry, known: Known, without: Collection[str], say: Say) -> tuple[list[Finding], list[str]]:
    """Read every file, and compare the digests. without: versions whose files are missing. Returns findings, and what was not read."""
    findings, unseen = [], []
    for number, version in enumerate(known.versions, start=1):
        subject, expected = label(version.name, version.version), version.tags.get(identity.DIGEST_TAG)
        if not expected or subject in without:
            continue
        try:
            entries = []
            for file in registry.files(version):
                with file.open() as content:
                    entries.append((file.path, file.size, file_digest_of(content)))
            if (actual := digest_of(entries)) != expected:
                findings.append(finding("files-altered", subject, why=f"their digest is {actual}, not {expected[:80]!a}"))
        except UnknownVersion as error:
            unseen.append(error.message)
        except Refused as error:
            findings.append(finding("files-altered", subject, why=error.message))
        if number % 100 == 0:
            say(f"{number:,} of {len(known.versions):,} versions read")
    return findings, unseen
