"""The lease directory of a shared GPU: the pods of a service must mount the node's directory and be able to write to it.

A service that cannot write a lease still starts, on a randomly chosen GPU, and the other services do not see it. This is checked before the
deployment.
"""

from collections.abc import Iterator
from pathlib import PurePosixPath

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
            yield from _mount(world, pod, container, world.service.gpu.lease_dir)


def _mount(world: World, pod: Pod, container: Container, node_directory: str) -> Iterator[Fault]:
    """The deepest mount that contains the lease directory."""
    where, variable = variables(container).get(VARIABLE, ((), {}))
    if variable.get("valueFrom"):
        return
    directory = PurePosixPath(text(variable, "value") if where else DEFAULT)
    folders = [directory, *directory.parents]
    mounts = [(text(mount, "mountPath"), index, mount) for index, mount in enumerate(mappings(container.data, "volumeMounts"))]
    above = [entry for entry in mounts if entry[0] and PurePosixPath(entry[0]) in folders]
    if not above:
        why = f"no volume is mounted at {directory}, so other services do not see the lease of {container.name}"
        yield Fault(RULE, pod.owner, (*where, "value") if where else container.path, why)
        return
    _, index, mount = max(above, key=lambda entry: len(entry[0]))
    if mount.get("readOnly") is True:
        why = f"{container.name} mounts the lease directory read-only, so it cannot write a lease"
        yield Fault(RULE, pod.owner, (*container.path, "volumeMounts", index, "readOnly"), why)
    for number, volume in enumerate(mappings(pod.spec, "volumes")):
        if volume.get("name") == mount.get("name"):
            yield from _volume(world, pod, (*pod.path, "spec", "volumes", number), node_directory)


def _volume(world: World, pod: Pod, where: Path, node_directory: str) -> Iterator[Fault]:
    volume = mapping(pod.owner.data, *where)
    for kind in OF_ONE_POD:
        if kind in volume:
            why = f"the lease directory is a volume of type {kind}, which no other pod sees"
            yield Fault(RULE, pod.owner, (*where, kind), why)
    claimed = mapping(volume, "persistentVolumeClaim")
    if claimed.get("readOnly") is True:
        why = "the claim of the lease directory is read-only, so no lease can be written"
        yield Fault(RULE, pod.owner, (*where, "persistentVolumeClaim", "readOnly"), why)
    yield from _host_path(pod.owner, (*where, "hostPath"), node_directory)
    claim = world.find("PersistentVolumeClaim", text(claimed, "claimName"), pod.namespace)
    for persistent in world.of("PersistentVolume") if claim else ():
        if claim and persistent.name and persistent.name == text(claim.spec, "volumeName"):
            yield from _host_path(persistent, ("spec", "hostPath"), node_directory)


def _host_path(obj: Object, where: Path, node_directory: str) -> Iterator[Fault]:
    """The directory on the node must be the one that service.yaml names, and writable."""
    path = text(obj.data, *where, "path")
    if path and PurePosixPath(path) != PurePosixPath(node_directory):
        why = f"the lease directory is {path} on the node, but service.yaml says {node_directory}, which the other services use"
        yield Fault(RULE, obj, (*where, "path"), why)
    if text(obj.data, *where, "type") == "DirectoryOrCreate":
        why = "a directory that the kubelet creates belongs to root, so a non-root pod cannot write a lease there"
        remedy = "set type: Directory, and create it with mode 1777 by a DaemonSet or tmpfiles.d"
        yield Fault(RULE, obj, (*where, "type"), why, remedy)
