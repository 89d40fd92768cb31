"""Pods of workloads: selectors, mounts, variables, probes, start-up and termination."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.references import matches
from mlops_build.verify.schema import display
from mlops_build.verify.world import Container, Fault, Pod, World, containers_of, mapping, mappings, select, text, texts

SELECTING = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Rollout")
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
# Kubernetes' defaults.
PERIOD, FAILURES, DEADLINE, GRACE = 10, 3, 600, 30


def check(world: World) -> Iterator[Fault]:
    for pod in world.pods:
        yield from _selector(pod)
        yield from _mounts(pod)
        yield from _grace(pod)
        yield from _deadline(pod)
    for pod, container in containers_of(world):
        yield from _probe_ports(world, pod, container)


def _selector(pod: Pod) -> Iterator[Fault]:
    selector = mapping(pod.owner.spec, "selector")
    if pod.owner.kind not in SELECTING or not selector or matches(selector, pod.labels):
        return
    labels = mapping(selector, "matchLabels")
    differing = [key for key, value in labels.items() if pod.labels.get(key) != value]
    mismatch = ", ".join(f"{key}={labels[key]}" for key in differing) or "its expressions"
    where: Path = ("spec", "selector", "matchLabels", differing[0]) if differing else ("spec", "selector")
    yield Fault("selector-labels", pod.owner, where, f"the selector requires {mismatch}, which the workload's own pods do not have")


def _mounts(pod: Pod) -> Iterator[Fault]:
    volumes = {text(volume, "name") for volume in mappings(pod.spec, "volumes")}
    volumes |= {text(template, "metadata", "name") for template in mappings(pod.owner.spec, "volumeClaimTemplates")}
    for container in pod.containers:
        for path, name in texts(pod.owner.data, *container.path, "volumeMounts", "*", "name"):
            if name not in volumes:
                why = f"the container {container.name} mounts {display(name)}, but the pod has no such volume"
                available = ", ".join(sorted(volumes))
                yield Fault("mount-without-volume", pod.owner, path, why, f"the pod has {available}" if available else None)


def _probe_ports(world: World, pod: Pod, container: Container) -> Iterator[Fault]:
    """A probe must use a port of its container: one of its names or, in a service, one of the listed numbers."""
    names = [text(entry, "name") for entry in container.ports if entry.get("name")]
    numbers = [entry.get("containerPort") for entry in container.ports]
    for name in PROBES:
        for handler in ("httpGet", "tcpSocket", "grpc"):
            port = mapping(container.data, name, handler).get("port")
            named = isinstance(port, str) and not port.isdigit()
            if (named and port not in names) or (isinstance(port, int) and world.service and numbers and port not in numbers):
                listed = ", ".join(names if named else map(str, numbers)) or "no named port"
                why = f"the {name} of {container.name} uses the port {port}, but the container has {listed}"
                yield Fault("probe-port", pod.owner, (*container.path, name, handler, "port"), why)


def startup_seconds(container: Container) -> int:
    """Seconds that a container may take to start before its startupProbe fails; 0 without a probe."""
    probe = mapping(container.data, "startupProbe")
    if not probe:
        return 0
    numbers = {"periodSeconds": PERIOD, "failureThreshold": FAILURES, "initialDelaySeconds": 0}
    period, failures, delay = (value if isinstance(value := probe.get(key), int) else default for key, default in numbers.items())
    return delay + period * failures


def _deadline(pod: Pod) -> Iterator[Fault]:
    owner = pod.owner
    deadline, is_set = owner.spec.get("progressDeadlineSeconds", DEADLINE), "progressDeadlineSeconds" in owner.spec
    longest = max((startup_seconds(container) for container in pod.containers), default=0)
    if owner.kind == "Deployment" and isinstance(deadline, int) and 0 < deadline <= longest:
        why = f"the rollout fails after {deadline} s{'' if is_set else ' (the default)'}, but a start may take {longest} s"
        yield Fault("progress-deadline", owner, ("spec", "progressDeadlineSeconds") if is_set else ("spec",), why)
    ready = owner.spec.get("minReadySeconds")
    if owner.kind == "Deployment" and isinstance(deadline, int) and isinstance(ready, int) and 0 < deadline <= ready:
        why = f"progressDeadlineSeconds ({deadline}) must be greater than minReadySeconds ({ready})"
        yield Fault("progress-deadline", owner, ("spec", "minReadySeconds"), why)


def _grace(pod: Pod) -> Iterator[Fault]:
    grace = pod.spec.get("terminationGracePeriodSeconds", GRACE)
    for container in pod.containers:
        pause = _stop_seconds(mapping(container.data, "lifecycle", "preStop"))
        if pause and isinstance(grace, int) and grace <= pause:
            why = f"the pod is killed after {grace} s, but the preStop hook of {container.name} alone takes {pause:g} s"
            is_set = "terminationGracePeriodSeconds" in pod.spec
            where: Path = (*pod.path, "spec", "terminationGracePeriodSeconds") if is_set else (*container.path, "lifecycle", "preStop")
            yield Fault("grace-period", pod.owner, where, why)


def _stop_seconds(hook: Mapping[str, Any]) -> float:
    """Seconds that a preStop hook waits: `sleep: {seconds: 5}`, or the sleeps in its command; 0 if unknown."""
    seconds = mapping(hook, "sleep").get("seconds")
    command_line = " ".join(str(part) for _, part in select(hook, "exec", "command", "*"))
    sleeps = re.findall(r"\bsleep\s+([0-9]{1,6}(?:\.[0-9]{1,3})?)\b", command_line)
    return seconds if isinstance(seconds, int) else sum(float(sleep) for sleep in sleeps)
