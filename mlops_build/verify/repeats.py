"""Duplicates in a pod: containers, volumes, ports, mounts, variables with the same name.

Checked in the rendered overlay and in its sources, because kustomize merges such lists and silently drops the first of two items with the
same name.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import display
from mlops_build.verify.world import Fault, World, mappings

# (list of a container, key that identifies its items, rule, message)
OF_CONTAINERS = (
    ("env", "name", "duplicate-env", "{} is set twice in {}; the last one wins"),
    ("volumeMounts", "mountPath", "duplicate-mount", "two mounts are at {} in {}"),
    ("ports", "name", "duplicate-port", "two ports are named {} in {}"),
)


def check(world: World) -> Iterator[Fault]:
    for pod in world.pods:
        containers = [(container.data, container.path) for container in pod.containers]
        volumes = [((*pod.path, "spec", "volumes", index), volume) for index, volume in enumerate(mappings(pod.spec.get("volumes")))]
        for where, name in _duplicates(((path, data) for data, path in containers), "name"):
            yield Fault("duplicate-name", pod.owner, where, f"two containers are named {display(name)}")
        for where, name in _duplicates(volumes, "name"):
            yield Fault("duplicate-name", pod.owner, where, f"two volumes are named {display(name)}")
        for container in pod.containers:
            for key, identifier, rule, message in OF_CONTAINERS:
                listed = [((*container.path, key, index), item) for index, item in enumerate(mappings(container.data.get(key)))]
                for where, name in _duplicates(listed, identifier):
                    yield Fault(rule, pod.owner, where, message.format(name, container.name))


def _duplicates(items: Iterable[tuple[Path, Mapping[str, Any]]], key: str) -> Iterator[tuple[Path, str]]:
    """Items with the name of an earlier item: the path of the name, and the name."""
    names: set[str] = set()
    for where, item in items:
        name = item.get(key)
        if isinstance(name, str) and name in names:
            yield (*where, key), name
        if isinstance(name, str):
            names.add(name)
