"""Rolling updates, node drains and autoscaling."""

import math
import re
from collections.abc import Iterator

from mlops_build.verify.references import selected
from mlops_build.verify.schema import display
from mlops_build.verify.world import Fault, Object, Pod, World, gpus, mapping, same_namespace, select, text


def check(world: World) -> Iterator[Fault]:
    for budget in world.of("PodDisruptionBudget"):
        for pod in selected(world, mapping(budget.spec, "selector"), budget.namespace):
            if pod.owner.kind in ("Deployment", "StatefulSet", "ReplicaSet", "Rollout"):
                yield from _blocked(budget, pod, fewest(world, pod))
                break
    for scaler in world.of("HorizontalPodAutoscaler"):
        for pod in world.pods:
            if _scales(scaler, pod):
                yield from _scaler(world, scaler, pod)


def amount(value: object, of: int, *, up: bool) -> int | None:
    """An int, or a percentage of `of`, rounded up or down; None if the value is neither."""
    if isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,4})%", value)):
        return (math.ceil if up else math.floor)(int(match[1]) * of / 100)
    return value if isinstance(value, int) else None


def surge(deployment: Object, replicas: int) -> int:
    """How many additional pods an update starts; Kubernetes' default is 25 %, rounded up."""
    if mapping(deployment.spec, "strategy").get("type", "RollingUpdate") != "RollingUpdate":
        return 0
    max_surge = mapping(deployment.spec, "strategy", "rollingUpdate").get("maxSurge", "25%")
    return amount(max_surge, replicas, up=True) or 0


def fewest(world: World, pod: Pod) -> int:
    """The minimum number of pods of a workload: its autoscaler's, else its replicas."""
    for scaler in world.of("HorizontalPodAutoscaler"):
        if _scales(scaler, pod):
            low = scaler.spec.get("minReplicas", 1)
            return low if isinstance(low, int) else 1
    return pod.replicas


def _scales(scaler: Object, pod: Pod) -> bool:
    target = mapping(scaler.spec, "scaleTargetRef")
    is_target = (target.get("kind"), target.get("name")) == (pod.owner.kind, pod.owner.name)
    return is_target and same_namespace(scaler.namespace, pod.namespace)


def _blocked(budget: Object, pod: Pod, replicas: int) -> Iterator[Fault]:
    available = amount(budget.spec.get("minAvailable"), replicas, up=True)
    unavailable = amount(budget.spec.get("maxUnavailable"), replicas, up=True)
    if replicas > 0 and ((available is not None and available >= replicas) or unavailable == 0):
        field = "minAvailable" if "minAvailable" in budget.spec else "maxUnavailable"
        pods = f"{pod.owner} has {replicas} pod{'s' if replicas > 1 else ''}"
        setting = f"{field} {display(budget.spec[field]).removeprefix('the number ')}"
        yield Fault("pdb-blocks", budget, ("spec", field), f"{setting} allows no eviction ({pods}), so no node can be drained")


def _scaler(world: World, scaler: Object, pod: Pod) -> Iterator[Fault]:
    """An autoscaler and the pods that it scales."""
    owner = pod.owner
    on_gpu = gpus(pod) or (world.service and world.service.gpu.mode == "shared")
    on_cpu = [path for path, name in select(scaler.data, "spec", "metrics", "*", "resource", "name") if name == "cpu"]
    on_cpu += [path for path, _ in select(scaler.data, "spec", "targetCPUUtilizationPercentage")]  # of autoscaling/v1
    for path in on_cpu if on_gpu else ():
        why = f"it scales {owner} on CPU, but the GPU does the work: the CPU stays idle under load"
        yield Fault("hpa-cpu-gpu", scaler, path, why)
    if world.service is None:
        return
    for path, name in select(scaler.data, "spec", "metrics", "*", "pods", "metric", "name"):
        if world.released and not _is_scraped(world, pod):
            why = f"it scales {owner} on the pod metric {name}, but nothing here makes Prometheus scrape the pods"
            yield Fault("hpa-no-monitoring", scaler, path, why)
    if "replicas" in owner.spec and pod.replicas != 0:
        why = f"{owner} sets replicas, so every deployment undoes the autoscaler's changes"
        yield Fault("hpa-replicas", owner, ("spec", "replicas"), why)


def _is_scraped(world: World, pod: Pod) -> bool:
    """Whether a monitor of prometheus-operator or an annotation of pods or Services enables scraping."""
    if world.of("ServiceMonitor", "PodMonitor", "ScrapeConfig"):
        return True
    described = (pod.data, *(service.data for service in world.of("Service")))
    return any(text(data, "metadata", "annotations", "prometheus.io/scrape") == "true" for data in described)
