"""How pods are described and watched: selectors, mounts, variables, probes, start-up and the way they end."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.names import port_range
from mlops_build.verify.references import matches
from mlops_build.verify.schema import shown
from mlops_build.verify.world import Container, Fault, Pod, World, environment, mapping, mappings, of_pods, text

PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
# Kubernetes' defaults.
PERIOD, FAILURES, DEADLINE, GRACE = 10, 3, 600, 30
# An exec probe that proves nothing.
ALWAYS_TRUE = {("true",), ("/bin/true",), ("sh", "-c", "true"), ("/bin/sh", "-c", "true"), ("echo",), ("sh", "-c", "exit 0")}


def check(world: World) -> Iterator[Fault]:
    for pod in world.pods:
        yield from _selector(pod)
        yield from _restart_policy(pod)
        yield from _mounts(pod)
        yield from _grace(pod)
        yield from _deadline(pod)
    for pod, container in of_pods(world):
        yield from _variables(pod, container)
        yield from _handlers(pod, container)
        for name in PROBES:
            probe = mapping(container.data.get(name))
            if probe:
                yield from _probe(world, pod, container, name, probe)
        if world.service and pod.path and container.kind == "containers" and pod.owner.kind in ("Deployment", "StatefulSet"):
            yield from _wanted_probes(world, pod, container)


def _selector(pod: Pod) -> Iterator[Fault]:
    one = pod.owner
    if one.kind not in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Rollout"):
        return
    selector = mapping(one.spec.get("selector"))
    if selector and not matches(selector, pod.labels):
        wanted = mapping(selector.get("matchLabels"))
        differing = [key for key, value in wanted.items() if pod.labels.get(key) != value]
        said = ", ".join(f"{key}={wanted[key]}" for key in differing) or "its expressions"
        where: Path = ("spec", "selector", "matchLabels", differing[0]) if differing else ("spec", "selector")
        yield Fault("selector-labels", one, where, f"the selector wants {said}, which its own pods do not have")
    elif not selector and one.group in ("apps", "") and one.spec.get("selector") is not None:
        yield Fault("selector-labels", one, ("spec", "selector"), "the selector is empty: it would take every pod")


def _restart_policy(pod: Pod) -> Iterator[Fault]:
    policy = pod.spec.get("restartPolicy", "Always")
    where = (*pod.path, "spec", "restartPolicy") if "restartPolicy" in pod.spec else (*pod.path, "spec")
    if pod.owner.kind in ("Job", "CronJob") and policy == "Always":
        yield Fault("restart-policy", pod.owner, where, f"the pods of a {pod.owner.kind} need restartPolicy OnFailure or Never")
    elif pod.owner.kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet") and policy != "Always":
        yield Fault("restart-policy", pod.owner, where, f"the pods of a {pod.owner.kind} need restartPolicy Always, not {shown(policy)}")


def _mounts(pod: Pod) -> Iterator[Fault]:
    volumes = {text(volume.get("name")) for volume in mappings(pod.spec.get("volumes"))}
    volumes |= {text(mapping(one.get("metadata")).get("name")) for one in mappings(pod.owner.spec.get("volumeClaimTemplates"))}
    for container in pod.containers:
        for index, mount in enumerate(mappings(container.data.get("volumeMounts"))):
            where: Path = (*container.path, "volumeMounts", index)
            name = text(mount.get("name"))
            if name and name not in volumes:
                why = f"the container {container.name} mounts {shown(name)}, and the pod has no such volume"
                there = ", ".join(sorted(filter(None, volumes)))
                yield Fault("mount-without-volume", pod.owner, (*where, "name"), why, f"the pod has {there}" if there else None)


def _variables(pod: Pod, container: Container) -> Iterator[Fault]:
    for where, variable in environment(container):
        if variable.get("value") is not None and variable.get("valueFrom"):
            why = f"{text(variable.get('name'))} has a value and a valueFrom; the API server refuses both"
            yield Fault("wrong-value", pod.owner, (*where, "valueFrom"), why, "keep one of them")


# Probes and hooks


def _handlers(pod: Pod, container: Container) -> Iterator[Fault]:
    """Exactly one handler in a probe and in a hook."""
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
            yield Fault("probe-handlers", pod.owner, where, f"the {name} of {container.name} has no handler: nothing is asked")


def _probe(world: World, pod: Pod, container: Container, name: str, probe: Mapping[str, Any]) -> Iterator[Fault]:
    where: Path = (*container.path, name)
    for handler in ("httpGet", "tcpSocket", "grpc"):
        settings = mapping(probe.get(handler))
        if "port" in settings:
            yield from _probe_port(world, pod, container, (*where, handler, "port"), name, settings["port"])
    for key, least in (
        ("periodSeconds", 1),
        ("timeoutSeconds", 1),
        ("failureThreshold", 1),
        ("successThreshold", 1),
        ("initialDelaySeconds", 0),
    ):
        value = probe.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value < least:
            yield Fault("probe-numbers", pod.owner, (*where, key), f"{key} of the {name} is {value}; the least is {least}")
    if name != "readinessProbe" and probe.get("successThreshold", 1) not in (0, 1):
        why = f"successThreshold of the {name} must be 1"
        yield Fault("probe-numbers", pod.owner, (*where, "successThreshold"), why)


def _probe_port(world: World, pod: Pod, container: Container, where: Path, name: str, port: object) -> Iterator[Fault]:
    yield from port_range(pod.owner, where, port)
    if isinstance(port, str) and not port.isdigit():
        named = [text(one.get("name")) for one in container.ports if one.get("name")]
        if port not in named:
            why = f"the {name} of {container.name} asks the port {shown(port)}, and the container has {', '.join(named) or 'no named port'}"
            yield Fault("probe-port", pod.owner, where, why)
    elif isinstance(port, int) and world.service and container.ports:
        numbers = [one.get("containerPort") for one in container.ports]
        if port not in numbers:
            why = f"the {name} of {container.name} asks port {port}, and the container lists {', '.join(map(str, numbers))}"
            yield Fault("probe-port", pod.owner, where, why)


def _wanted_probes(world: World, pod: Pod, container: Container) -> Iterator[Fault]:
    """In a service: the container that serves the model says when it has loaded, and when it answers."""
    if world.service is None or container.name != world.service.name:
        return
    startup = mapping(container.data.get("startupProbe"))
    if not startup:
        why = f"{container.name} has no startupProbe, so a liveness probe may kill it while it loads its model"
        yield Fault("no-startup-probe", pod.owner, container.path, why)
    elif world.released and (budget := startup_seconds(container)) < world.service.serving.startup_seconds:
        wanted = world.service.serving.startup_seconds
        why = f"the startupProbe gives up after {budget} s, and service.yaml says that loading takes up to {wanted} s"
        yield Fault("startup-budget", pod.owner, (*container.path, "startupProbe"), why)
    readiness = mapping(container.data.get("readinessProbe"))
    command = tuple(str(part) for part in mapping(readiness.get("exec")).get("command") or [])
    if not readiness:
        yield Fault(
            "no-readiness-probe",
            pod.owner,
            container.path,
            f"{container.name} has no readinessProbe: it gets requests before it can answer",
        )
    elif command[:3] in ALWAYS_TRUE or command[:1] in ALWAYS_TRUE:
        why = f"the readinessProbe of {container.name} runs {shown(' '.join(command))}, which is always true"
        yield Fault("no-readiness-probe", pod.owner, (*container.path, "readinessProbe", "exec", "command"), why)


def startup_seconds(container: Container) -> int:
    """How long a container may take to start before its startupProbe kills it; 0 without one."""
    probe = mapping(container.data.get("startupProbe"))
    if not probe:
        return 0
    numbers = {"periodSeconds": PERIOD, "failureThreshold": FAILURES, "initialDelaySeconds": 0}
    period, failures, delay = (value if isinstance(value := probe.get(key), int) else default for key, default in numbers.items())
    return delay + period * failures


def _deadline(pod: Pod) -> Iterator[Fault]:
    one = pod.owner
    if one.kind != "Deployment":
        return
    deadline = one.spec.get("progressDeadlineSeconds", DEADLINE)
    longest = max((startup_seconds(container) for container in pod.containers), default=0)
    if isinstance(deadline, int) and longest and deadline <= longest:
        said = "progressDeadlineSeconds" in one.spec
        why = f"the rollout counts as failed after {deadline} s{'' if said else ' (the default)'}, while a start may take {longest} s"
        yield Fault("progress-deadline", one, ("spec", "progressDeadlineSeconds") if said else ("spec",), why)
    ready = one.spec.get("minReadySeconds", 0)
    if isinstance(ready, int) and isinstance(deadline, int) and ready and deadline <= ready:
        why = f"progressDeadlineSeconds ({deadline}) must be more than minReadySeconds ({ready})"
        yield Fault("progress-deadline", one, ("spec", "minReadySeconds"), why)


def _grace(pod: Pod) -> Iterator[Fault]:
    grace = pod.spec.get("terminationGracePeriodSeconds", GRACE)
    if not isinstance(grace, int):
        return
    for container in pod.containers:
        hook = mapping(mapping(container.data.get("lifecycle")).get("preStop"))
        pause = stop_seconds(hook)
        if pause and grace <= pause:
            why = f"the pod is killed after {grace} s, and the preStop hook of {container.name} alone waits {pause:g} s"
            said = "terminationGracePeriodSeconds" in pod.spec
            where: Path = (*pod.path, "spec", "terminationGracePeriodSeconds") if said else (*container.path, "lifecycle", "preStop")
            yield Fault("grace-period", pod.owner, where, why)


def stop_seconds(hook: Mapping[str, Any]) -> float:
    """How long a preStop hook waits, where it says so: `sleep: {seconds: 5}`, or a command that sleeps."""
    seconds = mapping(hook.get("sleep")).get("seconds")
    if isinstance(seconds, int):
        return seconds
    command = mapping(hook.get("exec")).get("command")
    said = " ".join(str(part) for part in command) if isinstance(command, list) else ""
    return sum(float(found) for found in re.findall(r"\bsleep\s+([0-9]{1,6}(?:\.[0-9]{1,3})?)\b", said))
