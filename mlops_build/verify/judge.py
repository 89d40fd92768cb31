"""The rules, asked of one world, and the world that an overlay renders."""

from collections.abc import Callable, Iterator
from pathlib import Path

from mlops_build.verify import disruption, enumerations, leases, names, overlay, references, repeats, resources, schema, security, workloads
from mlops_build.verify.document import File, Node
from mlops_build.verify.document import Path as DataPath
from mlops_build.verify.world import Fault, Locate, World

# A family of rules each: what it is about stands in its file's docstring.
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


def judge(world: World, version: str | None = None) -> Iterator[Fault]:
    """Every rule about Kubernetes objects. version: of Kubernetes, for the schemas. Raises UnknownVersion."""
    for one in world.objects:
        yield from schema.check(one, version)
    for family in FAMILIES:
        yield from family(world)


def repeated(found: overlay.Sources) -> Iterator[Fault]:
    """What an overlay's sources list twice. Of two items with one name kustomize's merge leaves one, so only the sources show it."""
    yield from repeats.check(World(overlay.written(found)))


def place(file: str, line: int) -> Locate:
    """Always the same place."""
    return lambda _: (file, line)


def inside(file: File, document: Node, start: DataPath = ()) -> Locate:
    """Places in a document of a file, for paths that begin at `start`."""
    return lambda path: (file.name, document.line_of((*start, *path))[0])


def parsed(path: Path, root: Path) -> File:
    """A file of YAML, named from `root`. Raises OSError."""
    from mlops_build.verify.document import MAX_BYTES, parse

    with path.open("rb") as opened:
        content = opened.read(4 * MAX_BYTES + 1)
    return parse(content.decode("utf-8", errors="replace"), path.relative_to(root).as_posix())
