"""Single faults in a generated service: each is found by its rule, in its file and line. What works has no finding."""

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlops_build.verify import Report, check
from mlops_build.verify.catalogue import RETIRED, RULES
from tests.verify.conftest import Services
from tests.verify.faults import GPUS, OVERLAY, TABLE, TEAM, apply, edit, release

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on PATH")


def places(report: Report) -> list[tuple[str, str | None, int | None]]:
    return [(finding.rule, finding.file, finding.line) for finding in report.findings]


@pytest.mark.parametrize("gpu", GPUS)
def test_services_without_a_fault_have_no_finding(services: Services, gpu: str) -> None:
    report = check(services(gpu))
    assert (places(report), report.notes) == ([], [])


@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: f"{fault['rule']}: {fault['new'].strip()[-30:]}")
def test_a_fault_is_found_where_it_is(services: Services, tmp_path: Path, fault: Mapping[str, Any]) -> None:
    root = Path(shutil.copytree(services(fault.get("gpu", "none")), tmp_path / "service"))
    expected = apply(fault, root)
    assert expected in places(check(root, environments=["production"], specs=[]))


def test_every_rule_has_a_fault() -> None:
    elsewhere = {"duplicate-object", "contract-breaks", "api-server", "too-large"}  # test_plain, test_contract, test_dry_run, test_document
    assert {fault["rule"] for fault in TABLE} | elsewhere == set(RULES)


def test_what_an_overlay_may_choose_is_a_remark(service: Path) -> None:
    """Services of earlier releases have patched these on purpose; a new rule must not refuse their releases."""
    probe = "          readinessProbe:\n            httpGet:\n              path: PATH\n"
    home = "            - {name: HOME, value: /home/app}\n            - {name: XDG_CACHE_HOME, value: /tmp}\n"
    for added, rule in (
        (probe.replace("PATH", "/v2/health/live"), "probe-path"),
        ("          args: [python, server.py]\n" + probe.replace("PATH", "/ready"), "probe-path"),
        (home, "home-read-only"),
    ):
        (service / "deploy/overlays/production/team.yaml").write_text(TEAM + added)
        report = check(service)
        assert places(report) == []
        assert any(f"[{rule}]" in note for note in report.notes)


def test_a_certificate_for_an_ingress_that_routes_every_host(service: Path) -> None:
    edit(service, "deploy/base/ingress.yaml", "  rules:", "  tls: [{hosts: [digits.example.org], secretName: tls}]\n  rules:")
    kustomization = service / "deploy/overlays/production/release/kustomization.yaml"
    text = kustomization.read_text()
    kustomization.write_text(text[: text.index("  - target:")])
    assert "tls-host" not in {rule for rule, _, _ in places(check(service, environments=["production"]))}


def test_an_overlay_that_service_yaml_does_not_name_may_not_take_a_host(service: Path) -> None:
    shutil.copytree(service / "deploy/overlays/staging", service / "deploy/overlays/extra")
    assert [rule for rule, _, _ in places(check(service))] == ["same-host"]


@pytest.mark.parametrize(
    ("gpu", "file", "old", "new", "rules"),
    [
        ("none", "service.yaml", "startup_seconds: 120", "startup_seconds: 600", {"startup-budget"}),
        ("none", "service.yaml", "mode: none", "mode: shared", {"gpu-runtime-class", "gpu-budget", "gpu-leases", "gpu-surge"}),
        ("none", "service.yaml", "mode: none", "mode: exclusive", {"gpu-mode", "gpu-surge"}),
        ("none", "service.yaml", 'namespace: "ml"', "namespace: mlx", {"namespace"}),
        ("shared", f"{OVERLAY}/release/patch.yaml", "  progressDeadline", "  replicas: 2\n  progressDeadline", {"hpa-replicas"}),
    ],
)
def test_the_remedy_of_an_outdated_release_is_a_release(
    services: Services, tmp_path: Path, gpu: str, file: str, old: str, new: str, rules: set[str]
) -> None:
    root = Path(shutil.copytree(services(gpu), tmp_path / "service"))
    edit(root, file, old, new)
    findings = check(root).findings
    assert {finding.rule for finding in findings} == rules
    assert [finding.remedy for finding in findings if not finding.remedy.startswith("run `mlops-build release ")] == []
    release(root)
    assert check(root).findings == []


def test_the_remedy_of_a_missing_overlay_leaves_no_finding(service: Path) -> None:
    edit(service, "service.yaml", "gpu:\n", "  canary: {namespace: ml-canary, host: canary.example.com}\ngpu:\n")
    (finding,) = check(service).findings
    commands = re.findall(r"`(.*?)`", finding.remedy)
    assert commands[1:] == ["mlops-build promote digits VERSION --to canary", "mlops-build release canary"]
    subprocess.run(commands[0].split(), cwd=service, check=True, timeout=60)
    release(service)  # what the second command writes
    assert check(service).findings == []


def test_the_remedy_of_a_fault_in_the_teams_own_patch_is_not_a_release(service: Path) -> None:
    for added in ("          startupProbe: {failureThreshold: 2}\n", "          resources: {limits: {nvidia.com/gpu: 1}}\n"):
        (service / "deploy/overlays/production/team.yaml").write_text(TEAM + added)
        (finding,) = check(service).findings
        assert "run `mlops-build release production`" not in finding.remedy


def test_retired_rules_may_be_ignored(service: Path) -> None:
    edit(service, "service.yaml", "", "verify: {ignore: {" + ", ".join(f"{rule}: it was needed" for rule in RETIRED) + "}}\n")
    assert check(service, environments=[], specs=[]).findings == []


def test_the_lease_directory_may_be_a_volume_that_all_pods_see(services: Services, tmp_path: Path) -> None:
    root = Path(shutil.copytree(services("shared"), tmp_path / "service"))
    claim = "persistentVolumeClaim:\n            claimName: digits-gpu-leases-277207b3"
    edit(root, "deploy/overlays/production/release/patch.yaml", claim, "nfs: {server: nfs.example.com, path: /leases}")
    assert places(check(root, environments=["production"], specs=[])) == []
