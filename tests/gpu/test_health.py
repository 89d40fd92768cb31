"""`mlops-build doctor` on nodes with faulty cards, drivers or lease directories."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlops_build.gpu import no_gpu, testing
from tests.gpu.conftest import MakeNode
from tests.gpu.nodes import Shared, user
from tests.gpu.test_namespaces import needs_root

# Only the GPU checks: the others check this machine.
SCRIPT = """
import json
from mlops_build.finding import as_json
from mlops_build.gpu import health
seen, findings = health.look()
directory, of_directory = health.leases()
print(json.dumps({"seen": seen, "directory": directory, "findings": as_json([*findings, *of_directory])}))
"""


def report(environment: Mapping[str, str], before: Sequence[str] = ()) -> dict[str, Any]:
    done = subprocess.run(
        [*before, sys.executable, "-c", SCRIPT], env=dict(environment), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert all(finding["remedy"] for finding in document["findings"])
    return document


def look(environment: Mapping[str, str]) -> tuple[str, list[dict[str, Any]]]:
    document = report(environment)
    return document["seen"], document["findings"]


def rules(environment: Mapping[str, str]) -> list[str]:
    return [finding["rule"] for finding in look(environment)[1]]


def leases(made: testing.Node) -> Path:
    return Path(made.environment["MLOPS_GPU_LEASE_DIR"])


def test_a_node_without_findings(node: MakeNode) -> None:
    made = node("24GiB", testing.SimulatedCard(name="NVIDIA A100", mig_capable=True))
    made.mig(1, ["10GiB", "10GiB"])
    seen, findings = look(made.environment)
    assert findings == []
    assert "NVIDIA L4" in seen
    Path(made.environment["MLOPS_GPU_CONFIG"]).write_text("[[neighbor]]\n")
    (finding,) = look(made.environment)[1]
    assert finding["rule"] == "gpu-config"
    assert "neighbor" in finding["why"]


def test_faulty_cards_are_findings_with_a_remedy(node: MakeNode) -> None:
    made = node("24GiB", "24GiB", testing.SimulatedCard(ecc_errors=3), testing.SimulatedCard(memory_supported=False))
    made.lose(1)
    _, findings = look(made.environment)
    assert [finding["rule"] for finding in findings] == ["gpu-card", "gpu-ecc"]
    assert made.cards[1].uuid in findings[0]["subject"] or "gpu 1" in findings[0]["subject"]
    assert "nvidia-smi --gpu-reset" in findings[0]["remedy"]


def test_a_driver_that_fails_is_a_finding(node: MakeNode) -> None:
    made = node("24GiB")
    for code, remedy in ((9, "modprobe"), (18, "reboot"), (4, "/dev/nvidia")):
        made.fail_init(code)
        (finding,) = look(made.environment)[1]
        assert finding["rule"] == "gpu-driver"
        assert remedy in finding["remedy"]


def test_a_missing_driver_is_not_a_finding(tmp_path: Path) -> None:
    environment = {**os.environ, "MLOPS_GPU_LEASE_DIR": str(tmp_path / "nowhere")}
    summary, findings = look(environment)
    if not summary.startswith("no GPU"):
        pytest.skip("this machine has a card")
    assert summary == f"no GPU: libnvidia-ml.so.1 is not found: {no_gpu.no_driver()}; everything runs on the CPU"
    assert findings == []
    command = [sys.executable, "-m", "mlops_build", "doctor"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert "\n--  gpu " in done.stdout, "it must not read as if a GPU were fine"
    assert "\n--  gpu leases " in done.stdout


def test_the_lease_directory(node: MakeNode, tmp_path: Path) -> None:
    made = node()
    assert look(made.environment) == ("no GPU, but a driver", [])
    for mode in (0o777, 0o755):
        leases(made).chmod(mode)
        assert rules(made.environment) == ["gpu-leases"]
    made.fail_init(9)
    assert rules(made.environment) == ["gpu-driver", "gpu-leases"]
    made.restore()
    for mode in (0o1777, 0o3770):  # writable for all users, or for a group
        leases(made).chmod(mode)
        assert rules(made.environment) == []
    assert report(made.environment)["directory"] == f"{leases(made)}, mode 3770, 0 in use"
    _, (finding,) = look({**node("24GiB").environment, "MLOPS_GPU_LEASE_DIR": str(tmp_path / "nowhere")})
    assert finding["rule"] == "gpu-leases"
    assert "tmpfiles.d" in finding["remedy"]
    assert "restart the services" in finding["remedy"], "those that run have no lease"


@needs_root
@pytest.mark.parametrize("mode", [0o3770, 0o755])
def test_a_user_who_may_not_use_the_directory_is_not_told_to_create_it(shared: Shared, mode: int) -> None:
    shared.leases.chmod(mode)
    (finding,) = report(shared.environment, before=user(12001))["findings"]
    assert finding["why"].startswith(f"uid 12001 may not write to the lease directory {shared.leases}")
    assert finding["remedy"].startswith(f"`ls -ld {shared.leases}` shows the group")
    assert "install" not in finding["remedy"]


def test_a_mask_that_hides_every_card_is_a_finding(node: MakeNode) -> None:
    (finding,) = look({**node("24GiB").environment, "CUDA_VISIBLE_DEVICES": "7"})[1]
    assert finding["rule"] == "gpu-mask"
    assert "hidden by CUDA_VISIBLE_DEVICES='7'" in finding["why"]


def test_a_lock_that_is_held(node: MakeNode) -> None:
    made = node("24GiB")
    assert rules(made.environment) == []
    with (leases(made) / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert rules(made.environment) == ["gpu-lock"]
