"""Promote and roll back: move the alias that an environment follows. Git and the cluster follow the alias.

Everything about a promotion is stored as tags before the first alias moves: the promotion itself on each version that it lists, and the
previous version on each new one. If this is interrupted in between, nothing is released, and the next promotion corrects the tags.
"""

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from mlops_build import reason
from mlops_build import service as service_file
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.registry import RegisteredVersion, Registry, RegistryUnreachable, UnknownVersion
from mlops_build.errors import NotFound, Refused, UsageError
from mlops_build.model import identity
from mlops_build.model.identity import ALIAS
from mlops_build.model.version import BadVersion, ModelVersion
from mlops_build.release import failure, promotion
from mlops_build.release import hold as holds
from mlops_build.release.admit import PRODUCTION, admit, serves
from mlops_build.release.decide import aliases_of, numbers
from mlops_build.release.past import Past
from mlops_build.release.promotion import Promotion
from mlops_build.service import Service

STAGING = "staging"


@dataclass(frozen=True)
class Move:
    """A move of an alias. before: the previous version, None if the alias is new. hold: the reason if the environment is held.

    callers: remarks for callers: allowed breaks of the contract, or why it was not compared.
    skipped: for production, the service's other environments, if MLflow has no promotion of the version to any of them.
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
            return f"{self.model} {self.alias} is version {self.after} already; the new promotion is stored"
        return f"{self.model} {self.alias}: {self.before or 'none'} → {self.after}"


@dataclass(frozen=True)
class NextStep:
    """The promotion of new versions to the first environment in service.yaml, without those that are there already.

    refusals: why `promote` would refuse a version, with the remedy.
    """

    environment: str
    models: Mapping[str, int]
    refusals: Mapping[tuple[str, int], str]

    @property
    def command(self) -> str | None:
        """One command, so that the versions are released together; None without a version."""
        words = [f"{model}={version}" for model, version in self.models.items()]
        what = words if len(words) > 1 else [f"{model} {version}" for model, version in self.models.items()]
        return f"mlops-build promote {' '.join(what)} --to {self.environment}" if what else None

    def __str__(self) -> str:
        lines = [f"{model} {version} cannot be promoted to {self.environment}: {why}" for (model, version), why in self.refusals.items()]
        return "\n".join([*lines, *([f"next: {self.command}"] if self.command else [])])


def service_here() -> Service | None:
    """The service around the current folder; None outside of one: the alias then is the environment's own name."""
    try:
        return service_file.load(service_file.find_root())
    except NotFound:
        return None


def remarks(move: Move, service: Service | None) -> list[str]:
    """Remarks on the move."""
    lines = list(move.callers)
    if service is not None and not serves(service, move.model):
        lines.append(f"{move.model} is not one of {service.name}'s models, so the alias is the environment's name: {move.alias}")
    if move.dirty:
        lines.append(f"{move.model} {move.after} was made from uncommitted changes")
    if move.skipped:
        there = move.skipped[0]
        lines.append(
            f"MLflow has no promotion of {move.model} {move.after} to {' or '.join(move.skipped)}; "
            f"to try it there: mlops-build promote {move.model} {move.after} --to {there}"
        )
    if move.hold:
        lines.append(
            f"{move.environment} is held, so nothing is released: {move.hold} (to end it: mlops-build hold {move.environment} --remove)"
        )
    return lines


def alias_of(service: Service | None, model: str, env: str) -> str:
    """The alias that `env` follows: by service.yaml for a model of this service, else the environment's own name.

    Raises NotFound for an environment that the service does not have, UsageError for a name that cannot be an alias.
    """
    if service is not None and serves(service, model):
        return service.alias_of(env)
    if not ALIAS.fullmatch(env) or re.fullmatch(r"v[0-9]+|latest", env):
        raise UsageError(f"{env[:100]!r} is not an environment", remedy="write --to staging or --to production")
    return env


def promote_all(
    registry: Registry,
    service: Service | None,
    wanted: Mapping[str, int | str],
    env: str,
    *,
    why: str = "",
    force_dirty: bool = False,
) -> tuple[list[Move], Promotion]:
    """Point the aliases of `env` at versions of one or more models (numbers, or another alias such as "staging"), as one promotion.

    The promotion also lists the present versions of the service's other models. It is written even if no alias has to move: a move by hand
    becomes a promotion, and a release that a person took back in Git is released again.

    Raises UnknownVersion, and what `admit` raises, such as BreaksCallers if a contract breaks callers of the version that it replaces,
    unless its major version is higher.
    """
    _check_one_service(registry, service, wanted)
    planned = [_planned(registry, service, model, version, env, force_dirty=force_dirty) for model, version in wanted.items()]
    return [move for move, _ in planned], _move(registry, service, planned, why, back=False)


def _check_one_service(registry: Registry, service: Service | None, wanted: Mapping[str, int | str]) -> None:
    """Raises UsageError for models of different services: each would wait for the other one's aliases."""
    if len(wanted) < 2:
        return
    if service is not None:
        names = {service.name: [model for model in wanted if serves(service, model)]}
        names["another service"] = [model for model in wanted if not serves(service, model)]
    else:
        names = {}
        for model, version in wanted.items():
            names.setdefault(registry.version(model, version).tags.get(identity.SERVICE, "no service"), []).append(model)
    if sum(map(bool, names.values())) > 1:
        which = "; ".join(f"{', '.join(models)} of {name}" for name, models in names.items() if models)
        raise UsageError(f"a promotion has models of one service: {which}", remedy="use a command for each service")


def _move(
    registry: Registry, service: Service | None, planned: Sequence[tuple[Move, RegisteredVersion]], why: str, *, back: bool
) -> Promotion:
    """Write a promotion onto all of its versions, then move the aliases."""
    models = {move.model: move.after for move, _ in planned}
    if service and all(serves(service, model) for model in models):
        others = numbers(service, planned[0][0].environment, aliases_of(registry, service))
        models |= {name: number for name, number in others if name not in models}
    made = promotion.new(models, promotion.author(), _reason(why), dirty=any(move.dirty for move, _ in planned), back=back)
    for move, version in planned:
        tag = identity.previous_tag(move.alias)
        if move.before is not None and move.changed and not back:
            registry.set_tag(move.model, version.version, tag, str(move.before))
        elif tag in version.tags and move.changed and not back:
            registry.delete_tag(move.model, version.version, tag)
        failure.forget(registry, version, move.environment)
    for name, number in models.items():
        registry.set_tag(name, number, promotion.tag(planned[0][0].alias), made.as_text())
    for move, _ in planned:
        # Also one that stays: MLflow then wakes the bridge, for which only the promotion is new.
        registry.set_alias(move.model, move.alias, move.after)
        if move.changed:
            _replace(registry, move, made)
    return made


def _replace(registry: Registry, move: Move, made: Promotion) -> None:
    """Mark the promotion that `made` replaces on all of its versions: if Git never had it, a later move by hand must not revive it."""
    with contextlib.suppress(UnknownVersion, BadVersion):
        old = promotion.parse(registry.version(move.model, move.before or 0), move.alias)
        if old is None or old.replaced or old.id == made.id:
            return
        for name, number in old.models.items():
            present = promotion.parse(registry.version(name, number), move.alias)
            if present and present.id == old.id:
                registry.set_tag(name, number, promotion.tag(move.alias), replace(old, replaced=True).as_text())


def _reason(text: str) -> str:
    try:
        return reason.checked(text) if text else ""
    except ValueError as error:
        raise UsageError(f"--why: {error}") from None


def next_step(registry: Registry, service: Service, models: Mapping[str, int]) -> NextStep:
    """The next step for new versions. Changes nothing. Raises the errors of the registry, but not those of `promote`."""
    env = next(iter(service.environments))
    movable: dict[str, int] = {}
    refusals: dict[tuple[str, int], str] = {}
    for model, version in models.items():
        try:
            if _planned(registry, service, model, version, env)[0].changed:
                movable[model] = version
        except Refused as error:
            refusals[model, version] = f"{error.message}\n    {error.remedy}" if error.remedy else error.message
    return NextStep(env, movable, refusals)


def _planned(
    registry: Registry, service: Service | None, model: str, version: int | str, env: str, *, force_dirty: bool = False
) -> tuple[Move, RegisteredVersion]:
    """Check a promotion without carrying it out; returns it with the version. Raises the errors of `promote`."""
    alias = alias_of(service, model, env)
    wanted = registry.version(model, version)
    aliases = registry.aliases(model)
    before = aliases.get(alias)
    was_released = _was_released(service, model, env)
    callers = admit(registry, service, env, alias, wanted, before, allow_dirty=force_dirty, was_released=was_released)
    skipped: tuple[str, ...] = ()
    if before != wanted.version and PRODUCTION in (env, alias):
        skipped = _skipped(registry, service, wanted, env, aliases)
    dirty = identity.DIRTY in wanted.tags
    return Move(model, env, alias, before, wanted.version, dirty, _hold(service, model, env), tuple(callers), skipped), wanted


def _skipped(
    registry: Registry, service: Service | None, wanted: RegisteredVersion, env: str, aliases: Mapping[str, int]
) -> tuple[str, ...]:
    """The other environments, if neither an alias nor a tag of `promote` says that the version was in one of them."""
    follows = {STAGING: STAGING}
    if service is not None and serves(service, wanted.name):
        follows = {other: service.alias_of(other) for other in service.environments if other != env}
    if any(aliases.get(alias) == wanted.version or promotion.tag(alias) in wanted.tags for alias in follows.values()):
        return ()
    # Before 0.9, `promote` stored only which version a new one replaced.
    if any(identity.previous_tag(alias) in wanted.tags for alias in follows.values()):
        return ()
    replaced = {(tag, value) for version in registry.versions(wanted.name) for tag, value in version.tags.items()}
    if any((identity.previous_tag(alias), str(wanted.version)) in replaced for alias in follows.values()):
        return ()
    return tuple(follows)


def rollback(
    registry: Registry,
    service: Service | None,
    model: str,
    env: str,
    to: int | None = None,
    *,
    why: str = "",
    force_dirty: bool = False,
) -> Move:
    """Point the alias of `env` back at the previous version, or at `to`. Stored tags stay, so a second rollback goes one version further.

    Raises UnknownVersion, RegistryUnreachable, Refused if no previous version is stored, and what `admit` raises, except BreaksCallers.
    """
    alias = alias_of(service, model, env)
    try:
        current = registry.version(model, alias)
    except RegistryUnreachable as error:
        raise RegistryUnreachable(error.message, remedy=f"{error.remedy}; without MLflow: mlops-build rollback --from-git {env}") from None
    target = registry.version(model, to if to is not None else _remembered(registry, current, alias, env))
    # A version that ran there before is allowed again.
    admit(
        registry,
        service,
        env,
        alias,
        target,
        current.version,
        allow_dirty=force_dirty or to is None,
        ask_callers=False,
        was_released=_was_released(service, model, env),
    )
    dirty = identity.DIRTY in target.tags
    move = Move(model, env, alias, current.version, target.version, dirty, _hold(service, model, env))
    _move(registry, service, [(move, target)], why, back=True)
    return move


def _was_released(service: Service | None, model: str, env: str) -> Callable[[ModelVersion], bool]:
    """Whether Git's history of the environment has a version, as far as the current folder's checkout tells."""
    if service is not None and serves(service, model):
        with contextlib.suppress(NotFound):
            checkout = Checkout.find(service_file.find_root())
            head = checkout.head() if checkout else None
            if checkout and head:
                return Past(checkout, head, env).has_released
    return lambda _: False


def _remembered(registry: Registry, current: RegisteredVersion, alias: str, env: str) -> int:
    version = current.tags.get(identity.previous_tag(alias), "")
    if re.fullmatch(r"[1-9][0-9]{0,9}", version):
        return int(version)
    others = [other.version for other in registry.versions(current.name) if other.version != current.version]
    raise Refused(
        f"{current.name} {alias} is version {current.version}, and no previous version is stored",
        remedy=f"mlops-build rollback {current.name} --env {env} --to VERSION; other versions: {_some(others)}",
    )


def _hold(service: Service | None, model: str, env: str) -> str | None:
    if service is None or not serves(service, model):
        return None
    with contextlib.suppress(NotFound):
        return holds.in_folder(service_file.find_root(), env, service)
    return service.hold.get(env)


def _some(versions: Sequence[int]) -> str:
    return ", ".join(map(str, versions[:20])) or "none"
