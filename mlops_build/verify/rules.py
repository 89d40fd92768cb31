"""Checks all rules on a set of objects, and locates what they find."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from mlops_build.verify import conventions, disruption, fields, leases, overlay, references, resources, schema, security, workloads
from mlops_build.verify.world import Fault, World, at

FAMILIES: tuple[Callable[[World], Iterator[Fault]], ...] = (
    references.check,
    workloads.check,
    conventions.check,
    disruption.check,
    resources.check,
    leases.check,
    security.check,
)


# Outside a service, to be replaced before the manifest is applied: ${NAME}, $$name$$, <name>, {name}, __NAME__, APP_NAME, REPLACEME, ko://path.
PLACEHOLDER = re.compile(r"\$[{($]|[<>{}]|__[A-Z_]+__|\b[A-Z]+_[A-Z_]+\b|\b(?:REPLACE|CHANGE)_?ME|^ko://")


def check_objects(world: World, version: str | None = None) -> Iterator[Fault]:
    """Check every rule about Kubernetes objects. version: of Kubernetes, for the schemas. Raises UnknownVersion."""
    world = replace(world, objects=[replace(obj, data=schema.without_nulls(obj.data)) for obj in world.objects])
    for obj in world.objects:
        for fault in (*schema.check(obj, version), *fields.check(obj)):
            value = at(obj.data, fault.path)
            if world.service or not (isinstance(value, str) and PLACEHOLDER.search(value)):
                yield fault
    for family in FAMILIES:
        yield from family(world)


def check_sources(sources: overlay.Sources) -> Iterator[Fault]:
    """Duplicates in an overlay's sources. kustomize merges two items with the same name into one, so only the sources show them."""
    for obj in overlay.written(sources):
        yield from (fault for fault in fields.check(obj) if fault.rule.startswith("duplicate-"))
