"""Checks all rules on a set of objects, and locates what they find."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mlops_build.verify import conventions, disruption, fields, leases, overlay, references, resources, schema, security, workloads
from mlops_build.verify.document import MAX_BYTES, File, Node, parse
from mlops_build.verify.document import Path as DataPath
from mlops_build.verify.world import Fault, Locator, World, at

FAMILIES: tuple[Callable[[World], Iterator[Fault]], ...] = (
    references.check,
    workloads.check,
    conventions.check,
    disruption.check,
    resources.check,
    leases.check,
    security.check,
)


# To be replaced before the manifest is applied: ${NAME}, <name>, {name}, __NAME__, ko://path.
PLACEHOLDER = re.compile(r"\$[{(]|[<>{}]|__[A-Z_]+__|^ko://")


def check_objects(world: World, version: str | None = None) -> Iterator[Fault]:
    """Check every rule about Kubernetes objects. version: of Kubernetes, for the schemas. Raises UnknownVersion."""
    for obj in world.objects:
        for fault in (*schema.check(obj, version), *fields.check(obj)):
            value = at(obj.data, fault.path)
            if world.rendered or not (isinstance(value, str) and PLACEHOLDER.search(value)):
                yield fault
    for family in FAMILIES:
        yield from family(world)


def check_sources(sources: overlay.Sources) -> Iterator[Fault]:
    """Duplicates in an overlay's sources. kustomize merges two items with the same name into one, so only the sources show them."""
    for obj in overlay.written(sources):
        yield from (fault for fault in fields.check(obj) if fault.rule.startswith("duplicate-"))


def fixed_location(file: str, line: int) -> Locator:
    """A locator that always returns this line."""
    return lambda _: (file, line)


def locator(file: File, document: Node, start: DataPath = ()) -> Locator:
    """A locator for a document of a file. start: where in the document the paths begin."""
    return lambda path: (file.name, document.line_of((*start, *path))[0])


def read_file(path: Path, root: Path) -> File:
    """Parse a YAML file; its name is relative to `root`. Raises OSError."""
    with path.open("rb") as opened:
        content = opened.read(4 * MAX_BYTES + 1)
    return parse(content.decode("utf-8", errors="replace"), path.relative_to(root).as_posix())
