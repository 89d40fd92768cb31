"""What a pod lists twice under one name: containers, volumes, ports, mounts, variables.

Asked of what an overlay renders and of its sources too, since kustomize merges such lists: of two items with one name the first is gone
without a word.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import shown
from mlops_build.verify.world import Fault, World, mappings

# (list of a container, what tells its items apart, rule, what is said)
OF_CONTAINERS = (
    ("env", "name", "duplicate-env", "{} is set twice in {}; the last one wins"),
    ("volumeMounts", "mountPath", "duplicate-mount", "two mounts are at {} in {}"),
    ("ports", "name", "duplicate-port", "two ports are named {} in {}"),
)


def check(world: World) -> Iterator[Fault]:
    for pod in world.pods:
        containers = [(container.data, container.path) for container in pod.containers]
        volumes = [((*pod.path, "spec", "volumes", index), volume) for index, volume in enumerate(mappings(pod.spec.get("volumes")))]
        for where, name in _again(((path, data) for data, path in containers), "name"):
            yield Fault("duplicate-name", pod.owner, where, f"two containers are named {shown(name)}")
        for where, name in _again(volumes, "name"):
            yield Fault("duplicate-name", pod.owner, where, f"two volumes are named {shown(name)}")
        for container in pod.containers:
            for key, apart, rule, said in OF_CONTAINERS:
                listed = [((*container.path, key, index), item) for index, item in enumerate(mappings(container.data.get(key)))]
                for where, name in _again(listed, apart):
                    yield Fault(rule, pod.owner, where, said.format(name, container.name))


def _again(items: Iterable[tuple[Path, Mapping[str, Any]]], key: str) -> Iterator[tuple[Path, str]]:
    """Items whose name an earlier one has: where it says so, and the name."""
    seen: set[str] = set()
    for where, item in items:
        name = item.get(key)
        if isinstance(name, str) and name in seen:
            yield (*where, key), name
        if isinstance(name, str):
            seen.add(name)
