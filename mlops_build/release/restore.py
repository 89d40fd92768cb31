"""Roll back with Git alone, while MLflow is down: restore the previous release in Git, and hold the environment.

Without the hold, the bridge would release the bad version again as soon as MLflow answers, because Git and the alias differ.
"""

from dataclasses import dataclass
from typing import NamedTuple

from mlops_build.adapters.git.objects import Identity, Objects
from mlops_build.errors import MlopsBuildError, Refused
from mlops_build.model.identity import COMMIT
from mlops_build.release import hold as holds
from mlops_build.release import protected
from mlops_build.release import record as records
from mlops_build.release.past import values
from mlops_build.release.protected import Land, Landed
from mlops_build.release.record import Record
from mlops_build.release.tree import recorded, service_at

# How many releases are looked at.
MOST = 200


class NothingBefore(Refused):
    """Git has no release of this environment before the one it has now."""


class _Release(NamedTuple):
    """A release in Git. files: the id of its folder. models: with versions; empty if nothing was released, or it cannot be read."""

    commit: str
    files: str | None
    models: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Restored:
    """A commit that restores a release and holds its environment. before: None if the record in Git could not be read.

    is_broken: service.yaml cannot be read.
    """

    before: Record | None
    after: Record
    hold: str
    commit: str
    is_broken: bool


def roll_back(land: Land, env: str, reason: str | None = None) -> tuple[Restored, Landed]:
    """Land what `restore` creates. Raises its errors, and those of `land`."""
    made: list[Restored] = []

    def make(objects: Objects, head: str) -> str:
        made.append(restore(objects, head, env, reason))
        return made[-1].commit

    landed = land(f"rollback/{env}", make)
    return made[-1], landed


def restore(objects: Objects, head: str, env: str, reason: str | None = None, *, author: Identity | None = None) -> Restored:
    """Create the commit on top of `head`; no ref is moved. Needs the history; service.yaml may be broken. Raises NothingBefore, NotFound.

    author: of a deterministic commit; default: the configured one, now.
    """
    is_broken = not protected.check_environment(objects, head, env)
    source = earlier(objects, head, env)
    before, after = recorded(objects, head, env), recorded(objects, source, env)
    if after is None:
        raise NothingBefore(f"the release record of {env} at {source[:12]} cannot be read")
    folder = records.folder(env)
    default = f"rolled back from Git to {after}" + (f" (was {before})" if before else "")
    release = {path: objects.read(source, path) or b"" for path in objects.files(source, folder)}
    hold = holds.begin(reason or default[: holds.WHY_LENGTH], author or objects.signs_as(), records.digest(release))
    files: dict[str, bytes | None] = {**dict.fromkeys(objects.files(head, folder)), **release}
    files |= holds.changes(objects, head, env, hold)
    message = protected.git_settings(objects, head).subject(_message(env, before, after, source, hold.why if reason else None))
    commit = objects.commit(head, files, message, author)
    if commit is None:
        raise NothingBefore(f"{env} has this release and this hold already")
    return Restored(before, after, hold.why, commit, is_broken)


def earlier(objects: Objects, head: str, env: str) -> str:
    """The commit, along first parents, with the release of `env` to go back to. Raises NothingBefore.

    A release that goes back to an earlier one takes back those in between: so two rollbacks go two releases back, and none goes forward
    to a release that was rolled back.
    """
    folder = records.folder(env)
    kept: list[_Release] = []  # those that were not taken back, oldest first
    for commit in reversed(objects.log(head, folder)[:MOST]):
        record = recorded(objects, commit, env)
        release = _Release(commit, objects.tree(commit, folder), record.numbers if record else ())
        files = [each.files for each in kept]
        if release.files in files:
            del kept[files.index(release.files) + 1 :]
            continue
        models = [each.models for each in kept]
        if release.models and release.models in models and release.models != models[-1]:
            del kept[models.index(release.models) :]
        kept.append(release)
    for release in reversed(kept[:-1]):
        if release.models:
            return release.commit
    more = " (this clone is shallow: git fetch --unshallow)" if objects.is_shallow() else ""
    raise NothingBefore(
        f"Git has no earlier release of {env} to go back to, apart from those that were taken back{more}",
        remedy=f"when MLflow answers: mlops-build rollback MODEL --env {env}; to stop the service now: {_stop(objects, head, env)}",
    )


def _stop(objects: Objects, head: str, env: str) -> str:
    try:
        service = service_at(objects, head)
        name, namespace = service.name, service.environment(env).namespace
    except MlopsBuildError:
        name, namespace = "NAME", "NAMESPACE"
    return f"kubectl --namespace {namespace} scale deployment {name} --replicas=0"


def source_of(objects: Objects, head: str, env: str) -> str | None:
    """The commit from which the release of `env` was restored; None if its last change, or what that merged, did not restore it."""
    changed = objects.log(head, records.folder(env))[:1]
    merged = [parent for commit in changed for parent in objects.parents(commit)[1:]]
    named = [source for commit in [*changed, *merged] for source in values(objects.message(commit), "Restores")]
    return next((source for source in named if COMMIT.fullmatch(source)), None)


def _message(env: str, before: Record | None, after: Record, source: str, why: str | None) -> str:
    trailers = []
    for model in after.models:
        trailers += [
            f"Model: {model.name}",
            f"Version: {model.version}",
            f"Run: {model.run}",
            f"Previous-Version: {(before.version_of(model.name) if before else None) or 'none'}",
        ]
    return "\n".join(
        [
            f"Roll {env} back to {after}",
            "",
            f"The release that Git had before, and a hold in {holds.file(env)}: the bridge leaves {env} alone until it is removed.",
            "",
            *trailers,
            f"Code: {after.commit}",
            f"Restores: {source}",
            *([f"Why: {why}"] if why else []),
            "",
        ]
    )
