"""Roll back with Git alone, while MLflow is down: restore the previous release in Git, and hold the environment.

Without the hold, the bridge would release the bad version again as soon as MLflow answers, because Git and the alias differ.
"""

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from mlops_build.adapters.git.mirror import Mirror
from mlops_build.adapters.git.objects import Identity, Objects
from mlops_build.errors import NotFound, Refused
from mlops_build.release import hold as holds
from mlops_build.release import record as records
from mlops_build.release.record import Record
from mlops_build.release.write import checkout_of, land, recorded, service_at
from mlops_build.service import ServiceError

RESTORES = re.compile(r"^Restores: ([0-9a-f]{40})$", re.MULTILINE)


class NothingBefore(Refused):
    """Git has no release of this environment before the one it has now."""


@dataclass(frozen=True)
class Restored:
    """A commit that restores a release and holds its environment. before: None if the record in Git could not be read."""

    before: Record | None
    after: Record
    hold: str
    commit: str


def in_checkout(root: Path, env: str, reason: str | None = None) -> tuple[Restored, bool]:
    """Restore in the checkout at a service's root; also returns whether it was pushed. Raises the errors of `restore` and `land`."""
    checkout, head = checkout_of(root)
    restored = restore(checkout, head, env, reason)
    return restored, land(checkout, restored.commit, head, checkout.differing(head, restored.commit))


def on_remote(url: str, branch: str, env: str, reason: str | None = None) -> Restored:
    """Restore on a remote, without a checkout. Raises the errors of `restore`, RemoteUnreachable and PushRejected."""
    commits: list[Restored] = []

    def make(head: str) -> str:
        commits.append(restore(mirror, head, env, reason))
        return commits[-1].commit

    with tempfile.TemporaryDirectory(prefix="mlops-build-") as scratch:
        mirror = Mirror(url, branch, Path(scratch))
        mirror.publish(make, depth=None)
    return commits[-1]


def restore(objects: Objects, head: str, env: str, reason: str | None = None, *, author: Identity | None = None) -> Restored:
    """Create the commit on top of `head`; no ref is moved. Needs the history; service.yaml may be broken. Raises NothingBefore, NotFound.

    author: of a deterministic commit; default: the configured one, now.
    """
    _check_environment(objects, head, env)
    source = earlier(objects, head, env)
    before, after = recorded(objects, head, env), recorded(objects, source, env)
    if after is None:
        raise NothingBefore(f"the release record of {env} at {source[:12]} cannot be read")
    folder = records.folder(env)
    default = f"rolled back from Git to {after}" + (f" (was {before})" if before else "")
    hold = holds.begin(reason or default[: holds.WHY_LENGTH], author or objects.signs_as())
    files: dict[str, bytes | None] = dict.fromkeys(objects.files(head, folder))
    files |= {path: objects.read(source, path) for path in objects.files(source, folder)}
    files |= holds.changes(objects, head, env, hold)
    commit = objects.commit(head, files, _message(env, before, after, source), author)
    if commit is None:
        raise NothingBefore(f"{env} has this release and this hold already")
    return Restored(before, after, hold.why, commit)


def _check_environment(objects: Objects, head: str, env: str) -> None:
    """Raises NotFound for an environment that service.yaml does not have, or, if it cannot be read, that has no release folder."""
    try:
        service_at(objects, head).environment(env)
    except ServiceError:
        if objects.tree(head, records.folder(env)) is None:
            raise NotFound(f"there is no {records.folder(env)}", remedy="git ls-files deploy/overlays shows the environments") from None


def earlier(objects: Objects, head: str, env: str) -> str:
    """The commit, along first parents, with the previous release of `env`. Raises NothingBefore.

    A restored release counts as the original one, so that two rollbacks go two releases back.
    """
    folder = records.folder(env)
    present = objects.tree(head, folder)
    start = head
    for _ in range(1000):
        changed = objects.log(start, folder)
        named = RESTORES.search(objects.message(changed[0])) if changed else None
        if not named or objects.tree(named[1], folder) != present:
            break
        start = named[1]
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
