"""The lease directory of a shared GPU: the pods of a service must mount the node's directory and be able to write to it.

A service that cannot write a lease still starts, on a randomly chosen GPU, and the other services do not see it. This is checked before the
deployment.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from mlops_build.service import Service
from mlops_build.verify.document import Path
from mlops_build.verify.world import Container, Fault, Object, Pod, World, mapping, mappings, serving_containers, text, variables

VARIABLE = "MLOPS_GPU_LEASE_DIR"
# The default of mlops_build.gpu.
DEFAULT = "/run/mlops-gpu"
# Volumes that belong to one pod, or that are read-only.
OF_ONE_POD = ("emptyDir", "ephemeral", "configMap", "secret", "downwardAPI", "projected", "image")
RULE = "gpu-leases"


def check(world: World) -> Iterator[Fault]:
    if world.service is None or not world.released or world.service.gpu.mode != "shared":
        return
    for pod, container in serving_containers(world):
        if pod.replicas != 0:
            yield from _container(world, world.service, pod, container)


def _container(world: World, service: Service, pod: Pod, container: Container) -> Iterator[Fault]:
    where, variable = next(((path, entry) for path, entry in variables(container) if entry.get("name") == VARIABLE), ((), None))
    if variable and variable.get("valueFrom"):
        return
    directory = text(variable.get("value")) if variable else DEFAULT
    index, mount = _mount(container, directory)
    if mount is None:
        problem = f"no volume is mounted at {directory}" + (f", the value of {VARIABLE}" if variable else "")
        path: Path = (*where, "value") if variable else container.path
        yield Fault(RULE, pod.owner, path, f"{problem}, so other services do not see the lease of {container.name}")
        return
    at: Path = (*container.path, "volumeMounts", index)
    if mount.get("readOnly") is True:
        why = f"{container.name} mounts the lease directory read-only, so it cannot write a lease"
        yield Fault(RULE, pod.owner, (*at, "readOnly"), why)
    for number, volume in enumerate(mappings(pod.spec.get("volumes"))):
        if volume.get("name") == mount.get("name"):
            yield from _volume(world, service, pod, (*pod.path, "spec", "volumes", number), volume)


def _mount(container: Container, directory: str) -> tuple[int, Mapping[str, Any] | None]:
    """The mount that contains a directory: the deepest one at it or above it."""
    folders = [PurePosixPath(directory), *PurePosixPath(directory).parents]
    mounts = list(enumerate(mappings(container.data.get("volumeMounts"))))
    for folder in folders:
        for index, mount in mounts:
            if text(mount.get("mountPath")) and PurePosixPath(text(mount.get("mountPath"))) == folder:
                return index, mount
    return 0, None


def _volume(world: World, service: Service, pod: Pod, where: Path, volume: Mapping[str, Any]) -> Iterator[Fault]:
    pod_volume = next((kind for kind in OF_ONE_POD if kind in volume), None)
    if pod_volume:
        why = f"the lease directory is a volume of type {pod_volume}, which no other pod sees"
        yield Fault(RULE, pod.owner, (*where, pod_volume), why)
    if "hostPath" in volume:
        yield from _folder(service, pod.owner, (*where, "hostPath"), mapping(volume.get("hostPath")))
    claimed = mapping(volume.get("persistentVolumeClaim"))
    if claimed.get("readOnly") is True:
        why = "the claim of the lease directory is read-only, so no lease can be written"
        yield Fault(RULE, pod.owner, (*where, "persistentVolumeClaim", "readOnly"), why)
    claim = world.find("PersistentVolumeClaim", text(claimed.get("claimName")), pod.namespace)
    named = text(claim.spec.get("volumeName")) if claim else ""
    for persistent in world.of("PersistentVolume"):
        if persistent.name == named:
            yield from _folder(service, persistent, ("spec", "hostPath"), mapping(persistent.spec.get("hostPath")))


def _folder(service: Service, about: Object, where: Path, host_path: Mapping[str, Any]) -> Iterator[Fault]:
    """The node directory must be the one that service.yaml names."""
    path = text(host_path.get("path"))
    if path and PurePosixPath(path) != PurePosixPath(service.gpu.lease_dir):
        why = f"the lease directory is {path} on the node, but service.yaml says {service.gpu.lease_dir}, which the other services use"
        yield Fault(RULE, about, (*where, "path"), why)
    if host_path.get("type") == "DirectoryOrCreate":
        why = "a directory that the kubelet creates belongs to root, so a non-root pod cannot write a lease there"
        yield Fault(RULE, about, (*where, "type"), why, "set type: Directory, and create it with mode 1777 by a DaemonSet or tmpfiles.d")
