"""References between objects: Services and pods, Ingresses and Services, autoscalers, budgets, policies, mounted objects.

A missing object is a fault only in a rendered overlay, which is complete. A folder of plain files may be incomplete, so there only near
misses are faults: names that differ slightly from a defined one. Secrets are usually created elsewhere, so for them only near misses are
faults in an overlay too.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import display
from mlops_build.verify.world import Container, Fault, Object, Pod, World, mapping, mappings, near_miss, same_namespace, text

# Objects that the cluster creates in every namespace.
CREATED_BY_CLUSTER = {"ConfigMap": {"kube-root-ca.crt", "openshift-service-ca.crt"}, "ServiceAccount": {"default"}}
WORKLOADS = ("Deployment", "StatefulSet", "ReplicaSet", "ReplicationController")


def check(world: World) -> Iterator[Fault]:
    for service in world.of("Service"):
        if service.group == "":
            yield from _service(world, service)
    for ingress in world.of("Ingress"):
        yield from _ingress(world, ingress)
    for scaler in world.of("HorizontalPodAutoscaler"):
        yield from _scaler(world, scaler)
    for policy in world.of("NetworkPolicy"):
        yield from _network_policy(world, policy)
    for monitor in world.of("ServiceMonitor"):
        yield from _monitor(world, monitor)
    for binding in world.of("RoleBinding", "ClusterRoleBinding"):
        yield from _binding(world, binding)
    for pod in world.pods:
        yield from _mounted(world, pod)
        yield from _service_account(world, pod)
    for claim in world.of("PersistentVolumeClaim"):
        yield from _claim(world, claim)
    yield from _namespaces(world)


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


def matches(selector: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    """Whether a label selector (matchLabels and matchExpressions) matches the labels of a pod template."""
    required = {key: value for key, value in mapping(selector.get("matchLabels")).items() if key not in OF_CONTROLLERS}
    if not required.items() <= labels.items():
        return False
    for expression in mappings(selector.get("matchExpressions")):
        key, values, operator = expression.get("key"), expression.get("values") or [], expression.get("operator")
        actual = labels.get(key) if isinstance(key, str) else None
        results = {"In": actual in values, "NotIn": actual not in values, "Exists": actual is not None, "DoesNotExist": actual is None}
        if key not in OF_CONTROLLERS and not results.get(str(operator), True):
            return False
    return True


def selected(world: World, selector: Mapping[str, Any], namespace: str) -> list[Pod]:
    """The pods of a namespace that a label selector matches."""
    return [pod for pod in world.pods if same_namespace(pod.namespace, namespace) and matches(selector, pod.labels)]


def selects_nothing(world: World, obj: Object, where: Path, selector: Mapping[str, Any], rule: str, subject: str) -> Iterator[Fault]:
    """A fault if a selector matches no pod although all pods are known, or nearly matches one."""
    if selected(world, selector, obj.namespace) or not world.makes_all_pods(obj.namespace):
        return
    if not world.closed and not any(_nearly_matches(selector, pod) for pod in world.pods):
        return
    elsewhere = [pod for pod in world.pods if matches(selector, pod.labels)]
    if elsewhere:
        why = f"{subject} selects pods of {elsewhere[0].owner}, which is in the namespace {elsewhere[0].namespace}, not in {obj.namespace}"
        yield Fault(rule, obj, where, why, "a selector matches only pods of its own namespace: use the same namespace for both")
        return
    yield Fault(rule, obj, where, f"{subject} selects no pod: {_no_match(selector, 'workload')}", _nearest(world, obj, selector))


def _nearly_matches(selector: Mapping[str, Any], pod: Pod) -> bool:
    """Whether a pod has all the labels, with the same or nearly the same values."""
    labels = mapping(selector.get("matchLabels"))
    return bool(labels) and all(
        pod.labels.get(key) == value or near_miss(text(value), [text(pod.labels.get(key))]) is not None for key, value in labels.items()
    )


def _no_match(selector: Mapping[str, Any], kind: str) -> str:
    labels = ", ".join(f"{key}={value}" for key, value in mapping(selector.get("matchLabels")).items())
    return f"no {kind} has the labels {labels}" if labels else "none matches"


def _nearest(world: World, obj: Object, selector: Mapping[str, Any]) -> str | None:
    """The labels of the pod that matches best, as a remedy."""
    labels = mapping(selector.get("matchLabels"))
    pods = [pod for pod in world.pods if same_namespace(pod.namespace, obj.namespace)]
    if not pods or not labels:
        return None
    best = max(pods, key=lambda pod: sum(pod.labels.get(key) == value for key, value in labels.items()))
    return f"the pods of {best.owner} have " + (", ".join(f"{key}={value}" for key, value in best.labels.items()) or "no labels")


# Services


def _service(world: World, service: Object) -> Iterator[Fault]:
    labels = mapping(service.spec.get("selector"))
    if not labels or service.spec.get("type") == "ExternalName":
        return
    yield from selects_nothing(world, service, ("spec", "selector"), {"matchLabels": labels}, "service-no-pods", "the Service")
    pods = selected(world, {"matchLabels": labels}, service.namespace)
    for index, port in enumerate(mappings(service.spec.get("ports"))):
        target = port.get("targetPort", port.get("port"))
        where: Path = ("spec", "ports", index, "targetPort" if "targetPort" in port else "port")
        for pod in pods:
            if problem := _missing_port(world, pod, target):
                yield Fault("service-target-port", service, where, f"{problem} in the pods of {pod.owner}, which the Service selects")
                break


def _missing_port(world: World, pod: Pod, target: object) -> str | None:
    """The problem with the target port of a Service: no container has the name, or, in a service, lists the number."""
    ports = [port for container in pod.serving for port in container.ports]
    if isinstance(target, str):
        named = [text(port.get("name")) for port in ports if port.get("name")]
        if target in named:
            return None
        return f"no container port is named {display(target)} (there {'are' if len(named) > 1 else 'is'} {', '.join(named) or 'none'})"
    # containerPort is informational: a container may listen on a port that it does not list.
    if not isinstance(target, int) or world.service is None or not all(container.ports for container in pod.serving):
        return None
    if any(port.get("containerPort") == target for port in ports):
        return None
    return f"no container lists the port {target} (listed: {', '.join(str(port.get('containerPort')) for port in ports)})"


def _ingress(world: World, ingress: Object) -> Iterator[Fault]:
    for where, backend in _backends(ingress):
        target = mapping(backend.get("service"))
        name, port = text(target.get("name")), mapping(target.get("port"))
        if not name:
            continue
        service = world.find("Service", name, ingress.namespace)
        if service is None:
            if world.lacks("Service", name, ingress.namespace):
                why = f"the Ingress routes to the Service {display(name)}, which is not defined"
                yield Fault("ingress-backend", ingress, (*where, "service", "name"), why, _others(world, "Service", ingress, name))
            continue
        ports = mappings(service.spec.get("ports"))
        if not ports:
            continue
        known_ports = [value for entry in ports for value in (entry.get("port"), entry.get("name")) if value]
        for key in ("number", "name"):
            if (
                key in port
                and port[key] != "use-annotation"
                and port[key] not in [entry.get("port" if key == "number" else "name") for entry in ports]
            ):
                why = f"the Service {name} has no port {display(port[key])}; it has {', '.join(map(str, known_ports))}"
                yield Fault("ingress-backend", ingress, (*where, "service", "port", key), why)


def _backends(ingress: Object) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    default = mapping(ingress.spec.get("defaultBackend"))
    if default:
        yield ("spec", "defaultBackend"), default
    for index, rule in enumerate(mappings(ingress.spec.get("rules"))):
        for number, path in enumerate(mappings(mapping(rule.get("http")).get("paths"))):
            yield ("spec", "rules", index, "http", "paths", number, "backend"), mapping(path.get("backend"))


def _others(world: World, kind: str, obj: Object, name: str) -> str | None:
    names = world.names(kind, obj.namespace)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"did you mean {close[0]!r}?" if close else f"there is {', '.join(names[:5])}" if names else None


def _scaler(world: World, scaler: Object) -> Iterator[Fault]:
    target = mapping(scaler.spec.get("scaleTargetRef"))
    kind, name = text(target.get("kind")), text(target.get("name"))
    if kind not in WORKLOADS or not name:
        return
    # An autoscaler named after a defined workload that scales an undefined one was probably copied.
    copied = scaler.name in world.names(kind, scaler.namespace) and world.find(kind, name, scaler.namespace) is None
    if copied or world.lacks(kind, name, scaler.namespace):
        elsewhere = next((workload for workload in world.of(kind) if workload.name == name), None)
        where = f"in the namespace {elsewhere.namespace}" if elsewhere else "not defined"
        why = f"it scales {kind}/{name}, which is {where}"
        yield Fault("hpa-target", scaler, ("spec", "scaleTargetRef", "name"), why, _others(world, kind, scaler, name))


def _network_policy(world: World, policy: Object) -> Iterator[Fault]:
    selector = mapping(policy.spec.get("podSelector"))
    if selector and policy.group == "networking.k8s.io":
        yield from selects_nothing(world, policy, ("spec", "podSelector"), selector, "networkpolicy-no-pods", "the NetworkPolicy")
        yield from _policy_ports(world, policy, selector)


def _policy_ports(world: World, policy: Object, selector: Mapping[str, Any]) -> Iterator[Fault]:
    """A rule with a named port that no selected pod has blocks all traffic."""
    pods = selected(world, selector, policy.namespace)
    names = {text(port.get("name")) for pod in pods for container in pod.serving for port in container.ports}
    for index, rule in enumerate(mappings(policy.spec.get("ingress"))):
        for number, port in enumerate(mappings(rule.get("ports"))):
            name = port.get("port")
            if pods and isinstance(name, str) and name not in names:
                why = f"it allows traffic to the port {display(name)}, which no selected pod has"
                yield Fault("networkpolicy-port", policy, ("spec", "ingress", index, "ports", number, "port"), why)


def _monitor(world: World, monitor: Object) -> Iterator[Fault]:
    """Checks only monitors of their own namespace: with a namespaceSelector the Service may be elsewhere."""
    if monitor.spec.get("namespaceSelector") or not world.of("Service"):
        return
    selector = mapping(monitor.spec.get("selector"))
    candidates = [service for service in world.of("Service") if same_namespace(service.namespace, monitor.namespace)]
    services = [service for service in candidates if matches(selector, service.labels)]
    if not services and world.closed:
        why = f"the ServiceMonitor selects no Service: {_no_match(selector, 'Service')}"
        yield Fault("servicemonitor-target", monitor, ("spec", "selector"), why)
    ports = {text(port.get("name")) for service in services for port in mappings(service.spec.get("ports"))}
    for index, endpoint in enumerate(mappings(monitor.spec.get("endpoints"))):
        name = endpoint.get("port")
        if services and isinstance(name, str) and name not in ports:
            named = ", ".join(sorted(filter(None, ports))) or "no named port"
            why = f"no port of {services[0]} is named {display(name)} (there is {named})"
            yield Fault("servicemonitor-target", monitor, ("spec", "endpoints", index, "port"), why)


def _binding(world: World, binding: Object) -> Iterator[Fault]:
    for index, subject in enumerate(mappings(binding.data.get("subjects"))):
        name, namespace = text(subject.get("name")), text(subject.get("namespace"))
        if subject.get("kind") != "ServiceAccount":
            continue
        if not namespace and binding.kind == "ClusterRoleBinding":
            why = f"the subject ServiceAccount {display(name)} has no namespace"
            yield Fault("missing-field", binding, ("subjects", index), why, "add namespace: to the subject")
        elif (
            world.service is not None
            and same_namespace(namespace, binding.namespace)
            and name not in CREATED_BY_CLUSTER["ServiceAccount"]
            and world.lacks("ServiceAccount", name, namespace)
        ):
            why = f"the ServiceAccount {display(name)} is not defined"
            yield Fault(
                "missing-service-account", binding, ("subjects", index, "name"), why, _others(world, "ServiceAccount", binding, name)
            )


# Objects that pods mount and read


def _mounted(world: World, pod: Pod) -> Iterator[Fault]:
    for kind, name, where, reference, keys in _read_by(pod):
        if not name or reference.get("optional") is True:
            continue
        source = world.find(kind, name, pod.namespace)
        if source is not None:
            yield from _keys(source, kind, pod, where, keys)
        elif kind == "ConfigMap" and name not in CREATED_BY_CLUSTER[kind] and world.lacks(kind, name, pod.namespace):
            why = f"the ConfigMap {display(name)} is not defined"
            yield Fault("missing-configmap", pod.owner, where, why, _others(world, kind, pod.owner, name))
        elif kind == "Secret" and (close := _near_miss_of_secret(world, name, pod)):
            yield Fault("missing-secret", pod.owner, where, f"the Secret {display(name)} is not defined", f"did you mean {close!r}?")
    claims = {text(mapping(template.get("metadata")).get("name")) for template in mappings(pod.owner.spec.get("volumeClaimTemplates"))}
    for index, volume in enumerate(mappings(pod.spec.get("volumes"))):
        name = text(mapping(volume.get("persistentVolumeClaim")).get("claimName"))
        kind = "PersistentVolumeClaim"
        if name and name not in claims and world.lacks(kind, name, pod.namespace):
            where = (*pod.path, "spec", "volumes", index, kind[0].lower() + kind[1:], "claimName")
            why = f"the claim {display(name)} is not defined"
            yield Fault("missing-claim", pod.owner, where, why, _others(world, kind, pod.owner, name))


Reference = tuple[str, str, Path, Mapping[str, Any], list[tuple[Path, str]]]


def _read_by(pod: Pod) -> Iterator[Reference]:
    """Every ConfigMap and Secret that a pod reads: kind, name, path of the name, the reference, and the required keys with their paths."""
    for container in pod.containers:
        yield from _environment(container)
    for index, volume in enumerate(mappings(pod.spec.get("volumes"))):
        where: Path = (*pod.path, "spec", "volumes", index)
        yield from _volume(where, volume)
        for number, source in enumerate(mappings(mapping(volume.get("projected")).get("sources"))):
            yield from _volume((*where, "projected", "sources", number), source)


def _environment(container: Container) -> Iterator[Reference]:
    for index, variable in enumerate(mappings(container.data.get("env"))):
        for key, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            reference = mapping(mapping(variable.get("valueFrom")).get(key))
            where: Path = (*container.path, "env", index, "valueFrom", key)
            yield kind, text(reference.get("name")), (*where, "name"), reference, [((*where, "key"), text(reference.get("key")))]
    for index, source in enumerate(mappings(container.data.get("envFrom"))):
        for key, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            reference = mapping(source.get(key))
            yield kind, text(reference.get("name")), (*container.path, "envFrom", index, key, "name"), reference, []


def _volume(where: Path, volume: Mapping[str, Any]) -> Iterator[Reference]:
    for key, kind in (("configMap", "ConfigMap"), ("secret", "Secret")):
        source = mapping(volume.get(key))
        named = "secretName" if key == "secret" and "secretName" in source else "name"
        items = [((*where, key, "items", index, "key"), text(item.get("key"))) for index, item in enumerate(mappings(source.get("items")))]
        yield kind, text(source.get(named)), (*where, key, named), source, items


def _keys(source: Object, kind: str, pod: Pod, where: Path, keys: list[tuple[Path, str]]) -> Iterator[Fault]:
    """Required keys that a ConfigMap does not have. Keys of a Secret are often added later."""
    data = {**mapping(source.data.get("data")), **mapping(source.data.get("binaryData"))}
    for path, key in keys:
        if kind == "ConfigMap" and key and key not in data and path[: len(where) - 1] == where[:-1]:
            why = f"{source} has no key {display(key)}; it has {', '.join(sorted(data)[:8]) or 'none'}"
            yield Fault("missing-configmap", pod.owner, path, why)


def _near_miss_of_secret(world: World, name: str, pod: Pod) -> str | None:
    """A defined Secret whose name is nearly this one."""
    defined = [obj.name for obj in world.of("Secret", "SealedSecret", "ExternalSecret") if same_namespace(obj.namespace, pod.namespace)]
    defined += [text(obj.spec.get("secretName")) for obj in world.of("Certificate")]
    return None if name in defined else near_miss(name, defined)


def _service_account(world: World, pod: Pod) -> Iterator[Fault]:
    name = text(pod.spec.get("serviceAccountName"))
    if not name or name in CREATED_BY_CLUSTER["ServiceAccount"] or not world.lacks("ServiceAccount", name, pod.namespace):
        return
    why = f"the ServiceAccount {display(name)} is not defined"
    where = (*pod.path, "spec", "serviceAccountName")
    yield Fault("missing-service-account", pod.owner, where, why, _others(world, "ServiceAccount", pod.owner, name))


def _claim(world: World, claim: Object) -> Iterator[Fault]:
    """A claim that names its volume binds only if storage class and access modes match."""
    name = text(claim.spec.get("volumeName"))
    volume = next((obj for obj in world.of("PersistentVolume") if obj.name == name), None) if name else None
    if volume is None:
        return
    classes = [text(obj.spec.get("storageClassName")) for obj in (claim, volume)]
    if classes[0] != classes[1]:
        why = f"it names {volume}, whose storage class is {display(classes[1])}, not {display(classes[0])}, so it never binds"
        yield Fault("claim-volume", claim, ("spec", "storageClassName"), why)
    modes = [[mode for mode in obj.spec.get("accessModes") or [] if isinstance(mode, str)] for obj in (claim, volume)]
    if set(modes[0]) - set(modes[1]):
        why = f"it requests {', '.join(modes[0])}, but {volume} offers {', '.join(modes[1])}, so it never binds"
        yield Fault("claim-volume", claim, ("spec", "accessModes"), why)


def _namespaces(world: World) -> Iterator[Fault]:
    """A service's objects must be in the namespace of its environment."""
    environment = world.environment
    if environment is None or not world.released:
        return
    for obj in world.objects:
        if obj.namespace and obj.namespace != environment.namespace and obj.kind != "Namespace":
            why = f"{obj} is in the namespace {obj.namespace}, but {world.env} of service.yaml is in {environment.namespace}"
            yield Fault("namespace", obj, ("metadata", "namespace"), why)
