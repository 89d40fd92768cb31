"""Memory and GPUs: requests, limits, and whether an update has enough of them."""

import re
from collections.abc import Iterator

from mlops_build.quantity import NotAnAmount, parse_bytes
from mlops_build.service import Service
from mlops_build.verify.disruption import surge
from mlops_build.verify.document import Path
from mlops_build.verify.schema import display
from mlops_build.verify.world import Container, Fault, Pod, World, at, containers_of, gpus, mapping, serving_containers, text, variables

GPU_RESOURCE = "nvidia.com/gpu"
QUANTITY = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:([numkMGTPE])(i?))?")


def check(world: World) -> Iterator[Fault]:
    for pod, container in containers_of(world):
        yield from _requests_and_limits(pod, container)
    if world.service and world.released:
        for pod, container in serving_containers(world):
            if pod.replicas != 0:
                yield from _in_a_service(world.service, pod, container)


def _requests_and_limits(pod: Pod, container: Container) -> Iterator[Fault]:
    requests, limits = mapping(container.data, "resources", "requests"), mapping(container.data, "resources", "limits")
    for name in requests:
        requested, allowed = quantity(requests.get(name)), quantity(limits.get(name))
        where: Path = (*container.path, "resources")
        if name == GPU_RESOURCE and requested is not None and requested != allowed:
            limit = f"its limit is {limits[name]}" if name in limits else "it has no limit"
            why = f"{container.name} requests {requests[name]} of {name}, but {limit}; both must be equal"
            yield Fault("gpu-request-limit", pod.owner, (*where, "requests", name), why)
        elif requested is not None and allowed is not None and allowed < requested:
            why = f"{container.name} requests {requests[name]} of {name}, but its limit is {limits[name]}"
            yield Fault("limit-below-request", pod.owner, (*where, "limits", name), why)


def quantity(value: object) -> float | None:
    """The number that a Kubernetes quantity such as 500m or 4Gi means; None if it is not valid, or has an exponent."""
    match = QUANTITY.fullmatch(str(value))
    if match is None:
        return None
    power = "num kMGTPE".index(match[2] or " ") - 3
    return float(match[1]) * (1024.0 if match[3] else 1000.0) ** power


# In a service: GPUs and memory as in service.yaml


def _in_a_service(service: Service, pod: Pod, container: Container) -> Iterator[Fault]:
    if "memory" not in mapping(container.data, "resources", "limits"):
        path: Path = (*container.path, "resources")
        yield Fault("no-memory-limit", pod.owner, path, f"{container.name} has no memory limit, so a leak can use up the node's memory")
    gpu_count = gpus(pod).get(GPU_RESOURCE, 0)
    yield from _mode(service, pod, container, gpu_count)
    if service.gpu.mode == "shared":
        yield from _budget(service, pod, container)
    if service.gpu.mode != "none":
        yield from _surge(service, pod, gpu_count)


def _mode(service: Service, pod: Pod, container: Container, gpu_count: int) -> Iterator[Fault]:
    where: Path = (*container.path, "resources")
    if service.gpu.mode == "exclusive" and not gpu_count:
        why = f"gpu.mode in service.yaml is exclusive, but {container.name} requests no {GPU_RESOURCE}"
        yield Fault("gpu-mode", pod.owner, where, why, f"add {GPU_RESOURCE}: 1 to its limits, or set `mode: shared`")
    elif service.gpu.mode != "exclusive" and gpu_count:
        why = f"gpu.mode in service.yaml is {service.gpu.mode}, but {container.name} requests {gpu_count} of {GPU_RESOURCE}"
        section = "limits" if GPU_RESOURCE in mapping(container.data, "resources", "limits") else "requests"
        yield Fault("gpu-mode", pod.owner, (*where, section, GPU_RESOURCE), why, f"remove {GPU_RESOURCE}, or set `mode: exclusive`")
    if service.gpu.mode == "shared" and service.gpu.runtime_class and not text(pod.spec, "runtimeClassName"):
        why = "gpu.mode is shared, but the pods have no runtime class, so they see no GPU"
        yield Fault("gpu-runtime-class", pod.owner, (*pod.path, "spec"), why)


def _budget(service: Service, pod: Pod, container: Container) -> Iterator[Fault]:
    where, variable = variables(container).get("MLOPS_GPU_MEMORY", (None, {}))
    value = text(variable, "value")
    if where is None:
        why = f"{container.name} has no MLOPS_GPU_MEMORY, so other services on the GPU do not know its budget"
        yield Fault("gpu-budget", pod.owner, container.path, why)
        return
    try:
        budget = parse_bytes(value)
    except NotAnAmount:
        why = f"MLOPS_GPU_MEMORY is {display(value)}, which is not a valid amount of memory"
        yield Fault("gpu-budget", pod.owner, (*where, "value"), why)
        return
    if budget != service.gpu.memory_bytes:
        why = f"MLOPS_GPU_MEMORY is {value}, but gpu.memory in service.yaml is {service.gpu.memory}"
        yield Fault("gpu-budget", pod.owner, (*where, "value"), why)


def _surge(service: Service, pod: Pod, gpu_count: int) -> Iterator[Fault]:
    """An update that starts additional pods needs free GPUs or GPU memory for them."""
    extra = surge(pod.owner, max(pod.replicas, 1)) if pod.owner.kind == "Deployment" else 0
    if extra <= 0:
        return
    gpu = service.gpu
    if gpu.mode == "shared":
        spare, needed = parse_bytes(gpu.spare_memory) if gpu.spare_memory else 0, gpu.memory_bytes * extra
        enough, setting = spare >= needed, f"gpu.spare_memory is {gpu.spare_memory or 'not set'}"
        needs = f"{extra} × {gpu.memory} of GPU memory"
    else:
        enough, setting = gpu.spare_cards >= extra * max(gpu_count, 1), f"gpu.spare_cards is {gpu.spare_cards}"
        needs = f"{extra * max(gpu_count, 1)} more of {GPU_RESOURCE}"
    if enough:
        return
    where: Path = ("spec", "strategy", "rollingUpdate", "maxSurge")
    default = at(pod.owner.data, where) is None
    pods = f"{extra} pod{'s' if extra > 1 else ''}{' (the default of 25%)' if default else ''}"
    why = f"an update starts {pods} in addition to the old ones, which need {needs}; {setting}"
    yield Fault("gpu-surge", pod.owner, where, why)
