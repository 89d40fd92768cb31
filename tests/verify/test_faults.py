"""Single faults in a generated service: each is found by its rule, in its file and line. What works has no finding."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlops_build.verify import Report, check
from mlops_build.verify.catalogue import RETIRED, RULES
from tests.verify.conftest import Services
from tests.verify.faults import GPUS, TABLE, TEAM, apply, edit

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


def test_retired_rules_may_be_ignored(service: Path) -> None:
    edit(service, "service.yaml", "", "verify: {ignore: {" + ", ".join(f"{rule}: it was needed" for rule in RETIRED) + "}}\n")
    assert check(service, environments=[], specs=[]).findings == []


def test_the_lease_directory_may_be_a_volume_that_all_pods_see(services: Services, tmp_path: Path) -> None:
    root = Path(shutil.copytree(services("shared"), tmp_path / "service"))
    claim = "persistentVolumeClaim:\n            claimName: digits-gpu-leases-277207b3"
    edit(root, "deploy/overlays/production/release/patch.yaml", claim, "nfs: {server: nfs.example.com, path: /leases}")
    assert places(check(root, environments=["production"], specs=[])) == []
