"""deploy/: both overlays render before anything was released, run nothing, and hold nothing that service.yaml says."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

ENVIRONMENTS = ["staging", "production"]


def kustomize(overlay: Path) -> dict[str, dict[str, Any]]:
    """The rendered objects by kind."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on PATH")
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    objects = [found for found in YAML(typ="safe").load_all(done.stdout) if found]
    kinds = {found["kind"]: found for found in objects}
    assert len(kinds) == len(objects)
    return kinds


@pytest.mark.parametrize("monitoring", ["annotations", "prometheus-operator", "none"])
@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_an_overlay_renders_before_the_first_release_and_runs_nothing(render: Any, env: str, monitoring: str) -> None:
    objects = kustomize(render(monitoring=monitoring) / "deploy" / "overlays" / env)
    assert set(objects) == {"Deployment", "Service", "Ingress", "ServiceAccount"} | (
        {"ServiceMonitor"} if monitoring == "prometheus-operator" else set()
    )
    assert {found["metadata"]["name"] for found in objects.values()} == {"digits"}
    assert objects["Deployment"]["spec"]["replicas"] == 0
    annotations = objects["Deployment"]["spec"]["template"]["metadata"].get("annotations", {})
    assert bool(annotations) is (monitoring == "annotations")


def test_the_objects_find_each_other(render: Any) -> None:
    objects = kustomize(render(monitoring="prometheus-operator") / "deploy" / "overlays" / "staging")
    spec = objects["Deployment"]["spec"]
    labels = spec["template"]["metadata"]["labels"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["selector"]["matchLabels"].items() <= labels.items()
    assert objects["Service"]["spec"]["selector"].items() <= labels.items()
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    (port,) = objects["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http"
    backend = objects["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": objects["Service"]["metadata"]["name"], "port": {"name": port["name"]}}
    assert spec["template"]["spec"]["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    assert objects["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items() <= objects["Service"]["metadata"]["labels"].items()
    assert objects["ServiceMonitor"]["spec"]["endpoints"][0]["port"] == port["name"]


def test_pods_meet_the_restricted_security_standard(render: Any) -> None:
    pod = kustomize(render() / "deploy" / "overlays" / "production")["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert all(set(volume) <= {"name", "emptyDir"} for volume in pod["volumes"])
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/tmp"}


def test_images_can_be_pulled_and_pods_stop_gently(render: Any) -> None:
    objects = kustomize(render() / "deploy" / "overlays" / "production")
    assert objects["ServiceAccount"]["imagePullSecrets"] == [{"name": "registry-credentials"}]
    assert objects["ServiceAccount"]["automountServiceAccountToken"] is False
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] > 2 * pause
    paths = {name: container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert paths == {"startupProbe": "/health", "readinessProbe": "/ping", "livenessProbe": "/health"}


def test_the_base_repeats_nothing_of_service_yaml(render: Any) -> None:
    root = render()
    base = {path.name: YAML(typ="safe").load(path.read_text()) for path in (root / "deploy" / "base").glob("*.yaml")}
    spec = base["deployment.yaml"]["spec"]
    assert not {"replicas", "strategy"} & set(spec)
    assert "resources" not in spec["template"]["spec"]["containers"][0]
    assert all("namespace" not in found.get("metadata", {}) for found in base.values())
    assert "host" not in base["ingress.yaml"]["spec"]["rules"][0]


@pytest.mark.parametrize("gpu", ["none", "shared", "exclusive"])
@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_an_overlay_renders_after_a_release_as_service_yaml_says(service: Any, env: str, gpu: str) -> None:
    from mlops_build.release import record
    from mlops_build.service import load

    root = service(gpu=gpu)
    settings = load(root)
    model = record.ReleasedModel("digits", 7, f"sha256:{'a' * 64}", "b" * 32)
    released = record.Record(env, (model,), "c" * 40, f"registry.example.com/ml/digits:v7-{'d' * 12}")
    assert record.read(root, env) == record.Record(env)
    for path, content in record.paths(env, record.render(released, settings)).items():
        (root / path).write_bytes(content)
    objects = kustomize(root / "deploy" / "overlays" / env)
    place = settings.environment(env)
    assert {found["metadata"]["namespace"] for found in objects.values()} == {place.namespace}
    assert objects["Ingress"]["spec"]["rules"][0]["host"] == place.host
    spec = objects["Deployment"]["spec"]
    assert spec["replicas"] == place.replicas
    (container,) = spec["template"]["spec"]["containers"]
    assert container["image"] == released.image
    assert container["ports"] == [{"name": "http", "containerPort": 8080}]
    assert container["resources"]["limits"]["memory"] == "1Gi"
    # What the base says is still there.
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {"HOME"} <= {variable["name"] for variable in container["env"]}
    assert container["startupProbe"]["httpGet"] == {"path": "/health", "port": "http"}


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_the_record_says_that_nothing_is_released(render: Any, env: str) -> None:
    record = YAML(typ="safe").load((render() / "deploy" / "overlays" / env / "release" / "record.yaml").read_text())
    assert record == {"schema": 1, "environment": env, "models": [], "commit": None, "image": None}


def test_a_teams_own_patch_is_applied(service: Any) -> None:
    root = service()
    overlay = root / "deploy" / "overlays" / "staging"
    (overlay / "mine.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: digits\nspec:\n  minReadySeconds: 7\n")
    text = (overlay / "kustomization.yaml").read_text()
    assert "patches: []" in text
    (overlay / "kustomization.yaml").write_text(text.replace("patches: []", "patches: [{path: mine.yaml}]"))
    assert kustomize(overlay)["Deployment"]["spec"]["minReadySeconds"] == 7
