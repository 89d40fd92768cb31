"""What a release adds to the template's base as objects of its own, because service.yaml decides whether they are there: a disruption
budget (more than one pod), a scaler (`autoscale`), and the volume of the GPU leases (`gpu.mode: shared`).

Machines write them into release/, so that what service.yaml no longer wants is gone from Git with the next release, and from the cluster
with the next deployment.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

from mlops_build.release.rollout import Rollout, rollout
from mlops_build.service import Autoscale, Service

# Labels of these objects. `ci deploy` removes objects with both labels that the release no longer has.
NAME_LABEL, MANAGER_LABEL, MANAGER = "app.kubernetes.io/name", "app.kubernetes.io/managed-by", "mlops-build"
# The gauge of the server (mlops_build.serving.app): requests that are being answered.
IN_PROGRESS = "mlops_build_requests_in_progress"
# The lease directory in the containers of all services, whatever the node's directory is.
LEASE_DIR = "/run/mlops-gpu"


@dataclass(frozen=True)
class File:
    """A file of release/: a comment and the objects in it."""

    comment: str
    objects: tuple[dict[str, Any], ...]


def files(service: Service, env: str) -> dict[str, File]:
    """The files that an environment needs, by name. Raises NotFound for an unknown environment."""
    numbers = rollout(service, env)
    files: dict[str, File] = {}
    # A budget for a single pod would block every drain, or protect nothing.
    if numbers.most > 1:
        files["pdb.yaml"] = File(
            "A node that is drained takes one pod at a time, and waits for none that does not work.", (budget(service),)
        )
    if numbers.autoscale:
        files["hpa.yaml"] = File(
            "It sets the number of pods within these bounds, so patch.yaml sets none.", (scaler(service, env, numbers.autoscale),)
        )
    if numbers.gpu == "shared":
        why = "Pods may not mount a folder of their node (Pod Security Standards), but a claim. The folder must be there, with mode 1777."
        files["gpu-leases.yaml"] = File(why, leases(service, env))
    return files


def budget(service: Service) -> dict[str, Any]:
    """A PodDisruptionBudget. A pod that is not ready may always go: else a broken release keeps a node from being drained."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(service, service.name),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": {NAME_LABEL: service.name}},
        },
    }


def scaler(service: Service, env: str, autoscale: Autoscale) -> dict[str, Any]:
    """A HorizontalPodAutoscaler on requests in progress, which is what waits in front of a card, or on CPU for a service without one."""
    numbers: Rollout = rollout(service, env)
    metric: dict[str, Any] = {
        "type": "Pods",
        "pods": {"metric": {"name": IN_PROGRESS}, "target": {"type": "AverageValue", "averageValue": str(autoscale.target)}},
    }
    if autoscale.metric == "cpu":
        metric = {
            "type": "Resource",
            "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": autoscale.target}},
        }
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(service, service.name),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": service.name},
            "minReplicas": numbers.replicas,
            "maxReplicas": autoscale.max_replicas,
            "metrics": [metric],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": numbers.calm_seconds}},
        },
    }


def leases(service: Service, env: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The node's folder as a volume of the cluster, and the namespace's claim to it; each names the other, so that no third one binds.

    The folder must be there (`type: Directory`): one that the kubelet makes is root's, and a pod without root could not write into it.
    """
    namespace, claimed = service.environment(env).namespace, claim(service)
    # Volumes belong to no namespace. The hash tells "a-b" and "c" from "a" and "b-c".
    volume = f"{namespace}-{claimed}-{_short(f'{namespace}/{service.name}')}"
    # A folder has no size, but a volume must have one.
    size, alike = {"storage": "1Mi"}, {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    return (
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": _metadata(service, volume),
            "spec": {
                "capacity": size,
                **alike,
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": namespace, "name": claimed},
                "hostPath": {"path": service.gpu.lease_dir, "type": "Directory"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": _metadata(service, claimed),
            "spec": {**alike, "resources": {"requests": size}, "volumeName": volume},
        },
    )


def claim(service: Service) -> str:
    """The claim's name. The folder is in it, since neither a volume nor a claim can be changed to another folder later."""
    return f"{service.name}-gpu-leases-{_short(service.gpu.lease_dir)}"


def _metadata(service: Service, name: str) -> dict[str, Any]:
    return {"name": name, "labels": {NAME_LABEL: service.name, MANAGER_LABEL: MANAGER}}


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
