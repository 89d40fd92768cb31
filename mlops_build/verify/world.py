"""The objects that are checked together, and the faults that rules find in them."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mlops_build.service import Environment, Service
from mlops_build.verify.document import Path

# Maps a path of an object to (file, line) in the sources.
Locator = Callable[[Path], tuple[str, int]]


@dataclass(frozen=True, eq=False)
class Object:
    """A Kubernetes object as it would be applied. where: returns the source line of a path."""

    data: Mapping[str, Any]
    where: Locator

    @property
    def kind(self) -> str:
        return text(self.data, "kind")

    @property
    def api_version(self) -> str:
        return text(self.data, "apiVersion")

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def metadata(self) -> Mapping[str, Any]:
        return mapping(self.data, "metadata")

    @property
    def name(self) -> str:
        return text(self.metadata, "name")

    @property
    def namespace(self) -> str:
        """Empty if the object does not set it: then the command that applies it does."""
        return text(self.metadata, "namespace")

    @property
    def spec(self) -> Mapping[str, Any]:
        return mapping(self.data, "spec")

    @property
    def labels(self) -> Mapping[str, Any]:
        return mapping(self.metadata, "labels")

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}" if self.name else self.kind or "an object"


@dataclass(frozen=True, eq=False)
class Part:
    """Another document with lines: a CI spec, a kustomization. title: its name in findings."""

    title: str
    data: Mapping[str, Any]
    where: Locator

    def __str__(self) -> str:
        return self.title


@dataclass(frozen=True)
class Fault:
    """A violation of a rule. path: where in the object. remedy: replaces the rule's remedy if it is more specific.

    remark: only worth knowing, because what is missing here may be defined elsewhere.
    """

    rule: str
    about: Object | Part
    path: Path
    why: str
    remedy: str | None = None
    remark: bool = False

    def as_remark(self, is_remark: bool) -> "Fault":
        """This fault, as a remark or not."""
        return replace(self, remark=is_remark)


@dataclass(frozen=True, eq=False)
class Container:
    """A container of a pod. path: in the owner. kind: containers or initContainers."""

    data: Mapping[str, Any]
    path: Path
    kind: str

    @property
    def name(self) -> str:
        return text(self.data, "name")

    @property
    def ports(self) -> list[Mapping[str, Any]]:
        return mappings(self.data, "ports")


@dataclass(frozen=True, eq=False)
class Pod:
    """A pod, or the pod template of a workload. path: of the mapping with `spec` and `metadata`."""

    owner: Object
    path: Path
    data: Mapping[str, Any]

    @property
    def spec(self) -> Mapping[str, Any]:
        return mapping(self.data, "spec")

    @property
    def labels(self) -> Mapping[str, Any]:
        return mapping(self.data, "metadata", "labels")

    @property
    def namespace(self) -> str:
        return self.owner.namespace

    @property
    def replicas(self) -> int:
        """The owner's replicas; Kubernetes' default is 1."""
        replicas = self.owner.spec.get("replicas", 1)
        return replicas if isinstance(replicas, int) else 1

    @cached_property
    def containers(self) -> list[Container]:
        """Init containers first, then the others."""
        return [
            Container(container, (*self.path, "spec", kind, index), kind)
            for kind in ("initContainers", "containers")
            for index, container in enumerate(mappings(self.spec, kind))
        ]

    @property
    def serving(self) -> list[Container]:
        """Containers whose ports a Service can reach, including sidecars (init containers with restartPolicy: Always)."""
        return [item for item in self.containers if item.kind == "containers" or item.data.get("restartPolicy") == "Always"]


@dataclass(frozen=True, eq=False)
class World:
    """Objects that are applied together.

    service, env: the service and environment that they belong to; None for manifests outside a service.
    """

    objects: list[Object]
    service: Service | None = None
    env: str | None = None
    released: bool = True

    @property
    def environment(self) -> Environment | None:
        return self.service.environments.get(self.env) if self.service and self.env else None

    def of(self, *kinds: str) -> list[Object]:
        return [obj for obj in self.objects if obj.kind in kinds]

    @cached_property
    def pods(self) -> list[Pod]:
        return [pod for obj in self.objects for pod in pods_of(obj)]

    def find(self, kind: str, name: str, namespace: str) -> Object | None:
        return next((obj for obj in self.of(kind) if obj.name == name and same_namespace(obj.namespace, namespace)), None)

    def names(self, kind: str, namespace: str) -> list[str]:
        return sorted({obj.name for obj in self.of(kind) if same_namespace(obj.namespace, namespace)})


# API groups of Kubernetes itself. Objects of other groups are custom resources, whose schemas are not known.
BUILT_IN = {
    "",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "extensions",
    "flowcontrol.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
}


def pods_of(obj: Object) -> list[Pod]:
    """The pod that an object is or creates. A custom resource with a pod template (Argo's Rollout) creates pods too."""
    template: Path = ("spec", "template")
    path = {"Pod": (), "CronJob": ("spec", "jobTemplate", *template)}.get(obj.kind, template)
    return [Pod(obj, path, mapping(obj.data, *path))] if isinstance(at(obj.data, (*path, "spec", "containers")), list) else []


def near_miss(name: str, names: Iterable[str]) -> str | None:
    """A name that differs slightly from this one, probably a typo. Names that differ only in digits (a-1, a-2) do not count."""
    close = difflib.get_close_matches(name, [candidate for candidate in names if candidate], n=1, cutoff=0.85)
    return close[0] if close and close[0] != name and re.sub(r"\d+", "", close[0]) != re.sub(r"\d+", "", name) else None


def same_namespace(first: str, second: str) -> bool:
    """Whether two namespaces are equal. An empty one, which is set when the object is applied, equals any."""
    return first == second or not first or not second


def gpus(pod: Pod) -> dict[str, int]:
    """GPUs of a device plugin that a pod requests, by resource name."""
    counts: dict[str, int] = {}
    for container in pod.containers:
        amounts = {**mapping(container.data, "resources", "requests"), **mapping(container.data, "resources", "limits")}
        for name, amount in amounts.items():
            if name.rpartition("/")[2] == "gpu" or name.startswith(("nvidia.com/", "amd.com/gpu", "gpu.intel.com/")):
                counts[name] = counts.get(name, 0) + (int(str(amount)) if str(amount).isdigit() else 0)
    return counts


def at(data: Any, path: Sequence[str | int]) -> Any:
    """The value at a path; None if it does not exist."""
    for part in path:
        inside = part in data if isinstance(data, Mapping) else isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not inside:
            return None
        data = data[part]
    return data


def select(data: Any, *path: str | int) -> Iterator[tuple[Path, Any]]:
    """Every value at a path in which "*" is any item of a list, each with its own path."""
    if not path:
        yield (), data
        return
    for part in range(len(data)) if path[0] == "*" and isinstance(data, list) else path[:1]:
        if (value := at(data, (part,))) is not None:
            for inner, selected in select(value, *path[1:]):
                yield (part, *inner), selected


def texts(data: Any, *path: str | int) -> Iterator[tuple[Path, str]]:
    """Every string at a path in which "*" is any item of a list, each with its own path: schema.py reports wrong types."""
    return ((where, value) for where, value in select(data, *path) if isinstance(value, str))


def mapping(data: object, *path: str | int) -> Mapping[str, Any]:
    """The mapping at a path, or an empty one: schema.py reports wrong types."""
    value = at(data, path)
    return value if isinstance(value, Mapping) else {}


def mappings(data: object, *path: str | int) -> list[Mapping[str, Any]]:
    """The items of the list at a path, with an empty mapping for each item that is not a mapping."""
    value = at(data, path)
    return [mapping(item) for item in value] if isinstance(value, list) else []


def text(data: object, *path: str | int) -> str:
    """The string at a path, or an empty one."""
    value = at(data, path)
    return value if isinstance(value, str) else ""


def variables(container: Container) -> dict[str, tuple[Path, Mapping[str, Any]]]:
    """A container's environment variables by name, with their paths. The last one of a name wins."""
    entries = enumerate(mappings(container.data, "env"))
    return {text(variable, "name"): ((*container.path, "env", index), variable) for index, variable in entries}


def containers_of(world: World) -> Iterable[tuple[Pod, Container]]:
    for pod in world.pods:
        for container in pod.containers:
            yield pod, container


def serving_containers(world: World) -> Iterator[tuple[Pod, Container]]:
    """The containers of a service that serve its model, with their pods."""
    for pod, container in containers_of(world):
        is_ours = world.service is not None and container.name == world.service.name
        if is_ours and container.kind == "containers" and pod.owner.kind in ("Deployment", "StatefulSet"):
            yield pod, container
