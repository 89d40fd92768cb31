"""What `doctor` finds around a service's data."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_build import doctor
from tests.conftest import git


def test_data_that_a_colleague_cannot_get_is_a_finding(with_data: Path, tmp_path: Path) -> None:
    service = Path(shutil.copytree(with_data, tmp_path / "points"))
    check = doctor.data_remote(service)
    assert check.findings == []
    assert "does not exist yet" in check.seen
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(service, "remote", "add", "origin", (tmp_path / "origin.git").as_uri())
    git(service, "push", "--quiet", "origin", "main")
    (finding,) = doctor.data_remote(service).findings
    assert finding.rule == "data-not-shared"
    assert doctor.data_remote(service).seen.startswith("./dvc-remote")
    assert "dvc remote modify storage url" in finding.remedy

    git(tmp_path, "clone", "--quiet", str(tmp_path / "origin.git"), "clone")
    findings = {finding.rule: finding for finding in doctor.data_remote(tmp_path / "clone").findings}
    assert set(findings) == {"data-missing", "data-not-shared"}
    assert f"{tmp_path / 'clone/dvc-remote'}, which does not exist here" in findings["data-missing"].remedy
    assert "`make data`" in findings["data-missing"].remedy


def test_a_data_remote_that_does_not_answer_is_found_by_deep(with_data: Path, tmp_path: Path) -> None:
    service = Path(shutil.copytree(with_data, tmp_path / "points"))
    config = service / ".dvc/config"
    config.write_text("[core]\n    remote = storage\n['remote \"storage\"']\n    url = unknown://bucket/dvc\n")
    check = doctor.data_remote(service)
    assert check.findings == []
    assert check.seen == "unknown://bucket/dvc (not contacted: `mlops-build doctor --deep` does)"
    (finding,) = doctor.data_remote(service, deep=True).findings
    assert finding.rule == "data-remote"
    config.write_text("")
    (finding,) = doctor.data_remote(service).findings
    assert (finding.rule, finding.why) == ("data-remote", "no remote is configured")


def test_a_remote_folder_outside_of_the_checkout_that_does_not_exist_is_a_finding(with_data: Path, tmp_path: Path) -> None:
    service = Path(shutil.copytree(with_data, tmp_path / "points"))
    share = tmp_path / "a share"
    config = (service / ".dvc/config").read_text()
    (service / ".dvc/config").write_text(config.replace("../dvc-remote", str(share)))
    (finding,) = doctor.data_remote(service).findings
    assert finding.rule == "data-remote"
    assert f"the DVC remote 'storage' is the folder {share}, which does not exist on this machine" in finding.why
    subprocess.run(["sh", "-c", finding.remedy.rpartition(": ")[2]], check=True, timeout=10)
    assert doctor.data_remote(service).findings == []


def test_without_dvc_its_extra_is_named(with_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Path(shutil.copytree(with_data, tmp_path / "points"))
    without_dvc = tmp_path / "python"
    without_dvc.write_text('#!/bin/sh\necho "$0: No module named dvc" >&2\nexit 1\n')
    without_dvc.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(without_dvc))
    checks = {check.name: check for check in doctor.examine(service, deep=True)}
    assert "data remote" not in checks
    assert "pip install 'mlops-build[train]'" in [finding.remedy for finding in checks["extras"].findings]


def test_accepted_pickles_are_shown_with_their_reason(with_data: Path, tmp_path: Path) -> None:
    service = Path(shutil.copytree(with_data, tmp_path / "points"))
    assert "pickle" not in doctor.service_file(service).seen
    text = (service / "service.yaml").read_text()
    (service / "service.yaml").write_text(text.replace("serving:\n", "serving:\n  unsafe_pickle: the team made it\n"))
    assert doctor.service_file(service).seen.endswith("pickles are accepted (serving.unsafe_pickle): the team made it")


@pytest.mark.parametrize(
    ("text", "finding"), [("schema: 1", None), ("schema: 1\nfreezes: []", "unknown key 'freezes'"), (None, "cannot be read")]
)
def test_a_fleet_yaml_that_cannot_be_read_is_a_finding(
    text: str | None, finding: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLOPS_FLEET", raising=False)
    assert doctor.fleet().absent
    monkeypatch.setenv("MLOPS_FLEET", str(tmp_path / "fleet.yaml"))
    if text:
        (tmp_path / "fleet.yaml").write_text(text)
    check = next(check for check in doctor.examine(None) if check.name == "fleet.yaml")
    assert check.ok is (finding is None)
    assert all(str(finding) in each.why for each in check.findings)


def test_a_password_in_gits_address_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_output", lambda command: "https://bot:hunter2@git.example.com/x.git" if "get-url" in command else "")
    assert doctor.remote(tmp_path).seen == "https://git.example.com/x.git"


def test_the_registry_is_checked_outside_of_a_service_where_its_address_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def found() -> list[doctor.Check]:
        return [check for check in doctor.examine(None) if check.name == "registry"]

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert found() == []
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    (check,) = found()
    assert "none.db does not exist" in check.findings[0].why
