"""Promote and roll back: move the alias that an environment follows. Git and the cluster follow the alias.

The previous version is stored as a tag on the new version, before the alias moves. If this is interrupted in between, the next promotion
corrects the tag.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mlops_build import service as service_file
from mlops_build.adapters.registry import RegisteredVersion, Registry, UnknownVersion
from mlops_build.errors import NotFound, Refused, UsageError
from mlops_build.model import contract, identity
from mlops_build.model.identity import ALIAS
from mlops_build.release.write import released
from mlops_build.service import Service

STAGING, PRODUCTION = "staging", "production"


class DirtyVersion(Refused):
    """A version with uncommitted changes is not allowed in production."""


class NothingRemembered(Refused):
    """No previous version is stored."""


@dataclass(frozen=True)
class Move:
    """A move of an alias. before: the previous version, None if the alias is new. hold: the reason if the environment is held.

    callers: remarks for callers: allowed breaks of the contract, or why it was not compared.
    skipped: for production, the service's other environments, if the version was in none of them.
    """

    model: str
    environment: str
    alias: str
    before: int | None
    after: int
    dirty: bool
    hold: str | None
    callers: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def changed(self) -> bool:
        return self.before != self.after

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "changed": self.changed}

    def __str__(self) -> str:
        if not self.changed:
            return f"nothing changed: {self.model} {self.alias} is version {self.after} already"
        return f"{self.model} {self.alias}: {self.before or 'none'} → {self.after}"


@dataclass(frozen=True)
class NextStep:
    """The promotion of a new version to the first environment in service.yaml. refusal: why `promote` would refuse it, with the remedy."""

    model: str
    version: int
    environment: str
    refusal: str | None

    @property
    def command(self) -> str:
        return f"mlops-build promote {self.model} {self.version} --to {self.environment}"

    def __str__(self) -> str:
        if self.refusal is None:
            return f"next: {self.command}"
        return f"{self.model} {self.version} cannot be promoted to {self.environment}: {self.refusal}"


def service_here() -> Service | None:
    """The service around the current folder; None outside of one: the alias then is the environment's own name."""
    try:
        return service_file.load(service_file.find_root())
    except NotFound:
        return None


def remarks(move: Move, service: Service | None) -> list[str]:
    """Remarks on the move."""
    lines = list(move.callers)
    if service is not None and not _serves(service, move.model):
        lines.append(f"{move.model} is not one of {service.name}'s models, so the alias is the environment's name: {move.alias}")
    if move.dirty:
        lines.append(f"{move.model} {move.after} was made from uncommitted changes")
    if move.skipped:
        there = move.skipped[0]
        lines.append(
            f"{move.model} {move.after} was never in {' or '.join(move.skipped)}; "
            f"to try it there: mlops-build promote {move.model} {move.after} --to {there}"
        )
    if move.hold:
        lines.append(f"{move.environment} is held in service.yaml, so nothing is released: {move.hold}")
    return lines


def alias_of(service: Service | None, model: str, env: str) -> str:
    """The alias that `env` follows: by service.yaml for a model of this service, else the environment's own name.

    Raises NotFound for an environment that the service does not have, UsageError for a name that cannot be an alias.
    """
    if service is not None and _serves(service, model):
        return service.alias_of(env)
    if not ALIAS.fullmatch(env) or re.fullmatch(r"v[0-9]+|latest", env):
        raise UsageError(f"{env[:100]!r} is not an environment", remedy="write --to staging or --to production")
    return env


def promote(registry: Registry, service: Service | None, model: str, version: int | str, env: str, *, force_dirty: bool = False) -> Move:
    """Point the alias of `env` at a version (a number, or another alias such as "staging").

    Raises UnknownVersion, BadVersion for a version that mlops-build did not create, DirtyVersion, and BreaksCallers if its contract breaks
    callers of the version that it replaces, unless its major version is higher.
    """
    move, wanted = _planned(registry, service, model, version, env, force_dirty=force_dirty)
    if move.changed:
        tag = identity.previous_tag(move.alias)
        if move.before is not None:
            registry.set_tag(model, wanted.version, tag, str(move.before))
        elif tag in wanted.tags:
            registry.delete_tag(model, wanted.version, tag)
        registry.set_alias(model, move.alias, wanted.version)
    return move


def next_step(registry: Registry, service: Service, model: str, version: int) -> NextStep:
    """The next step for a new version. Changes nothing. Raises the errors of the registry, but not those of `promote`."""
    env = next(iter(service.environments))
    try:
        _planned(registry, service, model, version, env)
    except Refused as error:
        return NextStep(model, version, env, f"{error.message}\n    {error.remedy}" if error.remedy else error.message)
    return NextStep(model, version, env, None)


def _planned(
    registry: Registry, service: Service | None, model: str, version: int | str, env: str, *, force_dirty: bool = False
) -> tuple[Move, RegisteredVersion]:
    """Check a promotion without carrying it out; returns it with the version. Raises the errors of `promote`."""
    alias = alias_of(service, model, env)
    wanted = registry.version(model, version)
    aliases = registry.aliases(model)
    before = aliases.get(alias)
    dirty = _check(wanted, env, alias, force_dirty)
    callers: list[str] = []
    skipped: tuple[str, ...] = ()
    if before != wanted.version:
        if before is not None:
            callers = _callers(registry, model, before, wanted)
        if PRODUCTION in (env, alias):
            skipped = _skipped(registry, service, wanted, env, aliases)
    return Move(model, env, alias, before, wanted.version, dirty, _hold(service, model, env), tuple(callers), skipped), wanted


def _skipped(
    registry: Registry, service: Service | None, wanted: RegisteredVersion, env: str, aliases: Mapping[str, int]
) -> tuple[str, ...]:
    """The other environments, if the version was in none of them, as far as aliases and the tags of `promote` tell."""
    follows = {STAGING: STAGING}
    if service is not None and _serves(service, wanted.name):
        follows = {other: service.alias_of(other) for other in service.environments if other != env}
    if any(aliases.get(alias) == wanted.version or identity.previous_tag(alias) in wanted.tags for alias in follows.values()):
        return ()
    replaced = {(tag, value) for version in registry.versions(wanted.name) for tag, value in version.tags.items()}
    if any((identity.previous_tag(alias), str(wanted.version)) in replaced for alias in follows.values()):
        return ()
    return tuple(follows)


def rollback(
    registry: Registry, service: Service | None, model: str, env: str, to: int | None = None, *, force_dirty: bool = False
) -> Move:
    """Point the alias of `env` back at the previous version, or at `to`. Stored tags stay, so a second rollback goes one version further.

    Raises UnknownVersion, NothingRemembered, BadVersion, DirtyVersion.
    """
    alias = alias_of(service, model, env)
    current = registry.version(model, alias)
    target = registry.version(model, to if to is not None else _remembered(registry, current, alias, env))
    # A version that ran there before is allowed again.
    dirty = _check(target, env, alias, force_dirty or to is None)
    if target.version != current.version:
        registry.set_alias(model, alias, target.version)
    return Move(model, env, alias, current.version, target.version, dirty, _hold(service, model, env))


def _callers(registry: Registry, model: str, before: int, wanted: RegisteredVersion) -> list[str]:
    """The changes for callers of the previous version. Raises BreaksCallers."""
    now = _contract(registry, wanted)
    try:
        was = _contract(registry, registry.version(model, before))
    except (NotFound, contract.BadContract) as error:
        return [f"callers of {model} {before} may break, its contract could not be compared: {error.message}"]
    return contract.check(f"{model} {wanted.version} in the place of {before}", was, now)


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


def _remembered(registry: Registry, current: RegisteredVersion, alias: str, env: str) -> int:
    version = current.tags.get(identity.previous_tag(alias), "")
    if re.fullmatch(r"[1-9][0-9]{0,9}", version):
        return int(version)
    others = [other.version for other in registry.versions(current.name) if other.version != current.version]
    raise NothingRemembered(
        f"{current.name} {alias} is version {current.version}, and no previous version is stored",
        remedy=f"mlops-build rollback {current.name} --env {env} --to VERSION; other versions: {_some(others)}",
    )


def _check(version: RegisteredVersion, env: str, alias: str, force_dirty: bool) -> bool:
    """Whether a version is dirty. Raises DirtyVersion if it is not allowed in this environment."""
    released(version)
    dirty = identity.DIRTY in version.tags
    if dirty and PRODUCTION in (env, alias) and not force_dirty:
        raise DirtyVersion(
            f"{version.name} {version.version} was made from uncommitted changes, so it cannot be reproduced",
            remedy="commit and train again, or add --force-dirty",
        )
    return dirty


def _hold(service: Service | None, model: str, env: str) -> str | None:
    return service.hold.get(env) if service is not None and _serves(service, model) else None


def _serves(service: Service, model: str) -> bool:
    return any(served.name == model for served in service.models)


def _some(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions[:20])) or "none"
