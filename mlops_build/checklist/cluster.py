"""What can be seen of the cluster, through kubectl: namespaces, rights, the pull secret, and what a GPU service needs. Only reads."""

import re
import shutil
import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from mlops_build.checklist.look import Seen, last_line, no, ok, run, unseen
from mlops_build.checklist.names import Names

# What `ci deploy` does with each object that an overlay renders, and what it removes when a release has it no more.
APPLIES = ("get", "create", "patch")
REMOVES = (("list", "delete"), ("horizontalpodautoscaler.autoscaling", "poddisruptionbudget.policy"))
FORBIDDEN = re.compile(r"forbidden|cannot (?:get|list)", re.IGNORECASE)
AWAY = re.compile(r"unable to connect|connection to the server|was refused|no such host|i/o timeout|no configuration", re.IGNORECASE)
NOBODY = "the cluster does not answer"
ABSENT = re.compile(r"not ?found", re.IGNORECASE)
AT_ONCE = 8


def reachable() -> Seen:
    """Whether there is a cluster at all; the other looks then need not wait for it."""
    if not shutil.which("kubectl"):
        return no("kubectl is not installed")
    done = run(["kubectl", "version", "--output", "json"])
    if done is None or done.returncode:
        return no(f"the cluster does not answer: {last_line(done) if done else 'no answer in time'}")
    context = run(["kubectl", "config", "current-context"])
    return ok(f"the cluster answers, context {context.stdout.strip() if context and context.returncode == 0 else 'of its own'}")


def exists(kind: str, name: str, namespace: str | None = None) -> Seen:
    """One object, by its name only: of a secret nothing else is read."""
    where = ["--namespace", namespace] if namespace else []
    done = run(["kubectl", "get", kind, name, *where, "--output", "name"])
    shown = f"{kind} {name}{f' in {namespace}' if namespace else ''}"
    said = last_line(done) if done else NOBODY
    if done is None or (done.returncode and AWAY.search(said)):
        return unseen(f"{shown}: {NOBODY}")
    if done.returncode == 0:
        return ok(f"{shown} is there")
    if FORBIDDEN.search(said):
        return unseen(f"this account may not look at {shown}")
    return no(f"{shown} is not there" if ABSENT.search(said) else f"{shown}: {said}")


def rights(names: Names) -> Seen:
    """What the account may do with each kind that the overlays render, in each namespace."""
    asked = [(verb, kind, place.namespace) for env, place in names.service.environments.items() for verb, kind in _needed(names.root, env)]
    if not asked:
        return unseen("no overlay can be rendered here")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(lambda one: _may(*one), asked))
    if None in answers:
        return unseen(NOBODY)
    refused = [f"{verb} {kind} in {namespace}" for (verb, kind, namespace), may in zip(asked, answers, strict=True) if not may]
    if refused:
        return no(f"may not {', '.join(refused[:6])}{f' and {len(refused) - 6} more' if len(refused) > 6 else ''}")
    return ok(f"{len(asked)} rights in {', '.join(sorted({namespace for _, _, namespace in asked}))}")


def volumes(files: Sequence[Path]) -> Seen:
    """The volumes of the GPU leases, or the right to make them."""
    wanted = [one["metadata"]["name"] for file in files for one in _objects(file.read_text()) if one.get("kind") == "PersistentVolume"]
    found = [exists("persistentvolume", name) for name in wanted]
    if found and all(one.state == "ok" for one in found):
        return ok(f"{', '.join(wanted)} are there")
    may = _may("create", "persistentvolume", None)
    if may is None:
        return unseen(NOBODY)
    if may:
        return ok("this account may make them")
    if not wanted:
        return unseen("nothing is released yet, so the volumes have no name")
    return no(f"this account may not make {', '.join(wanted)}")


def cards() -> Seen:
    """Whether some node hands out nvidia.com/gpu."""
    done = run(["kubectl", "get", "nodes", "--output", r"jsonpath={.items[*].status.allocatable.nvidia\.com/gpu}"])
    if done is None or done.returncode:
        return unseen(f"this account may not look at nodes{f': {last_line(done)}' if done else ''}")
    counts = [int(count) for count in done.stdout.split() if count.isdecimal()]
    return ok(f"{sum(counts)} on {len(counts)} nodes") if sum(counts) else no("no node hands out nvidia.com/gpu")


def addresses(hosts: Sequence[str]) -> Seen:
    """Whether the ingress's host names lead somewhere: `ci deploy` asks there."""
    missing = []
    for host in hosts:
        try:
            socket.getaddrinfo(host, 80)
        except OSError:
            missing.append(host)
    return no(f"no address for {', '.join(missing)}") if missing else ok(", ".join(hosts))


def _needed(root: Path, env: str) -> list[tuple[str, str]]:
    done = run(["kubectl", "kustomize", str(root / "deploy" / "overlays" / env)])
    if done is None or done.returncode:
        return []
    kinds = set()
    for one in _objects(done.stdout):
        group = str(one.get("apiVersion", "")).rpartition("/")[0]
        kind = str(one.get("kind", "")).lower()
        if kind and kind != "persistentvolume":
            kinds.add(f"{kind}.{group}" if group else kind)
    needed = {(verb, kind) for verb in APPLIES for kind in kinds} | {(verb, kind) for verb in REMOVES[0] for kind in REMOVES[1]}
    return sorted(needed | {("list", "deployment.apps"), ("watch", "deployment.apps")}, key=lambda one: (one[1], one[0]))


def _may(verb: str, kind: str, namespace: str | None) -> bool | None:
    """None where the cluster does not answer."""
    done = run(["kubectl", "auth", "can-i", verb, kind, *(["--namespace", namespace] if namespace else []), "--quiet"])
    if done is None or (done.returncode and AWAY.search(done.stderr)):
        return None
    return done.returncode == 0


def _objects(text: str) -> list[dict[str, Any]]:
    try:
        return [one for one in YAML(typ="safe").load_all(text) if isinstance(one, dict)]
    except YAMLError:
        return []
