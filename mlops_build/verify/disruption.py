"""What happens while pods change: rolling updates, drains, and scaling up and down."""

import math
import re
from collections.abc import Iterator

from mlops_build.verify.document import Path
from mlops_build.verify.references import nobody, selected
from mlops_build.verify.schema import shown
from mlops_build.verify.world import Fault, Object, Pod, World, gpus, mapping, mappings, text


def check(world: World) -> Iterator[Fault]:
    for deployment in world.of("Deployment"):
        yield from _strategy(deployment)
    for budget in world.of("PodDisruptionBudget"):
        yield from _budget(world, budget)
    scaled: dict[tuple[str, str, str], Object] = {}
    for scaler in world.of("HorizontalPodAutoscaler"):
        yield from _scaler(world, scaler)
        target = mapping(scaler.spec.get("scaleTargetRef"))
        known = (text(target.get("kind")), text(target.get("name")), scaler.namespace)
        if world.closed and known[1] and known in scaled:
            why = f"{scaled[known]} scales {known[0]}/{known[1]} as well, and the two undo each other's work"
            yield Fault("hpa-twice", scaler, ("spec", "scaleTargetRef", "name"), why)
        scaled.setdefault(known, scaler)


def amount(value: object, of: int, *, up: bool) -> int | None:
    """An int, or a percentage of `of` rounded as Kubernetes rounds that field; None for what is neither."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, str) and (found := re.fullmatch(r"([0-9]{1,4})%", value)):
        return (math.ceil if up else math.floor)(int(found[1]) * of / 100)
    return None


def surge(deployment: Object, replicas: int) -> int:
    """How many pods more than `replicas` an update starts; Kubernetes' default is 25 %, rounded up."""
    strategy = mapping(deployment.spec.get("strategy"))
    if strategy.get("type", "RollingUpdate") != "RollingUpdate":
        return 0
    asked = mapping(strategy.get("rollingUpdate")).get("maxSurge", "25%")
    return amount(asked, replicas, up=True) or 0


def _strategy(deployment: Object) -> Iterator[Fault]:
    strategy = mapping(deployment.spec.get("strategy"))
    rolling = strategy.get("rollingUpdate")
    if strategy.get("type") == "Recreate" and rolling:
        yield Fault("recreate-rolling", deployment, ("spec", "strategy", "rollingUpdate"), "a Recreate has no rolling update to set up")
    settings = mapping(rolling)
    # Written as 0 or 0 %, both; what a percentage rounds to is Kubernetes' own affair.
    if all(str(settings.get(key, "25%")) in ("0", "0%") for key in ("maxSurge", "maxUnavailable")):
        why = "maxSurge and maxUnavailable are both 0: no pod may be added and none removed, so nothing can change"
        yield Fault("rolling-update-zero", deployment, ("spec", "strategy", "rollingUpdate", "maxUnavailable"), why)
    for key in ("maxSurge", "maxUnavailable"):
        value = settings.get(key)
        if isinstance(value, str) and amount(value, 1, up=True) is None:
            why = f"{key} is {shown(value)}, which is neither a number nor a percentage"
            yield Fault("wrong-value", deployment, ("spec", "strategy", "rollingUpdate", key), why, "write 1 or 25%")


def _budget(world: World, budget: Object) -> Iterator[Fault]:
    selector = mapping(budget.spec.get("selector"))
    least, most = budget.spec.get("minAvailable"), budget.spec.get("maxUnavailable")
    if least is not None and most is not None:
        yield Fault(
            "pdb-blocks", budget, ("spec", "maxUnavailable"), "a budget says minAvailable or maxUnavailable, not both", "keep one of them"
        )
        return
    yield from nobody(world, budget, ("spec", "selector"), selector, "pdb-no-pods", "the PodDisruptionBudget")
    for pod in selected(world, selector, budget.namespace):
        if pod.owner.kind in ("Deployment", "StatefulSet", "ReplicaSet", "Rollout") and (why := _blocks(world, pod, least, most)):
            yield Fault("pdb-blocks", budget, ("spec", "minAvailable" if least is not None else "maxUnavailable"), why)
            return


def _blocks(world: World, pod: Pod, least: object, most: object) -> str | None:
    replicas = fewest(world, pod)
    if replicas <= 0:
        return None
    who = f"{pod.owner} has {replicas} pod{'s' if replicas > 1 else ''}"
    if least is not None and (kept := amount(least, replicas, up=True)) is not None and kept >= replicas:
        return f"minAvailable {shown(least).removeprefix('the number ')} keeps them all ({who}): no node can be drained"
    if most is not None and amount(most, replicas, up=True) == 0:
        return f"maxUnavailable {shown(most).removeprefix('the number ')} lets none go ({who}): no node can be drained"
    return None


def fewest(world: World, pod: Pod) -> int:
    """The least number of pods that a workload has, its scaler asked."""
    for scaler in world.of("HorizontalPodAutoscaler"):
        target = mapping(scaler.spec.get("scaleTargetRef"))
        if (target.get("kind"), target.get("name")) == (pod.owner.kind, pod.owner.name):
            low = scaler.spec.get("minReplicas", 1)
            return low if isinstance(low, int) else 1
    return pod.replicas


def _scaler(world: World, scaler: Object) -> Iterator[Fault]:
    low, high = scaler.spec.get("minReplicas", 1), scaler.spec.get("maxReplicas")
    if isinstance(low, int) and isinstance(high, int) and low > high:
        yield Fault("hpa-min-max", scaler, ("spec", "minReplicas"), f"minReplicas {low} is more than maxReplicas {high}")
    target = mapping(scaler.spec.get("scaleTargetRef"))
    owner = world.find(text(target.get("kind")), text(target.get("name")), scaler.namespace)
    pods = [pod for pod in world.pods if owner is not None and pod.owner is owner]
    if not pods or owner is None:
        return
    for where, resource, kind in _resource_metrics(scaler):
        if resource == "cpu" and (gpus(pods[0]) or _shares_a_card(world)):
            why = f"it scales {owner} on CPU, and its work is done by a GPU: under load the CPU stays idle"
            yield Fault("hpa-cpu-gpu", scaler, where, why)
        lacking = [one.name for one in pods[0].containers if one.kind == "containers" and not _requests(one.data, resource)]
        if kind == "Utilization" and lacking:
            why = f"it scales on a percentage of the {resource} request, and {', '.join(lacking)} of {owner} requests none"
            yield Fault("hpa-no-request", scaler, where, why)
    if world.service and world.released and not _asked_by_prometheus(world, pods):
        for where, name in _pod_metrics(scaler):
            why = f"it scales {owner} on {name} of its pods, and nothing here tells Prometheus to ask them"
            yield Fault("hpa-no-monitoring", scaler, where, why)
    if world.service and "replicas" in owner.spec and pods[0].replicas != 0:
        why = f"{owner} sets replicas, so every deployment undoes what the scaler did"
        yield Fault("hpa-replicas", owner, ("spec", "replicas"), why)


def _resource_metrics(scaler: Object) -> Iterator[tuple[Path, str, str]]:
    """(path, resource, kind of target) of what an autoscaler looks at."""
    if "targetCPUUtilizationPercentage" in scaler.spec:
        yield ("spec", "targetCPUUtilizationPercentage"), "cpu", "Utilization"
    for index, metric in enumerate(mappings(scaler.spec.get("metrics"))):
        resource = mapping(metric.get("resource"))
        if metric.get("type") == "Resource":
            where: Path = ("spec", "metrics", index, "resource", "name")
            yield where, text(resource.get("name")), text(mapping(resource.get("target")).get("type"))


def _pod_metrics(scaler: Object) -> Iterator[tuple[Path, str]]:
    """(path, name) of the metrics of pods that an autoscaler looks at."""
    for index, metric in enumerate(mappings(scaler.spec.get("metrics"))):
        name = text(mapping(mapping(metric.get("pods")).get("metric")).get("name"))
        if metric.get("type") == "Pods" and name:
            yield ("spec", "metrics", index, "pods", "metric", "name"), name


def _asked_by_prometheus(world: World, pods: list[Pod]) -> bool:
    """Whether something here is about scraping: a monitor of the operator, or an annotation of pods or Services."""
    if world.of("ServiceMonitor", "PodMonitor", "ScrapeConfig"):
        return True
    described = [mapping(pod.data.get("metadata")) for pod in pods] + [one.metadata for one in world.of("Service")]
    return any(str(mapping(one.get("annotations")).get("prometheus.io/scrape")).lower() == "true" for one in described)


def _requests(container: object, resource: str) -> bool:
    resources = mapping(mapping(container).get("resources"))
    return resource in {**mapping(resources.get("requests")), **mapping(resources.get("limits"))}


def _shares_a_card(world: World) -> bool:
    return bool(world.service and world.service.gpu.mode == "shared")
