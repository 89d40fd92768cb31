"""What a release changes besides its models' versions, in the words of service.yaml: "replicas 1 → 4".

It compares the two releases' files, not two service.yaml: the bridge's clone has one commit only, and its commit must be the same as that
of a release by hand.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ruamel.yaml.error import YAMLError

from mlops_build import bounded_yaml
from mlops_build.release.record import KUSTOMIZATION, PATCH, RECORD

# How many changes a line lists before it counts the rest.
SHOWN = 6
_CONTAINER = r"spec\.template\.spec\.containers\.[^.]+"
# A value's path in its file → its name in service.yaml.
_NAMES = {
    PATCH: {
        r"spec\.replicas": "replicas",
        rf"{_CONTAINER}\.resources\.requests\.memory": "memory",
        rf"{_CONTAINER}\.resources\.requests\.cpu": "cpu",
        rf"{_CONTAINER}\.ports\.http\.containerPort": "serving.port",
        rf"{_CONTAINER}\.env\.MLOPS_SERVE_(\w+)\.value": r"serving.\1",
        rf"{_CONTAINER}\.env\.MLOPS_GPU_(MODE|MEMORY)\.value": r"gpu.\1",
        r"spec\.template\.spec\.priorityClassName": "priority_class",
        r"spec\.template\.spec\.runtimeClassName": "gpu.runtime_class",
        r"spec\.template\.spec\.nodeSelector\.(.+)": r"gpu.node_selector.\1",
        rf"{_CONTAINER}\.startupProbe\.(\w+)": r"startupProbe.\1",
        r"spec\.(strategy\..+)": r"\1",
    },
    KUSTOMIZATION: {
        r"namespace": "namespace",
        r"images\.[^.]+\.newName": "image.registry",
        r"images\.[^.]+\.newTag": "image",
        r"patches\.Ingress\.host": "host",
    },
    RECORD: {r"commit": "code", r"models\.(.+)\.digest": r"files of \1", r"models\.(.+)\.run": r"run of \1"},
    "hpa.yaml": {
        r"HorizontalPodAutoscaler\.spec\.minReplicas": "replicas",
        r"HorizontalPodAutoscaler\.spec\.maxReplicas": "autoscale.max_replicas",
        r"HorizontalPodAutoscaler\.spec\.metrics\..+\.(?:averageValue|averageUtilization)": "autoscale.target",
    },
}
# Values that follow from one that is named above, or from the models.
_FOLLOWS = {
    PATCH: re.compile(
        r"metadata\..*|spec\.template\.metadata\..*|spec\.progressDeadlineSeconds"
        rf"|{_CONTAINER}\.(?:name|resources\.limits\.memory|resources\..*nvidia.*|volumeMounts.*|ports\.[^.]+\.name)"
        rf"|{_CONTAINER}\.env\.[^.]+\.name|{_CONTAINER}\.env\.(?:MLOPS_DEVICE|MLOPS_SERVICE|NVIDIA_\w+)\.value|spec\.template\.spec\.volumes.*"
    ),
    KUSTOMIZATION: re.compile(r"resources\..*|replicas\..*"),
}


def changes(before: Mapping[str, bytes], after: Mapping[str, bytes], *, other_models: bool) -> tuple[str, ...]:
    """The differences between two releases' files (name → content), one text each, without line breaks.

    other_models: the versions differ, so that the record and the image's tag do too, which is not said again.
    """
    lines: list[str] = []
    for name in after:
        if name not in before:
            lines.append(f"{name} added")
        elif before[name] != after[name] and not (other_models and name == RECORD):
            lines += _of_file(name, before[name].decode(errors="replace"), after[name].decode(), other_models)
    lines += [f"{name} removed" for name in sorted(set(before) - set(after))]
    return tuple(dict.fromkeys(line[:200] for line in lines))


def shown(before: str | None, after: str, changed: tuple[str, ...]) -> str:
    """A release in one line: "digits 1 → digits 2", "digits 1, replicas 1 → 4", or both."""
    models = after if before == after else f"{before or 'nothing'} → {after}"
    more = [f"{len(changed) - SHOWN} more"] if len(changed) > SHOWN else []
    return ", ".join([models, *changed[:SHOWN], *more])


def _of_file(name: str, old: str, new: str, other_models: bool) -> list[str]:
    try:
        was, now = _values(old), _values(new)
    except YAMLError:
        return [f"{name} rewritten: it was not valid YAML"]
    lines, follows = [], False
    for path in dict.fromkeys([*now, *was]):
        if was.get(path) == now.get(path):
            continue
        setting = _setting(name, path)
        if setting is None or (other_models and setting == "image"):
            follows = True
        else:
            lines.append(f"{setting} {_text(was.get(path))} → {_text(now.get(path))}")
    return lines if lines or follows else [f"comments or layout of {name}"]


def _setting(file: str, path: str) -> str | None:
    """The name of the value at `path`; None for one that follows from others."""
    if (follows := _FOLLOWS.get(file)) and follows.fullmatch(path):
        return None
    for pattern, name in _NAMES.get(file, {}).items():
        if match := re.fullmatch(pattern, path):
            return match.expand(name).lower() if ".env." in path else match.expand(name)
    return f"{file}: {path}"


def _text(value: object) -> str:
    return "none" if value is None else " ".join(str(value).split())[:80]


def _values(text: str) -> dict[str, Any]:
    """Every value of a file's documents by its dotted path. Raises YAMLError."""
    return {path: value for document in bounded_yaml.load_all(text) for path, value in _walk(document, _start(document))}


def _start(document: object) -> str:
    """The kind of an object that stands in a file of objects; a patch and a kustomization are alone in theirs."""
    kind = document.get("kind") if isinstance(document, dict) else None
    return f"{kind}." if kind not in (None, "Component", "Deployment") else ""


def _walk(node: object, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict):
        if (target := node.get("target")) and isinstance(node.get("patch"), str):
            # A JSON patch inside YAML: its one operation has the Ingress' host.
            yield from _walk({"host": _host(node["patch"])}, f"{path.rpartition('.')[0].rpartition('.')[0]}.{target.get('kind')}.")
            return
        for key, value in node.items():
            yield from _walk(value, f"{path}{key}.")
    elif isinstance(node, list):
        for index, item in enumerate(node):
            name = item.get("name", index) if isinstance(item, dict) else index
            yield from _walk(item, f"{path}{name}.")
    else:
        yield path.rstrip("."), node


def _host(patch: str) -> str:
    try:
        return str(json.loads(patch)[0]["value"])
    except (ValueError, LookupError, TypeError):
        return patch
