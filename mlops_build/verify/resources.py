"""Memory and cards: what is asked for, what is allowed, and whether an update has room for it."""

from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.service import Service, ServiceError, parse_bytes
from mlops_build.verify.disruption import surge
from mlops_build.verify.document import Path
from mlops_build.verify.names import quantity
from mlops_build.verify.schema import shown
from mlops_build.verify.world import Container, Fault, Pod, World, environment, gpus, mapping, of_pods, text

CARD = "nvidia.com/gpu"


def check(world: World) -> Iterator[Fault]:
    for pod, container in of_pods(world):
        yield from _requests_and_limits(pod, container)
    if world.service and world.released:
        for pod in world.pods:
            if pod.owner.kind in ("Deployment", "StatefulSet"):
                yield from _in_a_service(world.service, pod)


def _requests_and_limits(pod: Pod, container: Container) -> Iterator[Fault]:
    resources = mapping(container.data.get("resources"))
    requests, limits = mapping(resources.get("requests")), mapping(resources.get("limits"))
    where: Path = (*container.path, "resources")
    for name in sorted({*requests, *limits}):
        asked, allowed = quantity(requests.get(name)), quantity(limits.get(name))
        if extended(name):
            yield from _extended(pod, container, where, name, requests, limits)
        elif asked is not None and allowed is not None and allowed < asked:
            why = f"{container.name} requests {requests[name]} of {name}, and its limit is {limits[name]}"
            yield Fault("limit-below-request", pod.owner, (*where, "limits", name), why)


def extended(name: str) -> bool:
    """Whether it is a resource that cannot be overcommitted: a device plugin's, or huge pages."""
    prefix = name.rpartition("/")[0]
    return name.startswith("hugepages-") or (bool(prefix) and not prefix.endswith("kubernetes.io"))


def _extended(
    pod: Pod, container: Container, where: Path, name: str, requests: Mapping[str, Any], limits: Mapping[str, Any]
) -> Iterator[Fault]:
    asked, allowed = quantity(requests.get(name)), quantity(limits.get(name))
    for section, amount in (("requests", asked), ("limits", allowed)):
        if amount is not None and not name.startswith("hugepages-") and amount != int(amount):
            why = f"{container.name} asks for {amount:g} of {name}; a device is given whole"
            yield Fault("gpu-fraction", pod.owner, (*where, section, name), why)
    if asked is not None and asked != allowed:
        there = f"its limit is {limits[name]}" if name in limits else "it has no limit"
        why = f"{container.name} requests {requests[name]} of {name}, and {there}; both must be the same"
        yield Fault("gpu-request-limit", pod.owner, (*where, "requests", name), why)


# In a service: what service.yaml says about cards and memory


def _in_a_service(service: Service, pod: Pod) -> Iterator[Fault]:
    container = next((one for one in pod.containers if one.name == service.name and one.kind == "containers"), None)
    if container is None or pod.replicas == 0:
        return
    resources = mapping(container.data.get("resources"))
    if "memory" not in mapping(resources.get("limits")):
        where: Path = (*container.path, "resources") if resources else container.path
        yield Fault("no-memory-limit", pod.owner, where, f"{container.name} has no memory limit, so a leak takes the node's memory")
    cards = gpus(pod).get(CARD, 0)
    yield from _mode(service, pod, container, cards)
    if service.gpu.mode == "shared":
        yield from _budget(service, pod, container)
    if service.gpu.mode != "none":
        yield from _surge(service, pod, cards)


def _mode(service: Service, pod: Pod, container: Container, cards: int) -> Iterator[Fault]:
    where: Path = (*container.path, "resources")
    if service.gpu.mode == "exclusive" and not cards:
        why = f"service.yaml says gpu.mode exclusive, and {container.name} asks for no {CARD}"
        yield Fault("gpu-mode", pod.owner, where, why, f"add {CARD}: 1 to its limits, or write `mode: shared`")
    elif service.gpu.mode != "exclusive" and cards:
        why = f"service.yaml says gpu.mode {service.gpu.mode}, and {container.name} takes {cards} of {CARD} for itself"
        section = "limits" if CARD in mapping(mapping(container.data.get("resources")).get("limits")) else "requests"
        yield Fault("gpu-mode", pod.owner, (*where, section, CARD), why, f"remove {CARD}, or write `mode: exclusive`")
    runtime = text(pod.spec.get("runtimeClassName"))
    if service.gpu.mode == "shared" and service.gpu.runtime_class and not runtime:
        why = "gpu.mode is shared, and the pods name no runtime class, so they see no card"
        yield Fault("gpu-runtime-class", pod.owner, (*pod.path, "spec"), why)


def _budget(service: Service, pod: Pod, container: Container) -> Iterator[Fault]:
    promised = service.gpu.memory_bytes
    for where, variable in environment(container):
        if variable.get("name") != "MLOPS_GPU_MEMORY":
            continue
        value = text(variable.get("value"))
        try:
            found = parse_bytes(value)
        except ServiceError:
            yield Fault("gpu-budget", pod.owner, (*where, "value"), f"MLOPS_GPU_MEMORY is {shown(value)}, which is no amount of memory")
            return
        if found != promised:
            why = f"MLOPS_GPU_MEMORY is {value}, and service.yaml promises {service.gpu.memory}"
            yield Fault("gpu-budget", pod.owner, (*where, "value"), why)
        return
    why = f"{container.name} has no MLOPS_GPU_MEMORY, so it promises its neighbours on the card nothing"
    yield Fault("gpu-budget", pod.owner, container.path, why)


def _surge(service: Service, pod: Pod, cards: int) -> Iterator[Fault]:
    """An update that starts more pods than there are needs room on the cards for each of them."""
    more = surge(pod.owner, max(pod.replicas, 1)) if pod.owner.kind == "Deployment" else 0
    if more <= 0:
        return
    gpu = service.gpu
    if gpu.mode == "shared":
        spare, needed = parse_bytes(gpu.spare_memory) if gpu.spare_memory else 0, gpu.memory_bytes * more
        enough, said = spare >= needed, f"gpu.spare_memory {gpu.spare_memory or 'is not set'}"
        wanted = f"{more} × {gpu.memory} of GPU memory"
    else:
        enough, said = gpu.spare_cards >= more * max(cards, 1), f"gpu.spare_cards is {gpu.spare_cards}"
        wanted = f"{more * max(cards, 1)} more of {CARD}"
    if enough:
        return
    strategy = mapping(pod.owner.spec.get("strategy"))
    where: Path = ("spec", "strategy", "rollingUpdate", "maxSurge")
    default = "maxSurge" not in mapping(strategy.get("rollingUpdate"))
    who = f"{more} pod{'s' if more > 1 else ''}{' (the default of 25%)' if default else ''}"
    why = f"an update starts {who} beside the old ones: {wanted}; {said}"
    yield Fault("gpu-surge", pod.owner, where, why)
