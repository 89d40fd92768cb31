"""What is judged together: the objects that are applied side by side, and what a rule finds wrong with them."""

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlops_build.service import Environment, Service
from mlops_build.verify.document import Path

# Where a path of an object stands in a source file: (file, line).
Locate = Callable[[Path], tuple[str, int]]


@dataclass(frozen=True, eq=False)
class Object:
    """A Kubernetes object as it would be applied. where: finds the source line of any part of it."""

    data: Mapping[str, Any]
    where: Locate

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
        """Empty where the object does not say: it goes where whoever applies it says."""
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
    """Something else that has lines: a document of a Bamboo spec, a kustomization. title: what findings call it."""

    title: str
    data: Mapping[str, Any]
    where: Locate

    def __str__(self) -> str:
        return self.title


@dataclass(frozen=True)
class Fault:
    """What one rule finds wrong at one place. remedy: where it can say more than the catalogue does."""

    rule: str
    about: Object | Part
    path: Path
    why: str
    remedy: str | None = None


@dataclass(frozen=True, eq=False)
class Container:
    """One container of a pod. path: in the owner. kind: containers or initContainers."""

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
    """A pod, or the template that a workload makes pods from. path: of the thing that has `spec` and `metadata`."""

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
        """How many the owner asks for; Kubernetes' default is 1."""
        asked = self.owner.spec.get("replicas", 1)
        return asked if isinstance(asked, int) else 1

    @cached_property
    def containers(self) -> list[Container]:
        """Those that serve, and before them those that prepare."""
        found = []
        for kind in ("initContainers", "containers"):
            listed = self.spec.get(kind)
            for index, one in enumerate(listed if isinstance(listed, list) else []):
                if isinstance(one, Mapping):
                    found.append(Container(one, (*self.path, "spec", kind, index), kind))
        return found

    @property
    def serving(self) -> list[Container]:
        """Containers whose ports a Service can reach: sidecars that start first (restartPolicy: Always) are among them."""
        return [one for one in self.containers if one.kind == "containers" or one.data.get("restartPolicy") == "Always"]


@dataclass(frozen=True, eq=False)
class World:
    """Objects that are applied together.

    closed: whether they are all there is, as what an overlay renders; else an object that is missing may be somewhere else.
    service, env: the service and environment that they belong to; None for manifests that are nobody's service.
    """

    objects: list[Object]
    closed: bool = False
    service: Service | None = None
    env: str | None = None
    released: bool = True
    notes: list[str] = field(default_factory=list)

    @property
    def place(self) -> Environment | None:
        return self.service.environments.get(self.env) if self.service and self.env else None

    def of(self, *kinds: str) -> list[Object]:
        return [one for one in self.objects if one.kind in kinds]

    @cached_property
    def pods(self) -> list[Pod]:
        return [pod for one in self.objects for pod in pods_of(one)]

    def find(self, kind: str, name: str, namespace: str) -> Object | None:
        return next((one for one in self.of(kind) if one.name == name and same_namespace(one.namespace, namespace)), None)

    def names(self, kind: str, namespace: str) -> list[str]:
        return sorted({one.name for one in self.of(kind) if same_namespace(one.namespace, namespace)})

    def lacks(self, kind: str, name: str, namespace: str) -> bool:
        """Whether an object that is not here must be a mistake: everything is here, or one with nearly this name is."""
        return self.find(kind, name, namespace) is None and (self.closed or nearly(name, self.names(kind, namespace)) is not None)

    def makes_all_pods(self, namespace: str) -> bool:
        """Whether a selector that finds no pod here finds none: there are workloads here, and nothing that an operator makes pods of."""
        inside = [one for one in self.objects if same_namespace(one.namespace, namespace)]
        return any(pods_of(one) for one in inside) and not any(_may_make_pods(one) for one in inside)


# Groups of Kubernetes itself. What is not of them is a custom resource, whose schema nobody has here.
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
# Custom resources that never become pods: by kind, or by group.
PASSIVE_KINDS = {"ServiceMonitor", "PodMonitor", "PrometheusRule", "Probe", "ScrapeConfig", "AlertmanagerConfig"}
PASSIVE_GROUPS = {
    "bitnami.com",
    "cert-manager.io",
    "external-secrets.io",
    "gateway.networking.k8s.io",
    "keda.sh",
    "kustomize.config.k8s.io",
    "networking.istio.io",
    "security.istio.io",
    "traefik.io",
}


def _may_make_pods(one: Object) -> bool:
    if one.group in BUILT_IN or one.kind in PASSIVE_KINDS or one.group in PASSIVE_GROUPS:
        return False
    return not pods_of(one)


def is_pod_template(data: Mapping[str, Any]) -> bool:
    template = mapping(mapping(data.get("spec")).get("template"))
    return isinstance(mapping(template.get("spec")).get("containers"), list)


def pods_of(one: Object) -> list[Pod]:
    """The pod that an object is or makes. A custom resource with a pod template (Argo's Rollout) makes pods too."""
    if one.kind == "Pod" and one.group == "":
        return [Pod(one, (), one.data)]
    if one.kind == "CronJob":
        template = mapping(mapping(mapping(one.spec.get("jobTemplate")).get("spec")).get("template"))
        return [Pod(one, ("spec", "jobTemplate", "spec", "template"), template)] if template else []
    if is_pod_template(one.data):
        return [Pod(one, ("spec", "template"), mapping(one.spec.get("template")))]
    return []


def nearly(name: str, names: Iterable[str]) -> str | None:
    """The name that was meant, where one is nearly the same. a-1 and a-2 are two names, not one misspelt."""
    close = difflib.get_close_matches(name, [one for one in names if one], n=1, cutoff=0.85)
    return close[0] if close and close[0] != name and re.sub(r"\d+", "", close[0]) != re.sub(r"\d+", "", name) else None


def same_namespace(one: str, other: str) -> bool:
    """An object without a namespace goes where the others go."""
    return one == other or not one or not other


def gpus(pod: Pod) -> dict[str, int]:
    """Cards from a device plugin that a pod takes, by resource name."""
    found: dict[str, int] = {}
    for container in pod.containers:
        resources = mapping(container.data.get("resources"))
        for name, amount in {**mapping(resources.get("requests")), **mapping(resources.get("limits"))}.items():
            if name.rpartition("/")[2] == "gpu" or name.startswith(("nvidia.com/", "amd.com/gpu", "gpu.intel.com/")):
                found[name] = found.get(name, 0) + (int(str(amount)) if str(amount).isdigit() else 0)
    return found


def at(data: Any, path: Path) -> Any:
    """The value at a path; None where there is none."""
    for part in path:
        inside = part in data if isinstance(data, Mapping) else isinstance(data, list) and isinstance(part, int) and part < len(data)
        if not inside:
            return None
        data = data[part]
    return data


def mapping(value: object) -> Mapping[str, Any]:
    """`value` if it is a mapping, else an empty one: what has the wrong type is the schema's to tell."""
    return value if isinstance(value, Mapping) else {}


def mappings(value: object) -> list[Mapping[str, Any]]:
    """The mappings in a list, each at its index (an empty one for what is no mapping)."""
    return [mapping(one) for one in value] if isinstance(value, list) else []


def text(value: object) -> str:
    return value if isinstance(value, str) else ""


def environment(container: Container) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    """A container's variables with their paths."""
    for index, variable in enumerate(mappings(container.data.get("env"))):
        yield (*container.path, "env", index), variable


def of_pods(world: World) -> Iterable[tuple[Pod, Container]]:
    for pod in world.pods:
        for container in pod.containers:
            yield pod, container
