"""Names, labels and numbers that the API server checks and the JSON schema does not: DNS names, label values, ports, quantities."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import display, dotted
from mlops_build.verify.world import BUILT_IN, Container, Fault, Object, Pod, World, at, containers_of, mapping, mappings, text

LABEL_1123 = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
LABEL_1035 = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
# RBAC accepts any path segment: system:node, and names with capital letters.
PATH_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[^/%]+")
VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
KEY_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")
# A Kubernetes quantity: sign, digits, and one suffix.
QUANTITY = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?")
UNIT = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3} | {unit: 1000.0 ** (power + 2) for power, unit in enumerate("MGTPE")}
UNIT |= {f"{unit}i": 1024.0 ** (power + 1) for power, unit in enumerate("KMGTPE")}
IMAGE = re.compile(
    r"(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-fA-F]{32,})?"
)

# To be replaced before the manifest is applied: ${NAME}, <name>, {name}, ko://path.
PLACEHOLDER = re.compile(r"\$[{(]|[<>{}]|^ko://")


def check(world: World) -> Iterator[Fault]:
    for fault in _all(world):
        # In a rendered overlay everything is replaced already.
        value = at(fault.about.data, fault.path)
        if world.closed or not (isinstance(value, str) and PLACEHOLDER.search(value)):
            yield fault


def _all(world: World) -> Iterator[Fault]:
    for obj in world.objects:
        yield from _object_name(obj)
        yield from _labels(obj, (), obj.data)
        yield from _selectors(obj)
        if obj.kind == "Service" and obj.group == "":
            yield from _service_ports(obj)
    for pod in world.pods:
        if pod.path:
            yield from _labels(pod.owner, pod.path, pod.data)
        yield from _pod_names(pod)
    for pod, container in containers_of(world):
        yield from _container_ports(pod, container)
        yield from _image(pod, container)
        yield from _quantities(pod, container)
    for obj in world.objects:
        for claim_path, claim in _claims(obj):
            yield from _amounts(obj, (*claim_path, "spec", "resources"), mapping(mapping(claim.get("spec")).get("resources")))


def quantity(value: object) -> float | None:
    """The value of a Kubernetes quantity; None if it is not valid."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    if not isinstance(value, str) or not QUANTITY.fullmatch(value):
        return None
    if re.search(r"[eE][+-]?[0-9]+$", value):
        return float(value)
    number = value.rstrip("numkMGTPEi")
    return float(number) * UNIT[value[len(number) :]]


def _object_name(obj: Object) -> Iterator[Fault]:
    if obj.kind.endswith("List") or obj.group.endswith("kustomize.config.k8s.io"):
        return
    if not obj.name:
        # A configuration file (of the kubelet, of kind) has an apiVersion too, but needs no name.
        if not obj.metadata.get("generateName") and obj.kind and obj.api_version and obj.group in BUILT_IN:
            yield Fault("missing-field", obj, ("metadata",), "metadata.name is missing")
        return
    if "rbac.authorization.k8s.io" in obj.group or obj.group == "flowcontrol.apiserver.k8s.io":
        pattern, description = PATH_SEGMENT, "a name without / and %"
    elif obj.kind == "Service" and obj.group == "":
        pattern, description = LABEL_1035, "a DNS-1035 label: a-z, 0-9 and -, starting with a letter, at most 63"
    elif obj.kind == "Namespace" and obj.group == "":
        pattern, description = LABEL_1123, "a DNS-1123 label: a-z, 0-9 and -, at most 63"
    else:
        pattern, description = SUBDOMAIN, "a DNS-1123 name: a-z, 0-9, - and ., at most 253"
    if not pattern.fullmatch(obj.name):
        yield Fault("bad-name", obj, ("metadata", "name"), f"{obj.kind} is named {display(obj.name)}, which is not {description}")
    # A pod's host name and the label that a controller writes come from the workload's name.
    if obj.kind in ("StatefulSet", "CronJob", "Job") and len(obj.name) > (52 if obj.kind == "CronJob" else 63):
        why = f"the name of the {obj.kind} has {len(obj.name)} characters, which is too long for the names of its pods"
        yield Fault("bad-name", obj, ("metadata", "name"), why)
    if obj.namespace and not LABEL_1123.fullmatch(obj.namespace):
        why = f"the namespace {display(obj.namespace)} is not a DNS-1123 label: a-z, 0-9 and -, at most 63"
        yield Fault("bad-name", obj, ("metadata", "namespace"), why)


def _labels(obj: Object, path: Path, data: Mapping[str, Any]) -> Iterator[Fault]:
    metadata = mapping(data.get("metadata"))
    for section in ("labels", "annotations"):
        for key, value in mapping(metadata.get(section)).items():
            where = (*path, "metadata", section, key)
            if problem := _bad_key(key, any_case=section == "annotations"):
                yield Fault("bad-label", obj, where, f"the {section[:-1]} key {display(key)} {problem}")
            if section == "labels" and isinstance(value, str):
                yield from _label_value(obj, where, value)


def _bad_key(key: str, *, any_case: bool = False) -> str | None:
    prefix, slash, name = key.rpartition("/")
    if not KEY_NAME.fullmatch(name):
        if len(name) > 63:
            return f"has {len(name)} characters; the limit is 63"
        return "must consist of letters, digits and -_., and start and end with a letter or digit"
    if slash and not SUBDOMAIN.fullmatch(prefix.lower() if any_case else prefix):
        return "has a prefix that is not a DNS name"
    return None


def _label_value(obj: Object, where: Path, value: str) -> Iterator[Fault]:
    if VALUE.fullmatch(value):
        return
    if len(value) > 63:
        why = f"the label {display(str(where[-1]))} has {len(value)} characters; the limit is 63"
    else:
        why = f"the label value {display(value)} must consist of letters, digits and -_., and start and end with a letter or digit"
    yield Fault("bad-label", obj, where, why)


def _selectors(obj: Object) -> Iterator[Fault]:
    spec = obj.spec
    map_selector = obj.kind in ("Service", "ReplicationController") and obj.group == ""
    where: Path = ("spec", "selector") if map_selector else ("spec", "selector", "matchLabels")
    labels = spec.get("selector") if map_selector else mapping(spec.get("selector")).get("matchLabels")
    for key, value in mapping(labels).items():
        if problem := _bad_key(key):
            yield Fault("bad-label", obj, (*where, key), f"the label key {display(key)} {problem}")
        elif isinstance(value, str):
            yield from _label_value(obj, (*where, key), value)


def _pod_names(pod: Pod) -> Iterator[Fault]:
    listed = mappings(pod.spec.get("volumes"))
    volumes = [(text(volume.get("name")), (*pod.path, "spec", "volumes", index)) for index, volume in enumerate(listed)]
    for kind, named in (("container", [(container.name, container.path) for container in pod.containers]), ("volume", volumes)):
        for name, where in named:
            if name and not LABEL_1123.fullmatch(name):
                why = f"the {kind} is named {display(name)}, which is not a DNS-1123 label"
                yield Fault("bad-name", pod.owner, (*where, "name"), why)


def _container_ports(pod: Pod, container: Container) -> Iterator[Fault]:
    for index, port in enumerate(container.ports):
        where: Path = (*container.path, "ports", index)
        for key in ("containerPort", "hostPort"):
            yield from port_range(pod.owner, (*where, key), port.get(key))
        name = port.get("name")
        if isinstance(name, str) and not PORT_NAME.fullmatch(name):
            yield Fault("bad-port", pod.owner, (*where, "name"), f"the port name {display(name)} {_port_name_rule(name)}")


def _port_name_rule(name: str) -> str:
    if len(name) > 15:
        return f"has {len(name)} characters; the limit for a container port is 15"
    return "must consist of a-z, 0-9 and single hyphens, with at least one letter"


def port_range(obj: Object, where: Path, value: object) -> Iterator[Fault]:
    if isinstance(value, int) and not isinstance(value, bool) and not 1 <= value <= 65535:
        yield Fault("bad-port", obj, where, f"{dotted(where)} is {value}; a port number must be between 1 and 65535")


def _service_ports(service: Object) -> Iterator[Fault]:
    ports = mappings(service.spec.get("ports"))
    names: set[str] = set()
    numbers: set[tuple[object, str]] = set()
    for index, port in enumerate(ports):
        where: Path = ("spec", "ports", index)
        for key in ("port", "targetPort", "nodePort"):
            if not (key == "nodePort" and port.get(key) == 0):
                yield from port_range(service, (*where, key), port.get(key))
        target = port.get("targetPort")
        if isinstance(target, str) and not PORT_NAME.fullmatch(target):
            yield Fault("bad-port", service, (*where, "targetPort"), f"the port name {display(target)} {_port_name_rule(target)}")
        name = text(port.get("name"))
        if not name and len(ports) > 1:
            yield Fault("duplicate-port", service, where, "every port of a Service with several ports needs a name")
        if name and not LABEL_1123.fullmatch(name):
            yield Fault("bad-port", service, (*where, "name"), f"the port name {display(name)} is not a DNS-1123 label")
        if name and name in names:
            yield Fault("duplicate-port", service, (*where, "name"), f"two ports of the Service are named {display(name)}")
        number_and_protocol = (port.get("port"), text(port.get("protocol")) or "TCP")
        if number_and_protocol in numbers:
            why = "two ports of the Service are {} {}".format(*number_and_protocol)
            yield Fault("duplicate-port", service, (*where, "port"), why)
        names.add(name)
        numbers.add(number_and_protocol)


def _image(pod: Pod, container: Container) -> Iterator[Fault]:
    image = container.data.get("image")
    if isinstance(image, str) and not IMAGE.fullmatch(image) and "$(" not in image:
        why = f"{display(image)} is not a valid image reference" if image else "the image is empty"
        yield Fault("bad-image", pod.owner, (*container.path, "image"), why)


def _quantities(pod: Pod, container: Container) -> Iterator[Fault]:
    yield from _amounts(pod.owner, (*container.path, "resources"), mapping(container.data.get("resources")))
    for index, volume in enumerate(mappings(pod.spec.get("volumes"))):
        limit = mapping(volume.get("emptyDir")).get("sizeLimit")
        where = (*pod.path, "spec", "volumes", index, "emptyDir", "sizeLimit")
        if container is pod.containers[0] and limit is not None and quantity(limit) is None:
            yield Fault("bad-quantity", pod.owner, where, f"{display(limit)} is not a valid quantity")


def _amounts(obj: Object, path: Path, resources: Mapping[str, Any]) -> Iterator[Fault]:
    for section in ("requests", "limits"):
        for name, amount in mapping(resources.get(section)).items():
            where = (*path, section, name)
            number = quantity(amount)
            if isinstance(amount, str) and number is None:
                yield Fault("bad-quantity", obj, where, f"{name} is {display(amount)}, which is not a valid quantity", _unit(amount))
            elif number is not None and number < 0:
                yield Fault("bad-quantity", obj, where, f"{name} is {display(amount)}; it must not be negative")
            elif number is not None and name in ("memory", "storage", "ephemeral-storage") and 0 < number < 2**20:
                why = f"{name} is {display(amount)}, which is only {number:g} bytes"
                yield Fault("memory-unit", obj, where, why)


def _unit(amount: str) -> str | None:
    """A suggestion for 1GB, 1gb or 500 Mi."""
    match = re.fullmatch(r"([0-9.]+) ?([kKmMgGtTpP])i?[bB]?", amount)
    return f"write {match[1]}{match[2].upper()}i" if match else None


def _claims(obj: Object) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    if obj.kind == "PersistentVolumeClaim":
        yield (), obj.data
    for index, claim in enumerate(mappings(obj.spec.get("volumeClaimTemplates"))):
        yield ("spec", "volumeClaimTemplates", index), claim
