"""Register the files that people chose in adopt.csv. Running it again continues: nothing is registered twice.

Each file is copied, and the copy is hashed, examined and uploaded; then one request creates the version with its tags. A version without
code is archived: RegisteredVersion.checked refuses it, and with it promote, release, bridge, package and serve.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from mlops_build import __version__
from mlops_build.adapters.registry import Registry, RegistryUnreachable
from mlops_build.adapters.registry.adopted import create_run, delete_version
from mlops_build.adapters.storage.address import place
from mlops_build.adapters.storage.place import NoPlace, Place, StoredObject
from mlops_build.adopt import kind, servable, table
from mlops_build.adopt.listing import FAILURES, when
from mlops_build.adopt.servable import Code
from mlops_build.adopt.table import Row
from mlops_build.errors import MlopsBuildError, Refused
from mlops_build.model import files, identity
from mlops_build.tracking import SQLITE
from mlops_build.training.run import ARTIFACTS

EXPERIMENT = "adopted-models"
DOCUMENT, LINEAGE = "adopted.json", "lineage.json"
NO_CODE = "it was adopted without code"
REGISTERED, WOULD, EXISTS, REFUSED = "registered", "would be registered", "registered before", "refused"


@dataclass(frozen=True)
class Outcome:
    """What happened to a file. version: its URI in the registry, or empty. why: of a refusal."""

    file: str
    outcome: str
    version: str = ""
    why: str = ""

    def __str__(self) -> str:
        return f"{self.outcome}: {self.file}{' → ' * bool(self.version)}{self.version}{': ' * bool(self.why)}{self.why}"


def run(
    registry: Registry | None, rows: Iterable[Row], *, code: Code | None, endpoint_url: str | None, say: Callable[[str], None], yes: bool
) -> list[Outcome]:
    """Register the rows with the action adopt, or say what would be. code: makes them servable. Raises the errors of the registry.

    registry: None is an empty one, for what would be registered.
    """
    chosen = [row for row in rows if row.action == table.ADOPT]
    known = _settled(registry, say, delete=yes) if registry else {}
    places: dict[str, tuple[Place, dict[str, StoredObject]]] = {}
    outcomes: list[Outcome] = []
    failures = 0  # of the store, without a success in between
    for number, row in enumerate(chosen, 1):
        try:
            if row.source not in places:
                source = place(row.source, endpoint_url)
                wanted = {other.path for other in chosen if other.source == row.source}
                places[row.source] = source, {entry.path: entry for entry in source.objects() if entry.path in wanted}
            _check(row, places[row.source][1].get(row.path))
            if yes and code:
                say(f"[{number}/{len(chosen)}] {row.shown}: {code.path} is run")
            outcome = _registered(registry, places[row.source][0], row, known, code) if yes and registry else _planned(row, known, code)
            failures = 0
        except MlopsBuildError as error:
            failures += isinstance(error, NoPlace)
            if failures == FAILURES or isinstance(error, RegistryUnreachable):
                raise
            outcome = Outcome(row.shown, REFUSED, why=error.message)
        say(f"[{number}/{len(chosen)}] {outcome}")
        outcomes.append(outcome)
    if yes and registry:
        _settled(registry, lambda _: None, delete=True)
    return outcomes


def _check(row: Row, entry: StoredObject | None) -> None:
    """Raises Refused for a file that cannot be registered, before it is read."""
    if entry is None:
        raise Refused("it is no longer in the source")
    if not row.sha256 or row.kind in kind.NEVER:
        raise Refused(f"the kind is {row.kind}: {row.details}" if row.kind else "it was not read: list the source again")
    if (entry.size, when(entry)) != (row.size, row.modified):
        raise Refused("it changed after it was listed: list the source again")
    if row.until and date.fromisoformat(row.until) < datetime.now(UTC).date():
        raise Refused(f"its exception expired on {row.until}")


def _exception(row: Row, unsafe: str) -> dict[str, str]:
    """The tags of an exception, if the row has one. Raises Refused for an unsafe file without."""
    if not row.reason or not row.until:
        if unsafe:
            raise Refused(f"{unsafe}; to keep it nevertheless, fill in decided_by, reason and until (the last day of the exception)")
        return {}
    return {identity.EXCEPTION_BY: row.decided_by, identity.EXCEPTION_REASON: row.reason, identity.EXCEPTION_UNTIL: row.until}


def _planned(row: Row, known: dict[str, str], code: Code | None) -> Outcome:
    if row.sha256 in known and code is None:
        return Outcome(row.shown, EXISTS, known[row.sha256])
    _exception(row, row.details if row.details.startswith("unsafe: ") else "")
    known[row.sha256] = f"models:/{row.model}"
    return Outcome(row.shown, WOULD, known[row.sha256])


def _registered(registry: Registry, source: Place, row: Row, known: dict[str, str], code: Code | None) -> Outcome:
    if row.sha256 in known and code is None:
        return Outcome(row.shown, EXISTS, known[row.sha256])
    with tempfile.TemporaryDirectory(prefix="mlops-build-adopt-") as scratch:
        suffix = PurePosixPath(row.path).suffix.lower()
        file = Path(scratch) / f"weights{suffix if suffix.isascii() and suffix[1:].isalnum() and len(suffix) <= 16 else ''}"
        source.save(row.path, file)
        if files.file_digest(file) != row.sha256:
            raise Refused("its content changed after it was listed, and not its size and time: delete its row, and list the source again")
        examined = kind.examine(file, file.name)
        if examined.kind in kind.NEVER:
            raise Refused(f"the kind is {examined.kind}: {examined.details}")
        exception = _exception(row, f"unsafe: {examined.details}" if examined.unsafe else "")
        run_id = _run(registry, row.model)
        about = {**_about(row), "kind": examined.kind, "exception": exception}
        if code:
            made = servable.make(code, file, examined, row, bool(exception), Path(scratch))
            name, about = LINEAGE, servable.lineage(code, row.service or row.model, about, run_id)
        else:
            made, name = Path(scratch) / "version", DOCUMENT
            made.mkdir()
            file.rename(made / file.name)
        content = files.digest(made)
        if same := next((each for each in registry.versions(row.model) if each.tags.get(identity.CONTENT) == content), None):
            return Outcome(row.shown, EXISTS, same.uri)
        (made / name).write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
        digest = files.digest(made)
        address = registry.upload(run_id, made, f"versions/{digest.removeprefix('sha256:')[:12]}")
        shutil.rmtree(made)
    tags = {
        identity.ORIGIN: row.shown,
        identity.FILE_TAG: row.sha256,
        identity.KIND: examined.kind,
        identity.DECIDED_BY: row.decided_by,
        identity.DIGEST_TAG: digest,
        identity.CONTENT: content,
        identity.PACKAGE: __version__,
        **({identity.SERVICE: row.service} if row.service else {}),
        **({} if code else {identity.ARCHIVED: NO_CODE}),
        **exception,
    }
    version = registry.create_version(row.model, address, run_id, tags)
    known.setdefault(row.sha256, version.uri)
    return Outcome(row.shown, REGISTERED, version.uri)


def _about(row: Row) -> dict[str, Any]:
    return {
        "schema": 1,
        "origin": row.shown,
        "sha256": row.sha256,
        "size": row.size,
        "modified": row.modified,
        "decided_by": row.decided_by,
        "reason": row.reason,
    }


def _run(registry: Registry, model: str) -> str:
    """The run that has the files of the adopted versions of a model. Two processes at once may make two, which does no harm."""
    file = Path(registry.uri.removeprefix(SQLITE))
    experiment = registry.experiment(EXPERIMENT, file.absolute().parent / ARTIFACTS if registry.uri.startswith(SQLITE) else None)
    known = registry.find_run(EXPERIMENT, identity.RUN_ADOPTED, model)
    return known.run_id if known else create_run(registry, experiment, {identity.RUN_ADOPTED: model})


def _settled(registry: Registry, say: Callable[[str], None], *, delete: bool) -> dict[str, str]:
    """The URI of the first adopted version of each file. Of two of a model with the same content, which two processes made at once, the
    newer one is deleted, unless it has an alias; not one of another model, which MLflow may have copied. An expired exception is a remark.
    """
    known: dict[str, str] = {}
    contents: set[tuple[str, str, str]] = set()
    adopted = [version for version in registry.every_version() if identity.FILE_TAG in version.tags]
    for version in sorted(adopted, key=lambda version: (version.created_ms, version.name, version.version)):
        archived, content = version.tags.get(identity.ARCHIVED, ""), version.tags.get(identity.CONTENT, version.uri)
        key = (version.name, archived, version.tags[identity.FILE_TAG] if archived else content)
        ours = identity.COMMIT_TAG not in version.tags  # not one that a service registered with the weights of an adopted version
        if delete and ours and key in contents and version.version not in registry.aliases(version.name).values():
            delete_version(registry, version.name, version.version)
            say(f"{version.shown} was deleted: an older version has the same content")
            continue
        contents.add(key)
        known.setdefault(version.tags[identity.FILE_TAG], version.uri)
        if until := version.expired:
            say(f"{version.shown}: the exception of {version.tags.get(identity.EXCEPTION_BY, '')[:200]!a} expired on {until!a}")
    return known
