"""Use the cluster through kubectl: render, apply, remove and wait. The output of kubectl goes to stderr."""

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlops_build.adapters import kubectl
from mlops_build.adapters.kubectl import RENDER_SECONDS
from mlops_build.errors import Failed, Refused
from mlops_build.release.objects import MANAGER, MANAGER_LABEL, NAME_LABEL
from mlops_build.release.record import PREFIX

APPLY_SECONDS = 120
# Objects that depend on settings in service.yaml: a release creates and removes them. `kubectl apply --prune` would delete every object
# with the label that is not in the manifests: a single wrong file could delete the Service.
REMOVED = {"horizontalpodautoscaler": "horizontalpodautoscalers.autoscaling", "poddisruptionbudget": "poddisruptionbudgets.policy"}
# Objects that a release does not remove but reports.
REPORTED = {"persistentvolumeclaim": "persistentvolumeclaims"}


class RolloutFailed(Failed):
    """The pods of the new release do not become ready."""


def render(overlay: Path) -> str:
    """The manifests of an overlay as YAML documents. Needs no cluster. Raises Refused."""
    done = kubectl.kustomize(overlay)
    if done.code:
        raise Refused(f"{overlay} does not render: {done.message[-500:]}", remedy="fix it; `mlops-build ci check` shows the same error")
    return done.text


def apply(manifests: str) -> None:
    """Apply manifests. Raises Failed with the cluster's message, ClusterUnreachable."""
    _call(["apply", "--filename", "-"], APPLY_SECONDS, manifests)


def live_replicas(name: str, namespace: str) -> int | None:
    """The current number of replicas of the Deployment `name`; None if it does not exist or this account may not read it."""
    replicas = _get(["deployment", name, "--namespace", namespace, "--output", "jsonpath={.spec.replicas}"])
    return int(replicas) if replicas.isdecimal() else None


@dataclass(frozen=True)
class Revision:
    """The revision of a Deployment. complete: its rollout has ended. models: those that mlops-build released with it, as text."""

    number: int
    complete: bool
    models: str | None


def revision(name: str, namespace: str) -> Revision | None:
    """The revision of the Deployment `name`; None if there is none, or this account may not read it."""
    try:
        deployment = json.loads(_get(["deployment", name, "--namespace", namespace, "--output", "json"]))
        annotations, conditions = deployment["metadata"]["annotations"], deployment["status"]["conditions"]
        complete = any(condition.get("reason") == "NewReplicaSetAvailable" for condition in conditions)
        return Revision(int(annotations["deployment.kubernetes.io/revision"]), complete, annotations.get(f"{PREFIX}/models"))
    except (ValueError, LookupError, TypeError, AttributeError):
        return None


def undo(name: str, namespace: str, number: int, seconds: int) -> None:
    """Return to a revision of the Deployment `name`, and wait for it. Raises Failed, RolloutFailed, ClusterUnreachable."""
    _call(["rollout", "undo", f"deployment/{name}", "--namespace", namespace, f"--to-revision={number}"], APPLY_SECONDS)
    wait(name, namespace, seconds)


def make_volume(manifest: str, name: str, by_hand: str) -> None:
    """Create a PersistentVolume unless it exists; it is never changed. by_hand: the command for an administrator.

    Volumes belong to the whole cluster, and an account that may create them can read any folder of a node. This account does not need that
    permission if an administrator creates the volume once. Raises Refused with the command.
    """
    if name in _get(["persistentvolume", name, "--output", "name"]):
        return
    try:
        apply(manifest)
    except Failed as error:
        raise Refused(
            f"the volume {name} does not exist, and this account may not create it: {error.message}",
            remedy=f"ask an administrator to create it once: {by_hand}",
        ) from None


def remove_unwanted(name: str, namespace: str, objects: Sequence[Any], say: Callable[[str], None]) -> None:
    """Remove objects that an earlier release of the service `name` created and that are not in `objects`, those of this release."""
    wanted = {f"{item['kind'].lower()}/{item['metadata']['name']}" for item in objects}
    kinds, selector = ",".join([*REMOVED.values(), *REPORTED.values()]), f"{NAME_LABEL}={name},{MANAGER_LABEL}={MANAGER}"
    there = re.findall(
        rf"^({'|'.join([*REMOVED, *REPORTED])})(?:\.[a-z0-9.]+)?/([a-z0-9.-]+)$",
        _get([kinds, "--namespace", namespace, "--selector", selector, "--output", "name"]),
        re.MULTILINE,
    )
    for kind, object_name in there:
        if f"{kind}/{object_name}" in wanted:
            continue
        if kind in REPORTED:
            say(f"deploy: {kind} {object_name} in {namespace} is left over from an earlier release and empty: delete it and its volume")
            continue
        say(f"deploy: removing {kind} {object_name}, which this release no longer has")
        try:
            _call(["delete", f"{REMOVED[kind]}/{object_name}", "--namespace", namespace, "--ignore-not-found"], APPLY_SECONDS)
        except Failed as error:
            # A remaining scaler would change the number of replicas; a remaining disruption budget does no harm.
            if kind == "horizontalpodautoscaler":
                raise
            say(f"deploy: {kind} {object_name} in {namespace} stays: {error.message}")


def wait(name: str, namespace: str, seconds: int) -> None:
    """Wait for the rollout of the Deployment `name`. Raises RolloutFailed, ClusterUnreachable."""
    arguments = ["rollout", "status", f"deployment/{name}", "--namespace", namespace, f"--timeout={seconds}s"]
    try:
        _call(arguments, seconds + RENDER_SECONDS)
    except Failed as error:
        raise RolloutFailed(
            f"{name} in {namespace} did not become ready within {seconds} s: {error.message}",
            remedy=f"kubectl --namespace {namespace} describe pods; previous version: mlops-build rollback MODEL --env ENV",
        ) from None


def _call(arguments: Sequence[str], seconds: int, stdin: str | None = None) -> None:
    """Run kubectl with its output on stderr. Raises Failed with the last line of the output, ClusterUnreachable."""
    done = kubectl.run(arguments, seconds=seconds, stdin=stdin)
    sys.stderr.write(f"{done.text}{done.errors.decode(errors='replace')}")
    sys.stderr.flush()
    if done.code:
        raise Failed(f"kubectl {arguments[0]}: {done.last_line}", remedy="see above; check the permissions of this account")


def _get(arguments: Sequence[str]) -> str:
    """The output of `kubectl get`; empty if there is no such object. An error, such as a missing permission, is printed."""
    done = kubectl.run(["get", *arguments, "--ignore-not-found"], seconds=APPLY_SECONDS)
    if done.code:
        print(f"kubectl get {arguments[0]}: {done.last_line}", file=sys.stderr, flush=True)
    return done.text
