"""Hold an environment, and end its hold: a commit on the service's branch.

Before a hold ends, registry and record are compared: after a rollback from Git, the alias often still points at the bad version.
"""

from collections.abc import Callable

from mlops_build.adapters.git.objects import Objects
from mlops_build.adapters.registry import Registry, RegistryUnreachable
from mlops_build.errors import Refused, Unreachable, UsageError
from mlops_build.release import failure, hold, protected
from mlops_build.release.decide import aliases_of, numbers
from mlops_build.release.protected import Land, Landed
from mlops_build.release.tree import recorded, service_at
from mlops_build.service import Service


def begin(land: Land, env: str, why: str) -> Landed:
    """Hold `env`. Raises UsageError for the reason, NotFound for an unknown environment, and the errors of `land`."""

    def make(objects: Objects, head: str) -> str | None:
        protected.check_environment(objects, head, env)
        files = hold.changes(objects, head, env, hold.begin(why, objects.signs_as()))
        return objects.commit(head, files, _message(objects, head, f"Hold {env}", why))

    return land(f"hold/{env}", make)


def end(land: Land, env: str, registry: Callable[[], Registry], *, release: bool = False) -> Landed:
    """End the hold of `env`; Landed.commit is None if there is none.

    release: also if the aliases point at other versions than the record, or MLflow does not answer. Raises Refused and Unreachable
    without it, ServiceError, and the errors of `land`.
    """

    def make(objects: Objects, head: str) -> str | None:
        service = service_at(objects, head)
        service.environment(env)
        files = hold.changes(objects, head, env, None)
        if not files:
            return None
        _compare(objects, head, service, env, registry, release=release)
        return objects.commit(head, files, _message(objects, head, f"End the hold of {env}", "Machines may change it again."))

    return land(f"hold/{env}", make)


def _compare(objects: Objects, head: str, service: Service, env: str, registry: Callable[[], Registry], *, release: bool) -> None:
    """Raises Refused if the aliases point at other versions than the record, and Unreachable, unless `release`."""
    there = recorded(objects, head, env)
    anyway = f"mlops-build hold {env} --remove --release"
    try:
        known = registry()
        wanted = dict(numbers(service, env, aliases_of(known, service)))
        if release:
            for name, version in wanted.items():
                failure.forget(known, known.version(name, version), env)
            return
    except (RegistryUnreachable, UsageError) as error:
        if release:
            return
        message = f"{error.message}, so it is not known what would be released without the hold"
        raise Unreachable(message, remedy=f"run this again later, or without the comparison: {anyway}") from None
    moved = {name: version for name, version in wanted.items() if there is None or there.version_of(name) != version}
    if moved:
        present = {name: there.version_of(name) if there else None for name in moved}
        back = [f"mlops-build rollback {name} --env {env} --to {version}" for name, version in present.items() if version]
        raise Refused(
            f"{env} has {there or 'no release'} in Git, but its aliases point at {_shown(moved)}, which would be released without the hold",
            remedy="\n".join(
                [
                    *(["to stay with Git's release, run this first:", *back] if back else []),
                    f"to release {_shown(moved)}: {anyway}, then mlops-build release {env}",
                ]
            ),
            details={"registry": moved, "git": present},
        )


def _shown(versions: dict[str, int]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _message(objects: Objects, head: str, subject: str, why: str) -> str:
    return f"{protected.git_settings(objects, head).subject(subject)}\n\n{why}\n"
