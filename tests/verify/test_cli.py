"""`mlops-build verify` as a process: output, exit codes, ignored findings, SARIF."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mlops_build import __version__
from tests.conftest import mlops_build
from tests.verify.faults import edit

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not on PATH")
SERVICE = "deploy/base/service.yaml"


@pytest.fixture
def faulty(service: Path) -> Path:
    """A port out of range, on line 12 of the Service."""
    edit(service, SERVICE, "port: 80\n", "port: 80800\n")
    return service


@needs_kubectl
def test_nothing_wrong(service: Path) -> None:
    done = mlops_build(service / "deploy" / "base", "verify")  # the service around the folder
    assert (done.stdout, done.stderr) == ("", "17 files, 16 objects: no findings\n")


@needs_kubectl
def test_findings_are_grouped_by_file(faulty: Path) -> None:
    done = mlops_build(faulty, "verify", expect=4)
    assert done.stdout.splitlines() == [
        SERVICE,
        "  line 12  Service/digits: spec.ports[0].port is 80800; a port number must be between 1 and 65535 [bad-port]",
        "      correct the number or name",
    ]
    assert done.stderr.endswith("16 objects: 1 finding\n")


@needs_kubectl
def test_json_is_one_document(faulty: Path) -> None:
    document = json.loads(mlops_build(faulty, "verify", "--json", expect=4).stdout)
    (finding,) = document["findings"]
    assert (finding["file"], finding["line"], finding["rule"]) == (SERVICE, 12, "bad-port")
    assert set(finding) == {"subject", "rule", "why", "remedy", "file", "line"}
    assert (document["ignored"], document["notes"], document["objects"]) == ([], [], 16)


@needs_kubectl
def test_a_comment_ignores_a_finding_and_says_why(faulty: Path) -> None:
    edit(faulty, SERVICE, "port: 80800", "port: 80800 # mlops-build: ignore bad-port: a test of the proxy")
    done = mlops_build(faulty, "verify", "--json")
    document = json.loads(done.stdout)
    assert document["findings"] == []
    assert document["ignored"][0]["reason"] == "a test of the proxy"
    assert f"ignored: {SERVICE} line 12 [bad-port]: a test of the proxy" in done.stderr


@needs_kubectl
def test_service_yaml_ignores_a_rule(faulty: Path) -> None:
    edit(faulty, "service.yaml", "gpu:\n", "verify:\n  ignore:\n    bad-port: a test of the proxy\ngpu:\n")
    assert "[bad-port]: a test of the proxy" in mlops_build(faulty, "verify").stderr


@needs_kubectl
def test_another_rules_comment_ignores_nothing(faulty: Path) -> None:
    edit(faulty, SERVICE, "port: 80800", "port: 80800 # mlops-build: ignore bad-name: mistaken")
    assert "[bad-port]" in mlops_build(faulty, "verify", expect=4).stdout


@needs_kubectl
def test_sarif(faulty: Path) -> None:
    edit(
        faulty,
        "deploy/overlays/production/release/pdb.yaml",
        "maxUnavailable: 1",
        "maxUnavailable: 0 # mlops-build: ignore pdb-blocks: never drained",
    )
    done = mlops_build(faulty, "verify", "--sarif", "-", expect=4)
    written = mlops_build(faulty, "verify", "--sarif", "found.sarif", expect=4)
    assert "[bad-port]" in written.stdout
    assert (faulty / "found.sarif").read_text() == done.stdout
    log = json.loads(done.stdout)
    check_sarif(log)
    (run,) = log["runs"]
    assert run["tool"]["driver"]["semanticVersion"] == __version__
    results = {result["ruleId"]: result for result in run["results"]}
    assert set(results) == {"bad-port", "pdb-blocks"}
    assert results["bad-port"]["locations"][0]["physicalLocation"] == {"artifactLocation": {"uri": SERVICE}, "region": {"startLine": 12}}
    assert "suppressions" not in results["bad-port"]
    assert results["pdb-blocks"]["suppressions"] == [{"kind": "inSource", "status": "accepted", "justification": "never drained"}]


def check_sarif(log: Mapping[str, Any]) -> None:
    """The requirements of SARIF 2.1.0 for what we write (OASIS, sections 3.13 to 3.52)."""
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-2.1.0.json")
    for run in log["runs"]:
        driver = run["tool"]["driver"]
        assert driver["name"]
        identifiers = [rule["id"] for rule in driver["rules"]]
        assert len(set(identifiers)) == len(identifiers)
        for rule in driver["rules"]:
            assert rule["shortDescription"]["text"]
            assert rule["fullDescription"]["text"]
            assert rule["helpUri"].startswith("https://")
            assert rule["defaultConfiguration"]["level"] in ("none", "note", "warning", "error")
        for result in run["results"]:
            assert identifiers[result["ruleIndex"]] == result["ruleId"]
            assert result["message"]["text"]
            assert result["level"] in ("none", "note", "warning", "error")
            for location in result["locations"]:
                place = location["physicalLocation"]
                assert not place["artifactLocation"]["uri"].startswith("/")
                assert place["region"]["startLine"] >= 1
            for suppression in result.get("suppressions", []):
                assert suppression["kind"] in ("inSource", "external")


@needs_kubectl
def test_a_finding_of_one_environment_names_it(service: Path) -> None:
    file = "deploy/overlays/staging/kustomization.yaml"
    operation = "{op: replace, path: /spec/progressDeadlineSeconds, value: 60}"
    edit(service, file, "patches: []", f"patches:\n  - target: {{kind: Deployment}}\n    patch: |-\n      - {operation}\n")
    (finding,) = json.loads(mlops_build(service, "verify", "--json", expect=4).stdout)["findings"]
    assert finding["subject"] == "Deployment/digits in staging"
    assert (finding["rule"], finding["file"]) == ("progress-deadline", file)
    assert (service / file).read_text().splitlines()[finding["line"] - 1] == f"      - {operation}"
    # A single overlay is checked as a part of its service.
    assert mlops_build(service, "verify", "deploy/overlays/production").stdout == ""
    assert "progress-deadline" in mlops_build(service, "verify", "deploy/overlays/staging", expect=4).stdout


@needs_kubectl
def test_a_clusters_version(service: Path) -> None:
    edit(service, "deploy/base/deployment.yaml", 'exec:\n                command: [sleep, "10"]', "sleep: {seconds: 10}")
    assert mlops_build(service, "verify").stdout == ""
    assert "sleep is not a field of preStop [unknown-field]" in mlops_build(service, "verify", "--kubernetes", "1.28", expect=4).stdout
    edit(service, "service.yaml", "", 'verify: {kubernetes: "1.28"}\n')
    assert "[unknown-field]" in mlops_build(service, "verify", expect=4).stdout
    assert "no schema for Kubernetes '1.2'" in mlops_build(service, "verify", "--kubernetes", "1.2", expect=2).stderr


def test_without_kubectl_a_note_is_printed_and_specs_are_checked(faulty: Path, tmp_path: Path) -> None:
    (faulty / "bamboo-specs").mkdir()
    (faulty / "bamboo-specs/bamboo.yaml").write_text("version: 2\nplan: {project-key: ML, key: D}\nstages:\n  - Image: [Imag]\n")
    done = mlops_build(faulty, "verify", expect=4, environment={"PATH": str(tmp_path)})
    assert "overlay production was not rendered: kubectl is not installed, so its objects were not checked" in done.stderr
    assert "[bamboo-missing-job]" in done.stdout
    assert "[bad-port]" not in done.stdout


def test_usage_errors(tmp_path: Path) -> None:
    assert "does not exist" in mlops_build(tmp_path, "verify", "nowhere", expect=3).stderr
    assert "no service.yaml" in mlops_build(tmp_path, "verify", expect=3).stderr
    assert "both write to stdout" in mlops_build(tmp_path, "verify", ".", "--json", "--sarif", "-", expect=2).stderr
    (tmp_path / "a.yaml").write_text("kind: ConfigMap\napiVersion: v1\nmetadata: {name: a}\n")
    assert "cannot be written" in mlops_build(tmp_path, "verify", ".", "--sarif", "no/such/folder.sarif", expect=1).stderr
    if os.geteuid() != 0:
        (tmp_path / "a.yaml").chmod(0)
        assert "cannot be read" in mlops_build(tmp_path, "verify", "a.yaml", expect=3).stderr


def test_an_invalid_service_yaml_is_refused_first(service: Path) -> None:
    edit(service, "service.yaml", "schema: 1", "schema: one")
    assert "service.yaml line 3" in mlops_build(service, "verify", expect=4).stderr
