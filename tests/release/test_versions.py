"""Services and bridges are not updated in one moment: a base of release 0.1.0 with a release written today, and the other way round."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mlops_build import service as service_file
from mlops_build.model.version import ModelVersion
from mlops_build.release import record as records
from mlops_build.release.record import Record
from tests.conftest import ROOT, Render
from tests.release.test_record import kustomize

# What 0.1.0 was tagged on (CHANGELOG.md).
RELEASED = "4e990e4b63a7ea44ed04143e89570910dbc6c2f9"
MODEL = ModelVersion("digits", 3, f"sha256:{'0' * 63}1", "1" * 32)
RECORD = Record("production", (MODEL,), "2" * 40, f"registry.example.com/ml/digits:v3-{'a' * 12}")
# Run by that release's own code, as its bridge does: keys of a newer service.yaml are left out.
WRITE = """
import json, sys
from pathlib import Path
from mlops_build import __file__, service
from mlops_build.release.record import Record, ReleasedModel, paths, render
assert Path(__file__).is_relative_to(sys.argv[1]), __file__
digits = service.parse(Path("service.yaml").read_text(), strict=False)
model = ReleasedModel("digits", 3, "sha256:" + "0" * 63 + "1", "1" * 32)
record = Record("production", (model,), "2" * 40, "registry.example.com/ml/digits:v3-" + "a" * 12)
print(json.dumps({path: text.decode() for path, text in paths("production", render(record, digits)).items()}))
"""


@pytest.fixture(scope="module")
def old(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree of 0.1.0; `template` keeps copier from reading anybody's settings."""
    done = subprocess.run(["git", "-C", str(ROOT), "archive", RELEASED], capture_output=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"this clone has no history up to 0.1.0 ({RELEASED[:12]}): git fetch --unshallow --tags")
    folder = tmp_path_factory.mktemp("0.1.0")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def put(root: Path, files: dict[str, str]) -> None:
    """These files alone, in the release folder."""
    for path in (root / records.folder("production")).iterdir():
        path.unlink()
    for path_, text in files.items():
        (root / path_).write_text(text)


def today(root: Path) -> dict[str, str]:
    """RECORD as today's code writes it."""
    files = records.paths("production", records.render(RECORD, service_file.load(root)))
    return {path: content.decode() for path, content in files.items()}


def valid(root: Path) -> dict[str, dict[str, Any]]:
    """The rendered objects, each valid for a cluster, all but the volume in the namespace, the pods found by their selectors."""
    import kubernetes_validate

    objects = kustomize(root / "deploy" / "overlays" / "production")
    labels = objects["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for kind, one in objects.items():
        if kind != "ServiceMonitor":
            kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)
        assert one["metadata"].get("namespace") == (None if kind == "PersistentVolume" else "ml")
    for kind in {"NetworkPolicy", "PodDisruptionBudget"} & set(objects):
        spec = objects[kind]["spec"]
        assert spec.get("selector", spec.get("podSelector"))["matchLabels"].items() <= labels.items()
    assert objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["image"] == RECORD.image
    return objects


@pytest.mark.parametrize("monitoring", ["annotations", "prometheus-operator"])
@pytest.mark.parametrize("gpu", ["none", "shared", "exclusive"])
def test_a_release_of_today_over_the_base_of_0_1_0(old: Path, tmp_path: Path, gpu: str, monitoring: str) -> None:
    from copier import run_copy

    root = tmp_path / "digits"
    run_copy(str(old), root, data={"gpu": gpu, "monitoring": monitoring}, defaults=True, quiet=True)
    put(root, today(root))
    objects = valid(root)
    assert "NetworkPolicy" not in objects
    assert objects["PodDisruptionBudget"]["metadata"]["name"] == "digits"
    assert ("PersistentVolume" in objects) is (gpu == "shared")
    assert objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]["startupProbe"]["httpGet"]["path"] == "/health"


@pytest.mark.parametrize("gpu", ["none", "shared", "exclusive"])
def test_a_release_of_0_1_0_over_the_base_of_today(old: Path, render: Render, tmp_path: Path, gpu: str) -> None:
    root = Path(shutil.copytree(render(gpu=gpu), tmp_path / "digits"))
    # Keys that 0.1.0 does not know.
    text = (root / "service.yaml").read_text()
    (root / "service.yaml").write_text(text.replace("    replicas: 2\n", "    replicas: 2\n    autoscale: {max_replicas: 4, target: 2}\n"))
    command = [sys.executable, "-c", WRITE, str(old)]
    done = subprocess.run(command, cwd=root, env={"PYTHONPATH": str(old)}, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    put(root, json.loads(done.stdout))
    assert records.read(root, "production") == RECORD
    objects = valid(root)
    assert "NetworkPolicy" in objects
    assert objects["Deployment"]["spec"]["replicas"] == 2
    assert not {"HorizontalPodAutoscaler", "PersistentVolume"} & set(objects)
    # What 0.1.0 wrote is replaced by the next release of today's bridge.
    put(root, today(root))
    assert "HorizontalPodAutoscaler" in valid(root)
