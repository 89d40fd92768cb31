"""deploy/: every overlay of every kind of service, before and after a release, against the schemas and rules that a cluster has."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlops_build import service as service_file
from mlops_build.ci import deploy
from mlops_build.model.version import ModelVersion
from mlops_build.release import record as records
from mlops_build.release import rollout
from mlops_build.release.record import Record
from mlops_build.serving import server
from mlops_build.serving.metrics import Metrics
from tests.conftest import ROOT, Render

ENVIRONMENTS = ["staging", "production"]
MODES, MONITORINGS = ["none", "shared", "exclusive"], ["annotations", "prometheus-operator", "none"]
MODEL = ModelVersion("digits", 7, f"sha256:{'a' * 64}", "b" * 32)
DIGEST = f"sha256:{'e' * 64}"
# What service.yaml says of production, by name of the case; "unreleased" is the tree as the template makes it.
CASES: dict[str, tuple[str, ...]] = {
    "unreleased": (),
    "one": ("replicas: 1",),
    "three": ("replicas: 3", "priority_class: serving"),
    "scaled": ("replicas: 2", "autoscale: {max_replicas: 5, target: 3}"),
    "scaled from one": ("replicas: 1", "autoscale: {max_replicas: 5, target: 3}"),
    "stopped": ("replicas: 0", "autoscale: {max_replicas: 5, target: 3}"),
}
ALL = list(product(MODES, MONITORINGS, CASES))
# Every pair of values: the rest of the product is for `make soak`.
FAST = [(mode, MONITORINGS[(row + column) % len(MONITORINGS)], case) for row, mode in enumerate(MODES) for column, case in enumerate(CASES)]
# Checkov's findings that are right and stay. Two more are explained to everybody who looks at a service, by its Deployment's annotations.
BEFORE_A_RELEASE = {
    "CKV_K8S_10": "no CPU request: service.yaml's comes with a release",
    "CKV_K8S_12": "no memory limit: as above",
    "CKV_K8S_13": "no memory request: as above",
    "CKV_K8S_14": "no image tag: there is no image, and no pod",
    "CKV_K8S_43": "no image digest: as above",
    "CKV_K8S_21": "no namespace: as above",
}
ON_THE_DEPLOYMENT = {"CKV_K8S_11", "CKV_K8S_15"}

# Everything that a release of a GPU service can hold.
GPU_NODES = "node_selector: {example.com/card: l4}\n  tolerations: [{key: nvidia.com/gpu, effect: NoSchedule}]"


@dataclass(frozen=True)
class Rendered:
    """One overlay as it is applied: the objects by kind, and the text with the image's digest in it."""

    objects: Mapping[str, dict[str, Any]]
    text: str
    root: Path

    @property
    def deployment(self) -> dict[str, Any]:
        return self.objects["Deployment"]

    @property
    def pod(self) -> dict[str, Any]:
        found: dict[str, Any] = self.deployment["spec"]["template"]["spec"]
        return found

    @property
    def container(self) -> dict[str, Any]:
        (found,) = self.pod["containers"]
        assert isinstance(found, dict)
        return found


def kustomize(overlay: Path) -> Rendered:
    if not shutil.which("kubectl"):
        pytest.skip("put kubectl on PATH to render overlays (its `kustomize` needs no cluster)")
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return read(done.stdout, overlay.parents[2])


def read(text: str, root: Path) -> Rendered:
    objects = [found for found in YAML(typ="safe").load_all(text) if found]
    kinds = {found["kind"]: found for found in objects}
    assert len(kinds) == len(objects), "two of a kind"
    return Rendered(kinds, text, root)


def release(root: Path, env: str, model: ModelVersion = MODEL) -> Record:
    """Write a release, as the bridge does."""
    service = service_file.load(root)
    record = Record(env, (model,), "c" * 40, f"{service.image.registry}/{service.name}:v7-{'d' * 12}")
    shutil.rmtree(root / records.folder(env))
    (root / records.folder(env)).mkdir()
    for path, content in records.paths(env, records.render(record, service)).items():
        (root / path).write_bytes(content)
    return record


def edit(root: Path, mode: str, *lines: str) -> None:
    """Let service.yaml say this of production, and of GPU nodes where the service has a GPU."""
    text = (root / "service.yaml").read_text()
    if lines:
        text = re.sub(r"^    replicas: 2$", "".join(f"    {line}\n" for line in lines).rstrip("\n"), text, count=1, flags=re.MULTILINE)
    if mode != "none":
        text, count = re.subn(r"node_selector: \{\}.*\n  tolerations: \[\].*", GPU_NODES, text)
        assert count == 1
    (root / "service.yaml").write_text(text)
    service_file.load(root)


@pytest.fixture(scope="module")
def overlay(render: Render, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """overlay(mode, monitoring, case) is production's overlay, rendered once, and by digest where it is released."""

    @cache
    def once(mode: str, monitoring: str, case: str) -> Rendered:
        source = render(gpu=mode, monitoring=monitoring)
        root = Path(shutil.copytree(source, tmp_path_factory.mktemp("service") / "digits"))
        if case == "unreleased":
            return kustomize(root / "deploy/overlays/production")
        edit(root, mode, *CASES[case])
        record = release(root, "production")
        found = kustomize(root / "deploy/overlays/production")
        return read(deploy.by_digest(found.text, record, f"registry.example.com/ml/digits@{DIGEST}"), root)

    return once


@pytest.fixture(
    params=[case if case in FAST else pytest.param(case, marks=pytest.mark.soak) for case in ALL],
    ids=lambda case: "-".join(case).replace(" ", "_"),
)
def rendered(request: pytest.FixtureRequest, overlay: Any) -> tuple[tuple[str, str, str], Rendered]:
    return request.param, overlay(*request.param)


def test_exactly_these_objects(rendered: tuple[tuple[str, str, str], Rendered]) -> None:
    (mode, monitoring, case), found = rendered
    expected = {"Deployment", "Service", "Ingress", "ServiceAccount", "NetworkPolicy"}
    expected |= {"ServiceMonitor"} if monitoring == "prometheus-operator" else set()
    if case != "unreleased":
        expected |= {"PersistentVolume", "PersistentVolumeClaim"} if mode == "shared" else set()
        expected |= {"PodDisruptionBudget"} if case in ("three", "scaled", "scaled from one") else set()
        expected |= {"HorizontalPodAutoscaler"} if case in ("scaled", "scaled from one") else set()
    assert set(found.objects) == expected
    named = {one["metadata"]["name"] for kind, one in found.objects.items() if not kind.startswith("PersistentVolume")}
    assert named == {"digits"}
    if case != "unreleased":
        namespaces = {one["metadata"].get("namespace") for kind, one in found.objects.items() if kind != "PersistentVolume"}
        assert namespaces == {"ml"}
    annotated = {
        name for name in found.deployment["spec"]["template"]["metadata"].get("annotations", {}) if name.startswith("prometheus.io")
    }
    # Without a port Prometheus takes the declared one, which follows serving.port.
    assert annotated == ({"prometheus.io/scrape", "prometheus.io/path"} if monitoring == "annotations" else set())


@cache
def validate(manifest: str) -> None:
    """Most services have the same Service, Ingress and ServiceAccount: each content is validated once."""
    import kubernetes_validate

    kubernetes_validate.validate(json.loads(manifest), kubernetes_validate.latest_version(), strict=True)


def test_each_object_is_valid_for_a_cluster(rendered: tuple[tuple[str, str, str], Rendered]) -> None:
    _, found = rendered
    for kind, manifest in found.objects.items():
        if kind != "ServiceMonitor":  # a custom resource: its schema is the operator's
            validate(json.dumps(manifest))


def test_the_objects_find_each_other(rendered: tuple[tuple[str, str, str], Rendered]) -> None:
    _, found = rendered
    spec, objects = found.deployment["spec"], found.objects
    labels = spec["template"]["metadata"]["labels"]
    selectors = [
        spec["selector"]["matchLabels"],
        objects["Service"]["spec"]["selector"],
        objects["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(one["labelSelector"]["matchLabels"] for one in found.pod["topologySpreadConstraints"]),
        *(objects[kind]["spec"]["selector"]["matchLabels"] for kind in ("PodDisruptionBudget",) if kind in objects),
    ]
    for selector in selectors:
        assert selector
        assert selector.items() <= labels.items()
    assert not any(key.startswith("mlops-build/") for key in spec["selector"]["matchLabels"]), "a selector can never be changed"
    assert found.container["ports"] == [{"name": "http", "containerPort": 8080}]
    (port,) = objects["Service"]["spec"]["ports"]
    assert port["targetPort"] == "http"
    backend = objects["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": objects["Service"]["metadata"]["name"], "port": {"name": port["name"]}}
    assert found.pod["serviceAccountName"] == objects["ServiceAccount"]["metadata"]["name"]
    assert objects["ServiceAccount"]["imagePullSecrets"] == [{"name": "registry-credentials"}]
    if monitor := objects.get("ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"].items() <= objects["Service"]["metadata"]["labels"].items()
        assert monitor["spec"]["endpoints"][0]["port"] == port["name"]
    if scaler := objects.get("HorizontalPodAutoscaler"):
        target = scaler["spec"]["scaleTargetRef"]
        assert (target["kind"], target["name"]) == ("Deployment", found.deployment["metadata"]["name"])


def test_pods_meet_the_restricted_security_standard(rendered: tuple[tuple[str, str, str], Rendered]) -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted; checkov has the other rules."""
    _, found = rendered
    own = found.pod["securityContext"]
    assert (own["runAsNonRoot"], own["seccompProfile"]["type"]) == (True, "RuntimeDefault")
    assert own["runAsUser"] != 0
    security = found.container["securityContext"]
    assert security == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
    assert {kind for volume in found.pod["volumes"] for kind in volume} <= {"name", "emptyDir", "persistentVolumeClaim"}


def test_pods_can_write_to_the_cache_alone_and_hold_no_token(rendered: tuple[tuple[str, str, str], Rendered]) -> None:
    (mode, _, case), found = rendered
    assert found.pod["automountServiceAccountToken"] is False
    assert found.objects["ServiceAccount"]["automountServiceAccountToken"] is False
    leases = {"/run/mlops-gpu"} if mode == "shared" and case != "unreleased" else set()
    assert {mount["mountPath"] for mount in found.container["volumeMounts"]} == {"/tmp"} | leases
    cache_ = next(volume for volume in found.pod["volumes"] if volume["name"] == "tmp")
    assert cache_ == {"name": "tmp", "emptyDir": {"sizeLimit": "1Gi"}}
    assert {"name": "HOME", "value": "/tmp"} in found.container["env"]


def test_a_pod_starts_slowly_and_ends_gently(rendered: tuple[tuple[str, str, str], Rendered]) -> None:
    (_, _, case), found = rendered
    container, grace = found.container, found.pod["terminationGracePeriodSeconds"]
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace >= (pause + server.DRAIN_SECONDS) * 1.5
    probes = {name: container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {name: probe["httpGet"]["path"] for name, probe in probes.items()} == {
        "startupProbe": "/health",
        "readinessProbe": "/ping",
        "livenessProbe": "/health",
    }
    budget = probes["startupProbe"]["periodSeconds"] * probes["startupProbe"]["failureThreshold"]
    longest = service_file.load(found.root).serving.startup_seconds
    waits = {one["name"]: one["value"] for one in container["env"]}.get("MLOPS_GPU_WAIT")
    assert budget >= longest + (int(waits) + rollout.GATE_SECONDS if waits else 0)
    killed_after = probes["livenessProbe"]["periodSeconds"] * probes["livenessProbe"]["failureThreshold"]
    unready_after = probes["readinessProbe"]["periodSeconds"] * probes["readinessProbe"]["failureThreshold"]
    assert killed_after >= 120
    assert killed_after > 4 * unready_after
    if case != "unreleased":
        assert found.deployment["spec"]["progressDeadlineSeconds"] > budget


def test_the_page_about_manifests_says_these_numbers(overlay: Any) -> None:
    page = (ROOT / "docs" / "explanation" / "manifests.md").read_text()
    found: Rendered = overlay("none", "annotations", "three")
    pause, grace = int(found.container["lifecycle"]["preStop"]["exec"]["command"][1]), found.pod["terminationGracePeriodSeconds"]
    assert f"({pause} + {server.DRAIN_SECONDS}) × 1.5 = {grace} s" in page
    ready, alive = found.container["readinessProbe"], found.container["livenessProbe"]
    for probe in (ready, alive):
        period, failures = probe["periodSeconds"], probe["failureThreshold"]
        assert f"every {period} s, {probe['timeoutSeconds']} s each, {failures} failures: {period * failures} s" in page
    assert f"every {rollout.PROBE_SECONDS} s, ⌈`serving.startup_seconds` ÷ {rollout.PROBE_SECONDS}⌉ failures" in page
    assert f"the start-up budget + {rollout.PULL_SECONDS} s" in page
    assert f"at least {rollout.GRACE_SECONDS} s; plus {rollout.GATE_SECONDS} s" in page
    assert (rollout.GRACE_SECONDS, f"+ {grace} s), at least {deploy.LEAST_SECONDS} s" in page) == (grace, True)
    assert f"after {rollout.CALM_SECONDS} s of low load" in page
    assert f"CKV_K8S_{', '.join(sorted(check.removeprefix('CKV_K8S_') for check in BEFORE_A_RELEASE))} |" in page


def test_a_gpu_is_had_as_its_mode_says(rendered: tuple[tuple[str, str, str], Rendered]) -> None:
    (mode, _, case), found = rendered
    if case == "unreleased":
        assert "resources" not in found.container
        return
    resources, pod = found.container["resources"], found.pod
    variables = {one["name"]: one["value"] for one in found.container["env"]}
    cards = {resources[kind].get("nvidia.com/gpu") for kind in ("requests", "limits")}
    assert cards == ({"1"} if mode == "exclusive" else {None})
    assert pod.get("runtimeClassName") == ("nvidia" if mode == "shared" else None)
    assert pod.get("nodeSelector") == (None if mode == "none" else {"example.com/card": "l4"})
    assert pod.get("tolerations") == (None if mode == "none" else [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}])
    assert pod.get("priorityClassName") == ("serving" if case == "three" else None)
    own = {} if mode == "none" else {"MLOPS_DEVICE": "gpu", "MLOPS_GPU_MODE": mode, "MLOPS_SERVICE": "digits"}
    assert own.items() <= variables.items()
    if mode != "shared":
        assert set(variables) == {"HOME", *own}
        return
    assert variables["MLOPS_GPU_MEMORY"] == "4GiB"
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
    mount = next(one for one in found.container["volumeMounts"] if one["mountPath"] == variables["MLOPS_GPU_LEASE_DIR"])
    claimed = next(one for one in pod["volumes"] if one["name"] == mount["name"])["persistentVolumeClaim"]["claimName"]
    claim, volume = found.objects["PersistentVolumeClaim"], found.objects["PersistentVolume"]
    assert claimed == claim["metadata"]["name"] == volume["spec"]["claimRef"]["name"]
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"]
    assert volume["spec"]["claimRef"]["namespace"] == claim["metadata"]["namespace"]
    for key in ("storageClassName", "accessModes"):
        assert claim["spec"][key] == volume["spec"][key]
    assert volume["spec"]["hostPath"] == {"path": "/run/mlops-gpu", "type": "Directory"}
    assert volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain"


def test_replicas_strategy_and_what_guards_them(rendered: tuple[tuple[str, str, str], Rendered]) -> None:
    (mode, _, case), found = rendered
    spec = found.deployment["spec"]
    patch = found.root / records.folder("production") / "patch.yaml"
    if case == "unreleased":
        assert (spec["replicas"], "strategy" in spec, patch.exists()) == (0, False, False)
        return
    # Where a scaler sets the number, nobody else does.
    assert spec.get("replicas") == {"one": 1, "three": 3, "stopped": 0}.get(case)
    strategy = spec["strategy"]
    if mode == "none":
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    elif case in ("one", "stopped"):
        assert strategy == {"type": "Recreate"}
    else:
        assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    assert ("DOWNTIME" in patch.read_text()) is (mode != "none" and case in ("one", "stopped", "scaled from one"))
    if budget := found.objects.get("PodDisruptionBudget"):
        assert budget["spec"]["maxUnavailable"] == 1, "less than the pods there are: a node can be drained"
        assert budget["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    if scaler := found.objects.get("HorizontalPodAutoscaler"):
        bounds = scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]
        assert bounds == ((2, 5) if case == "scaled" else (1, 5))
        (metric,) = scaler["spec"]["metrics"]
        assert metric["pods"]["target"] == {"type": "AverageValue", "averageValue": "3"}


def test_the_scaler_reads_a_gauge_that_the_server_has(overlay: Any) -> None:
    from mlops_build.serving.load import Loaded, Serving

    scaler = overlay("shared", "annotations", "scaled").objects["HorizontalPodAutoscaler"]
    (metric,) = scaler["spec"]["metrics"]
    measured = Metrics(Serving("digits", None, (Loaded("digits", 7, None, None, None, None),)))  # type: ignore[arg-type]
    assert metric["pods"]["metric"]["name"] in {family.name for family in measured.registry.collect() if family.type == "gauge"}


def test_a_service_without_a_gpu_may_be_scaled_by_its_cpu(render: Render, tmp_path: Path) -> None:
    root = Path(shutil.copytree(render(), tmp_path / "digits"))
    edit(root, "none", "replicas: 2", "autoscale: {max_replicas: 4, metric: cpu, target: 70}")
    release(root, "production")
    spec = kustomize(root / "deploy/overlays/production").objects["HorizontalPodAutoscaler"]["spec"]
    assert spec["metrics"] == [
        {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}
    ]


@pytest.mark.parametrize(("mode", "spare"), [("shared", "spare_memory: null"), ("exclusive", "spare_cards: 0")])
def test_with_room_for_one_more_an_update_means_no_downtime(render: Render, tmp_path: Path, mode: str, spare: str) -> None:
    root = Path(shutil.copytree(render(gpu=mode), tmp_path / "digits"))
    text = (root / "service.yaml").read_text()
    assert f"  {spare} " in text
    (root / "service.yaml").write_text(text.replace(spare, {"shared": "spare_memory: 4GiB", "exclusive": "spare_cards: 1"}[mode]))
    release(root, "staging")
    strategy = kustomize(root / "deploy/overlays/staging").deployment["spec"]["strategy"]
    assert strategy == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert "DOWNTIME" not in (root / records.folder("staging") / "patch.yaml").read_text()


def test_answers_that_yaml_would_take_for_numbers_stay_text(render: Render, tmp_path: Path) -> None:
    root = Path(shutil.copytree(render(project_name="E1", model_name="1e3", team="0x1f", k8s_namespace="123"), tmp_path / "e1"))
    service = service_file.load(root)
    assert (service.models[0].name, service.team, service.environment("production").namespace) == ("1e3", "0x1f", "123")
    release(root, "production", ModelVersion("1e3", 7, MODEL.digest, MODEL.run))
    found = kustomize(root / "deploy/overlays/production")
    assert found.deployment["metadata"]["namespace"] == "123"
    labels = found.deployment["spec"]["template"]["metadata"]["labels"]
    assert (labels["team"], labels["mlops-build/model"]) == ("0x1f", "1e3")


def test_which_model_answers_is_written_on_the_pods(render: Render, tmp_path: Path) -> None:
    longest = "m" * 63
    root = Path(shutil.copytree(render(model_name=longest), tmp_path / "digits"))
    release(root, "production", ModelVersion(longest, 7, MODEL.digest, MODEL.run))
    metadata = kustomize(root / "deploy/overlays/production").deployment["spec"]["template"]["metadata"]
    assert metadata["labels"]["mlops-build/model"] == longest
    assert metadata["labels"]["mlops-build/version"] == "7"
    # https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#syntax-and-character-set
    assert all(re.fullmatch(r"(?:[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?", value) for value in metadata["labels"].values())
    assert metadata["annotations"]["mlops-build/models"] == f"models:/{longest}/7"
    assert metadata["annotations"]["mlops-build/digests"] == MODEL.digest


def test_the_pods_are_asked_by_anybody_and_ask_nobody(overlay: Any) -> None:
    spec = overlay("none", "annotations", "one").objects["NetworkPolicy"]["spec"]
    assert set(spec["policyTypes"]) == {"Ingress", "Egress"}
    assert spec["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    (out,) = spec["egress"]
    assert {port["port"] for port in out["ports"]} == {53}
    assert out["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}}]


def test_another_port_is_followed_everywhere(render: Render, tmp_path: Path) -> None:
    root = Path(shutil.copytree(render(monitoring="prometheus-operator"), tmp_path / "digits"))
    text = (root / "service.yaml").read_text()
    (root / "service.yaml").write_text(text.replace("port: 8080", "port: 9000"))
    release(root, "staging")
    found = kustomize(root / "deploy/overlays/staging")
    assert found.container["ports"] == [{"name": "http", "containerPort": 9000}]
    assert "8080" not in found.text


def test_the_base_repeats_nothing_of_service_yaml(render: Render) -> None:
    root = render()
    base = {path.name: YAML(typ="safe").load(path.read_text()) for path in (root / "deploy" / "base").glob("*.yaml")}
    spec = base["deployment.yaml"]["spec"]
    assert not {"replicas", "strategy"} & set(spec)
    assert "resources" not in spec["template"]["spec"]["containers"][0]
    assert all("namespace" not in found.get("metadata", {}) for found in base.values())
    assert "host" not in base["ingress.yaml"]["spec"]["rules"][0]


@pytest.mark.parametrize("env", ENVIRONMENTS)
def test_the_record_says_that_nothing_is_released(render: Render, env: str) -> None:
    record = YAML(typ="safe").load((render() / "deploy" / "overlays" / env / "release" / "record.yaml").read_text())
    assert record == {"schema": 1, "environment": env, "models": [], "commit": None, "image": None}


def test_a_teams_own_patch_is_applied(service: Render) -> None:
    root = service()
    overlay = root / "deploy" / "overlays" / "staging"
    (overlay / "mine.yaml").write_text("apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: digits\nspec:\n  minReadySeconds: 7\n")
    text = (overlay / "kustomization.yaml").read_text()
    assert "patches: []" in text
    (overlay / "kustomization.yaml").write_text(text.replace("patches: []", "patches: [{path: mine.yaml}]"))
    assert kustomize(overlay).deployment["spec"]["minReadySeconds"] == 7
    release(root, "staging")
    assert kustomize(overlay).deployment["spec"]["minReadySeconds"] == 7


def checkov(folder: Path) -> dict[str, set[tuple[str, str]]]:
    """Checkov's failed and skipped checks on the manifests in a folder, each with its file's name. It asks nobody: no key, no downloads."""
    program = Path(sys.prefix) / "checkov" / "bin" / "checkov"
    if not program.exists():
        pytest.skip("checkov is not in .venv/checkov: make checkov")
    command = [str(program), "--directory", ".", "--framework", "kubernetes", "--output", "json", "--compact", "--skip-download"]
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BC_", "CKV_", "CHECKOV_", "PRISMA_"))}
    done = subprocess.run(command, cwd=folder, env=alone, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode in (0, 1), done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    found = report["results"]
    return {
        kind: {(one["check_id"], Path(one["file_path"]).stem) for one in found.get(f"{kind}_checks", [])} for kind in ("failed", "skipped")
    }


@pytest.mark.slow
def test_checkov_has_no_finding_that_is_not_explained(overlay: Any, tmp_path: Path) -> None:
    # One process for all, since its start takes seconds. Names of their own keep the services apart: some checks look across objects.
    names = {f"service-{number}": case for number, case in enumerate(ALL)}
    for name, case in names.items():
        (tmp_path / f"{name}.yaml").write_text(re.sub(r"\bdigits\b", name, overlay(*case).text))
    bad = re.sub(r"\bdigits\b", "bad", overlay(*ALL[1]).text).replace("readOnlyRootFilesystem: true", "readOnlyRootFilesystem: false")
    (tmp_path / "bad.yaml").write_text(bad.replace("allowPrivilegeEscalation: false", "privileged: true"))
    found = checkov(tmp_path)
    assert {"CKV_K8S_16", "CKV_K8S_20", "CKV_K8S_22"} <= {check for check, name in found["failed"] if name == "bad"}
    unreleased = {(check, name) for name, case in names.items() if case[2] == "unreleased" for check in BEFORE_A_RELEASE}
    assert {(check, name) for check, name in found["failed"] if name != "bad"} == unreleased
    assert {check for check, name in found["skipped"] if name in names} == ON_THE_DEPLOYMENT
