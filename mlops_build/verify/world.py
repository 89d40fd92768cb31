"""The objects that are checked together, and the faults that rules find in them."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
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
        return text(self.data.get("kind"))

    @property
    def api_version(self) -> str:
        return text(self.data.get("apiVersion"))

    @property
    def group(self) -> str:
        return self.api_version.rpartition("/")[0]

    @property
    def metadata(self) -> Mapping[str, Any]:
        return mapping(self.data.get("metadata"))

    @property
    def name(self) -> str:
        return text(self.metadata.get("name"))

    @property
    def namespace(self) -> str:
        """Empty if the object does not set it: then the command that applies it does."""
        return text(self.metadata.get("namespace"))

    @property
    def spec(self) -> Mapping[str, Any]:
        return mapping(self.data.get("spec"))

    @property
    def labels(self) -> Mapping[str, Any]:
        return mapping(self.metadata.get("labels"))

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
        return text(self.data.get("name"))

    @property
    def ports(self) -> list[Mapping[str, Any]]:
        return mappings(self.data.get("ports"))


@dataclass(frozen=True, eq=False)
class Pod:
    """A pod, or the pod template of a workload. path: of the mapping with `spec` and `metadata`."""

    owner: Object
    path: Path
    data: Mapping[str, Any]

    @property
    def spec(self) -> Mapping[str, Any]:
        return mapping(self.data.get("spec"))

    @property
    def labels(self) -> Mapping[str, Any]:
        return mapping(mapping(self.data.get("metadata")).get("labels"))

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
        containers = []
        for kind in ("initContainers", "containers"):
            listed = self.spec.get(kind)
            for index, container in enumerate(listed if isinstance(listed, list) else []):
                if isinstance(container, Mapping):
                    containers.append(Container(container, (*self.path, "spec", kind, index), kind))
        return containers

    @property
    def serving(self) -> list[Container]:
        """Containers whose ports a Service can reach, including sidecars (init containers with restartPolicy: Always)."""
        return [item for item in self.containers if item.kind == "containers" or item.data.get("restartPolicy") == "Always"]


@dataclass(frozen=True, eq=False)
class World:
    """Objects that are applied together.

    rendered: whether they are a rendered overlay, in which every placeholder is replaced.
    service, env: the service and environment that they belong to; None for manifests outside a service.
    """

    objects: list[Object]
    rendered: bool = False
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


def is_pod_template(data: Mapping[str, Any]) -> bool:
    template = mapping(mapping(data.get("spec")).get("template"))
    return isinstance(mapping(template.get("spec")).get("containers"), list)


def pods_of(obj: Object) -> list[Pod]:
    """The pod that an object is or creates. A custom resource with a pod template (Argo's Rollout) creates pods too."""
    if obj.kind == "Pod" and obj.group == "":
        return [Pod(obj, (), obj.data)]
    if obj.kind == "CronJob":
        template = mapping(mapping(mapping(obj.spec.get("jobTemplate")).get("spec")).get("template"))
        return [Pod(obj, ("spec", "jobTemplate", "spec", "template"), template)] if template else []
    if is_pod_template(obj.data):
        return [Pod(obj, ("spec", "template"), mapping(obj.spec.get("template")))]
    return []


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
        resources = mapping(container.data.get("resources"))
        for name, amount in {**mapping(resources.get("requests")), **mapping(resources.get("limits"))}.items():
            if name.rpartition("/")[2] == "gpu" or name.startswith(("nvidia.com/", "amd.com/gpu", "gpu.intel.com/")):
                counts[name] = counts.get(name, 0) + (int(str(amount)) if str(amount).isdigit() else 0)
    return counts


def at(data: Any, path: Path) -> Any:
    """The value at a path; None if it does not exist."""
    for part in path:
        inside = part in data if isinstance(data, Mapping) else isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not inside:
            return None
        data = data[part]
    return data


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one: schema.py reports wrong types."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The items of a list, with an empty mapping for each item that is not a mapping."""
    return [mapping(item) for item in value] if isinstance(value, list) else []


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def variables(container: Container) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """A container's environment variables with their paths."""
    for index, variable in enumerate(mappings(container.data.get("env"))):
        yield (*container.path, "env", index), variable


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
