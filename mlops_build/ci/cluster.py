"""The cluster, through kubectl: what is rendered, applied, removed and waited for. What kubectl prints is shown on stderr."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlops_build.errors import Failed, Refused, Unreachable
from mlops_build.release.objects import MANAGER, MANAGER_LABEL, NAME_LABEL

RENDER_SECONDS, APPLY_SECONDS = 60, 120
UNREACHABLE = re.compile(r"unable to connect|was refused|no such host|i/o timeout|TLS handshake timeout|no configuration", re.IGNORECASE)
# What a release brings by service.yaml's word, and takes away again. `kubectl apply --prune` would delete whatever has a label and is not
# named at this moment, in every kind that it may: one wrong file, and the Service is gone.
REMOVED = {"horizontalpodautoscaler": "horizontalpodautoscalers.autoscaling", "poddisruptionbudget": "poddisruptionbudgets.policy"}
# What it leaves behind, and only tells.
TOLD = {"persistentvolumeclaim": "persistentvolumeclaims"}


class ClusterUnreachable(Unreachable):
    """The cluster's API does not answer, or kubectl is not told where it is."""


class RolloutFailed(Failed):
    """The pods of the new release do not get ready."""


def kubectl() -> str:
    """The command. Raises ClusterUnreachable where there is none."""
    found = shutil.which("kubectl")
    if not found:
        raise ClusterUnreachable("there is no kubectl command here", remedy="install kubectl on the agent, and set KUBECONFIG")
    return found


def render(overlay: Path) -> str:
    """What an overlay says, as one text of YAML documents. Needs no cluster. Raises Refused."""
    done = subprocess.run([kubectl(), "kustomize", str(overlay)], capture_output=True, text=True, timeout=RENDER_SECONDS, check=False)
    if done.returncode:
        raise Refused(f"{overlay} does not render: {done.stderr.strip()[-500:]}", remedy="mend it: mlops-build ci check says the same")
    return done.stdout


def apply(manifests: str) -> None:
    """Raises Failed with what the cluster says, ClusterUnreachable."""
    _call(["apply", "--filename", "-"], APPLY_SECONDS, manifests)


def live_replicas(name: str, namespace: str) -> int | None:
    """How many replicas the Deployment `name` has now; None where there is none, or this account may not look."""
    found = _get(["deployment", name, "--namespace", namespace, "--output", "jsonpath={.spec.replicas}"])
    return int(found) if found.isdecimal() else None


def make_volume(manifest: str, name: str, by_hand: str) -> None:
    """Make a PersistentVolume, unless it is there: it is never changed. by_hand: the command of an administrator.

    Volumes belong to the whole cluster, and whoever may make one may read any folder of a node. So this account needs not be allowed to,
    if an administrator does it once. Raises Refused, naming the command.
    """
    if name in _get(["persistentvolume", name, "--output", "name"]):
        return
    try:
        apply(manifest)
    except Failed as error:
        raise Refused(
            f"the volume {name} is not there, and this account may not make it: {error.message}",
            remedy=f"an administrator makes it, once: {by_hand}",
        ) from None


def remove_unwanted(name: str, namespace: str, objects: Sequence[Any], say: Callable[[str], None]) -> None:
    """Remove what an earlier release of the service `name` brought and `objects`, the ones of this release, have no more."""
    wanted = {f"{one['kind'].lower()}/{one['metadata']['name']}" for one in objects}
    kinds, selector = ",".join([*REMOVED.values(), *TOLD.values()]), f"{NAME_LABEL}={name},{MANAGER_LABEL}={MANAGER}"
    there = re.findall(
        rf"^({'|'.join([*REMOVED, *TOLD])})(?:\.[a-z0-9.]+)?/([a-z0-9.-]+)$",
        _get([kinds, "--namespace", namespace, "--selector", selector, "--output", "name"]),
        re.MULTILINE,
    )
    for kind, found in there:
        if f"{kind}/{found}" in wanted:
            continue
        if kind in TOLD:
            say(
                f"deploy: {kind} {found} in {namespace} is left from an earlier release and holds no data: delete it and its volume by hand"
            )
            continue
        say(f"deploy: removing {kind} {found}, which this release has no more")
        try:
            _call(["delete", f"{REMOVED[kind]}/{found}", "--namespace", namespace, "--ignore-not-found"], APPLY_SECONDS)
        except Failed as error:
            # A scaler would go on setting the number of pods; a budget of one pod at a time hurts nobody.
            if kind == "horizontalpodautoscaler":
                raise
            say(f"deploy: {kind} {found} in {namespace} stays: {error.message}")


def wait(name: str, namespace: str, seconds: int) -> None:
    """Until the pods of the Deployment `name` are the new ones. Raises RolloutFailed, ClusterUnreachable."""
    arguments = ["rollout", "status", f"deployment/{name}", "--namespace", namespace, f"--timeout={seconds}s"]
    try:
        _call(arguments, seconds + RENDER_SECONDS)
    except Failed as error:
        raise RolloutFailed(
            f"{name} in {namespace} did not get ready within {seconds} s: {error.message}",
            remedy=f"kubectl --namespace {namespace} describe pods; back to the version before: mlops-build rollback MODEL --env ENV",
        ) from None


def _call(arguments: Sequence[str], seconds: int, text: str | None = None) -> None:
    """kubectl with its output shown on stderr. Raises Failed with its last line, ClusterUnreachable."""
    done = _run(arguments, seconds, text)
    print(done.stdout + done.stderr, file=sys.stderr, end="", flush=True)
    if done.returncode:
        raise Failed(f"kubectl {arguments[0]}: {_last_line(done)}", remedy="see above; does this account have the right to do that?")


def _get(arguments: Sequence[str]) -> str:
    """What `kubectl get` prints; nothing where there is no such object. Where this account may not look, that is told."""
    done = _run(["get", *arguments, "--ignore-not-found"], APPLY_SECONDS)
    if done.returncode:
        print(f"kubectl get {arguments[0]}: {_last_line(done)}", file=sys.stderr, flush=True)
    return done.stdout


def _run(arguments: Sequence[str], seconds: int, text: str | None = None) -> "subprocess.CompletedProcess[str]":
    try:
        done = subprocess.run([kubectl(), *arguments], input=text, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        raise ClusterUnreachable(
            f"`kubectl {arguments[0]}` did not answer within {seconds} s", remedy="check KUBECONFIG and the network"
        ) from None
    if done.returncode and UNREACHABLE.search(_last_line(done)):
        print(done.stdout + done.stderr, file=sys.stderr, end="", flush=True)
        raise ClusterUnreachable(f"the cluster does not answer: {_last_line(done)}", remedy="check KUBECONFIG, the context and the network")
    return done


def _last_line(done: "subprocess.CompletedProcess[str]") -> str:
    return (done.stderr.strip().splitlines() or ["it said nothing"])[-1][:300]
