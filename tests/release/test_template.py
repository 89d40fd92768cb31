"""A release over the template's own manifests: what the base says and what the record adds fit together."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_build import service as service_file
from mlops_build.model.version import ModelVersion
from mlops_build.release import record as records
from mlops_build.release.record import Record
from tests.release.test_record import kustomize

MODEL = ModelVersion("digits", 3, f"sha256:{'0' * 63}1", "1" * 32)


@pytest.mark.parametrize("gpu", ["none", "shared", "exclusive"])
@pytest.mark.parametrize("env", ["staging", "production"])
def test_the_templates_overlays_render_with_a_release(render: Callable[..., Path], tmp_path: Path, gpu: str, env: str) -> None:
    root = Path(shutil.copytree(render(gpu=gpu), tmp_path / "service"))
    assert records.read(root, env) == Record(env)
    service = service_file.load(root)
    record = Record(env, (MODEL,), "2" * 40, f"{service.image.registry}/{service.name}:v3-0123456789ab")
    before = kustomize(root / "deploy" / "overlays" / env)
    for path, content in records.paths(env, records.render(record, service)).items():
        (root / path).write_bytes(content)
    assert records.read(root, env) == record
    after = kustomize(root / "deploy" / "overlays" / env)
    place = service.environment(env)
    more = {"PodDisruptionBudget"} if place.replicas > 1 else set()
    more |= {"PersistentVolume", "PersistentVolumeClaim"} if gpu == "shared" else set()
    assert set(after) == set(before) | more
    assert {found["metadata"].get("namespace") for kind, found in after.items() if kind != "PersistentVolume"} == {place.namespace}
    deployment: dict[str, Any] = after["Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert (deployment["spec"]["replicas"], container["image"]) == (place.replicas, record.image)
    assert container["ports"] == [{"name": "http", "containerPort": service.serving.port}]
    assert after["Ingress"]["spec"]["rules"][0]["host"] == place.host
    probe = container["startupProbe"]
    assert probe["failureThreshold"] * probe["periodSeconds"] >= service.serving.startup_seconds
    assert deployment["spec"]["progressDeadlineSeconds"] > service.serving.startup_seconds
    # What the base says besides stays.
    old = before["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    kept = {key: value for key, value in old.items() if key not in ("image", "ports", "env", "resources", "startupProbe", "volumeMounts")}
    assert {key: container[key] for key in kept} == kept
    assert [one for one in container["env"] if one in old["env"]] == old["env"]
    assert [one for one in container["volumeMounts"] if one in old["volumeMounts"]] == old["volumeMounts"]
