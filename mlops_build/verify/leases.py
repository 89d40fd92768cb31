"""The lease directory of a shared GPU: the pods of a service must mount the node's directory and be able to write to it.

A service that cannot write a lease still starts, on a randomly chosen GPU, and the other services do not see it. This is checked before the
deployment.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

from mlops_build.verify.document import Path
from mlops_build.verify.world import Container, Fault, Pod, World, mapping, mappings, serving_containers, text, variables

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
    where, variable = next(((path, entry) for path, entry in variables(container) if entry.get("name") == VARIABLE), (None, {}))
    if variable.get("valueFrom"):
        return
    directory = PurePosixPath(text(variable.get("value")) if where else DEFAULT)
    folders = [directory, *directory.parents]
    mounts = enumerate(mappings(container.data.get("volumeMounts")))
    above = [(index, mount) for index, mount in mounts if PurePosixPath(text(mount.get("mountPath"))) in folders]
    if not above:
        path: Path = (*where, "value") if where else container.path
        why = f"no volume is mounted at {directory}, so other services do not see the lease of {container.name}"
        yield Fault(RULE, pod.owner, path, why)
        return
    index, mount = max(above, key=lambda entry: len(text(entry[1].get("mountPath"))))
    if mount.get("readOnly") is True:
        why = f"{container.name} mounts the lease directory read-only, so it cannot write a lease"
        yield Fault(RULE, pod.owner, (*container.path, "volumeMounts", index, "readOnly"), why)
    for number, volume in enumerate(mappings(pod.spec.get("volumes"))):
        if volume.get("name") == mount.get("name"):
            yield from _volume(pod, (*pod.path, "spec", "volumes", number), dict(volume), node_directory)


def _volume(pod: Pod, where: Path, volume: dict[str, object], node_directory: str) -> Iterator[Fault]:
    for kind in volume.keys() - SHARED - {"name"}:
        why = f"the lease directory is a volume of type {kind}, which no other pod sees"
        yield Fault(RULE, pod.owner, (*where, kind), why)
    if mapping(volume.get("persistentVolumeClaim")).get("readOnly") is True:
        why = "the claim of the lease directory is read-only, so no lease can be written"
        yield Fault(RULE, pod.owner, (*where, "persistentVolumeClaim", "readOnly"), why)
    host_path = mapping(volume.get("hostPath"))
    path = text(host_path.get("path"))
    if path and PurePosixPath(path) != PurePosixPath(node_directory):
        why = f"the lease directory is {path} on the node, but service.yaml says {node_directory}, which the other services use"
        yield Fault(RULE, pod.owner, (*where, "hostPath", "path"), why)
    if host_path.get("type") == "DirectoryOrCreate":
        why = "a directory that the kubelet creates belongs to root, so a non-root pod cannot write a lease there"
        remedy = "set type: Directory, and create it with mode 1777 by a DaemonSet or tmpfiles.d"
        yield Fault(RULE, pod.owner, (*where, "hostPath", "type"), why, remedy)
