"""Generated services with a release, and single faults in them (faults.yaml). benchmarks/verify.py runs other tools on the same faults."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from mlops_build import service as service_file
from mlops_build.model.version import ModelVersion
from mlops_build.release import record as records
from mlops_build.release.record import Record

TABLE: list[dict[str, Any]] = YAML(typ="safe").load(Path(__file__).with_name("faults.yaml"))
GPUS = ("none", "shared", "exclusive")
# The answers to the template's questions.
ANSWERS = {"project_name": "Digits", "model_name": "digits", "example": "none", "monitoring": "prometheus-operator"}
OVERLAY = "deploy/overlays/production"
# What a team adds to the production overlay: a patch and objects of its own.
TEAM = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: digits}
spec:
  template:
    spec:
      containers:
        - name: digits
          env:
            - name: REGION
              value: north
            - {name: LEVEL, valueFrom: {configMapKeyRef: {name: settings, key: level}}}
            - {name: TOKEN, valueFrom: {secretKeyRef: {name: digits-token, key: token}}}
"""
EXTRA = """\
apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
data:
  level: info
---
apiVersion: bitnami.com/v1alpha1
kind: SealedSecret
metadata: {name: digits-token}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: more}
spec:
  schedule: 0 3 * * *
  jobTemplate:
    spec:
      template:
        spec:
          restartPolicy: Never
          securityContext: {runAsNonRoot: true}
          containers: [{name: more, image: "registry.example.com/more:1"}]
"""


def release(root: Path) -> None:
    """Write the release record of each environment."""
    service = service_file.load(root)
    for env in service.environments:
        model = ModelVersion(service.models[0].name, 3, f"sha256:{'0' * 64}", "1" * 32)
        record = Record(env, (model,), "2" * 40, f"{service.image.registry}/{service.name}:v3-0123456789ab")
        folder = root / records.folder(env)
        shutil.rmtree(folder)
        folder.mkdir()
        for path, content in records.paths(env, records.render(record, service)).items():
            (root / path).write_bytes(content)


def build(source: Path, root: Path, gpu: str) -> Path:
    """Make `root` a released service from the rendered one in `source`, without its code. With a shared GPU, production is scaled."""
    shutil.copytree(source / "deploy", root / "deploy")
    settings = (source / "service.yaml").read_text()
    if gpu == "shared":
        settings = settings.replace("replicas: 2\n", "replicas: 2\n    autoscale: {max_replicas: 5, target: 4}\n")
    (root / "service.yaml").write_text(settings)
    release(root)
    (root / OVERLAY / "team.yaml").write_text(TEAM)
    (root / OVERLAY / "extra.yaml").write_text(EXTRA)
    edit(root, f"{OVERLAY}/kustomization.yaml", "components:", "  - extra.yaml\ncomponents:")
    edit(root, f"{OVERLAY}/kustomization.yaml", "patches: []", "patches: [{path: team.yaml}]")
    return root


def edit(root: Path, file: str, old: str, new: str) -> None:
    """Replace a text in a file, or append one."""
    text = (root / file).read_text()
    assert old in text, f"{old!r} is not in {file}"
    (root / file).write_text(text.replace(old, new, 1) if old else text + new)


def apply(fault: Mapping[str, Any], root: Path) -> tuple[str, str, int]:
    """Make a fault; returns the rule, file and line that must be reported."""
    edit(root, fault["in"], fault.get("old", ""), fault["new"])
    for file, old, new in fault.get("also", ()):
        edit(root, file, old, new)
    where = fault.get("where", fault["in"])
    pattern = fault.get("at") or re.escape(fault["new"].rstrip().splitlines()[-1].strip())
    numbers = [number for number, line in enumerate((root / where).read_text().splitlines(), 1) if re.search(pattern, line)]
    assert len(numbers) == 1, f"{pattern!r} is on the lines {numbers} of {where}"
    return fault["rule"], where, numbers[0]
