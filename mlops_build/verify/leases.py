"""The lease directory of a shared GPU: the pods of a service must mount the node's directory and be able to write to it.

A service that cannot write a lease still starts, on a randomly chosen GPU, and the other services do not see it. This is checked before the
deployment.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from mlops_build.verify.document import Path
from mlops_build.verify.world import Container, Fault, Pod, World, mapping, select, serving_containers, text, variables

VARIABLE = "MLOPS_GPU_LEASE_DIR"
# The default of mlops_build.gpu.
DEFAULT = "/run/mlops-gpu"
# Volumes that other pods of the node see. (The claim of a release names a volume that is the node's directory.)
SHARED = {"hostPath", "persistentVolumeClaim"}
RULE = "gpu-leases"


def check(world: World) -> Iterator[Fault]:
    if world.service is None or not world.released or world.service.gpu.mode != "shared":
        return
    for pod, container in serving_containers(world):
        if pod.replicas != 0:
            yield from _mount(pod, container, world.service.gpu.lease_dir)


def _mount(pod: Pod, container: Container, node_directory: str) -> Iterator[Fault]:
    """The deepest mount that contains the lease directory."""
    where, variable = variables(container).get(VARIABLE, ((), {}))
    if variable.get("valueFrom"):
        return
    directory = PurePosixPath(text(variable, "value") if where else DEFAULT)
    folders = [directory, *directory.parents]
    mounts = select(pod.owner.data, *container.path, "volumeMounts", "*")
    above = [(path, mount) for path, mount in mounts if PurePosixPath(text(mount, "mountPath")) in folders]
    if not above:
        why = f"no volume is mounted at {directory}, so other services do not see the lease of {container.name}"
        yield Fault(RULE, pod.owner, (*where, "value") if where else container.path, why)
        return
    path, mount = max(above, key=lambda entry: len(entry[1]["mountPath"]))
    if mount.get("readOnly") is True:
        why = f"{container.name} mounts the lease directory read-only, so it cannot write a lease"
        yield Fault(RULE, pod.owner, (*path, "readOnly"), why)
    for path, volume in select(pod.owner.data, *pod.path, "spec", "volumes", "*"):
        if volume.get("name") == mount.get("name"):
            yield from _volume(pod, path, volume, node_directory)


def _volume(pod: Pod, where: Path, volume: Mapping[str, Any], node_directory: str) -> Iterator[Fault]:
    for kind in volume.keys() - SHARED - {"name"}:
        why = f"the lease directory is a volume of type {kind}, which no other pod sees"
        yield Fault(RULE, pod.owner, (*where, kind), why)
    if mapping(volume, "persistentVolumeClaim").get("readOnly") is True:
        why = "the claim of the lease directory is read-only, so no lease can be written"
        yield Fault(RULE, pod.owner, (*where, "persistentVolumeClaim", "readOnly"), why)
    path = text(volume, "hostPath", "path")
    if path and PurePosixPath(path) != PurePosixPath(node_directory):
        why = f"the lease directory is {path} on the node, but service.yaml says {node_directory}, which the other services use"
        yield Fault(RULE, pod.owner, (*where, "hostPath", "path"), why)
    if text(volume, "hostPath", "type") == "DirectoryOrCreate":
        why = "a directory that the kubelet creates belongs to root, so a non-root pod cannot write a lease there"
        remedy = "set type: Directory, and create it with mode 1777 by a DaemonSet or tmpfiles.d"
        yield Fault(RULE, pod.owner, (*where, "hostPath", "type"), why, remedy)
