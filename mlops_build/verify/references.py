"""References between the objects of one overlay: Services and pods, Ingresses and Services, autoscalers, budgets, policies, mounts.

An object that is not in the overlay may come from elsewhere: another overlay, the platform, an operator. So a missing object is only a
remark, and only in a service; it is a fault if a defined one has nearly the same name, or if the service's own object refers to it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import display
from mlops_build.verify.world import Fault, Object, Pod, World, mapping, mappings, near_miss, same_namespace, select, text, texts

# Objects that the cluster creates in every namespace.
CREATED_BY_CLUSTER = {"kube-root-ca.crt", "openshift-service-ca.crt", "default"}
# Labels that controllers add to their pods.
OF_CONTROLLERS = {
    "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid",
    "batch.kubernetes.io/job-name",
    "controller-uid",
    "job-name",
    "pod-template-hash",
    "statefulset.kubernetes.io/pod-name",
}
# Objects that select pods: the field, and the rule if nothing is selected.
SELECTORS = {
    "Service": ("selector", "service-no-pods"),
    "PodDisruptionBudget": ("selector", "pdb-no-pods"),
    "NetworkPolicy": ("podSelector", "networkpolicy-no-pods"),
}
# What pods read: the kind of the object, the field with its name, and the rule if it is missing.
READ = {
    "configMap": ("ConfigMap", "name", "missing-configmap"),
    "configMapRef": ("ConfigMap", "name", "missing-configmap"),
    "configMapKeyRef": ("ConfigMap", "name", "missing-configmap"),
    "secret": ("Secret", "secretName", "missing-secret"),
    "secretRef": ("Secret", "name", "missing-secret"),
    "secretKeyRef": ("Secret", "name", "missing-secret"),
    "persistentVolumeClaim": ("PersistentVolumeClaim", "claimName", "missing-claim"),
}


def check(world: World) -> Iterator[Fault]:
    for obj in world.of(*SELECTORS):
        yield from _selects(world, obj)
    for ingress in world.of("Ingress"):
        yield from _ingress(world, ingress)
    for scaler in world.of("HorizontalPodAutoscaler"):
        path: Path = ("spec", "scaleTargetRef", "name")
        yield from _missing(world, scaler, path, text(scaler.spec, "scaleTargetRef", "kind"), "hpa-target")
    for monitor in world.of("ServiceMonitor"):
        if not monitor.spec.get("namespaceSelector"):
            yield from _monitor(world, monitor)
    for pod in world.pods:
        yield from _missing(world, pod.owner, (*pod.path, "spec", "serviceAccountName"), "ServiceAccount", "missing-service-account")
        yield from _read_by(world, pod, (*pod.path, "spec"), pod.spec)
    yield from _namespaces(world)


def matches(selector: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    """Whether a label selector (matchLabels and matchExpressions) matches the labels of a pod template."""
    required = {key: value for key, value in mapping(selector, "matchLabels").items() if key not in OF_CONTROLLERS}
    if not required.items() <= labels.items():
        return False
    for expression in mappings(selector, "matchExpressions"):
        key, values, operator = expression.get("key"), expression.get("values") or [], expression.get("operator")
        actual = labels.get(key) if isinstance(key, str) else None
        results = {"In": actual in values, "NotIn": actual not in values, "Exists": actual is not None, "DoesNotExist": actual is None}
        if key not in OF_CONTROLLERS and not results.get(str(operator), True):
            return False
    return True


def selected(world: World, selector: Mapping[str, Any], namespace: str) -> list[Pod]:
    """The pods of a namespace that a label selector matches."""
    return [pod for pod in world.pods if same_namespace(pod.namespace, namespace) and matches(selector, pod.labels)]


def _missing(world: World, obj: Object, where: Path, kind: str, rule: str) -> Iterator[Fault]:
    """An object that `obj` refers to by its name at a path and that is not in the overlay. Secrets are nearly always created elsewhere."""
    name, names = text(obj.data, *where), world.names(kind, obj.namespace)
    if kind == "Secret":
        names += [made for maker in ("SealedSecret", "ExternalSecret") for made in world.names(maker, obj.namespace)]
    if not world.service or not name or name in CREATED_BY_CLUSTER or name in names:
        return
    close = near_miss(name, names)
    own = kind == "Deployment" and obj.name == world.service.name  # the service's own autoscaler
    if close or kind != "Secret":
        remedy = f"did you mean {close!r}?" if close else None
        yield Fault(rule, obj, where, f"{kind} {display(name)} is not defined here", remedy, remark=not (close or own))


def _no_match(world: World, obj: Object, where: Path, selector: Mapping[str, Any], rule: str, others: list[Mapping[str, Any]]) -> Fault:
    """A selector that matches nothing here. others: the labels of what it could match."""
    required = [f"{key}={value}" for key, value in mapping(selector, "matchLabels").items()]
    present = sorted({f"{key}={value}" for labels in others for key, value in labels.items()})
    close = [near for pair in required if pair not in present and (near := near_miss(pair, present))]
    why = f"it selects nothing here: none has the labels {', '.join(required) or 'of its expressions'}"
    own = world.service is not None and obj.name == world.service.name
    return Fault(rule, obj, where, why, f"did you mean {close[0]}?" if close else None, remark=not (close or own))


def _selects(world: World, obj: Object) -> Iterator[Fault]:
    """An object that selects pods, and the ports of these pods that it names."""
    field, rule = SELECTORS[obj.kind]
    selector = mapping(obj.spec, field)
    if not selector or obj.spec.get("type") == "ExternalName" or obj.group not in ("", "policy", "networking.k8s.io"):
        return
    if obj.kind == "Service":
        selector = {"matchLabels": selector}
    pods = selected(world, selector, obj.namespace)
    if world.service and not pods:
        yield _no_match(world, obj, ("spec", field), selector, rule, [pod.labels for pod in world.pods])
    for path, target in _ports(obj):
        for pod in pods:
            if problem := _missing_port(world, pod, target):
                rule = "service-target-port" if obj.kind == "Service" else "networkpolicy-port"
                yield Fault(rule, obj, path, f"{problem} in the pods of {pod.owner}, which it selects")
                break


def _ports(obj: Object) -> Iterator[tuple[Path, object]]:
    """The paths and values of an object's ports that are ports of pods. A policy may allow a number that nothing listens on."""
    for path, port in select(obj.data, "spec", "ports", "*"):
        key = "targetPort" if "targetPort" in mapping(port) else "port"
        yield (*path, key), mapping(port).get(key)
    for path, port in select(obj.data, "spec", "ingress", "*", "ports", "*", "port"):
        if isinstance(port, str):
            yield path, port


def _missing_port(world: World, pod: Pod, target: object) -> str | None:
    """The problem with a port: no container has the name, or, in a service, lists the number."""
    ports = [port for container in pod.serving for port in container.ports]
    # containerPort is informational: a container may listen on a port that it does not list.
    listed = world.service is not None and isinstance(target, int) and all(item.ports for item in pod.serving)
    known = [port.get("name" if isinstance(target, str) else "containerPort") for port in ports]
    if target in known or not (listed or isinstance(target, str)):
        return None
    return f"no container has the port {display(target)} (there is {', '.join(str(port) for port in known if port) or 'none'})"


def _ingress(world: World, ingress: Object) -> Iterator[Fault]:
    routed = select(ingress.data, "spec", "rules", "*", "http", "paths", "*", "backend", "service")
    for where, backend in (*select(ingress.data, "spec", "defaultBackend", "service"), *routed):
        yield from _missing(world, ingress, (*where, "name"), "Service", "ingress-backend")
        service = world.find("Service", text(backend, "name"), ingress.namespace)
        ports = mappings(service.spec, "ports") if service else []
        for key, named in (("number", "port"), ("name", "name")):
            port = mapping(backend, "port").get(key)
            if ports and port is not None and port not in ("use-annotation", *(entry.get(named) for entry in ports)):
                there = ", ".join(str(value) for entry in ports for value in (entry.get("port"), entry.get("name")) if value)
                why = f"{service} has no port {display(port)}; it has {there}"
                yield Fault("ingress-backend", ingress, (*where, "port", key), why)


def _monitor(world: World, monitor: Object) -> Iterator[Fault]:
    selector = mapping(monitor.spec, "selector")
    candidates = [service for service in world.of("Service") if same_namespace(service.namespace, monitor.namespace)]
    services = [service for service in candidates if matches(selector, service.labels)]
    if world.service and not services:
        others = [service.labels for service in candidates]
        yield _no_match(world, monitor, ("spec", "selector"), selector, "servicemonitor-target", others)
    ports = {text(port, "name") for service in services for port in mappings(service.spec, "ports")}
    for path, name in select(monitor.data, "spec", "endpoints", "*", "port"):
        if services and isinstance(name, str) and name not in ports:
            named = ", ".join(sorted(filter(None, ports))) or "no named port"
            why = f"no port of {services[0]} is named {display(name)} (there is {named})"
            yield Fault("servicemonitor-target", monitor, path, why)


def _read_by(world: World, pod: Pod, where: Path, value: object) -> Iterator[Fault]:
    """The ConfigMaps, Secrets and claims that a part of a pod names."""
    for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ():
        reference = mapping(inner)
        if key in READ and reference.get("optional") is not True:
            kind, field, rule = READ[key]
            named = field if field in reference else "name"  # of a Secret in a projected volume
            yield from _missing(world, pod.owner, (*where, key, named), kind, rule)
            if kind == "ConfigMap":
                yield from _keys(world, pod, (*where, key), text(reference, "name"))
        yield from _read_by(world, pod, (*where, key), inner)


def _keys(world: World, pod: Pod, where: Path, name: str) -> Iterator[Fault]:
    """The keys of a ConfigMap that a pod needs. (Keys of a Secret are often added later.)"""
    source = world.find("ConfigMap", name, pod.namespace)
    wanted = (*texts(pod.owner.data, *where, "key"), *texts(pod.owner.data, *where, "items", "*", "key"))
    for path, key in wanted if source else ():
        data = {**mapping(source.data, "data"), **mapping(source.data, "binaryData")} if source else {}
        if key not in data:
            why = f"{source} has no key {display(key)}; it has {', '.join(sorted(data)[:8]) or 'none'}"
            yield Fault("missing-configmap", pod.owner, path, why)


def _namespaces(world: World) -> Iterator[Fault]:
    """A service's objects must be in the namespace of its environment."""
    environment = world.environment
    for obj in world.objects if environment and world.released else ():
        if environment and obj.namespace not in ("", environment.namespace) and obj.kind != "Namespace":
            why = f"{obj} is in the namespace {obj.namespace}, but {world.env} of service.yaml is in {environment.namespace}"
            yield Fault("namespace", obj, ("metadata", "namespace"), why)
