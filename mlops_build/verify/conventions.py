"""What a service made from the template keeps to: the paths of probes and metrics, a HOME that can be written, hosts and certificates."""

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.schema import display
from mlops_build.verify.workloads import PROBES, startup_seconds
from mlops_build.verify.world import Container, Fault, Pod, World, mapping, mappings, serving_containers, text, variables

# Paths of `mlops-build serve`: those that depend on the model, and all that a probe may use.
READY = re.compile(r"/ping|/v2/health/ready|/v2/models/[^/]+(/versions/[^/]+)?/ready|/models/[^/]+/ping")
SERVED = re.compile(rf"/health|/version|/v2/health/live|/models/[^/]+/health|{READY.pattern}")
METRICS = "/metrics"
# Exec probes that always succeed.
ALWAYS_TRUE = {"true", "/bin/true", "sh -c true", "/bin/sh -c true", "sh -c exit 0"}
# Volumes that a container cannot write.
READ_ONLY = {"configMap", "secret", "downwardAPI", "projected", "image"}


def check(world: World) -> Iterator[Fault]:
    if world.service is None:
        return
    for pod, container in serving_containers(world):
        yield from _startup(world, pod, container)
        yield from _readiness(pod, container)
        for name in PROBES:
            yield from _probe_path(pod, container, name)
        yield from _home(pod, container)
        yield from _scraped(pod)
    yield from _monitors(world)
    yield from _certificates(world)


def _startup(world: World, pod: Pod, container: Container) -> Iterator[Fault]:
    needed = world.service.serving.startup_seconds if world.service else 0
    if not mapping(container.data.get("startupProbe")):
        why = f"{container.name} has no startupProbe, so a liveness probe may restart it while it loads its model"
        yield Fault("no-startup-probe", pod.owner, container.path, why)
    elif world.released and (budget := startup_seconds(container)) < needed:
        why = f"the startupProbe fails after {budget} s, but serving.startup_seconds in service.yaml is {needed}"
        yield Fault("startup-budget", pod.owner, (*container.path, "startupProbe"), why)


def _readiness(pod: Pod, container: Container) -> Iterator[Fault]:
    probe = mapping(container.data.get("readinessProbe"))
    command = " ".join(str(part) for part in mapping(probe.get("exec")).get("command") or [])
    if not probe:
        why = f"{container.name} has no readinessProbe, so it receives requests before it is ready"
        yield Fault("no-readiness-probe", pod.owner, container.path, why)
    elif command in ALWAYS_TRUE:
        why = f"the readinessProbe of {container.name} runs {display(command)}, which always succeeds"
        yield Fault("no-readiness-probe", pod.owner, (*container.path, "readinessProbe", "exec", "command"), why)


def _probe_path(pod: Pod, container: Container, name: str) -> Iterator[Fault]:
    request = mapping(mapping(container.data.get(name)).get("httpGet"))
    path = text(request.get("path")) or "/"
    where: Path = (*container.path, name, "httpGet", *(["path"] if "path" in request else []))
    if request and not SERVED.fullmatch(path):
        yield Fault("probe-path", pod.owner, where, f"the {name} of {container.name} requests {path}, which the service does not answer")
    elif request and name == "readinessProbe" and not READY.fullmatch(path):
        why = f"the readinessProbe of {container.name} requests {path}, which answers while the model does not"
        yield Fault("probe-path", pod.owner, where, why)


def _home(pod: Pod, container: Container) -> Iterator[Fault]:
    """With a read-only root file system, HOME must be in a volume: libraries keep their caches there."""
    if mapping(container.data.get("securityContext")).get("readOnlyRootFilesystem") is not True:
        return
    where, variable = next(((path, entry) for path, entry in variables(container) if entry.get("name") == "HOME"), (None, {}))
    home = text(variable.get("value"))
    if where is None or variable.get("valueFrom"):
        return
    volumes = {text(volume.get("name")) for volume in mappings(pod.spec.get("volumes")) if READ_ONLY.isdisjoint(volume)}
    mounts = [mount for mount in mappings(container.data.get("volumeMounts")) if mount.get("name") in volumes]
    folders = {PurePosixPath(text(mount.get("mountPath"))) for mount in mounts if mount.get("readOnly") is not True}
    if not home or folders.isdisjoint({PurePosixPath(home), *PurePosixPath(home).parents}):
        why = f"HOME of {container.name} is {display(home)}, which is on its read-only file system"
        yield Fault("home-read-only", pod.owner, (*where, "value"), why)


def _scraped(pod: Pod) -> Iterator[Fault]:
    annotations = mapping(mapping(pod.data.get("metadata")).get("annotations"))
    where: Path = (*pod.path, "metadata", "annotations")
    path, port = annotations.get("prometheus.io/path", METRICS), annotations.get("prometheus.io/port")
    if path != METRICS:
        yield Fault("metrics-path", pod.owner, (*where, "prometheus.io/path"), f"Prometheus requests {path}, not {METRICS}")
    ports = [str(entry.get("containerPort")) for container in pod.serving for entry in container.ports]
    if port is not None and str(port) not in ports:
        why = f"Prometheus requests the port {port}, but the pod has {', '.join(ports)}"
        yield Fault("metrics-path", pod.owner, (*where, "prometheus.io/port"), why)


def _monitors(world: World) -> Iterator[Fault]:
    for monitor in world.of("ServiceMonitor", "PodMonitor"):
        if world.service is None or monitor.name != world.service.name:
            continue
        section = "endpoints" if monitor.kind == "ServiceMonitor" else "podMetricsEndpoints"
        for index, endpoint in enumerate(mappings(monitor.spec.get(section))):
            if endpoint.get("path", METRICS) != METRICS:
                why = f"Prometheus requests {endpoint['path']}, not {METRICS}"
                yield Fault("metrics-path", monitor, ("spec", section, index, "path"), why)


def _certificates(world: World) -> Iterator[Fault]:
    """The hosts of an Ingress' certificates must be hosts that it routes."""
    for ingress in world.of("Ingress"):
        hosts = {text(rule.get("host")) for rule in mappings(ingress.spec.get("rules"))} - {""}
        for index, entry in enumerate(mappings(ingress.spec.get("tls"))):
            for number, host in enumerate(_words(entry, "hosts")):
                if hosts and not any(_covers(host, routed) for routed in hosts):
                    why = f"the certificate is for {host}, but the Ingress routes {', '.join(sorted(hosts))}"
                    yield Fault("tls-host", ingress, ("spec", "tls", index, "hosts", number), why)


def _words(data: Mapping[str, Any], key: str) -> list[str]:
    listed = data.get(key)
    return [word for word in listed if isinstance(word, str)] if isinstance(listed, list) else []


def _covers(certificate: str, host: str) -> bool:
    return host == certificate or (certificate.startswith("*.") and host.partition(".")[2] == certificate[2:])
