"""The record: what is written is read back, the same record is the same bytes, and the three files render."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from mlops_build import service as service_file
from mlops_build.errors import NotFound, Refused
from mlops_build.model.identity import NAME
from mlops_build.model.version import BadVersion, ModelVersion
from mlops_build.release import record as records
from mlops_build.release.record import BadRecord, Record
from tests.release.world import SERVICE, UNRELEASED, service_files, write

DIGITS = service_file.parse(SERVICE)
MODEL = ModelVersion("digits", 3, f"sha256:{'0' * 63}1", "1" * 32)
RECORD = Record("production", (MODEL,), "2" * 40, "registry.example.com:5000/ml/digits:v3-0123456789ab")

hexes = {length: st.text("0123456789abcdef", min_size=length, max_size=length) for length in (12, 32, 40, 64)}
# Names and numbers that YAML would take for something else.
names = st.one_of(st.sampled_from(["null", "true", "on", "1e3", "0x1", "123", "1-1-1", "no", "y"]), st.from_regex(NAME, fullmatch=True))
models = st.builds(ModelVersion, names, st.integers(1, 10**10 - 1), hexes[64].map("sha256:{}".format), hexes[32])
found = st.builds(
    Record,
    st.sampled_from(["staging", "production"]),
    st.lists(models, min_size=1, max_size=4, unique_by=lambda model: model.name).map(tuple),
    hexes[40],
    st.builds("registry:5000/ml/{}:v{}-{}".format, names, st.integers(1, 10**9), hexes[12]),
)


@given(found)
@settings(max_examples=30, deadline=None)
def test_what_is_written_is_read_back(record: Record) -> None:
    files = records.render(record, DIGITS)
    several = {"pdb.yaml"} if record.environment == "production" else set()
    assert set(files) == {"record.yaml", "kustomization.yaml", "patch.yaml"} | several
    assert records.parse(files["record.yaml"]) == record
    assert records.render(record, DIGITS) == files
    for text in files.values():
        assert text.isascii()
        assert isinstance(YAML(typ="safe", pure=True).load(text), dict)


text = st.text(st.characters(max_codepoint=0x7E), max_size=40)
plain = st.recursive(
    st.one_of(st.none(), st.integers(), text),
    lambda inner: st.one_of(
        st.lists(inner.filter(lambda one: not isinstance(one, list)), min_size=1, max_size=3),
        st.dictionaries(text, inner, min_size=1, max_size=3),
    ),
    max_leaves=6,
)


@given(st.dictionaries(text, plain, min_size=1, max_size=3))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_text_goes_in_yaml_gives_it_back(document: dict[str, Any]) -> None:
    written = records.yaml_text(document)
    assert written.isascii()
    assert YAML(typ="safe", pure=True).load(written) == document


def test_the_bytes_of_a_release() -> None:
    assert records.render(RECORD, DIGITS)["record.yaml"] == (
        "# What production should run. Only machines write this folder: mlops-build release, bridge and rollback.\n"
        "schema: 1\n"
        "environment: production\n"
        "models:\n"
        "  - name: digits\n"
        "    version: 3\n"
        f'    digest: "sha256:{"0" * 63}1"\n'
        f'    run: "{"1" * 32}"\n'
        f'commit: "{"2" * 40}"\n'
        'image: "registry.example.com:5000/ml/digits:v3-0123456789ab"\n'
    )


def test_as_the_template_ships_it() -> None:
    assert records.parse(UNRELEASED.format(env="staging")) == Record("staging")
    assert str(Record("staging")) == "nothing released yet"


EVIL = ["x\ny", "../x", "{{ x }}", "a: b", "", "x" * 300, "$(id)", "é", "3\n", "\x00"]


@pytest.mark.parametrize("evil", EVIL)
@pytest.mark.parametrize("field", ["name", "digest", "run", "commit", "image", "environment"])
def test_nothing_else_can_be_recorded(field: str, evil: str) -> None:
    def record() -> Record:
        model = ModelVersion(**{**vars(MODEL), field: evil}) if field in vars(MODEL) else MODEL
        return Record(**{**vars(RECORD), "models": (model,)} | ({field: evil} if field in vars(RECORD) else {}))

    with pytest.raises((BadRecord, BadVersion)):
        record()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "schema"),
        ("a: [", "YAML"),
        ("schema: 2\n", "newer|schema"),
        ("- 1\n", "schema"),
        ("schema: 1\nenvironment: staging\n", "does not have"),
        (UNRELEASED.format(env="staging") + "extra: 1\n", "expected the keys"),
        (UNRELEASED.format(env="staging").replace("[]", "[{name: x}]"), "expected the keys"),
        (UNRELEASED.format(env="staging").replace("[]", "[1]"), "expected the keys"),
        (UNRELEASED.format(env="staging").replace("[]", "null"), "does not have"),
        (UNRELEASED.format(env="Staging"), "environment"),
        (UNRELEASED.format(env="staging").replace("commit: null", f"commit: {'a' * 40}"), "without models"),
        ("schema: 1\nx: !!python/object/apply:os.system [id]\n", "YAML|expected"),
    ],
)
def test_a_record_that_is_none_is_refused(text: str, why: str) -> None:
    with pytest.raises(BadRecord, match=why) as refused:
        records.parse(text)
    assert refused.value.remedy


def test_reading_from_a_working_tree(tmp_path: Path) -> None:
    write(tmp_path, service_files())
    assert records.read(tmp_path, "staging") == Record("staging")
    with pytest.raises(NotFound) as missing:
        records.read(tmp_path, "nowhere")
    assert "production, staging" in str(missing.value.remedy)
    with pytest.raises(Refused):
        records.read(tmp_path, "../staging")
    (tmp_path / "deploy/overlays/staging/release/record.yaml").write_bytes(b"\xff")
    with pytest.raises(BadRecord, match="UTF-8"):
        records.read(tmp_path, "staging")


def kustomize(overlay: Path) -> dict[str, dict[str, Any]]:
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not on PATH")
    done = subprocess.run(["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found = list(YAML(typ="safe").load_all(done.stdout))
    kinds = {one["kind"]: one for one in found}
    assert len(kinds) == len(found), "two of a kind"
    return kinds


def release(root: Path, service: str) -> None:
    write(
        root,
        {path: text.decode() for path, text in records.paths("production", records.render(RECORD, service_file.parse(service))).items()},
    )


def test_the_release_renders_over_a_base(tmp_path: Path) -> None:
    service = SERVICE + "serving: {port: 9000, startup_seconds: 100}\n"
    write(tmp_path, service_files(service))
    overlay = tmp_path / "deploy/overlays/production"
    assert kustomize(overlay)["Deployment"]["spec"]["replicas"] == 0
    release(tmp_path, service)
    objects = kustomize(overlay)
    assert {found["metadata"]["namespace"] for found in objects.values()} == {"ml"}
    assert objects["Ingress"]["spec"]["rules"][0]["host"] == "digits.example.com"
    assert objects["Ingress"]["spec"]["rules"][0]["http"]["paths"][0]["path"] == "/"
    deployment = objects["Deployment"]
    assert deployment["spec"]["replicas"] == 2
    assert deployment["spec"]["strategy"] == {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
    assert deployment["spec"]["progressDeadlineSeconds"] == 400
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["image"] == RECORD.image
    assert container["ports"] == [{"name": "http", "containerPort": 9000}]
    assert container["resources"] == {"requests": {"cpu": "500m", "memory": "1536Mi"}, "limits": {"memory": "1536Mi"}}
    assert container["startupProbe"] == {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 3, "failureThreshold": 34}
    assert container["env"] == [{"name": "HOME", "value": "/tmp"}]
    for metadata in (deployment["metadata"], pod["metadata"]):
        assert metadata["labels"] == {"app.kubernetes.io/name": "digits", "mlops-build/model": "digits", "mlops-build/version": "3"}
        assert metadata["annotations"]["mlops-build/models"] == "models:/digits/3"
        assert metadata["annotations"]["mlops-build/digests"] == MODEL.digest
        assert metadata["annotations"]["mlops-build/commit"] == RECORD.commit
    assert pod["metadata"]["annotations"]["mine"] == "kept"
    assert deployment["spec"]["selector"]["matchLabels"] == {"app.kubernetes.io/name": "digits"}


def test_serving_settings_reach_the_pod(tmp_path: Path) -> None:
    service = SERVICE + "serving: {max_batch: 256, access_log: false}\n"
    write(tmp_path, service_files(service))
    release(tmp_path, service)
    (container,) = kustomize(tmp_path / "deploy/overlays/production")["Deployment"]["spec"]["template"]["spec"]["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    assert variables == {"HOME": "/tmp", "MLOPS_SERVE_MAX_BATCH": "256", "MLOPS_SERVE_ACCESS_LOG": "false"}


def test_the_reason_for_pickles_is_an_annotation_of_the_release_and_no_key_of_its_record(tmp_path: Path) -> None:
    reason = ("für uns: 'made' by \"us\" #1 " * 20)[:500].strip()
    service = SERVICE + f"serving: {{unsafe_pickle: {json.dumps(reason)}}}\n"
    write(tmp_path, service_files(service))
    release(tmp_path, service)
    overlay = tmp_path / "deploy/overlays/production"
    deployment = kustomize(overlay)["Deployment"]
    pod = deployment["spec"]["template"]
    assert pod["metadata"]["annotations"]["mlops-build/unsafe-pickle"] == reason
    assert deployment["metadata"]["annotations"]["mlops-build/unsafe-pickle"] == reason
    assert {"name": "MLOPS_SERVE_UNSAFE_PICKLE", "value": reason} in pod["spec"]["containers"][0]["env"]
    assert (overlay / "release/record.yaml").read_text() == records.render(RECORD, DIGITS)["record.yaml"]
    assert "unsafe" not in records.render(RECORD, DIGITS)["patch.yaml"]


@pytest.mark.parametrize(("mode", "replicas"), [("shared", 1), ("shared", 2), ("exclusive", 1), ("exclusive", 3)])
def test_the_release_of_a_gpu_service_renders(tmp_path: Path, mode: str, replicas: int) -> None:
    service = SERVICE.replace("{mode: none}", f"{{mode: {mode}, memory: 6GiB}}").replace("replicas: 2", f"replicas: {replicas}")
    write(tmp_path, service_files(service))
    release(tmp_path, service)
    spec = kustomize(tmp_path / "deploy/overlays/production")["Deployment"]["spec"]
    assert spec["strategy"] == (
        {"type": "Recreate"} if replicas == 1 else {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}
    )
    assert ("DOWNTIME" in (tmp_path / "deploy/overlays/production/release/patch.yaml").read_text()) is (replicas == 1)
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    variables = {one["name"]: one["value"] for one in container["env"]}
    if mode == "shared":
        assert pod["runtimeClassName"] == "nvidia"
        assert variables["MLOPS_GPU_MEMORY"] == "6GiB"
        budget = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
        assert budget >= int(variables["MLOPS_GPU_WAIT"]) + 120, "who waits for room still has all of startup_seconds to load"
        assert spec["progressDeadlineSeconds"] > budget
        assert variables["MLOPS_GPU_LEASE_DIR"] == container["volumeMounts"][0]["mountPath"] == "/run/mlops-gpu"
        assert "nvidia.com/gpu" not in container["resources"]["limits"] | container["resources"]["requests"]
    else:
        assert not {"runtimeClassName", "volumes"} & set(pod)
        assert container["resources"]["limits"]["nvidia.com/gpu"] == container["resources"]["requests"]["nvidia.com/gpu"] == "1"
        assert variables == {"HOME": "/tmp", "MLOPS_DEVICE": "gpu", "MLOPS_GPU_MODE": mode, "MLOPS_SERVICE": "digits"}
