"""Pods of workloads: selectors, mounts, variables, probes, start-up and termination."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.names import port_range
from mlops_build.verify.references import matches
from mlops_build.verify.schema import display
from mlops_build.verify.world import Container, Fault, Pod, World, containers_of, mapping, mappings, text, variables

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
# Kubernetes' defaults.
PERIOD, FAILURES, DEADLINE, GRACE = 10, 3, 600, 30
# Exec probes that always succeed.
ALWAYS_TRUE = {("true",), ("/bin/true",), ("sh", "-c", "true"), ("/bin/sh", "-c", "true"), ("echo",), ("sh", "-c", "exit 0")}


def check(world: World) -> Iterator[Fault]:
    for pod in world.pods:
        yield from _selector(pod)
        yield from _restart_policy(pod)
        yield from _mounts(pod)
        yield from _grace(pod)
        yield from _deadline(pod)
    for pod, container in containers_of(world):
        yield from _variables(pod, container)
        yield from _handlers(pod, container)
        for name in PROBES:
            probe = mapping(container.data.get(name))
            if probe:
                yield from _probe(world, pod, container, name, probe)
        if world.service and pod.path and container.kind == "containers" and pod.owner.kind in ("Deployment", "StatefulSet"):
            yield from _wanted_probes(world, pod, container)


def _selector(pod: Pod) -> Iterator[Fault]:
    owner = pod.owner
    if owner.kind not in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Rollout"):
        return
    selector = mapping(owner.spec.get("selector"))
    if selector and not matches(selector, pod.labels):
        labels = mapping(selector.get("matchLabels"))
        differing = [key for key, value in labels.items() if pod.labels.get(key) != value]
        mismatch = ", ".join(f"{key}={labels[key]}" for key in differing) or "its expressions"
        where: Path = ("spec", "selector", "matchLabels", differing[0]) if differing else ("spec", "selector")
        yield Fault("selector-labels", owner, where, f"the selector requires {mismatch}, which the workload's own pods do not have")
    elif not selector and owner.group in ("apps", "") and owner.spec.get("selector") is not None:
        yield Fault("selector-labels", owner, ("spec", "selector"), "the selector is empty, so it would match every pod")


def _restart_policy(pod: Pod) -> Iterator[Fault]:
    policy = pod.spec.get("restartPolicy", "Always")
    where = (*pod.path, "spec", "restartPolicy") if "restartPolicy" in pod.spec else (*pod.path, "spec")
    if pod.owner.kind in ("Job", "CronJob") and policy == "Always":
        yield Fault("restart-policy", pod.owner, where, f"the pods of a {pod.owner.kind} need restartPolicy OnFailure or Never")
    elif pod.owner.kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet") and policy != "Always":
        yield Fault("restart-policy", pod.owner, where, f"the pods of a {pod.owner.kind} need restartPolicy Always, not {display(policy)}")


def _mounts(pod: Pod) -> Iterator[Fault]:
    volumes = {text(volume.get("name")) for volume in mappings(pod.spec.get("volumes"))}
    volumes |= {text(mapping(template.get("metadata")).get("name")) for template in mappings(pod.owner.spec.get("volumeClaimTemplates"))}
    for container in pod.containers:
        for index, mount in enumerate(mappings(container.data.get("volumeMounts"))):
            where: Path = (*container.path, "volumeMounts", index)
            name = text(mount.get("name"))
            if name and name not in volumes:
                why = f"the container {container.name} mounts {display(name)}, but the pod has no such volume"
                available = ", ".join(sorted(filter(None, volumes)))
                yield Fault("mount-without-volume", pod.owner, (*where, "name"), why, f"the pod has {available}" if available else None)


def _variables(pod: Pod, container: Container) -> Iterator[Fault]:
    for where, variable in variables(container):
        if variable.get("value") is not None and variable.get("valueFrom"):
            why = f"{text(variable.get('name'))} has both value and valueFrom"
            yield Fault("wrong-value", pod.owner, (*where, "valueFrom"), why, "keep one of them")


# Probes and hooks


def _handlers(pod: Pod, container: Container) -> Iterator[Fault]:
    """A probe and a hook need exactly one handler."""
    lifecycle = mapping(container.data.get("lifecycle"))
    hooks = [((*container.path, "lifecycle", name), name, lifecycle.get(name)) for name in ("preStop", "postStart")]
    probes = [((*container.path, name), name, container.data.get(name)) for name in PROBES]
    for where, name, value in [*probes, *hooks]:
        if not isinstance(value, Mapping):
            continue
        handlers = [handler for handler in HANDLERS if isinstance(value.get(handler), Mapping)]
        if len(handlers) > 1:
            why = f"the {name} of {container.name} has two handlers, {' and '.join(handlers)}; exactly one is allowed"
            yield Fault("probe-handlers", pod.owner, (*where, handlers[1]), why)
        elif not handlers and pod.path:
            yield Fault("probe-handlers", pod.owner, where, f"the {name} of {container.name} has no handler")


def _probe(world: World, pod: Pod, container: Container, name: str, probe: Mapping[str, Any]) -> Iterator[Fault]:
    where: Path = (*container.path, name)
    for handler in ("httpGet", "tcpSocket", "grpc"):
        settings = mapping(probe.get(handler))
        if "port" in settings:
            yield from _probe_port(world, pod, container, (*where, handler, "port"), name, settings["port"])
    for key, minimum in (
        ("periodSeconds", 1),
        ("timeoutSeconds", 1),
        ("failureThreshold", 1),
        ("successThreshold", 1),
        ("initialDelaySeconds", 0),
    ):
        value = probe.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value < minimum:
            yield Fault("probe-numbers", pod.owner, (*where, key), f"{key} of the {name} is {value}; the minimum is {minimum}")
    if name != "readinessProbe" and probe.get("successThreshold", 1) not in (0, 1):
        why = f"successThreshold of the {name} must be 1"
        yield Fault("probe-numbers", pod.owner, (*where, "successThreshold"), why)


def _probe_port(world: World, pod: Pod, container: Container, where: Path, name: str, port: object) -> Iterator[Fault]:
    yield from port_range(pod.owner, where, port)
    if isinstance(port, str) and not port.isdigit():
        named = [text(entry.get("name")) for entry in container.ports if entry.get("name")]
        if port not in named:
            listed = ", ".join(named) or "no named port"
            why = f"the {name} of {container.name} uses the port {display(port)}, but the container has {listed}"
            yield Fault("probe-port", pod.owner, where, why)
    elif isinstance(port, int) and world.service and container.ports:
        numbers = [entry.get("containerPort") for entry in container.ports]
        if port not in numbers:
            why = f"the {name} of {container.name} uses port {port}, but the container lists {', '.join(map(str, numbers))}"
            yield Fault("probe-port", pod.owner, where, why)


def _wanted_probes(world: World, pod: Pod, container: Container) -> Iterator[Fault]:
    """In a service: startupProbe and readinessProbe of the container that serves the model."""
    if world.service is None or container.name != world.service.name:
        return
    startup = mapping(container.data.get("startupProbe"))
    if not startup:
        why = f"{container.name} has no startupProbe, so a liveness probe may restart it while it loads its model"
        yield Fault("no-startup-probe", pod.owner, container.path, why)
    elif world.released and (budget := startup_seconds(container)) < world.service.serving.startup_seconds:
        required = world.service.serving.startup_seconds
        why = f"the startupProbe fails after {budget} s, but serving.startup_seconds in service.yaml is {required}"
        yield Fault("startup-budget", pod.owner, (*container.path, "startupProbe"), why)
    readiness = mapping(container.data.get("readinessProbe"))
    command = tuple(str(part) for part in mapping(readiness.get("exec")).get("command") or [])
    if not readiness:
        yield Fault(
            "no-readiness-probe",
            pod.owner,
            container.path,
            f"{container.name} has no readinessProbe, so it receives requests before it is ready",
        )
    elif command[:3] in ALWAYS_TRUE or command[:1] in ALWAYS_TRUE:
        why = f"the readinessProbe of {container.name} runs {display(' '.join(command))}, which always succeeds"
        yield Fault("no-readiness-probe", pod.owner, (*container.path, "readinessProbe", "exec", "command"), why)


def startup_seconds(container: Container) -> int:
    """Seconds that a container may take to start before its startupProbe fails; 0 without a probe."""
    probe = mapping(container.data.get("startupProbe"))
    if not probe:
        return 0
    numbers = {"periodSeconds": PERIOD, "failureThreshold": FAILURES, "initialDelaySeconds": 0}
    period, failures, delay = (value if isinstance(value := probe.get(key), int) else default for key, default in numbers.items())
    return delay + period * failures


def _deadline(pod: Pod) -> Iterator[Fault]:
    owner = pod.owner
    if owner.kind != "Deployment":
        return
    deadline = owner.spec.get("progressDeadlineSeconds", DEADLINE)
    longest = max((startup_seconds(container) for container in pod.containers), default=0)
    if isinstance(deadline, int) and longest and deadline <= longest:
        is_set = "progressDeadlineSeconds" in owner.spec
        why = f"the rollout fails after {deadline} s{'' if is_set else ' (the default)'}, but a start may take {longest} s"
        yield Fault("progress-deadline", owner, ("spec", "progressDeadlineSeconds") if is_set else ("spec",), why)
    ready = owner.spec.get("minReadySeconds", 0)
    if isinstance(ready, int) and isinstance(deadline, int) and ready and deadline <= ready:
        why = f"progressDeadlineSeconds ({deadline}) must be greater than minReadySeconds ({ready})"
        yield Fault("progress-deadline", owner, ("spec", "minReadySeconds"), why)


def _grace(pod: Pod) -> Iterator[Fault]:
    grace = pod.spec.get("terminationGracePeriodSeconds", GRACE)
    if not isinstance(grace, int):
        return
    for container in pod.containers:
        hook = mapping(mapping(container.data.get("lifecycle")).get("preStop"))
        pause = stop_seconds(hook)
        if pause and grace <= pause:
            why = f"the pod is killed after {grace} s, but the preStop hook of {container.name} alone takes {pause:g} s"
            is_set = "terminationGracePeriodSeconds" in pod.spec
            where: Path = (*pod.path, "spec", "terminationGracePeriodSeconds") if is_set else (*container.path, "lifecycle", "preStop")
            yield Fault("grace-period", pod.owner, where, why)


def stop_seconds(hook: Mapping[str, Any]) -> float:
    """Seconds that a preStop hook waits: `sleep: {seconds: 5}`, or the sleeps in its command; 0 if unknown."""
    seconds = mapping(hook.get("sleep")).get("seconds")
    if isinstance(seconds, int):
        return seconds
    command = mapping(hook.get("exec")).get("command")
    command_line = " ".join(str(part) for part in command) if isinstance(command, list) else ""
    return sum(float(seconds_text) for seconds_text in re.findall(r"\bsleep\s+([0-9]{1,6}(?:\.[0-9]{1,3})?)\b", command_line))
