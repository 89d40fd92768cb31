"""The release record: the versions that an environment should run, as a folder in Git that only mlops-build writes.

`deploy/overlays/ENV/release/` is a kustomize Component: record.yaml has the versions, kustomization.yaml and patch.yaml apply them,
and objects that depend on service.yaml have their own files (objects.py). Every value from the registry is checked against a grammar,
because everybody with access to MLflow can write tags. The same record always has the same bytes.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ruamel.yaml.error import YAMLError

from mlops_build import bounded_yaml
from mlops_build.errors import NotFound, Refused
from mlops_build.model.identity import COMMIT, NAME
from mlops_build.model.version import BadVersion, ModelVersion
from mlops_build.release import objects
from mlops_build.release.rollout import PROBE_SECONDS, Rollout, kubernetes_memory, rollout
from mlops_build.service import REGISTRY, Service

RECORD, KUSTOMIZATION, PATCH = "record.yaml", "kustomization.yaml", "patch.yaml"
IMAGE = re.compile(rf"{REGISTRY}/{NAME.pattern}:v[1-9][0-9]{{0,9}}-[0-9a-f]{{12}}")
# The prefix of a pod's labels and annotations, which show its models in the cluster.
PREFIX = "mlops-build"
HEADER = "# What {env} should run. Only machines write this folder: mlops-build release, bridge and rollback.\n"


class BadRecord(Refused):
    """An invalid release record."""


@dataclass(frozen=True)
class Record:
    """The versions that `environment` should run. In a new service: no models, no commit, no image. Raises BadRecord for invalid values.

    commit: the commit from which the first model was trained. image: `REGISTRY/SERVICE:v<version>-<12 hex>`.
    """

    environment: str
    models: tuple[ModelVersion, ...] = ()
    commit: str | None = None
    image: str | None = None

    def __post_init__(self) -> None:
        _check("environment", self.environment, NAME)
        for model in self.models:
            if not model.run:
                raise BadRecord(f"{model} has no run")
        if len({model.name for model in self.models}) != len(self.models):
            raise BadRecord("a model is listed twice")
        if self.models:
            _check("commit", self.commit, COMMIT)
            _check("image", self.image, IMAGE)
        elif self.commit is not None or self.image is not None:
            raise BadRecord("a record without models has neither commit nor image")

    @property
    def numbers(self) -> tuple[tuple[str, int], ...]:
        """Each model with its version."""
        return tuple((released.name, released.version) for released in self.models)

    def version_of(self, model: str) -> int | None:
        return next((released.version for released in self.models if released.name == model), None)

    def __str__(self) -> str:
        return ", ".join(map(str, self.models)) or "nothing released yet"


def folder(env: str) -> str:
    """The record's folder in a service's repository."""
    _check("environment", env, NAME)
    return f"deploy/overlays/{env}/release"


def read(root: Path, env: str) -> Record:
    """The record of an environment in a working tree. Raises NotFound or BadRecord."""
    path = root / folder(env) / RECORD
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        overlays = root / "deploy" / "overlays"
        known = sorted(path.parent.parent.name for path in overlays.glob(f"*/release/{RECORD}"))
        raise NotFound(f"{path} is missing", remedy=f"environments with a record: {', '.join(known) or 'none'}") from None
    except UnicodeDecodeError:
        raise BadRecord(f"{path} is not UTF-8 text", remedy="restore it from Git") from None
    return parse(text, str(path))


def parse(text: str, where: str = RECORD) -> Record:
    """Read record.yaml's text. Raises BadRecord."""
    return _parse(text, where)


@lru_cache(maxsize=256)  # a pass of the bridge needs the same text several times
def _parse(text: str, where: str) -> Record:
    remedy = "do not edit it: restore it from Git, or write it again with `mlops-build release ENV`"
    try:
        document = bounded_yaml.load(text)
    except YAMLError as error:
        raise BadRecord(f"{where} is not valid YAML: {str(error).splitlines()[0]}", remedy=remedy) from None
    if not isinstance(document, dict) or document.get("schema") != 1:
        newer = isinstance(document, dict) and isinstance(document.get("schema"), int) and document["schema"] > 1
        raise BadRecord(
            f"{where} does not have `schema: 1`",
            remedy="it was written by a newer mlops-build: update this installation" if newer else remedy,
        )
    try:
        models = tuple(ModelVersion(**_exactly(entry, {"name", "version", "digest", "run"})) for entry in document["models"])
        whole = _exactly(document, {"schema", "environment", "models", "commit", "image"})
        return Record(whole["environment"], models, whole["commit"], whole["image"])
    except (BadRecord, BadVersion) as error:
        raise BadRecord(f"{where}: {error.message}", remedy=remedy) from None
    except (KeyError, TypeError) as error:
        raise BadRecord(f"{where} does not have {error}", remedy=remedy) from None


def render(record: Record, service: Service) -> dict[str, str]:
    """All files of a release's folder, by name. `parse(render(record, service)["record.yaml"]) == record`."""
    if not record.models or record.image is None or record.commit is None:
        raise BadRecord("a release has at least one model")
    env = record.environment
    numbers = rollout(service, env)
    header = HEADER.format(env=env)
    extra = objects.files(service, env)
    return {
        RECORD: header + yaml_text(_record_document(record)),
        KUSTOMIZATION: header + yaml_text(_kustomization(record.image, service, env, list(extra))),
        PATCH: header + _strategy_comment(numbers) + yaml_text(_patch(record, service, numbers)),
        **{name: f"{header}# {file.comment}\n" + "---\n".join(map(yaml_text, file.objects)) for name, file in extra.items()},
    }


def paths(env: str, files: Mapping[str, str]) -> dict[str, bytes]:
    """Rendered files by their path in the repository."""
    return {f"{folder(env)}/{name}": text.encode() for name, text in files.items()}


def digest(files: Mapping[str, bytes]) -> str:
    """The digest of a release's files, by name without folder."""
    whole = [f"{hashlib.sha256(content).hexdigest()} {path.rpartition('/')[2]}\n" for path, content in files.items()]
    return f"sha256:{hashlib.sha256(''.join(sorted(whole)).encode()).hexdigest()}"


def _record_document(record: Record) -> dict[str, Any]:
    return {
        "schema": 1,
        "environment": record.environment,
        "models": [
            {"name": released.name, "version": released.version, "digest": released.digest, "run": released.run}
            for released in record.models
        ],
        "commit": record.commit,
        "image": record.image,
    }


def _kustomization(image: str, service: Service, env: str, resources: Sequence[str]) -> dict[str, Any]:
    place = service.environment(env)
    repository, _, tag = image.rpartition(":")
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "namespace": place.namespace,
        **({"resources": list(resources)} if resources else {}),
        "images": [{"name": service.name, "newName": repository, "newTag": tag}],
        "patches": [
            {"path": PATCH},
            # JSON, since a strategic patch of an Ingress would have to repeat the base's whole rule.
            {
                "target": {"kind": "Ingress", "name": service.name},
                "patch": json.dumps([{"op": "add", "path": "/spec/rules/0/host", "value": place.host}]),
            },
        ],
    }


def _strategy_comment(numbers: Rollout) -> str:
    """A comment on the effects of an update, if it reduces the number of pods."""
    room = "gpu.spare_memory" if numbers.gpu == "shared" else "gpu.spare_cards"
    lacking = f"service.yaml keeps no room for one more on a card ({room})"
    if numbers.recreate:
        return (
            f"# Recreate: {lacking}, so the old pod ends before the new one loads.\n"
            f"# An update means DOWNTIME: up to {numbers.startup_seconds} s of loading, after the old pod's last requests.\n"
        )
    if numbers.surge == 0:
        less = "# With a single pod at that time an update means DOWNTIME.\n" if numbers.downtime else ""
        return f"# maxSurge 0: {lacking}, so an update runs with one pod fewer.\n{less}"
    return ""


def _patch(record: Record, service: Service, numbers: Rollout) -> dict[str, Any]:
    first = record.models[0]
    labels = {f"{PREFIX}/model": first.name, f"{PREFIX}/version": str(first.version)}
    annotations = {
        f"{PREFIX}/models": ", ".join(model.uri for model in record.models),
        f"{PREFIX}/digests": ", ".join(released.digest for released in record.models),
        f"{PREFIX}/runs": ", ".join(released.run for released in record.models),
        f"{PREFIX}/commit": record.commit,
        **({f"{PREFIX}/unsafe-pickle": service.serving.unsafe_pickle} if service.serving.unsafe_pickle else {}),
    }
    strategy: dict[str, Any] = {"type": "Recreate", "rollingUpdate": None}
    if not numbers.recreate:
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": numbers.surge, "maxUnavailable": numbers.unavailable}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": service.name, "labels": labels, "annotations": annotations},
        "spec": {
            **({} if numbers.autoscale else {"replicas": numbers.replicas}),
            "progressDeadlineSeconds": numbers.deadline_seconds,
            "strategy": strategy,
            "template": {
                "metadata": {"labels": labels, "annotations": annotations},
                "spec": {**_where(service, record.environment), "containers": [_container(service, numbers)], **_volumes(service)},
            },
        },
    }


def _where(service: Service, env: str) -> dict[str, Any]:
    """Node selection, priority and runtime of a pod."""
    gpu, place = service.gpu, service.environment(env)
    scheduling: dict[str, Any] = {}
    if place.priority_class:
        scheduling["priorityClassName"] = place.priority_class
    if gpu.mode == "none":
        return scheduling
    # The device plugin makes its GPUs visible in the container; a shared GPU needs NVIDIA's runtime.
    if gpu.mode == "shared" and gpu.runtime_class:
        scheduling["runtimeClassName"] = gpu.runtime_class
    if gpu.node_selector:
        scheduling["nodeSelector"] = dict(sorted(gpu.node_selector.items()))
    if gpu.tolerations:
        scheduling["tolerations"] = [toleration.model_dump(exclude_none=True) for toleration in gpu.tolerations]
    return scheduling


def _volumes(service: Service) -> dict[str, Any]:
    if service.gpu.mode != "shared":
        return {}
    return {"volumes": [{"name": "gpu-leases", "persistentVolumeClaim": {"claimName": objects.claim(service)}}]}


def _container(service: Service, numbers: Rollout) -> dict[str, Any]:
    memory = kubernetes_memory(numbers.memory_bytes)
    resources: dict[str, Any] = {"requests": {"cpu": numbers.cpu, "memory": memory}, "limits": {"memory": memory}}
    if numbers.cards:
        # Extended resources cannot be overcommitted: the request is the limit.
        resources["requests"]["nvidia.com/gpu"] = resources["limits"]["nvidia.com/gpu"] = str(numbers.cards)
    variables = service.serving.variables()
    shared: dict[str, Any] = {}
    if numbers.gpu != "none":
        variables["MLOPS_DEVICE"] = "gpu"
        variables["MLOPS_GPU_MODE"] = numbers.gpu
        variables["MLOPS_SERVICE"] = service.name
    if numbers.gpu == "shared":
        variables["MLOPS_GPU_MEMORY"] = f"{kubernetes_memory(numbers.gpu_memory_bytes)}B"
        variables["MLOPS_GPU_WAIT"] = str(numbers.wait_seconds)
        variables["MLOPS_GPU_LEASE_DIR"] = objects.LEASE_DIR
        variables |= {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
        shared = {"volumeMounts": [{"name": "gpu-leases", "mountPath": objects.LEASE_DIR}]}
    return {
        "name": service.name,
        # Ports merge by number: without `replace` a changed number would be a second port of the same name.
        "ports": [{"$patch": "replace"}, {"name": "http", "containerPort": numbers.port}],
        **({"env": [{"name": name, "value": value} for name, value in variables.items()]} if variables else {}),
        "resources": resources,
        "startupProbe": {"periodSeconds": PROBE_SECONDS, "failureThreshold": numbers.startup_failures},
        **shared,
    }


def _exactly(document: object, keys: set[str]) -> dict[str, Any]:
    if not isinstance(document, dict) or set(document) != keys:
        raise BadRecord(f"expected the keys {', '.join(sorted(keys))}, found {str(document)[:200]}")
    return document


def _check(what: str, value: object, pattern: "re.Pattern[str]") -> None:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise BadRecord(f"{what} is not allowed here: {str(value)[:100]!r}")


# Texts that need no quotes in YAML 1.1 and 1.2.
PLAIN = re.compile(r"[A-Za-z$][A-Za-z0-9$_./-]*")
RESERVED = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def yaml_text(document: Mapping[str, Any]) -> str:
    """A document of mappings, lists, ASCII text, numbers and None as YAML: the same bytes with every version of every YAML library."""
    return "".join(f"{line}\n" for line in _lines(document))


def _lines(node: Mapping[str, Any] | Sequence[Any]) -> list[str]:
    lines: list[str] = []
    if isinstance(node, Mapping):
        for key, value in node.items():
            if isinstance(value, Mapping | list) and value:
                lines += [f"{_scalar(key)}:", *(f"  {line}" for line in _lines(value))]
            else:
                lines.append(f"{_scalar(key)}: {_scalar(value)}")
        return lines
    for item in node:
        inner = _lines(item) if isinstance(item, Mapping | list) else [_scalar(item)]
        lines += [f"- {inner[0]}", *(f"  {line}" for line in inner[1:])]
    return lines


def _scalar(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = str(value)
    return text if PLAIN.fullmatch(text) and text.lower() not in RESERVED else json.dumps(text)
