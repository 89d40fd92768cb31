"""The lease directory of a shared card: the pods of a service must have the node's own folder, and write to it.

A service that cannot write a lease still starts, on a card chosen at random; its neighbours then do not know of it. So this is told before
it is deployed.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from mlops_build.service import Service
from mlops_build.verify.document import Path
from mlops_build.verify.schema import shown
from mlops_build.verify.world import Container, Fault, Object, Pod, World, environment, mapping, mappings, text

VARIABLE = "MLOPS_GPU_LEASE_DIR"
# Where mlops_build.gpu looks when nobody says otherwise.
DEFAULT = "/run/mlops-gpu"
# Volumes that one pod has for itself, or that nobody can write to.
OF_ONE_POD = ("emptyDir", "ephemeral", "configMap", "secret", "downwardAPI", "projected", "image")
RULE = "gpu-leases"


def check(world: World) -> Iterator[Fault]:
    if world.service is None or not world.released or world.service.gpu.mode != "shared":
        return
    for pod in world.pods:
        if pod.owner.kind in ("Deployment", "StatefulSet") and pod.replicas != 0:
            for container in pod.containers:
                if container.name == world.service.name and container.kind == "containers":
                    yield from _container(world, world.service, pod, container)


def _container(world: World, service: Service, pod: Pod, container: Container) -> Iterator[Fault]:
    said = next(((where, one) for where, one in environment(container) if one.get("name") == VARIABLE), None)
    if said and said[1].get("valueFrom"):
        return
    directory = text(said[1].get("value")) if said else DEFAULT
    index, mount = _mount(container, directory)
    if mount is None:
        there = f"{VARIABLE} is {shown(directory)}, and no volume is mounted there" if said else f"no volume is mounted at {DEFAULT}"
        where: Path = (*said[0], "value") if said else container.path
        yield Fault(RULE, pod.owner, where, f"{there}, so {container.name} holds no lease that its neighbours see")
        return
    at: Path = (*container.path, "volumeMounts", index)
    if mount.get("readOnly") is True:
        yield Fault(RULE, pod.owner, (*at, "readOnly"), f"{container.name} mounts the lease directory read-only, and cannot write a lease")
    for number, volume in enumerate(mappings(pod.spec.get("volumes"))):
        if volume.get("name") == mount.get("name"):
            yield from _volume(world, service, pod, (*pod.path, "spec", "volumes", number), volume)


def _mount(container: Container, directory: str) -> tuple[int, Mapping[str, Any] | None]:
    """The mount that holds a folder: the deepest one at it or above it."""
    inside = [PurePosixPath(directory), *PurePosixPath(directory).parents]
    mounts = list(enumerate(mappings(container.data.get("volumeMounts"))))
    for folder in inside:
        for index, mount in mounts:
            if text(mount.get("mountPath")) and PurePosixPath(text(mount.get("mountPath"))) == folder:
                return index, mount
    return 0, None


def _volume(world: World, service: Service, pod: Pod, where: Path, volume: Mapping[str, Any]) -> Iterator[Fault]:
    own = next((kind for kind in OF_ONE_POD if kind in volume), None)
    if own:
        why = f"the lease directory is a volume of the kind {own}, which no other pod sees"
        yield Fault(RULE, pod.owner, (*where, own), why)
    if "hostPath" in volume:
        yield from _folder(service, pod.owner, (*where, "hostPath"), mapping(volume.get("hostPath")))
    claimed = mapping(volume.get("persistentVolumeClaim"))
    if claimed.get("readOnly") is True:
        why = "the claim to the lease directory is read-only, so no lease can be written"
        yield Fault(RULE, pod.owner, (*where, "persistentVolumeClaim", "readOnly"), why)
    claim = world.find("PersistentVolumeClaim", text(claimed.get("claimName")), pod.namespace)
    named = text(claim.spec.get("volumeName")) if claim else ""
    for one in world.of("PersistentVolume"):
        if one.name == named:
            yield from _folder(service, one, ("spec", "hostPath"), mapping(one.spec.get("hostPath")))


def _folder(service: Service, about: Object, where: Path, found: Mapping[str, Any]) -> Iterator[Fault]:
    """The folder of the node that service.yaml names."""
    path = text(found.get("path"))
    if path and PurePosixPath(path) != PurePosixPath(service.gpu.lease_dir):
        why = f"the lease directory is the node's {path}, and service.yaml says {service.gpu.lease_dir}: its neighbours look there"
        yield Fault(RULE, about, (*where, "path"), why)
    if found.get("type") == "DirectoryOrCreate":
        why = "a folder that the kubelet makes is root's, and a pod without root cannot write a lease there"
        yield Fault(RULE, about, (*where, "type"), why, "type: Directory, and let a DaemonSet or tmpfiles.d make it with mode 1777")
