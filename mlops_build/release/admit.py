"""Whether a version may be released to an environment: the one check that `promote`, `release` and the bridge use.

What is known to be wrong is refused. What cannot be compared, because a store does not answer, is a remark.
"""

import re
from collections.abc import Callable

from mlops_build.adapters.registry import RegisteredVersion, Registry, RegistryUnreachable, UnknownVersion
from mlops_build.errors import NotFound, Refused
from mlops_build.model import contract, identity
from mlops_build.model.identity import COMMIT, DIGEST
from mlops_build.model.version import BadVersion, ModelVersion
from mlops_build.service import Service

PRODUCTION = "production"
READY = "READY"


def released(version: RegisteredVersion) -> ModelVersion:
    """The entry of a version in a release. Raises BadVersion for a missing or invalid tag."""
    model = version.checked()
    if identity.ORIGIN in version.tags and not version.tags.get(identity.COMMIT_TAG):
        raise BadVersion(
            f"{version.shown} was adopted and has no locked environment yet",
            remedy=f"make a service around it: {version.make_service} ; or, in a service that was made from it: mlops-build train,"
            " and promote the version that this registers",
        )
    if not model.run:
        raise BadVersion(f"{version.shown} does not have its run", remedy="train it with `mlops-build train`, which records its run")
    _check_tag(version, identity.COMMIT_TAG, COMMIT)
    if version.tags.get(identity.DATA):
        _check_tag(version, identity.DATA, DIGEST)
    return model


def admit(
    registry: Registry,
    service: Service | None,
    env: str,
    alias: str,
    version: RegisteredVersion,
    before: int | None,
    *,
    allow_dirty: bool = False,
    ask_callers: bool = True,
    was_released: Callable[[ModelVersion], bool] = lambda _: False,
) -> list[str]:
    """Remarks on the release of `version` in the place of `before`. Raises Refused if it may not be released: BadVersion, BreaksCallers
    or else because of its status, its service or uncommitted changes.

    service: None outside of a service's folder. ask_callers: compare the contracts; a rollback does not. was_released: whether a
    release of this environment in Git had it, which admits it: going back is always possible.
    """
    model = released(version)
    try:
        _check(service, env, alias, version, allow_dirty)
        if before is None or before == version.version or not ask_callers:
            return []
        return _callers(registry, before, version)
    except Refused as error:
        if not was_released(model):
            raise
        return [f"{error.message.splitlines()[0]}; {env} had it before, so it is released"]


def _check(service: Service | None, env: str, alias: str, version: RegisteredVersion, allow_dirty: bool) -> None:
    if version.status != READY:
        raise Refused(
            f"MLflow's status of {version.shown} is {version.status[:40]!a}, not {READY}",
            remedy="wait until its registration has finished, or train it again: mlops-build train",
        )
    trained_by = version.tags.get(identity.SERVICE)
    if service is not None and trained_by and trained_by != service.name and serves(service, version.name):
        raise Refused(
            f"{version.shown} was registered by the service {trained_by[:64]!a}, not by {service.name}",
            remedy=f"train it in {service.name}: mlops-build train",
        )
    if until := version.expired:
        by = version.tags.get(identity.EXCEPTION_BY, "")
        raise Refused(
            f"{version.shown} has an unsafe file, and the exception of {by[:64]!a} expired on {until!a}",
            remedy="store the file as a state_dict and register it again; or set a later day, such as 2027-01-31, in the tag"
            f" {identity.EXCEPTION_UNTIL} on MLflow's page of the version",
        )
    if identity.DIRTY in version.tags and PRODUCTION in (env, alias) and not allow_dirty:
        raise Refused(
            f"{version.name} {version.version} was made from uncommitted changes, so it cannot be reproduced",
            remedy=f"commit and train again, or allow it: mlops-build promote {version.name} {version.version} --to {env} --force-dirty",
        )


def serves(service: Service, model: str) -> bool:
    """Whether a registered model is one of the service's."""
    return any(served.name == model for served in service.models)


def _callers(registry: Registry, before: int, version: RegisteredVersion) -> list[str]:
    """The changes for callers of the previous version. Raises BreaksCallers."""
    try:
        now = _contract(registry, version)
        was = _contract(registry, registry.version(version.name, before))
    except (NotFound, RegistryUnreachable, contract.BadContract) as error:
        return [f"callers of {version.name} {before} may break, its contract could not be compared: {error.message}"]
    return contract.check(f"{version.name} {version.version} in the place of {before}", was, now)


def _contract(registry: Registry, version: RegisteredVersion) -> contract.Contract:
    """Raises UnknownVersion if its files cannot be read, and BadContract."""

    def read(path: str) -> bytes | None:
        try:
            return registry.read(version, path)
        except UnknownVersion:
            if path == contract.MLMODEL:
                raise
            return None  # registered before contracts existed

    return contract.of_version(version.name, read)


def _check_tag(version: RegisteredVersion, tag: str, pattern: "re.Pattern[str]") -> None:
    """Raises BadVersion if a tag of the version is missing, or does not match the pattern."""
    value = version.tags.get(tag)
    if not value:
        raise BadVersion(
            f"{version.shown} does not have the tag {tag}, so mlops-build did not create it",
            remedy="train it with `mlops-build train`, which registers a version with its files' digest, commit and run",
        )
    if not pattern.fullmatch(value):
        raise BadVersion(
            f"{version.shown}: the tag {tag} is not valid: {value[:80]!a}",
            remedy="it was changed in MLflow: promote another version, or restore the value",
        )
