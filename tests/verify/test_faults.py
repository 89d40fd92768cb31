"""Every rule finds its fault in the right file and line, and no other rule reports anything."""

import shutil
from pathlib import Path

import pytest

from mlops_build.ci import systems
from mlops_build.verify import Report, check
from tests.verify.faults import APP, FAULTS, LEASES, ON_CLAIM, ON_FOLDER, Fault

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on PATH")


@needs_kubectl
def test_the_app_without_a_fault_has_no_finding() -> None:
    assert check(APP, specs=systems.spec_checkers()).findings == []


@needs_kubectl
@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault.in_manifests], ids=lambda fault: fault.name)
def test_a_fault_of_the_manifests_is_found_where_it_is(fault: Fault, tmp_path: Path) -> None:
    root = fault.apply(tmp_path / "app")
    assert (fault.rule, fault.where or fault.file, fault.line(root)) in places(check(root, specs=systems.spec_checkers()))


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if not fault.in_manifests], ids=lambda fault: fault.name)
def test_a_fault_of_the_specs_is_found_where_it_is(fault: Fault, tmp_path: Path) -> None:
    root = fault.apply(tmp_path / "app")
    assert places(check(root, environments=[], specs=systems.spec_checkers())) == [(fault.rule, fault.file, fault.line(root))]


@needs_kubectl
@pytest.mark.parametrize("mount", [ON_FOLDER, ON_CLAIM], ids=["folder", "claim"])
def test_a_lease_directory_that_neighbours_see_has_no_finding(mount: tuple[tuple[str, str, str], ...], tmp_path: Path) -> None:
    root = Fault("right", "none", *LEASES, "", also=mount).apply(tmp_path / "app")
    assert "gpu-leases" not in {rule for rule, _, _ in places(check(root, specs=systems.spec_checkers()))}


def places(report: Report) -> list[tuple[str, str | None, int | None]]:
    return [(finding.rule, finding.file, finding.line) for finding in report.findings]


def test_every_rule_has_a_fault() -> None:
    elsewhere = {"duplicate-object", "contract-breaks", "api-server"}  # test_plain.py, test_contract.py, tests/ci/test_dry_run.py
    assert {fault.rule for fault in FAULTS} | elsewhere == set(check(APP, specs=systems.spec_checkers()).rules)


def test_the_faults_that_tools_were_compared_on_are_here() -> None:
    assert len([fault for fault in FAULTS if fault.listed]) >= 29
