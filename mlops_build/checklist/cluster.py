"""Checks of the cluster through kubectl: namespaces, permissions, the pull secret, and what a GPU service needs. Only reads."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlops_build.adapters import http, kubectl
from mlops_build.adapters.kubectl import NO_ANSWER, UNREACHABLE
from mlops_build.checklist.names import Names
from mlops_build.checklist.result import Result, no, ok, unseen

# What `ci deploy` does with each rendered object, and which kinds it deletes if a release no longer has them.
APPLIES = ("get", "create", "patch")
REMOVES = (("list", "delete"), ("horizontalpodautoscaler.autoscaling", "poddisruptionbudget.policy"))
FORBIDDEN = re.compile(r"forbidden|cannot (?:get|list)", re.IGNORECASE)
ABSENT = re.compile(r"not ?found", re.IGNORECASE)
MAX_PARALLEL = 8


def reachable() -> Result:
    """Whether the cluster answers."""
    if not kubectl.is_installed():
        return no("kubectl is not installed")
    done = kubectl.probe(["version", "--output", "json"])
    if done is None or done.code:
        return no(f"{NO_ANSWER}: {done.last_line if done else 'no answer in time'}")
    context = kubectl.probe(["config", "current-context"])
    return ok(f"the cluster answers, context {context.text.strip() if context and context.code == 0 else 'in-cluster'}")


def exists(kind: str, name: str, namespace: str | None = None) -> Result:
    """Whether an object exists. Only its name is read, also of a secret."""
    where = ["--namespace", namespace] if namespace else []
    done = kubectl.probe(["get", kind, name, *where, "--output", "name"])
    object_name = f"{kind} {name}{f' in {namespace}' if namespace else ''}"
    message = done.last_line if done else NO_ANSWER
    if done is None or (done.code and UNREACHABLE.search(message)):
        return unseen(f"{object_name}: {NO_ANSWER}")
    if done.code == 0:
        return ok(f"{object_name} exists")
    if FORBIDDEN.search(message):
        return unseen(f"this account may not read {object_name}")
    return no(f"{object_name} does not exist" if ABSENT.search(message) else f"{object_name}: {message}")


def rights(names: Names) -> Result:
    """Whether the account has the permissions for each kind of the overlays, in each namespace."""
    environments = names.service.environments.items()
    requests = [(verb, kind, place.namespace) for env, place in environments for verb, kind in _needed(names.root, env)]
    if not requests:
        return unseen("no overlay can be rendered")
    with ThreadPoolExecutor(MAX_PARALLEL) as pool:
        answers = list(pool.map(lambda request: _may(*request), requests))
    if None in answers:
        return unseen(NO_ANSWER)
    refused = [f"{verb} {kind} in {namespace}" for (verb, kind, namespace), may in zip(requests, answers, strict=True) if not may]
    if refused:
        return no(f"may not {', '.join(refused[:6])}{f' and {len(refused) - 6} more' if len(refused) > 6 else ''}")
    return ok(f"{len(requests)} permissions in {', '.join(sorted({namespace for _, _, namespace in requests}))}")


def volumes(files: Sequence[Path]) -> Result:
    """Whether the volumes of the GPU leases exist, or the account may create them."""
    documents = [document for file in files for document in _objects(file.read_text())]
    volume_names = [document["metadata"]["name"] for document in documents if document.get("kind") == "PersistentVolume"]
    results = [exists("persistentvolume", name) for name in volume_names]
    if results and all(result.state == "ok" for result in results):
        return ok(f"{', '.join(volume_names)} exist")
    may = _may("create", "persistentvolume", None)
    if may is None:
        return unseen(NO_ANSWER)
    if may:
        return ok("this account may create them")
    if not volume_names:
        return unseen("nothing is released yet, so the names of the volumes are unknown")
    return no(f"this account may not create {', '.join(volume_names)}")


def gpus() -> Result:
    """Whether a node provides nvidia.com/gpu."""
    done = kubectl.probe(["get", "nodes", "--output", r"jsonpath={.items[*].status.allocatable.nvidia\.com/gpu}"])
    if done is None or done.code:
        return unseen(f"this account may not read nodes{f': {done.last_line}' if done else ''}")
    counts = [int(count) for count in done.text.split() if count.isdecimal()]
    return ok(f"{sum(counts)} on {len(counts)} nodes") if sum(counts) else no("no node provides nvidia.com/gpu")


def addresses(hosts: Sequence[str]) -> Result:
    """Whether the host names of the ingress resolve; `ci deploy` sends requests there."""
    missing = [host for host in hosts if not http.has_address(host)]
    return no(f"no address for {', '.join(missing)}") if missing else ok(", ".join(hosts))


def _needed(root: Path, env: str) -> list[tuple[str, str]]:
    done = kubectl.probe(["kustomize", str(root / "deploy" / "overlays" / env)])
    if done is None or done.code:
        return []
    kinds = set()
    for document in _objects(done.text):
        group = str(document.get("apiVersion", "")).rpartition("/")[0]
        kind = str(document.get("kind", "")).lower()
        if kind and kind != "persistentvolume":
            kinds.add(f"{kind}.{group}" if group else kind)
    needed = {(verb, kind) for verb in APPLIES for kind in kinds} | {(verb, kind) for verb in REMOVES[0] for kind in REMOVES[1]}
    # replicasets: to return to the previous release.
    rollout = {("list", "deployment.apps"), ("watch", "deployment.apps"), ("list", "replicaset.apps")}
    return sorted(needed | rollout, key=lambda permission: permission[::-1])


def _may(verb: str, kind: str, namespace: str | None) -> bool | None:
    """Whether the account has a permission; None if the cluster does not answer."""
    done = kubectl.probe(["auth", "can-i", verb, kind, *(["--namespace", namespace] if namespace else []), "--quiet"])
    if done is None or (done.code and UNREACHABLE.search(done.message)):
        return None
    return done.code == 0


def _objects(text: str) -> list[dict[str, Any]]:
    try:
        return [document for document in YAML(typ="safe").load_all(text) if isinstance(document, dict)]
    except YAMLError:
        return []
