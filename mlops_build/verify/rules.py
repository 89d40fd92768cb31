"""Checks all rules on a set of objects, and locates what they find."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mlops_build.verify import disruption, enumerations, leases, names, overlay, references, repeats, resources, schema, security, workloads
from mlops_build.verify.document import MAX_BYTES, File, Node, parse
from mlops_build.verify.document import Path as DataPath
from mlops_build.verify.world import Fault, Locator, World

FAMILIES: tuple[Callable[[World], Iterator[Fault]], ...] = (
    names.check,
    enumerations.check,
    repeats.check,
    references.check,
    workloads.check,
    disruption.check,
    resources.check,
    leases.check,
    security.check,
)


def check_objects(world: World, version: str | None = None) -> Iterator[Fault]:
    """Check every rule about Kubernetes objects. version: of Kubernetes, for the schemas. Raises UnknownVersion."""
    for obj in world.objects:
        yield from schema.check(obj, version)
    for family in FAMILIES:
        yield from family(world)


def check_sources(sources: overlay.Sources) -> Iterator[Fault]:
    """Duplicates in an overlay's sources. kustomize merges two items with the same name into one, so only the sources show them."""
    yield from repeats.check(World(overlay.written(sources)))


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
