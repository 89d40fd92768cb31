"""Rolling updates, node drains and autoscaling."""

import math
import re
from collections.abc import Iterator

from mlops_build.verify.document import Path
from mlops_build.verify.references import selected
from mlops_build.verify.schema import display
from mlops_build.verify.world import Fault, Object, Pod, World, gpus, mapping, mappings, text


def check(world: World) -> Iterator[Fault]:
    for budget in world.of("PodDisruptionBudget"):
        yield from _budget(world, budget)
    scaled: dict[tuple[str, str, str], Object] = {}
    for scaler in world.of("HorizontalPodAutoscaler"):
        yield from _scaler(world, scaler)
        target = mapping(scaler.spec.get("scaleTargetRef"))
        identity = (text(target.get("kind")), text(target.get("name")), scaler.namespace)
        if world.rendered and identity[1] and identity in scaled:
            why = f"{scaled[identity]} also scales {identity[0]}/{identity[1]}; they undo each other's changes"
            yield Fault("hpa-twice", scaler, ("spec", "scaleTargetRef", "name"), why)
        scaled.setdefault(identity, scaler)


def amount(value: object, of: int, *, up: bool) -> int | None:
    """An int, or a percentage of `of`, rounded up or down; None if the value is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,4})%", value)):
        return (math.ceil if up else math.floor)(int(match[1]) * of / 100)
    return None


def surge(deployment: Object, replicas: int) -> int:
    """How many additional pods an update starts; Kubernetes' default is 25 %, rounded up."""
    strategy = mapping(deployment.spec.get("strategy"))
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return 0
    max_surge = mapping(strategy.get("rollingUpdate")).get("maxSurge", "25%")
    return amount(max_surge, replicas, up=True) or 0


def _budget(world: World, budget: Object) -> Iterator[Fault]:
    selector = mapping(budget.spec.get("selector"))
    min_available, max_unavailable = budget.spec.get("minAvailable"), budget.spec.get("maxUnavailable")
    for pod in selected(world, selector, budget.namespace):
        if pod.owner.kind not in ("Deployment", "StatefulSet", "ReplicaSet", "Rollout"):
            continue
        if problem := _blocks(world, pod, min_available, max_unavailable):
            yield Fault("pdb-blocks", budget, ("spec", "minAvailable" if min_available is not None else "maxUnavailable"), problem)
            return


def _blocks(world: World, pod: Pod, min_available: object, max_unavailable: object) -> str | None:
    replicas = fewest(world, pod)
    if replicas <= 0:
        return None
    pods = f"{pod.owner} has {replicas} pod{'s' if replicas > 1 else ''}"
    setting: str | None = None
    if min_available is not None and (available := amount(min_available, replicas, up=True)) is not None and available >= replicas:
        setting = f"minAvailable {display(min_available).removeprefix('the number ')}"
    elif max_unavailable is not None and amount(max_unavailable, replicas, up=True) == 0:
        setting = f"maxUnavailable {display(max_unavailable).removeprefix('the number ')}"
    return f"{setting} allows no eviction ({pods}), so no node can be drained" if setting else None


def fewest(world: World, pod: Pod) -> int:
    """The minimum number of pods of a workload: its autoscaler's, else its replicas."""
    for scaler in world.of("HorizontalPodAutoscaler"):
        target = mapping(scaler.spec.get("scaleTargetRef"))
        if (target.get("kind"), target.get("name")) == (pod.owner.kind, pod.owner.name):
            low = scaler.spec.get("minReplicas", 1)
            return low if isinstance(low, int) else 1
    return pod.replicas


def _scaler(world: World, scaler: Object) -> Iterator[Fault]:
    low, high = scaler.spec.get("minReplicas", 1), scaler.spec.get("maxReplicas")
    if isinstance(low, int) and isinstance(high, int) and low > high:
        yield Fault("hpa-min-max", scaler, ("spec", "minReplicas"), f"minReplicas {low} is greater than maxReplicas {high}")
    target = mapping(scaler.spec.get("scaleTargetRef"))
    owner = world.find(text(target.get("kind")), text(target.get("name")), scaler.namespace)
    pods = [pod for pod in world.pods if owner is not None and pod.owner is owner]
    if not pods or owner is None:
        return
    for where, resource, kind in _resource_metrics(scaler):
        if resource == "cpu" and (gpus(pods[0]) or _shares_a_gpu(world)):
            why = f"it scales {owner} on CPU, but the GPU does the work: the CPU stays idle under load"
            yield Fault("hpa-cpu-gpu", scaler, where, why)
        containers = [container for container in pods[0].containers if container.kind == "containers"]
        lacking = [container.name for container in containers if not _requests(container.data, resource)]
        if kind == "Utilization" and lacking:
            why = f"it scales on a percentage of the {resource} request, but {', '.join(lacking)} of {owner} has none"
            yield Fault("hpa-no-request", scaler, where, why)
    if world.service and world.released and not _is_scraped(world, pods):
        for where, name in _pod_metrics(scaler):
            why = f"it scales {owner} on the pod metric {name}, but nothing here makes Prometheus scrape the pods"
            yield Fault("hpa-no-monitoring", scaler, where, why)
    if world.service and "replicas" in owner.spec and pods[0].replicas != 0:
        why = f"{owner} sets replicas, so every deployment undoes the autoscaler's changes"
        yield Fault("hpa-replicas", owner, ("spec", "replicas"), why)


def _resource_metrics(scaler: Object) -> Iterator[tuple[Path, str, str]]:
    """(path, resource, type of target) of an autoscaler's resource metrics."""
    if "targetCPUUtilizationPercentage" in scaler.spec:
        yield ("spec", "targetCPUUtilizationPercentage"), "cpu", "Utilization"
    for index, metric in enumerate(mappings(scaler.spec.get("metrics"))):
        resource = mapping(metric.get("resource"))
        if metric.get("type") == "Resource":
            where: Path = ("spec", "metrics", index, "resource", "name")
            yield where, text(resource.get("name")), text(mapping(resource.get("target")).get("type"))


def _pod_metrics(scaler: Object) -> Iterator[tuple[Path, str]]:
    """(path, name) of an autoscaler's pod metrics."""
    for index, metric in enumerate(mappings(scaler.spec.get("metrics"))):
        name = text(mapping(mapping(metric.get("pods")).get("metric")).get("name"))
        if metric.get("type") == "Pods" and name:
            yield ("spec", "metrics", index, "pods", "metric", "name"), name


def _is_scraped(world: World, pods: list[Pod]) -> bool:
    """Whether a monitor of prometheus-operator or an annotation of pods or Services enables scraping."""
    if world.of("ServiceMonitor", "PodMonitor", "ScrapeConfig"):
        return True
    described = [mapping(pod.data.get("metadata")) for pod in pods] + [metadata.metadata for metadata in world.of("Service")]
    return any(str(mapping(metadata.get("annotations")).get("prometheus.io/scrape")).lower() == "true" for metadata in described)


def _requests(container: object, resource: str) -> bool:
    resources = mapping(mapping(container).get("resources"))
    return resource in {**mapping(resources.get("requests")), **mapping(resources.get("limits"))}


def _shares_a_gpu(world: World) -> bool:
    return bool(world.service and world.service.gpu.mode == "shared")
