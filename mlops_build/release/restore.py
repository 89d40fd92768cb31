"""Roll back with Git alone, while MLflow is down: restore the previous release in Git, and hold the environment.

Without the hold, the bridge would release the bad version again as soon as MLflow answers, because Git and the alias differ.
"""

from dataclasses import dataclass

from mlops_build.adapters.git.objects import Identity, Objects
from mlops_build.errors import Refused
from mlops_build.model.identity import COMMIT
from mlops_build.release import hold as holds
from mlops_build.release import protected
from mlops_build.release import record as records
from mlops_build.release.past import values
from mlops_build.release.protected import Land, Landed
from mlops_build.release.record import Record
from mlops_build.release.tree import recorded


class NothingBefore(Refused):
    """Git has no release of this environment before the one it has now."""


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
    message = protected.git_settings(objects, head).subject(_message(env, before, after, source))
    commit = objects.commit(head, files, message, author)
    if commit is None:
        raise NothingBefore(f"{env} has this release and this hold already")
    return Restored(before, after, hold.why, commit, is_broken)


def earlier(objects: Objects, head: str, env: str) -> str:
    """The commit, along first parents, with the previous release of `env`. Raises NothingBefore.

    A restored release counts as the original one, so that two rollbacks go two releases back.
    """
    folder = records.folder(env)
    present = objects.tree(head, folder)
    start = head
    for _ in range(1000):
        source = source_of(objects, start, env)
        if source is None or objects.tree(source, folder) != present:
            break
        start = source
    for commit in objects.log(start, folder):
        if objects.tree(commit, folder) in (present, None):
            continue
        release = recorded(objects, commit, env)
        if release is not None and release.models:
            return commit
    more = " (this clone is shallow: git fetch --unshallow)" if objects.is_shallow() else ""
    raise NothingBefore(
        f"Git has no earlier release of {env} to go back to{more}",
        remedy="when MLflow answers: mlops-build rollback MODEL --env ENV; to stop the service now: kubectl scale deployment --replicas=0",
    )


def source_of(objects: Objects, head: str, env: str) -> str | None:
    """The commit from which the release of `env` was restored; None if its last change, or what that merged, did not restore it."""
    changed = objects.log(head, records.folder(env))[:1]
    merged = [parent for commit in changed for parent in objects.parents(commit)[1:]]
    named = [source for commit in [*changed, *merged] for source in values(objects.message(commit), "Restores")]
    return next((source for source in named if COMMIT.fullmatch(source)), None)


def _message(env: str, before: Record | None, after: Record, source: str) -> str:
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
            "",
        ]
    )
