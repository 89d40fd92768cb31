"""The files to run and to watch the bridge: verify and promtool accept them, and they use only metrics that it exports."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from mlops_build import __version__
from mlops_build.bridge import shipped, webhook
from mlops_build.bridge.loop import Loop
from mlops_build.bridge.metrics import LoopCollector
from mlops_build.cli.parser import problem_of
from mlops_build.verify import check
from tests.packaging.test_hadolint import hadolint
from tests.watch.test_files import alerts_of, check_alerts, check_expressions, check_panels, check_uuids

TEXTS = shipped.texts()
PAGE = Path(__file__).parents[2] / "docs/how-to/run-the-bridge.md"
LOOP = Loop((), lambda: pytest.fail("not asked"))
LOOP.fleet_answers = True
EXPORTED = {f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in LoopCollector(LOOP, {}).collect()}


def load(name: str) -> Any:
    return YAML(typ="safe").load(TEXTS[name])


def load_all(name: str) -> dict[str, Any]:
    return {document["kind"]: document for document in YAML(typ="safe").load_all(TEXTS[name])}


def expressions() -> Iterator[str]:
    for panel in json.loads(TEXTS["grafana-dashboard.json"])["panels"]:
        yield from (target["expr"] for target in panel["targets"])
    yield from (rule["expr"] for group in load("prometheus-rules.yaml")["spec"]["groups"] for rule in group["rules"])


def test_files_are_written_and_changed_ones_are_not_replaced(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mlops_build", "bridge", "files", "--json", "-o", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert {Path(path).name: Path(path).read_text() for path in json.loads(done.stdout)["written"]} == TEXTS
    (tmp_path / "new/bridge.yaml").write_text("changed\n")
    assert subprocess.run(command, capture_output=True, timeout=300, check=False).returncode == 4
    assert subprocess.run([*command, "--force"], capture_output=True, timeout=300, check=False).returncode == 0
    assert (tmp_path / "new/bridge.yaml").read_text() == TEXTS["bridge.yaml"]


def test_the_manifests_are_valid_and_the_pod_has_no_rights(tmp_path: Path) -> None:
    (tmp_path / "bridge.yaml").write_text(TEXTS["bridge.yaml"])
    report = check(tmp_path)
    assert (report.objects, report.findings) == (3, [])
    objects = load_all("bridge.yaml")
    spec = objects["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    pod = spec["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["automountServiceAccountToken"] is False
    # PodSecurity `restricted`
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert {next(iter(set(volume) - {"name"})) for volume in pod["volumes"]} <= {"emptyDir", "secret", "configMap", "projected"}
    assert {"hostNetwork", "hostPID", "hostIPC"}.isdisjoint(pod)
    assert problem_of(["bridge", *container["args"]]) is None
    variables = {variable["name"] for variable in container["env"]}
    assert {f"{webhook.SECRET}_FILE", f"{webhook.PREVIOUS}_FILE"} <= variables
    for text in ("token: ", "password: "):
        assert text not in TEXTS["bridge.yaml"]


def test_the_dockerfile_is_of_this_version() -> None:
    assert hadolint(TEXTS["Dockerfile"]) == set()
    assert f'ARG PACKAGE_SOURCE="mlops-build[operate]=={__version__}"' in TEXTS["Dockerfile"]
    for source in re.findall(r"`PACKAGE_SOURCE=(mlops[^`]+)`", PAGE.read_text()):
        assert Requirement(source).extras == {"operate"}
    assert not [name for name, text in TEXTS.items() if "MLOPS_BUILD_VERSION" in text]


def test_what_is_shown_and_watched_is_exported() -> None:
    for expression in expressions():
        assert set(re.findall(r"\b(mlops_bridge_[a-z_]+)", expression)) <= EXPORTED, expression
    shown = set(re.findall(r"\b(mlops_bridge_[a-z_]+)", TEXTS["grafana-dashboard.json"]))
    assert shown == EXPORTED
    assert set(re.findall(r"\b(mlops_bridge_[a-z_]+)", TEXTS["zabbix-template.yaml"])) <= EXPORTED


def test_the_page_explains_each_alert_and_metric() -> None:
    page = PAGE.read_text()
    assert set(re.findall(r"^\| `(Bridge[A-Za-z]+)`", page, re.MULTILINE)) == alerts_of(load("prometheus-rules.yaml")["spec"])
    assert set(re.findall(r"\bmlops_bridge_[a-z_]*[a-z]\b", page)) == EXPORTED
    assert set(TEXTS) <= set(re.findall(r"`([a-zA-Z-]+\.(?:yaml|json)|Dockerfile)`", page))


def test_panels_do_not_overlap() -> None:
    check_panels(json.loads(TEXTS["grafana-dashboard.json"]))


def test_references_of_the_zabbix_template_resolve() -> None:
    export = load("zabbix-template.yaml")["zabbix_export"]
    (template,) = export["templates"]
    check_uuids(export)
    keys = {item["key"] for item in template["items"]}
    for item in template["items"]:
        assert item["type"] == "HTTP_AGENT" or item["master_item"]["key"] == "mlops.bridge.metrics"
        for trigger in item.get("triggers", []):
            assert set(re.findall(r"\(/mlops-build bridge/([^,)]+)", trigger["expression"])) == {item["key"]} <= keys
    macros = {macro["macro"] for macro in template["macros"]}
    assert set(re.findall(r"\{\$[A-Z.]+\}", TEXTS["zabbix-template.yaml"])) == macros


@pytest.mark.slow
def test_promtool_accepts_rules_and_panels(tmp_path: Path) -> None:
    check_expressions(tmp_path, expressions(), load("prometheus-rules.yaml")["spec"])


@pytest.mark.slow
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    check_alerts(tmp_path, load("prometheus-rules.yaml")["spec"], (Path(__file__).parent / "rules_test.yaml").read_text())
