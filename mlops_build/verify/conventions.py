"""What a service made from the template keeps to: probes, a HOME that can be written, metrics, certificates. Single fields: fields.yaml."""

from collections.abc import Iterator
from pathlib import PurePosixPath

from mlops_build.verify import fields
from mlops_build.verify.schema import display
from mlops_build.verify.workloads import startup_seconds
from mlops_build.verify.world import (
    Container,
    Fault,
    Object,
    Pod,
    World,
    mapping,
    mappings,
    select,
    serving_containers,
    text,
    texts,
    variables,
)

# Volumes that a container cannot write.
READ_ONLY = {"configMap", "secret", "downwardAPI", "projected", "image"}
# Variables that move the caches of libraries out of HOME.
CACHES = {"XDG_CACHE_HOME", "HF_HOME", "TORCH_HOME", "TRITON_CACHE_DIR", "MPLCONFIGDIR"}


def check(world: World) -> Iterator[Fault]:
    if world.service is None:
        return
    for pod, container in serving_containers(world):
        yield from _probes(pod, container)
        yield from _startup(world, world.service.serving.startup_seconds, pod, container)
        yield from _home(pod, container)
        yield from _scraped(pod)
    for monitor in world.of("ServiceMonitor", "PodMonitor"):
        if monitor.name == world.service.name:
            yield from fields.faults(monitor, "monitor")
    for ingress in world.of("Ingress"):
        yield from _certificates(ingress)


def _probes(pod: Pod, container: Container) -> Iterator[Fault]:
    """A container with a command of its own may answer other paths than `mlops-build serve`, and an overlay may choose another one."""
    own_server = not {"command", "args"}.isdisjoint(container.data)
    for fault in fields.faults(pod.owner, "serving", container.path):
        yield fault.as_remark(own_server and fault.rule == "probe-path")
    for fault in fields.faults(pod.owner, "depends-on-model", (*container.path, "readinessProbe")):
        yield fault.as_remark(own_server or pod.owner.where(fault.path)[0].startswith("deploy/overlays/"))


def _startup(world: World, needed: int, pod: Pod, container: Container) -> Iterator[Fault]:
    if world.released and 0 < (seconds := startup_seconds(container)) < needed:
        why = f"the startupProbe fails after {seconds} s, but serving.startup_seconds in service.yaml is {needed}"
        yield Fault("startup-budget", pod.owner, (*container.path, "startupProbe"), why)


def _home(pod: Pod, container: Container) -> Iterator[Fault]:
    """With a read-only root file system, HOME must be in a volume: libraries keep their caches there, unless a variable moves them."""
    where, variable = variables(container).get("HOME", ((), {}))
    read_only = mapping(container.data, "securityContext").get("readOnlyRootFilesystem") is True
    if not read_only or not where or "valueFrom" in variable:
        return
    home = PurePosixPath(text(variable, "value"))
    volumes = {text(volume, "name") for volume in mappings(pod.spec, "volumes") if READ_ONLY.isdisjoint(volume)}
    mounts = [mount for mount in mappings(container.data, "volumeMounts") if text(mount, "name") in volumes]
    folders = {PurePosixPath(text(mount, "mountPath")) for mount in mounts if mount.get("readOnly") is not True}
    if folders.isdisjoint({home, *home.parents}):
        why = f"HOME of {container.name} is {display(str(home))}, which is on its read-only file system"
        yield Fault("home-read-only", pod.owner, (*where, "value"), why, remark=not CACHES.isdisjoint(variables(container)))


def _scraped(pod: Pod) -> Iterator[Fault]:
    yield from fields.faults(pod.owner, "serving-pod", pod.path)
    ports = [str(entry.get("containerPort")) for container in pod.serving for entry in container.ports]
    for path, port in select(pod.owner.data, *pod.path, "metadata", "annotations", "prometheus.io/port"):
        if str(port) not in ports:
            yield Fault("metrics-path", pod.owner, path, f"Prometheus requests the port {port}, but the pod has {', '.join(ports)}")


def _certificates(ingress: Object) -> Iterator[Fault]:
    """The hosts of an Ingress' certificates must be hosts that it routes. A rule without a host routes all."""
    routed = {text(rule, "host") for rule in mappings(ingress.spec, "rules")}
    for path, host in texts(ingress.data, "spec", "tls", "*", "hosts", "*"):
        if routed and "" not in routed and not any(host in (known, f"*.{known.partition('.')[2]}") for known in routed):
            why = f"the certificate is for {host}, but the Ingress routes {', '.join(sorted(routed))}"
            yield Fault("tls-host", ingress, path, why)
