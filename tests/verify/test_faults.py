"""Every rule finds its fault in the right file and line, and no other rule reports anything."""

import shutil
from pathlib import Path

import pytest

from mlops_build.verify import Report, check
from mlops_build.verify.catalogue import RETIRED, RULES
from tests.verify.faults import APP, FAULTS, LEASES, ON_CLAIM, ON_FOLDER, Fault

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on PATH")


@needs_kubectl
def test_the_app_without_a_fault_has_no_finding() -> None:
    assert check(APP).findings == []


@needs_kubectl
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_of_the_manifests_is_found_where_it_is(fault: Fault, tmp_path: Path) -> None:
    root = fault.apply(tmp_path / "app")
    assert (fault.rule, fault.where or fault.file, fault.line(root)) in places(check(root, specs=[]))


@needs_kubectl
@pytest.mark.parametrize("mount", [ON_FOLDER, ON_CLAIM], ids=["folder", "claim"])
def test_a_lease_directory_that_neighbours_see_has_no_finding(mount: tuple[tuple[str, str, str], ...], tmp_path: Path) -> None:
    root = Fault("right", "none", *LEASES, "", also=mount).apply(tmp_path / "app")
    assert "gpu-leases" not in {rule for rule, _, _ in places(check(root))}


def places(report: Report) -> list[tuple[str, str | None, int | None]]:
    return [(finding.rule, finding.file, finding.line) for finding in report.findings]


def test_every_rule_has_a_fault() -> None:
    elsewhere = {"duplicate-object", "contract-breaks", "api-server"}  # test_plain.py, test_contract.py, tests/ci/test_dry_run.py
    assert {fault.rule for fault in FAULTS} | elsewhere == set(RULES)


@needs_kubectl
def test_what_an_overlay_may_choose_is_a_remark(tmp_path: Path) -> None:
    """Services of earlier releases have patched these on purpose; a new rule must not refuse their releases."""
    root = Path(shutil.copytree(APP, tmp_path / "app"))
    patch = root / "deploy/overlays/production/patch.yaml"
    text = patch.read_text()
    probe = "          readinessProbe:\n            httpGet:\n              path: PATH\n              port: http\n"
    remarks = {
        "on another path of the service": probe.replace("PATH", "/v2/health/live"),
        "of a server of its own": "          args: [python, server.py]\n" + probe.replace("PATH", "/ready"),
    }
    for added in remarks.values():
        patch.write_text(text + added)
        report = check(root)
        assert report.findings == []
        assert any("[probe-path]" in note for note in report.notes)
    home = "            - {name: HOME, value: /home/app}\n            - {name: XDG_CACHE_HOME, value: /tmp}\n"
    patch.write_text(text + home + "          securityContext: {readOnlyRootFilesystem: true}\n")
    report = check(root)
    assert report.findings == []
    assert any("[home-read-only]" in note for note in report.notes)


@needs_kubectl
def test_a_certificate_for_an_ingress_that_routes_every_host(tmp_path: Path) -> None:
    root = Path(shutil.copytree(APP, tmp_path / "app"))
    ingress = root / "deploy/base/ingress.yaml"
    tls = "  tls: [{hosts: [digits.example.org], secretName: tls}]\n  rules:\n    - http:\n"
    ingress.write_text(ingress.read_text().replace("  rules:\n    - host: digits.example.com\n      http:\n", tls))
    assert check(root).findings == []


def test_retired_rules_may_be_ignored(tmp_path: Path) -> None:
    root = Path(shutil.copytree(APP, tmp_path / "app"))
    with (root / "service.yaml").open("a") as settings:
        settings.write("verify: {ignore: {" + ", ".join(f"{rule}: it was needed" for rule in RETIRED) + "}}\n")
    assert check(root, environments=[], specs=[]).findings == []


def test_the_faults_that_tools_were_compared_on_are_here() -> None:
    assert len([fault for fault in FAULTS if fault.listed]) >= 29
