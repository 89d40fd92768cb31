"""The shipped files use only exported metrics, and the programs that read them accept them."""

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from mlops_build import __version__
from mlops_build.verify import check
from mlops_build.watch import shipped
from mlops_build.watch.metrics import METRICS
from tests.packaging.test_hadolint import hadolint
from tests.watch.conftest import program

PAGE = Path(__file__).parents[2] / "docs/how-to/watch-your-cards.md"
EXPORTED = {metric.name: metric for metric in METRICS}


def load(name: str) -> Any:
    return YAML(typ="safe").load(shipped.read(name))


def promtool(*arguments: str | Path) -> None:
    command = [program("MLOPS_TEST_PROMTOOL"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def check_expressions(folder: Path, expressions: Iterable[str], rules: Any) -> None:
    """promtool accepts the expressions of panels, and the rules."""
    records = [{"record": f"check:number{number}", "expr": expression} for number, expression in enumerate(expressions)]
    (folder / "panels.yaml").write_text(json.dumps({"groups": [{"name": "panels", "rules": records}]}))
    (folder / "rules.yaml").write_text(json.dumps(rules))
    promtool("check", "rules", folder / "panels.yaml", folder / "rules.yaml")


def check_alerts(folder: Path, rules: Any, scenarios: str) -> None:
    """In these scenarios, promtool lets each alert fire as expected."""
    (folder / "rules.yaml").write_text(json.dumps(rules))
    (folder / "test.yaml").write_text(scenarios.replace("RULES", str(folder / "rules.yaml")))
    promtool("test", "rules", folder / "test.yaml")
    tests = [alert for test in YAML(typ="safe").load(scenarios)["tests"] for alert in test["alert_rule_test"]]
    assert {alert["alertname"] for alert in tests if alert.get("exp_alerts")} == alerts_of(rules)


def alerts_of(rules: Any) -> set[str]:
    return {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}


def check_panels(dashboard: Any) -> None:
    """Panels do not overlap."""
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    cells = [(place["x"] + x, place["y"] + y) for place in places for x in range(place["w"]) for y in range(place["h"])]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def check_uuids(template: Any) -> None:
    """They are of version 4 and unique."""
    uuids = [part["uuid"] for part in below(template) if "uuid" in part]
    assert all(re.fullmatch(r"[0-9a-f]{32}", text) and uuid.UUID(text).version == 4 for text in uuids)
    assert len(uuids) == len(set(uuids)) > 0


# -- writing --


def test_files_are_written_and_changed_ones_are_not_replaced(tmp_path: Path) -> None:
    def watch(*arguments: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "mlops_build", "watch", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    listed = json.loads(watch("files", "--json").stdout)
    written = json.loads(watch("files", str(tmp_path / "new/monitoring"), "--json").stdout)["written"]
    assert {Path(path).name for path in written} == set(listed) == {path.name for path in (tmp_path / "new/monitoring").iterdir()}
    assert watch("files", str(tmp_path / "new/monitoring")).returncode == 0
    changed = tmp_path / "new/monitoring/daemonset.yaml"
    changed.write_text("changed\n")
    refused = watch("files", str(tmp_path / "new/monitoring"))
    assert (refused.returncode, "daemonset.yaml" in refused.stderr, changed.read_text()) == (4, True, "changed\n")
    assert watch("files", str(tmp_path / "new/monitoring"), "--force").returncode == 0
    assert changed.read_text() == shipped.read("daemonset.yaml")
    for name, shown in (("template", "zabbix-template.yaml"), ("userparameters", "zabbix-userparameters.conf")):
        assert watch("zabbix", name).stdout == shipped.read(shown)
    (tmp_path / "file").touch()
    no_folder = watch("files", str(tmp_path / "file"))
    assert (no_folder.returncode, "Traceback" in no_folder.stderr) == (1, False)


@pytest.mark.parametrize("name", shipped.FILES)
def test_a_file_is_of_this_version(name: str) -> None:
    text = shipped.read(name)
    assert "MLOPS_BUILD" not in text
    assert name.startswith("prometheus") or __version__ in text
    if name == "Dockerfile":
        assert f'ARG PACKAGE_SOURCE="mlops-build[watch]=={__version__}"' in text
        assert hadolint(text) == set()


# -- Prometheus and Grafana --


def expressions() -> Iterator[tuple[str, str]]:
    """(location, expression) of each panel and rule."""
    for panel in json.loads(shipped.read("grafana-dashboard.json"))["panels"]:
        for target in panel.get("targets", []):
            yield f"{panel['title']} {target['refId']}", re.sub(r"\$(node|card)\b", ".*", target["expr"])
    for group in load("prometheus-rules.yaml")["groups"]:
        for rule in group["rules"]:
            yield str(rule.get("alert") or rule["record"]), rule["expr"]


def test_expressions_use_only_exported_metrics_with_their_labels_and_all_of_them() -> None:
    used = {where: set(re.findall(r"\b(mlops_gpu_[a-z_]+)", expression)) for where, expression in expressions()}
    for where, names in used.items():
        assert names <= EXPORTED.keys(), where
    for where, expression in expressions():
        for name, labels in re.findall(r"(mlops_gpu_[a-z_]+)\{([^}]*)\}", expression):
            of_sample = set(re.findall(r'([a-z_]+)(?:=~|!~|!=|=)"', labels)) - {"instance"}
            assert of_sample or "instance" in labels, where
            assert of_sample <= set(EXPORTED[name].labels), where
    variables = [variable.get("definition", "") for variable in json.loads(shipped.read("grafana-dashboard.json"))["templating"]["list"]]
    assert {name for text in variables for name in re.findall(r"mlops_gpu_[a-z_]+", text)} <= EXPORTED.keys()
    unused = EXPORTED.keys() - set().union(*used.values())
    # The first two are used only to investigate an alert. The last one is kept for those who use it: a high value is not a fault.
    assert unused == {"mlops_gpu_driver_trouble", "mlops_gpu_service_leases", "mlops_gpu_imbalance_ratio"}


@pytest.mark.slow
def test_promtool_parses_every_panel_and_the_rules(tmp_path: Path) -> None:
    listed = [expression for _, expression in expressions()]
    assert len(listed) > 30
    check_expressions(tmp_path, listed, load("prometheus-rules.yaml"))


@pytest.mark.slow
def test_promtool_accepts_the_scrape_config(tmp_path: Path) -> None:
    entry = load("prometheus-scrape.yaml")[0]
    # Debian's Prometheus is built without Kubernetes; check the rest of the entry.
    assert entry.pop("kubernetes_sd_configs") == [{"role": "pod", "namespaces": {"names": ["gpu-monitoring"]}}]
    (tmp_path / "prometheus.yaml").write_text(json.dumps({"scrape_configs": [{**entry, "static_configs": [{"targets": ["a:9400"]}]}]}))
    promtool("check", "config", "--syntax-only", tmp_path / "prometheus.yaml")
    pod = load("daemonset.yaml")["spec"]["template"]
    keep = {rule["source_labels"][0]: rule["regex"] for rule in load("prometheus-scrape.yaml")[0]["relabel_configs"] if "regex" in rule}
    assert keep["__meta_kubernetes_pod_label_app_kubernetes_io_name"] == pod["metadata"]["labels"]["app.kubernetes.io/name"]
    assert keep["__meta_kubernetes_pod_container_port_name"] == pod["spec"]["containers"][0]["ports"][0]["name"]


@pytest.mark.slow
def test_alerts_fire_when_they_should_and_only_then(tmp_path: Path) -> None:
    check_alerts(tmp_path, load("prometheus-rules.yaml"), (Path(__file__).parent / "rules_test.yaml").read_text())


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    dashboard = json.loads(shipped.read("grafana-dashboard.json"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    check_panels(dashboard)
    variables = {variable["name"] for variable in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]+)", shipped.read("grafana-dashboard.json"))) <= variables


def test_the_page_explains_each_alert_and_names_nothing_else() -> None:
    page = PAGE.read_text()
    assert set(re.findall(r"^\| `(Gpu[A-Za-z]+)`", page, re.MULTILINE)) == alerts_of(load("prometheus-rules.yaml"))
    assert set(re.findall(r"\bmlops_gpu_[a-z_]*[a-z]\b", page)) <= EXPORTED.keys()
    macros = {macro["macro"] for macro in load("zabbix-template.yaml")["zabbix_export"]["templates"][0]["macros"]}
    assert set(re.findall(r"\{\$[A-Z.]+\}", page)) <= macros
    assert set(re.findall(r"`([a-zA-Z-]+\.(?:yaml|json|conf)|Dockerfile)`", page)) - {"service.yaml"} == set(shipped.FILES)


# -- Kubernetes --


def test_the_daemonset_is_valid_and_verify_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "daemonset.yaml").write_text(shipped.read("daemonset.yaml"))
    report = check(tmp_path)
    assert report.objects == 1
    assert not report.findings, report.findings
    pod = load("daemonset.yaml")["spec"]["template"]["spec"]
    assert pod["hostPID"] is True
    assert all(
        {"name": "leases", "mountPath": "/run/mlops-gpu"} in container["volumeMounts"]
        for container in pod["initContainers"] + pod["containers"]
    )


def test_the_init_container_creates_the_directory_with_its_mode(tmp_path: Path) -> None:
    command = load("daemonset.yaml")["spec"]["template"]["spec"]["initContainers"][0]["command"]
    folder = tmp_path / "mlops-gpu"
    for _ in range(2):  # the directory remains when the pod restarts
        subprocess.run([word.replace("/run/mlops-gpu", str(folder)) for word in command], check=True, timeout=20)
        assert folder.stat().st_mode & 0o7777 == 0o1777


def test_the_page_builds_the_image_of_the_manifest_from_sources_that_pip_accepts(tmp_path: Path) -> None:
    page = PAGE.read_text()
    shipped.write(tmp_path / "monitoring")
    command = next(line for line in page.splitlines() if line.startswith("image="))
    done = subprocess.run(["sh", "-c", f'{command}; echo "$image"'], cwd=tmp_path, capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == f"registry.example.com/mlops-build-watch:{__version__}\n"
    arguments = set(re.findall(r"^ARG ([A-Z_]+)", shipped.read("Dockerfile"), re.MULTILINE))
    assert set(re.findall(r"\b([A-Z_]+)=", page.partition("## Graphite")[0])) == arguments
    for source in re.findall(r"`PACKAGE_SOURCE=(mlops[^`]+)`", page):
        assert Requirement(source).extras == {"watch"}


# -- Zabbix: the export format of 6.0. A real server imports it in `make soak` (test_zabbix_server.py). --


def below(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from below(child)


def test_uuids_of_the_template_are_of_version_4_and_unique() -> None:
    template = load("zabbix-template.yaml")
    check_uuids(template)
    # Without "delete missing", an import leaves triggers that the template no longer has: this one fired on well placed nodes.
    (replaced,) = [part for part in below(template) if part.get("uuid") == "4260ce86ca964d78ba569ee452a5d423"]
    assert "movable.lease" in replaced["expression"]


def test_references_of_the_template_resolve() -> None:
    export = load("zabbix-template.yaml")["zabbix_export"]
    assert export["version"] == "6.0"
    template = export["templates"][0]
    rule = template["discovery_rules"][0]
    items = [*template["items"], *rule["item_prototypes"]]
    keys = {item["key"] for item in items}
    assert len(keys) == len(items)
    assert {group["name"] for group in template["groups"]} <= {group["name"] for group in export["groups"]}
    for item in items:
        assert "master_item" not in item or item["master_item"]["key"] in keys
        assert ("master_item" in item) == (item.get("type") == "DEPENDENT")
        assert "valuemap" not in item or item["valuemap"]["name"] in {valuemap["name"] for valuemap in template["valuemaps"]}
        assert ("[{#UUID}]" in item["key"]) == (item in rule["item_prototypes"])
    triggers = [trigger for item in items for kind in ("triggers", "trigger_prototypes") for trigger in item.get(kind, [])]
    named = {(trigger["name"], trigger["expression"]) for trigger in triggers}
    for trigger in triggers:
        references = re.findall(r"\(/([^/]*)/((?:[^\[,)]|\[[^\]]*\])+)", trigger["expression"])
        assert references, trigger
        assert {host for host, _ in references} == {template["template"]}
        assert {key for _, key in references} <= keys, trigger
        assert {(dependency["name"], dependency["expression"]) for dependency in trigger.get("dependencies", [])} <= named
        assert set(re.findall(r"last\(/\{HOST\.HOST\}/([^)]*)\)", trigger.get("event_name", ""))) <= keys
    text = shipped.read("zabbix-template.yaml").partition("      macros:\n")[0]
    assert set(re.findall(r"\{\$[A-Z.]+\}", text)) == {macro["macro"] for macro in template["macros"]}
    graphed = {graph_item["item"]["key"] for graph in rule["graph_prototypes"] for graph_item in graph["graph_items"]}
    assert graphed <= keys


def test_each_thing_to_watch_has_a_trigger() -> None:
    names = [
        trigger["name"]
        for part in below(load("zabbix-template.yaml"))
        for kind in ("triggers", "trigger_prototypes")
        for trigger in part.get(kind, [])
    ]
    for text in (
        "MEMORY.HIGH",
        "MEMORY.WARN",
        "could move",
        "without a lease fill",
        "without a lease grows",
        "is lost or fails",
        "fewer cards",
        "does not answer",
        "do not get enough memory",
    ):
        assert any(text in name for name in names), text


def test_the_templates_agent_keys_are_in_the_parameter_file() -> None:
    parameters = re.findall(r"^UserParameter=([^,]+),", shipped.read("zabbix-userparameters.conf"), re.MULTILINE)
    assert len(parameters) == 2
    template = load("zabbix-template.yaml")["zabbix_export"]["templates"][0]
    for item in (*template["items"], *template["discovery_rules"]):
        if item.get("type") != "DEPENDENT":
            assert re.sub(r"\[.*\]$", "[*]", item["key"]) in parameters
