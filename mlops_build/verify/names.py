"""Names, labels and numbers that the API server checks and that a schema of types cannot: DNS names, label values, ports, quantities."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import dotted, shown
from mlops_build.verify.world import BUILT_IN, Container, Fault, Object, Pod, World, at, mapping, mappings, of_pods, text

LABEL_1123 = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
LABEL_1035 = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
# RBAC takes what can stand in a path: system:node, and names with capital letters.
PATH_SEGMENT = re.compile(r"(?!\.{1,2}\Z)[^/%]+")
VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
KEY_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
PORT_NAME = re.compile(r"(?=.{1,15}\Z)(?=.*[a-z])[a-z0-9]+(?:-[a-z0-9]+)*")
ENVIRONMENT_KEY = re.compile(r"[-._a-zA-Z0-9]{1,253}")
# A Kubernetes quantity: sign, digits, and one suffix.
QUANTITY = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]+)?")
UNIT = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3} | {unit: 1000.0 ** (power + 2) for power, unit in enumerate("MGTPE")}
UNIT |= {f"{unit}i": 1024.0 ** (power + 1) for power, unit in enumerate("KMGTPE")}
IMAGE = re.compile(
    r"(?:(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?|\[[0-9a-fA-F:]+\])(?::[0-9]+)?/)?"
    r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*"
    r"(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?(?:@[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-fA-F]{32,})?"
)


# What something is to fill in before it is applied: ${NAME}, <name>, {name}, ko://path.
PLACEHOLDER = re.compile(r"\$[{(]|[<>{}]|^ko://")


def check(world: World) -> Iterator[Fault]:
    for fault in _all(world):
        # Where everything is rendered, nobody will.
        value = at(fault.about.data, fault.path)
        if world.closed or not (isinstance(value, str) and PLACEHOLDER.search(value)):
            yield fault


def _all(world: World) -> Iterator[Fault]:
    for one in world.objects:
        yield from _object_name(one)
        yield from _labels(one, (), one.data)
        yield from _selectors(one)
        if one.kind == "Service" and one.group == "":
            yield from _service_ports(one)
    for pod in world.pods:
        if pod.path:
            yield from _labels(pod.owner, pod.path, pod.data)
        yield from _pod_names(pod)
    for pod, container in of_pods(world):
        yield from _container_ports(pod, container)
        yield from _image(pod, container)
        yield from _quantities(pod, container)
    for one in world.objects:
        for claim_path, claim in _claims(one):
            yield from _amounts(one, (*claim_path, "spec", "resources"), mapping(mapping(claim.get("spec")).get("resources")))


def quantity(value: object) -> float | None:
    """What a Kubernetes quantity amounts to; None for what is none."""
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


def _object_name(one: Object) -> Iterator[Fault]:
    if one.kind.endswith("List") or one.group.endswith("kustomize.config.k8s.io"):
        return
    if not one.name:
        # Only objects need one: a kind's configuration file (kubelet, kind) has an apiVersion too.
        if not one.metadata.get("generateName") and one.kind and one.api_version and one.group in BUILT_IN:
            yield Fault("missing-field", one, ("metadata",), "metadata.name is missing")
        return
    if "rbac.authorization.k8s.io" in one.group or one.group == "flowcontrol.apiserver.k8s.io":
        good, wanted = PATH_SEGMENT, "anything without / and %"
    elif one.kind == "Service" and one.group == "":
        good, wanted = LABEL_1035, "a DNS-1035 label: a-z, 0-9 and -, starting with a letter, at most 63"
    elif one.kind == "Namespace" and one.group == "":
        good, wanted = LABEL_1123, "a DNS-1123 label: a-z, 0-9 and -, at most 63"
    else:
        good, wanted = SUBDOMAIN, "a DNS-1123 name: a-z, 0-9, - and ., at most 253"
    if not good.fullmatch(one.name):
        yield Fault("bad-name", one, ("metadata", "name"), f"{one.kind} is named {shown(one.name)}, which is not {wanted}")
    # A pod's host name and the label that a controller writes come from the workload's name.
    if one.kind in ("StatefulSet", "CronJob", "Job") and len(one.name) > (52 if one.kind == "CronJob" else 63):
        yield Fault(
            "bad-name", one, ("metadata", "name"), f"the name of a {one.kind} has {len(one.name)} characters, too many for its pods"
        )
    if one.namespace and not LABEL_1123.fullmatch(one.namespace):
        why = f"the namespace {shown(one.namespace)} is not a DNS-1123 label: a-z, 0-9 and -, at most 63"
        yield Fault("bad-name", one, ("metadata", "namespace"), why)


def _labels(one: Object, path: Path, data: Mapping[str, Any]) -> Iterator[Fault]:
    metadata = mapping(data.get("metadata"))
    for section in ("labels", "annotations"):
        for key, value in mapping(metadata.get(section)).items():
            where = (*path, "metadata", section, key)
            if problem := _bad_key(key, any_case=section == "annotations"):
                yield Fault("bad-label", one, where, f"the {section[:-1]} key {shown(key)} {problem}")
            if section == "labels" and isinstance(value, str):
                yield from _label_value(one, where, value)


def _bad_key(key: str, *, any_case: bool = False) -> str | None:
    prefix, slash, name = key.rpartition("/")
    if not KEY_NAME.fullmatch(name):
        if len(name) > 63:
            return f"has {len(name)} characters; 63 are allowed"
        return "may hold letters, digits and -_., and starts and ends with a letter or digit"
    if slash and not SUBDOMAIN.fullmatch(prefix.lower() if any_case else prefix):
        return "has a prefix that is no DNS name"
    return None


def _label_value(one: Object, where: Path, value: str) -> Iterator[Fault]:
    if VALUE.fullmatch(value):
        return
    if len(value) > 63:
        why = f"the label {shown(str(where[-1]))} has {len(value)} characters; 63 are allowed"
    else:
        why = f"the label value {shown(value)} may hold letters, digits and -_., and starts and ends with a letter or digit"
    yield Fault("bad-label", one, where, why)


def _selectors(one: Object) -> Iterator[Fault]:
    spec = one.spec
    plain = one.kind in ("Service", "ReplicationController") and one.group == ""
    where: Path = ("spec", "selector") if plain else ("spec", "selector", "matchLabels")
    labels = spec.get("selector") if plain else mapping(spec.get("selector")).get("matchLabels")
    for key, value in mapping(labels).items():
        if problem := _bad_key(key):
            yield Fault("bad-label", one, (*where, key), f"the label key {shown(key)} {problem}")
        elif isinstance(value, str):
            yield from _label_value(one, (*where, key), value)


def _pod_names(pod: Pod) -> Iterator[Fault]:
    listed = mappings(pod.spec.get("volumes"))
    volumes = [(text(volume.get("name")), (*pod.path, "spec", "volumes", index)) for index, volume in enumerate(listed)]
    for what, named in (("container", [(one.name, one.path) for one in pod.containers]), ("volume", volumes)):
        for name, where in named:
            if name and not LABEL_1123.fullmatch(name):
                why = f"the {what} is named {shown(name)}, which is not a DNS-1123 label"
                yield Fault("bad-name", pod.owner, (*where, "name"), why)


def _container_ports(pod: Pod, container: Container) -> Iterator[Fault]:
    for index, port in enumerate(container.ports):
        where: Path = (*container.path, "ports", index)
        for key in ("containerPort", "hostPort"):
            yield from port_range(pod.owner, (*where, key), port.get(key))
        name = port.get("name")
        if isinstance(name, str) and not PORT_NAME.fullmatch(name):
            yield Fault("bad-port", pod.owner, (*where, "name"), f"the port name {shown(name)} {_port_name_rule(name)}")


def _port_name_rule(name: str) -> str:
    if len(name) > 15:
        return f"has {len(name)} characters; a container's port name has at most 15"
    return "may hold a-z, 0-9 and single hyphens, and needs a letter"


def port_range(one: Object, where: Path, value: object) -> Iterator[Fault]:
    if isinstance(value, int) and not isinstance(value, bool) and not 1 <= value <= 65535:
        yield Fault("bad-port", one, where, f"{dotted(where)} is {value}; a port is 1 to 65535")


def _service_ports(one: Object) -> Iterator[Fault]:
    ports = mappings(one.spec.get("ports"))
    names: set[str] = set()
    numbers: set[tuple[object, str]] = set()
    for index, port in enumerate(ports):
        where: Path = ("spec", "ports", index)
        for key in ("port", "targetPort", "nodePort"):
            if not (key == "nodePort" and port.get(key) == 0):
                yield from port_range(one, (*where, key), port.get(key))
        target = port.get("targetPort")
        if isinstance(target, str) and not PORT_NAME.fullmatch(target):
            yield Fault("bad-port", one, (*where, "targetPort"), f"the port name {shown(target)} {_port_name_rule(target)}")
        name = text(port.get("name"))
        if not name and len(ports) > 1:
            yield Fault("duplicate-port", one, where, "a Service with several ports gives each a name")
        if name and not LABEL_1123.fullmatch(name):
            yield Fault("bad-port", one, (*where, "name"), f"the port name {shown(name)} is not a DNS-1123 label")
        if name and name in names:
            yield Fault("duplicate-port", one, (*where, "name"), f"two ports of the Service are named {shown(name)}")
        number = (port.get("port"), text(port.get("protocol")) or "TCP")
        if number in numbers:
            yield Fault("duplicate-port", one, (*where, "port"), f"two ports of the Service are {number[0]} {number[1]}")
        names.add(name)
        numbers.add(number)


def _image(pod: Pod, container: Container) -> Iterator[Fault]:
    image = container.data.get("image")
    if isinstance(image, str) and not IMAGE.fullmatch(image) and "$(" not in image:
        why = f"the image {shown(image)} is no reference that can be pulled" if image else "the image is empty"
        yield Fault("bad-image", pod.owner, (*container.path, "image"), why)


def _quantities(pod: Pod, container: Container) -> Iterator[Fault]:
    yield from _amounts(pod.owner, (*container.path, "resources"), mapping(container.data.get("resources")))
    for index, volume in enumerate(mappings(pod.spec.get("volumes"))):
        limit = mapping(volume.get("emptyDir")).get("sizeLimit")
        where = (*pod.path, "spec", "volumes", index, "emptyDir", "sizeLimit")
        if container is pod.containers[0] and limit is not None and quantity(limit) is None:
            yield Fault("bad-quantity", pod.owner, where, f"{shown(limit)} is no amount that Kubernetes reads")


def _amounts(one: Object, path: Path, resources: Mapping[str, Any]) -> Iterator[Fault]:
    for section in ("requests", "limits"):
        for name, amount in mapping(resources.get(section)).items():
            where = (*path, section, name)
            number = quantity(amount)
            if isinstance(amount, str) and number is None:
                yield Fault(
                    "bad-quantity", one, where, f"{name} is {shown(amount)}, which is no amount that Kubernetes reads", _unit(amount)
                )
            elif number is not None and number < 0:
                yield Fault("bad-quantity", one, where, f"{name} is {shown(amount)}; it cannot be negative")
            elif number is not None and name in ("memory", "storage", "ephemeral-storage") and 0 < number < 2**20:
                why = f"{name} is {shown(amount)}, which is {number:g} bytes: nothing runs in that"
                yield Fault("memory-unit", one, where, why)


def _unit(amount: str) -> str | None:
    """What somebody meant who wrote 1GB, 1gb or 500 Mi."""
    found = re.fullmatch(r"([0-9.]+) ?([kKmMgGtTpP])i?[bB]?", amount)
    return f"write {found[1]}{found[2].upper()}i" if found else None


def _claims(one: Object) -> Iterator[tuple[Path, Mapping[str, Any]]]:
    if one.kind == "PersistentVolumeClaim":
        yield (), one.data
    for index, claim in enumerate(mappings(one.spec.get("volumeClaimTemplates"))):
        yield ("spec", "volumeClaimTemplates", index), claim
