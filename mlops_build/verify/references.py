"""Do the objects find each other? Services and their pods, Ingresses and their Services, scalers, budgets, policies, mounted objects.

What is missing is a fault only where it would have to be here: in what an overlay renders everything is there. A folder of plain files may
be a part of something, so there only a near miss counts, a name that is nearly one that is here. A Secret is nearly always made elsewhere:
of Secrets only near misses count, everywhere.
"""

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import shown
from mlops_build.verify.world import Container, Fault, Object, Pod, World, mapping, mappings, nearly, same_namespace, text

# What the cluster puts into every namespace itself.
GIVEN = {"ConfigMap": {"kube-root-ca.crt", "openshift-service-ca.crt"}, "ServiceAccount": {"default"}}
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


# Labels that controllers put on the pods they make.
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
    """Whether a label selector (matchLabels and matchExpressions) takes these labels of a pod template."""
    wanted = {key: value for key, value in mapping(selector.get("matchLabels")).items() if key not in OF_CONTROLLERS}
    if not wanted.items() <= labels.items():
        return False
    for expression in mappings(selector.get("matchExpressions")):
        key, values, operator = expression.get("key"), expression.get("values") or [], expression.get("operator")
        there = labels.get(key) if isinstance(key, str) else None
        ok = {"In": there in values, "NotIn": there not in values, "Exists": there is not None, "DoesNotExist": there is None}
        if key not in OF_CONTROLLERS and not ok.get(str(operator), True):
            return False
    return True


def selected(world: World, selector: Mapping[str, Any], namespace: str) -> list[Pod]:
    """The pods of a namespace that a label selector takes."""
    return [pod for pod in world.pods if same_namespace(pod.namespace, namespace) and matches(selector, pod.labels)]


def nobody(world: World, one: Object, where: Path, selector: Mapping[str, Any], rule: str, what: str) -> Iterator[Fault]:
    """A fault where a selector takes no pod although all pods are known, or nearly takes one."""
    if selected(world, selector, one.namespace) or not world.makes_all_pods(one.namespace):
        return
    if not world.closed and not any(_nearly_takes(selector, pod) for pod in world.pods):
        return
    elsewhere = [pod for pod in world.pods if matches(selector, pod.labels)]
    if elsewhere:
        why = f"{what} selects pods of {elsewhere[0].owner}, which is in the namespace {elsewhere[0].namespace}, not in {one.namespace}"
        yield Fault(rule, one, where, why, "a selector sees only its own namespace: put both into one")
        return
    yield Fault(rule, one, where, f"{what} selects no pod: {_said(selector)}", _nearest(world, one, selector))


def _nearly_takes(selector: Mapping[str, Any], pod: Pod) -> bool:
    """Whether a pod has all the labels, with values that are or nearly are those wanted."""
    wanted = mapping(selector.get("matchLabels"))
    return bool(wanted) and all(
        pod.labels.get(key) == value or nearly(text(value), [text(pod.labels.get(key))]) is not None for key, value in wanted.items()
    )


def _said(selector: Mapping[str, Any]) -> str:
    labels = mapping(selector.get("matchLabels"))
    return "no workload here has the labels " + ", ".join(f"{key}={value}" for key, value in labels.items()) if labels else "none matches"


def _nearest(world: World, one: Object, selector: Mapping[str, Any]) -> str | None:
    """The labels of the pod that comes nearest."""
    wanted = mapping(selector.get("matchLabels"))
    pods = [pod for pod in world.pods if same_namespace(pod.namespace, one.namespace)]
    if not pods or not wanted:
        return None
    best = max(pods, key=lambda pod: sum(pod.labels.get(key) == value for key, value in wanted.items()))
    return f"the pods of {best.owner} have " + (", ".join(f"{key}={value}" for key, value in best.labels.items()) or "no labels")


# Services


def _service(world: World, service: Object) -> Iterator[Fault]:
    labels = mapping(service.spec.get("selector"))
    if not labels or service.spec.get("type") == "ExternalName":
        return
    yield from nobody(world, service, ("spec", "selector"), {"matchLabels": labels}, "service-no-pods", "the Service")
    pods = selected(world, {"matchLabels": labels}, service.namespace)
    for index, port in enumerate(mappings(service.spec.get("ports"))):
        target = port.get("targetPort", port.get("port"))
        where: Path = ("spec", "ports", index, "targetPort" if "targetPort" in port else "port")
        for pod in pods:
            if problem := _absent(world, pod, target):
                yield Fault("service-target-port", service, where, f"{problem} in the pods of {pod.owner}, which the Service selects")
                break


def _absent(world: World, pod: Pod, target: object) -> str | None:
    """What is wrong with a port that a Service sends to: a name that no container has; in a service, a number that none lists."""
    ports = [port for container in pod.serving for port in container.ports]
    if isinstance(target, str):
        named = [text(port.get("name")) for port in ports if port.get("name")]
        if target in named:
            return None
        return f"no container port is named {shown(target)} (there {'are' if len(named) > 1 else 'is'} {', '.join(named) or 'none'})"
    # containerPort only informs: who does not list a port may listen on it all the same.
    if not isinstance(target, int) or world.service is None or not all(container.ports for container in pod.serving):
        return None
    if any(port.get("containerPort") == target for port in ports):
        return None
    return f"no container listens on {target}, by the ports they list ({', '.join(str(port.get('containerPort')) for port in ports)})"


def _ingress(world: World, ingress: Object) -> Iterator[Fault]:
    for where, backend in _backends(ingress):
        wanted = mapping(backend.get("service"))
        name, port = text(wanted.get("name")), mapping(wanted.get("port"))
        if not name:
            continue
        service = world.find("Service", name, ingress.namespace)
        if service is None:
            if world.lacks("Service", name, ingress.namespace):
                why = f"the Ingress sends to the Service {shown(name)}, which is not here"
                yield Fault("ingress-backend", ingress, (*where, "service", "name"), why, _others(world, "Service", ingress, name))
            continue
        ports = mappings(service.spec.get("ports"))
        if not ports:
            continue
        known = [value for one in ports for value in (one.get("port"), one.get("name")) if value]
        for key in ("number", "name"):
            if (
                key in port
                and port[key] != "use-annotation"
                and port[key] not in [one.get("port" if key == "number" else "name") for one in ports]
            ):
                why = f"the Service {name} has no port {shown(port[key])}; it has {', '.join(map(str, known))}"
                yield Fault("ingress-backend", ingress, (*where, "service", "port", key), why)


def _backends(ingress: Object) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    default = mapping(ingress.spec.get("defaultBackend"))
    if default:
        yield ("spec", "defaultBackend"), default
    for index, rule in enumerate(mappings(ingress.spec.get("rules"))):
        for number, path in enumerate(mappings(mapping(rule.get("http")).get("paths"))):
            yield ("spec", "rules", index, "http", "paths", number, "backend"), mapping(path.get("backend"))


def _others(world: World, kind: str, one: Object, name: str) -> str | None:
    names = world.names(kind, one.namespace)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.7)
    return f"did you mean {close[0]!r}?" if close else f"there is {', '.join(names[:5])}" if names else None


def _scaler(world: World, scaler: Object) -> Iterator[Fault]:
    target = mapping(scaler.spec.get("scaleTargetRef"))
    kind, name = text(target.get("kind")), text(target.get("name"))
    if kind not in WORKLOADS or not name:
        return
    # A scaler that is named after a workload here and scales another, that is not here, was copied.
    copied = scaler.name in world.names(kind, scaler.namespace) and world.find(kind, name, scaler.namespace) is None
    if copied or world.lacks(kind, name, scaler.namespace):
        elsewhere = next((one for one in world.of(kind) if one.name == name), None)
        where = f"in the namespace {elsewhere.namespace}" if elsewhere else "not here"
        why = f"it scales {kind}/{name}, which is {where}"
        yield Fault("hpa-target", scaler, ("spec", "scaleTargetRef", "name"), why, _others(world, kind, scaler, name))


def _network_policy(world: World, policy: Object) -> Iterator[Fault]:
    selector = mapping(policy.spec.get("podSelector"))
    if selector and policy.group == "networking.k8s.io":
        yield from nobody(world, policy, ("spec", "podSelector"), selector, "networkpolicy-no-pods", "the NetworkPolicy")
        yield from _policy_ports(world, policy, selector)


def _policy_ports(world: World, policy: Object, selector: Mapping[str, Any]) -> Iterator[Fault]:
    """A named port that no selected pod has lets nothing through."""
    pods = selected(world, selector, policy.namespace)
    names = {text(port.get("name")) for pod in pods for container in pod.serving for port in container.ports}
    for index, rule in enumerate(mappings(policy.spec.get("ingress"))):
        for number, port in enumerate(mappings(rule.get("ports"))):
            name = port.get("port")
            if pods and isinstance(name, str) and name not in names:
                why = f"it lets traffic in at the port {shown(name)}, which no selected pod has"
                yield Fault("networkpolicy-port", policy, ("spec", "ingress", index, "ports", number, "port"), why)


def _monitor(world: World, monitor: Object) -> Iterator[Fault]:
    """Only inside one namespace: a ServiceMonitor may look into others."""
    if monitor.spec.get("namespaceSelector") or not world.of("Service"):
        return
    selector = mapping(monitor.spec.get("selector"))
    services = [one for one in world.of("Service") if same_namespace(one.namespace, monitor.namespace) and matches(selector, one.labels)]
    if not services and world.closed:
        why = f"the ServiceMonitor selects no Service: {_said(selector).replace('workload', 'Service')}"
        yield Fault("servicemonitor-target", monitor, ("spec", "selector"), why)
    ports = {text(port.get("name")) for one in services for port in mappings(one.spec.get("ports"))}
    for index, endpoint in enumerate(mappings(monitor.spec.get("endpoints"))):
        name = endpoint.get("port")
        if services and isinstance(name, str) and name not in ports:
            why = (
                f"no port of {services[0]} is named {shown(name)} (there is {', '.join(sorted(filter(None, ports))) or 'none with a name'})"
            )
            yield Fault("servicemonitor-target", monitor, ("spec", "endpoints", index, "port"), why)


def _binding(world: World, binding: Object) -> Iterator[Fault]:
    for index, subject in enumerate(mappings(binding.data.get("subjects"))):
        name, namespace = text(subject.get("name")), text(subject.get("namespace"))
        if subject.get("kind") != "ServiceAccount":
            continue
        if not namespace and binding.kind == "ClusterRoleBinding":
            why = f"the subject ServiceAccount {shown(name)} has no namespace"
            yield Fault("missing-field", binding, ("subjects", index), why, "add namespace: to the subject")
        elif (
            world.service is not None
            and same_namespace(namespace, binding.namespace)
            and name not in GIVEN["ServiceAccount"]
            and world.lacks("ServiceAccount", name, namespace)
        ):
            why = f"the ServiceAccount {shown(name)} is not here"
            yield Fault(
                "missing-service-account", binding, ("subjects", index, "name"), why, _others(world, "ServiceAccount", binding, name)
            )


# What pods mount and read


def _mounted(world: World, pod: Pod) -> Iterator[Fault]:
    for kind, name, where, reference, keys in _read_by(pod):
        if not name or reference.get("optional") is True:
            continue
        found = world.find(kind, name, pod.namespace)
        if found is not None:
            yield from _keys(found, kind, pod, where, keys)
        elif kind == "ConfigMap" and name not in GIVEN[kind] and world.lacks(kind, name, pod.namespace):
            why = f"the ConfigMap {shown(name)} is not here"
            yield Fault("missing-configmap", pod.owner, where, why, _others(world, kind, pod.owner, name))
        elif kind == "Secret" and (close := _nearly(world, name, pod)):
            yield Fault("missing-secret", pod.owner, where, f"the Secret {shown(name)} is not here", f"did you mean {close!r}?")
    claims = {text(mapping(one.get("metadata")).get("name")) for one in mappings(pod.owner.spec.get("volumeClaimTemplates"))}
    for index, volume in enumerate(mappings(pod.spec.get("volumes"))):
        name = text(mapping(volume.get("persistentVolumeClaim")).get("claimName"))
        kind = "PersistentVolumeClaim"
        if name and name not in claims and world.lacks(kind, name, pod.namespace):
            where = (*pod.path, "spec", "volumes", index, kind[0].lower() + kind[1:], "claimName")
            why = f"the claim {shown(name)} is not here"
            yield Fault("missing-claim", pod.owner, where, why, _others(world, kind, pod.owner, name))


Reference = tuple[str, str, Path, Mapping[str, Any], list[tuple[Path, str]]]


def _read_by(pod: Pod) -> Iterator[Reference]:
    """Every ConfigMap and Secret that a pod reads: kind, name, path of the name, the reference, and the keys it wants with their paths."""
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


def _keys(found: Object, kind: str, pod: Pod, where: Path, keys: list[tuple[Path, str]]) -> Iterator[Fault]:
    """Keys that a ConfigMap here lacks. A Secret's are often filled in later."""
    there = {**mapping(found.data.get("data")), **mapping(found.data.get("binaryData"))}
    for path, key in keys:
        if kind == "ConfigMap" and key and key not in there and path[: len(where) - 1] == where[:-1]:
            why = f"{found} has no key {shown(key)}; it has {', '.join(sorted(there)[:8]) or 'none'}"
            yield Fault("missing-configmap", pod.owner, path, why)


def _nearly(world: World, name: str, pod: Pod) -> str | None:
    """A Secret that is made here under nearly this name."""
    made = [one.name for one in world.of("Secret", "SealedSecret", "ExternalSecret") if same_namespace(one.namespace, pod.namespace)]
    made += [text(one.spec.get("secretName")) for one in world.of("Certificate")]
    return None if name in made else nearly(name, made)


def _service_account(world: World, pod: Pod) -> Iterator[Fault]:
    name = text(pod.spec.get("serviceAccountName"))
    if not name or name in GIVEN["ServiceAccount"] or not world.lacks("ServiceAccount", name, pod.namespace):
        return
    why = f"the ServiceAccount {shown(name)} is not here"
    where = (*pod.path, "spec", "serviceAccountName")
    yield Fault("missing-service-account", pod.owner, where, why, _others(world, "ServiceAccount", pod.owner, name))


def _claim(world: World, claim: Object) -> Iterator[Fault]:
    """A claim that names its volume binds only if both say the same."""
    name = text(claim.spec.get("volumeName"))
    volume = next((one for one in world.of("PersistentVolume") if one.name == name), None) if name else None
    if volume is None:
        return
    classes = [text(one.spec.get("storageClassName")) for one in (claim, volume)]
    if classes[0] != classes[1]:
        why = f"it names {volume}, whose storage class is {shown(classes[1])} and not {shown(classes[0])}, so it never binds"
        yield Fault("claim-volume", claim, ("spec", "storageClassName"), why)
    modes = [[mode for mode in one.spec.get("accessModes") or [] if isinstance(mode, str)] for one in (claim, volume)]
    if set(modes[0]) - set(modes[1]):
        why = f"it asks for {', '.join(modes[0])}, and {volume} offers {', '.join(modes[1])}, so it never binds"
        yield Fault("claim-volume", claim, ("spec", "accessModes"), why)


def _namespaces(world: World) -> Iterator[Fault]:
    """A service's objects go into the namespace of its environment."""
    place = world.place
    if place is None or not world.released:
        return
    for one in world.objects:
        if one.namespace and one.namespace != place.namespace and one.kind != "Namespace":
            why = f"{one} is in the namespace {one.namespace}, and {world.env} of service.yaml in {place.namespace}"
            yield Fault("namespace", one, ("metadata", "namespace"), why)
