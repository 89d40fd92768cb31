"""References between the objects of one overlay: Services and pods, Ingresses and Services, autoscalers, budgets, policies, mounts.

An object that is not in the overlay may come from elsewhere: another overlay, the platform, an operator. So a missing object is only a
remark, and only in a service; it is a fault if a defined one has nearly the same name, or if the service's own object refers to it.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import display
from mlops_build.verify.world import Container, Fault, Object, Pod, World, mapping, mappings, near_miss, same_namespace, text

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


def check(world: World) -> Iterator[Fault]:
    for service in world.of("Service"):
        labels = mapping(service.spec.get("selector"))
        if service.group == "" and labels and service.spec.get("type") != "ExternalName":
            yield from _service(world, service, {"matchLabels": labels})
    for ingress in world.of("Ingress"):
        yield from _ingress(world, ingress)
    for scaler in world.of("HorizontalPodAutoscaler"):
        target = mapping(scaler.spec.get("scaleTargetRef"))
        path: Path = ("spec", "scaleTargetRef", "name")
        yield from _missing(world, scaler, path, text(target.get("kind")), text(target.get("name")), "hpa-target")
    for budget in world.of("PodDisruptionBudget"):
        yield from _no_pods(world, budget, ("spec", "selector"), mapping(budget.spec.get("selector")), "pdb-no-pods")
    for policy in world.of("NetworkPolicy"):
        selector = mapping(policy.spec.get("podSelector"))
        if selector and policy.group == "networking.k8s.io":
            yield from _no_pods(world, policy, ("spec", "podSelector"), selector, "networkpolicy-no-pods")
            yield from _policy_ports(world, policy, selector)
    for monitor in world.of("ServiceMonitor"):
        if not monitor.spec.get("namespaceSelector"):
            yield from _monitor(world, monitor)
    for pod in world.pods:
        yield from _read_by(world, pod)
    for claim in world.of("PersistentVolumeClaim"):
        yield from _claim(world, claim)
    yield from _namespaces(world)


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


def _missing(world: World, obj: Object, where: Path, kind: str, name: str, rule: str) -> Iterator[Fault]:
    """An object that `obj` refers to and that is not in the overlay."""
    if not world.service or not name or name in CREATED_BY_CLUSTER or world.find(kind, name, obj.namespace):
        return
    close = near_miss(name, world.names(kind, obj.namespace))
    own = kind == "Deployment" and obj.name == world.service.name  # the service's own autoscaler
    why = f"{kind} {display(name)} is not defined"
    yield Fault(rule, obj, where, why, f"did you mean {close!r}?" if close else None, remark=not (close or own))


def _no_pods(world: World, obj: Object, where: Path, selector: Mapping[str, Any], rule: str) -> Iterator[Fault]:
    if world.service and not selected(world, selector, obj.namespace):
        yield _no_match(world, obj, where, selector, rule, "pod", [pod.labels for pod in world.pods])


def _no_match(
    world: World, obj: Object, where: Path, selector: Mapping[str, Any], rule: str, subject: str, others: list[Mapping[str, Any]]
) -> Fault:
    """A selector that matches nothing here. others: the labels of what it could match."""
    required = [f"{key}={value}" for key, value in mapping(selector.get("matchLabels")).items()]
    present = sorted({f"{key}={value}" for labels in others for key, value in labels.items()})
    close = [near for pair in required if pair not in present and (near := near_miss(pair, present))]
    why = f"it selects no {subject}: none here has the labels {', '.join(required) or 'of its expressions'}"
    own = world.service is not None and obj.name == world.service.name
    return Fault(rule, obj, where, why, f"did you mean {close[0]}?" if close else None, remark=not (close or own))


def _service(world: World, service: Object, selector: Mapping[str, Any]) -> Iterator[Fault]:
    yield from _no_pods(world, service, ("spec", "selector"), selector, "service-no-pods")
    for index, port in enumerate(mappings(service.spec.get("ports"))):
        key = "targetPort" if "targetPort" in port else "port"
        for pod in selected(world, selector, service.namespace):
            if problem := _missing_port(world, pod, port.get(key)):
                why = f"{problem} in the pods of {pod.owner}, which the Service selects"
                yield Fault("service-target-port", service, ("spec", "ports", index, key), why)
                break


def _missing_port(world: World, pod: Pod, target: object) -> str | None:
    """The problem with the target port of a Service: no container has the name, or, in a service, lists the number."""
    ports = [port for container in pod.serving for port in container.ports]
    if isinstance(target, str):
        named = [text(port.get("name")) for port in ports if port.get("name")]
        return None if target in named else f"no container port is named {display(target)} (named: {', '.join(named) or 'none'})"
    # containerPort is informational: a container may listen on a port that it does not list.
    numbers = [port.get("containerPort") for port in ports]
    if world.service is None or not isinstance(target, int) or target in numbers or not all(item.ports for item in pod.serving):
        return None
    return f"no container lists the port {target} (listed: {', '.join(map(str, numbers))})"


def _ingress(world: World, ingress: Object) -> Iterator[Fault]:
    backends: list[tuple[Path, Any]] = [(("spec", "defaultBackend"), ingress.spec.get("defaultBackend"))]
    for index, rule in enumerate(mappings(ingress.spec.get("rules"))):
        for number, path in enumerate(mappings(mapping(rule.get("http")).get("paths"))):
            backends.append((("spec", "rules", index, "http", "paths", number, "backend"), path.get("backend")))
    for where, backend in backends:
        target = mapping(mapping(backend).get("service"))
        name = text(target.get("name"))
        yield from _missing(world, ingress, (*where, "service", "name"), "Service", name, "ingress-backend")
        service = world.find("Service", name, ingress.namespace)
        ports = mappings(service.spec.get("ports")) if service else []
        for key, named in (("number", "port"), ("name", "name")):
            port = mapping(target.get("port")).get(key)
            if ports and port is not None and port not in ("use-annotation", *(entry.get(named) for entry in ports)):
                there = ", ".join(str(value) for entry in ports for value in (entry.get("port"), entry.get("name")) if value)
                why = f"the Service {name} has no port {display(port)}; it has {there}"
                yield Fault("ingress-backend", ingress, (*where, "service", "port", key), why)


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
    selector = mapping(monitor.spec.get("selector"))
    candidates = [service for service in world.of("Service") if same_namespace(service.namespace, monitor.namespace)]
    services = [service for service in candidates if matches(selector, service.labels)]
    if world.service and not services:
        others = [service.labels for service in candidates]
        yield _no_match(world, monitor, ("spec", "selector"), selector, "servicemonitor-target", "Service", others)
    ports = {text(port.get("name")) for service in services for port in mappings(service.spec.get("ports"))}
    for index, endpoint in enumerate(mappings(monitor.spec.get("endpoints"))):
        name = endpoint.get("port")
        if services and isinstance(name, str) and name not in ports:
            named = ", ".join(sorted(filter(None, ports))) or "no named port"
            why = f"no port of {services[0]} is named {display(name)} (there is {named})"
            yield Fault("servicemonitor-target", monitor, ("spec", "endpoints", index, "port"), why)


# What pods read and mount


def _read_by(world: World, pod: Pod) -> Iterator[Fault]:
    where: Path = (*pod.path, "spec")
    account = text(pod.spec.get("serviceAccountName"))
    yield from _missing(world, pod.owner, (*where, "serviceAccountName"), "ServiceAccount", account, "missing-service-account")
    for container in pod.containers:
        yield from _environment(world, pod, container)
    own_claims = {text(mapping(template.get("metadata")).get("name")) for template in mappings(pod.owner.spec.get("volumeClaimTemplates"))}
    for index, volume in enumerate(mappings(pod.spec.get("volumes"))):
        at: Path = (*where, "volumes", index)
        claim = text(mapping(volume.get("persistentVolumeClaim")).get("claimName"))
        if claim not in own_claims:
            path = (*at, "persistentVolumeClaim", "claimName")
            yield from _missing(world, pod.owner, path, "PersistentVolumeClaim", claim, "missing-claim")
        sources = [(at, volume)] + [
            ((*at, "projected", "sources", number), source)
            for number, source in enumerate(mappings(mapping(volume.get("projected")).get("sources")))
        ]
        for path, source in sources:
            yield from _reference(world, pod, (*path, "configMap"), "ConfigMap", mapping(source.get("configMap")))
            secret = mapping(source.get("secret"))
            yield from _reference(world, pod, (*path, "secret"), "Secret", secret, "secretName" if "secretName" in secret else "name")


def _environment(world: World, pod: Pod, container: Container) -> Iterator[Fault]:
    for section, wrapper, keys in (
        ("env", "valueFrom", ("configMapKeyRef", "secretKeyRef")),
        ("envFrom", "", ("configMapRef", "secretRef")),
    ):
        for index, entry in enumerate(mappings(container.data.get(section))):
            at: Path = (*container.path, section, index, wrapper) if wrapper else (*container.path, section, index)
            for key, kind in zip(keys, ("ConfigMap", "Secret"), strict=True):
                reference = mapping((mapping(entry.get(wrapper)) if wrapper else entry).get(key))
                yield from _reference(world, pod, (*at, key), kind, reference)


def _reference(world: World, pod: Pod, at: Path, kind: str, reference: Mapping[str, Any], named: str = "name") -> Iterator[Fault]:
    """A ConfigMap or Secret that a pod reads, and the keys that it needs. Keys of a Secret are often added later."""
    name = text(reference.get(named))
    if reference.get("optional") is True or not name:
        return
    if kind == "Secret":
        yield from _secret(world, pod, (*at, named), name)
        return
    yield from _missing(world, pod.owner, (*at, named), kind, name, "missing-configmap")
    source = world.find(kind, name, pod.namespace)
    keys = [((*at, "key"), text(reference.get("key")))]
    keys += [((*at, "items", index, "key"), text(item.get("key"))) for index, item in enumerate(mappings(reference.get("items")))]
    for path, key in keys if source else []:
        data = {**mapping(source.data.get("data")), **mapping(source.data.get("binaryData"))} if source else {}
        if key and key not in data:
            why = f"{source} has no key {display(key)}; it has {', '.join(sorted(data)[:8]) or 'none'}"
            yield Fault("missing-configmap", pod.owner, path, why)


def _secret(world: World, pod: Pod, where: Path, name: str) -> Iterator[Fault]:
    """Secrets are nearly always created elsewhere, so only a name that differs slightly from a defined one is worth mentioning."""
    defined = [obj.name for obj in world.of("Secret", "SealedSecret", "ExternalSecret") if same_namespace(obj.namespace, pod.namespace)]
    defined += [text(obj.spec.get("secretName")) for obj in world.of("Certificate")]
    if world.service and name not in defined and (close := near_miss(name, defined)):
        yield Fault("missing-secret", pod.owner, where, f"the Secret {display(name)} is not defined", f"did you mean {close!r}?")


def _claim(world: World, claim: Object) -> Iterator[Fault]:
    """A claim that names its volume binds only if storage class and access modes match."""
    name = text(claim.spec.get("volumeName"))
    volume = next((obj for obj in world.of("PersistentVolume") if name and obj.name == name), None)
    if volume is None:
        return
    classes = [text(obj.spec.get("storageClassName")) for obj in (claim, volume)]
    if classes[0] != classes[1]:
        why = f"it names {volume}, whose storage class is {display(classes[1])}, not {display(classes[0])}, so it never binds"
        yield Fault("claim-volume", claim, ("spec", "storageClassName"), why)
    wanted, offered = ({mode for mode in obj.spec.get("accessModes") or [] if isinstance(mode, str)} for obj in (claim, volume))
    if wanted - offered:
        why = f"it requests {', '.join(sorted(wanted))}, but {volume} offers {', '.join(sorted(offered))}, so it never binds"
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
