"""What an environment should run by the registry's aliases, and whether Git has to change for it.

Git does not change because a tool is newer: only if the models, or what service.yaml says, differ from the release in Git.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mlops_build import service as service_file
from mlops_build.adapters.git.objects import Objects
from mlops_build.adapters.registry import RegisteredVersion, Registry, UnknownVersion
from mlops_build.errors import MlopsBuildError, NotFound, Refused
from mlops_build.model import identity
from mlops_build.packaging.name import image_name, is_valid
from mlops_build.release import admit, promotion
from mlops_build.release import record as records
from mlops_build.release.past import Past
from mlops_build.release.promotion import UNKNOWN, Promotion
from mlops_build.release.record import Record
from mlops_build.release.tree import Tree, pin_at, service_at
from mlops_build.service import Service

Aliases = Mapping[str, Mapping[str, int]]


class Moving(Refused):
    """The aliases moved while they were read."""


@dataclass(frozen=True)
class Desired:
    """What an environment should run, with the versions it comes from, in the order of service.yaml.

    alias: that all of them have. promotion: that moved the aliases; None if they were moved by hand. by: who asks for the release then, if
    a bridge would not make it.
    """

    alias: str
    record: Record
    versions: tuple[RegisteredVersion, ...]
    promotion: Promotion | None = None
    by: str = UNKNOWN


@dataclass(frozen=True)
class Decision:
    """release: Git has to change to `wanted`. unchanged: it has this release. reverted: a person took this release back in Git, which
    stays until the next promotion or move of an alias. remarks: of the admission check."""

    state: Literal["release", "unchanged", "reverted"]
    wanted: Desired
    remarks: tuple[str, ...] = ()


def may_differ(objects: Objects, tree: Tree, env: str, aliases: Aliases) -> bool:
    """Whether the aliases, if there are any, or service.yaml differ from the release in Git. The registry is not asked."""
    there, wanted = tree.record(env), numbers(tree.service, env, aliases)
    if not wanted:
        return False
    is_same = there is not None and wanted == there.numbers and len(wanted) == len(tree.service.models)
    return not is_same or (there is not None and settings_differ(objects, tree, there))


def decide(
    objects: Objects,
    tree: Tree,
    env: str,
    aliases: Aliases,
    registry: Registry,
    *,
    insist: bool = False,
    despite_findings: bool = False,
) -> Decision:
    """Compare the registry with Git.

    insist: a person asks for this release: also write it if it was reverted, or its files were edited. despite_findings: also if it breaks
    callers.

    Raises the errors of `desired` and `admit`, Incomplete, Moving, and Refused for a move by hand if service.yaml requires a promotion.
    """
    there = tree.record(env)
    wanted = desired(tree, env, aliases, registry)
    if there is not None and there.numbers == wanted.record.numbers:
        # The digests of the record: those in the registry may have been changed since.
        wanted = replace(wanted, record=replace(there, image=image_of(tree, there)))
        differs = rendered(wanted.record, tree.service) != tree.release(env) if insist else settings_differ(objects, tree, there)
        return Decision("release" if differs else "unchanged", wanted)
    past = Past(objects, tree.commit, env)
    made = promotion.of(wanted.versions, env, wanted.alias, past.carries)
    if made is None:
        _check_unmoved(tree.service, wanted, registry)
    wanted = replace(wanted, promotion=made)
    if made is None and past.released == wanted.record.numbers:
        if not insist:
            return Decision("reverted", wanted)
        wanted = replace(wanted, by=promotion.author())
    return Decision("release", wanted, tuple(_admitted(tree.service, wanted, there, past, registry, despite_findings)))


def desired(tree: Tree, env: str, aliases: Aliases, registry: Registry) -> Desired:
    """What `env` should run by the registry's alias map.

    Raises BadVersion, Refused if only some models have the alias, and NotFound if none has it, for an unknown environment, or for a version
    that was deleted meanwhile.
    """
    service = tree.service
    alias = service.alias_of(env)
    wanted = dict(numbers(service, env, aliases))
    missing = [model.name for model in service.models if model.name not in wanted]
    if not wanted:
        raise NotFound(
            f"{', '.join(missing)}: no version has the alias {alias!r}", remedy=f"mlops-build promote {missing[0]} VERSION --to {env}"
        )
    versions = tuple(registry.version(name, number) for name, number in wanted.items())
    if missing:
        promotion.of(versions, env, alias, lambda _: False)  # raises if the other aliases may still move
        raise Refused(
            f"{', '.join(missing)} has no alias {alias!r}, while other models of {service.name} have it",
            remedy=f"mlops-build promote {missing[0]} VERSION --to {env}: a service is released with all its models",
        )
    models = tuple(admit.released(version) for version in versions)
    record = Record(env, models, versions[0].tags[identity.COMMIT_TAG], image_name(service, models, pin=tree.pin))
    return Desired(alias, record, versions)


def _check_unmoved(service: Service, wanted: Desired, registry: Registry) -> None:
    """Raises Moving if a promotion replaced one of these versions after the aliases were read: it would look like a move by hand."""
    if not any(made and made.replaced for made in (promotion.parse(version, wanted.alias) for version in wanted.versions)):
        return
    now = numbers(service, wanted.record.environment, aliases_of(registry, service))
    if now != wanted.record.numbers or any(registry.version(each.name, each.version).tags != each.tags for each in wanted.versions):
        raise Moving(f"the aliases {wanted.alias} move", remedy="run this again")


def numbers(service: Service, env: str, aliases: Aliases) -> tuple[tuple[str, int], ...]:
    """Each model with the version of the environment's alias, in the order of service.yaml, if it has one."""
    alias = service.alias_of(env)
    versions = [(model.name, aliases.get(model.name, {}).get(alias)) for model in service.models]
    return tuple((name, version) for name, version in versions if version is not None)


def aliases_of(registry: Registry, service: Service) -> dict[str, dict[str, int]]:
    """The aliases of the service's models, read now. A model that is not registered has none."""
    aliases: dict[str, dict[str, int]] = {}
    for model in service.models:
        with contextlib.suppress(UnknownVersion):
            aliases[model.name] = registry.aliases(model.name)
    return aliases


def settings_differ(objects: Objects, tree: Tree, there: Record) -> bool:
    """Whether service.yaml says something else than when the release `there` was written, or its image needs another name.

    A difference that comes from another version of mlops-build, or from a person who edited the release, does not count.
    """
    if not there.models:
        return True
    now, has_valid_name = rendered(there, tree.service), image_of(tree, there) == there.image
    if has_valid_name and now == tree.release(there.environment):
        return False
    was, files = at_release(objects, tree, there)
    if was is None or files != now:
        return True
    if has_valid_name:
        return False
    # A name that was not valid then either is another bridge's, which would write it again.
    name = image_name(was, there.models, pin=pin_at(objects, _last(objects, tree, there)))
    return name != image_name(tree.service, there.models, pin=tree.pin)


def at_release(objects: Objects, tree: Tree, there: Record) -> tuple[Service | None, dict[str, bytes]]:
    """service.yaml when the release `there` was written, and the release's files that this version of mlops-build makes from it.

    None and no files if it cannot be read.
    """
    last = _last(objects, tree, there)
    try:
        was = service_at(objects, last)
        return was, rendered(there, was)
    except MlopsBuildError:
        return None, {}


def _last(objects: Objects, tree: Tree, there: Record) -> str:
    """The commit that wrote the release `there`."""
    objects.deepen()
    (last, *_), *_ = objects.messages(tree.commit, records.folder(there.environment), most=1)
    return last


def image_of(tree: Tree, there: Record) -> str | None:
    """The image's name for a release with the models of `there`: the one that it has, if that is valid."""
    if is_valid(there.image, tree.service, there.models, tree.pin):
        return there.image
    return image_name(tree.service, there.models, pin=tree.pin)


def rendered(record: Record, service: Service) -> dict[str, bytes]:
    """The files of a release, by path."""
    return records.paths(record.environment, records.render(record, service))


def _admitted(
    service: Service, wanted: Desired, there: Record | None, past: Past, registry: Registry, despite_findings: bool
) -> Iterator[str]:
    """Remarks of the admission check on the versions that change. Raises Refused."""
    made, env = wanted.promotion, wanted.record.environment
    if service.require_promotion and made is None and not all(map(past.has_released, wanted.record.models)):
        raise Refused(
            f"the alias {wanted.alias} was moved by hand to {wanted.record}, and {service_file.FILE} has require_promotion: true",
            remedy=f"mlops-build promote {' '.join(f'{name}={number}' for name, number in wanted.record.numbers)} --to {env} --why TEXT",
        )
    for version in wanted.versions:
        before = there.version_of(version.name) if there else None
        if before != version.version:
            yield from admit.admit(
                registry,
                service,
                env,
                wanted.alias,
                version,
                before,
                allow_dirty=made is not None and made.dirty,
                ask_callers=not despite_findings and (made is None or not made.back),
                was_released=past.has_released,
            )
