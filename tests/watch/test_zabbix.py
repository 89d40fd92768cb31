"""Values for Zabbix's agent: by our command, and through the real zabbix_agentd and zabbix_get."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from mlops_build.errors import UsageError
from mlops_build.gpu import testing
from mlops_build.watch import shipped
from mlops_build.watch.zabbix import CARD, NODE, parse_key
from tests.watch.agent import running
from tests.watch.conftest import program

GIB = 2**30


@pytest.fixture(scope="module")
def gpus(simulation: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[testing.Node]:
    """Two cards, one with 6 GiB in use."""
    cards = [testing.SimulatedCard(total="24GiB", temperature=61, used="6GiB", power_watts=None), "24GiB"]
    with testing.Node(cards, directory=tmp_path_factory.mktemp("node") / "n") as gpu_node:
        yield gpu_node


@pytest.fixture(scope="module")
def environment(gpus: testing.Node, commands: Path) -> Mapping[str, str]:
    return {**gpus.environment, "PATH": f"{commands}:{os.environ['PATH']}"}


def watch_zabbix(environment: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mlops_build", "watch", "zabbix", *arguments]
    done = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done


def test_discovery_names_each_card_by_its_uuid(gpus: testing.Node, environment: Mapping[str, str]) -> None:
    discovered = json.loads(watch_zabbix(environment, "discovery").stdout)
    assert [card["{#UUID}"] for card in discovered] == [card.uuid for card in gpus.cards]
    assert discovered[1] == {"{#UUID}": gpus.cards[1].uuid, "{#INDEX}": "1", "{#NAME}": "NVIDIA L4", "{#MIG}": ""}


def test_values_by_key(gpus: testing.Node, environment: Mapping[str, str]) -> None:
    uuid = gpus.cards[0].uuid
    everything = json.loads(watch_zabbix(environment, "get", "node").stdout)
    assert everything["cards"] == 2
    assert everything["imbalance"] == 2
    assert everything["cards_by_uuid"][uuid]["memory_used"] == 6 * GIB
    assert everything["cards_by_uuid"][uuid]["memory_percent"] == 25
    # Unknown values are left out, so that Zabbix stores nothing instead of 0.
    assert "power" not in everything["cards_by_uuid"][uuid]
    assert watch_zabbix(environment, "get", f"memory.used[{uuid}]").stdout == f"{6 * GIB}\n"
    assert watch_zabbix(environment, "get", "cards[]").stdout == "2\n"
    assert json.loads(watch_zabbix(environment, "get", "ready", "--json").stdout) == {"key": "ready", "value": "2"}


INVALID = ("memory.used", "nonsense[GPU-1]", "cards[GPU-1]", "cards; id", "memory.used[$(id)]", "memory.used[GPU-1", "", "x" * 5000)


def test_a_key_that_has_no_value_is_an_error(gpus: testing.Node, environment: Mapping[str, str]) -> None:
    for key in INVALID:
        with pytest.raises(UsageError) as refused:
            parse_key(key)
        assert len(refused.value.message) < 500
    for key in ("memory.used[GPU-00000000]", f"power[{gpus.cards[0].uuid}]"):
        done = watch_zabbix(environment, "get", key)
        assert (done.returncode, done.stdout) == (3, "ZBX_NOTSUPPORTED\n")
        assert len(done.stderr) < 1000
    assert watch_zabbix(environment, "get", "cards; id").returncode == 2


def test_without_a_driver_discovery_is_not_supported(simulation: Path, tmp_path: Path) -> None:
    """Zabbix would delete the items of the cards after an empty list."""
    with testing.Node(["24GiB"], directory=tmp_path / "n") as gpu_node:
        gpu_node.fail_init(9)
        done = watch_zabbix(gpu_node.environment, "discovery")
        assert (done.returncode, done.stdout) == (3, "ZBX_NOTSUPPORTED\n")
        assert watch_zabbix(gpu_node.environment, "get", "driver").stdout == "0\n"
        everything = json.loads(watch_zabbix(gpu_node.environment, "get", "node").stdout)
    assert everything["driver_why"].startswith("driver not loaded")
    assert "cards" not in everything


def test_every_path_of_the_template_leads_to_a_value(gpus: testing.Node, environment: Mapping[str, str]) -> None:
    """Dependent items are extracted from the node's document."""
    everything = {name.replace(".", "_") for name in NODE}
    of_card = {name.replace(".", "_") for name in CARD}
    template = YAML(typ="safe").load(shipped.read("zabbix-template.yaml"))["zabbix_export"]["templates"][0]
    paths = [item["preprocessing"][0]["parameters"][0] for item in template["items"] if item.get("type") == "DEPENDENT"]
    assert {path.removeprefix("$.") for path in paths} <= everything
    assert len(paths) == len(set(paths))
    prototypes = template["discovery_rules"][0]["item_prototypes"]
    begin = '$.cards_by_uuid["{#UUID}"].'
    parts = [item["preprocessing"][0]["parameters"][0] for item in prototypes]
    assert all(part.startswith(begin) for part in parts)
    assert {part.removeprefix(begin) for part in parts} <= of_card
    document = json.loads(watch_zabbix(environment, "get", "node").stdout)
    assert set(document) == everything | {"cards_by_uuid"}
    assert set(document["cards_by_uuid"][gpus.cards[1].uuid]) == of_card


@pytest.mark.slow
def test_the_real_agent_answers_every_key(gpus: testing.Node, environment: Mapping[str, str], tmp_path: Path) -> None:
    get = program("MLOPS_TEST_ZABBIX_GET")
    first, second = (card.uuid for card in gpus.cards)
    template = YAML(typ="safe").load(shipped.read("zabbix-template.yaml"))["zabbix_export"]["templates"][0]
    agent_keys = [item["key"] for item in (*template["items"], *template["discovery_rules"]) if item.get("type") != "DEPENDENT"]
    assert agent_keys == ["mlops.gpu[node]", "mlops.gpu.discovery"]
    with running(program("MLOPS_TEST_ZABBIX_AGENTD"), tmp_path, environment) as port:

        def value(key: str) -> str:
            command = [get, "-s", "127.0.0.1", "-p", str(port), "-k", key]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()

        assert json.loads(value("mlops.gpu[node]"))["cards"] == 2
        assert len(json.loads(value("mlops.gpu.discovery"))) == 2
        assert value("mlops.gpu[imbalance]") == "2.0"
        assert value(f"mlops.gpu[memory.used,{first}]") == str(6 * GIB)
        assert value(f"mlops.gpu[memory.left,{second}]") == str(24 * GIB)
        assert value("mlops.gpu[memory.used,GPU-none]").startswith("ZBX_NOTSUPPORTED")
        # The agent passes nothing to the shell.
        harmful = tmp_path / "harmed"
        assert value(f'mlops.gpu["cards;touch {harmful}"]').startswith("ZBX_NOTSUPPORTED")
        assert value(f'mlops.gpu["$(touch {harmful})"]').startswith("ZBX_NOTSUPPORTED")
        assert not harmful.exists()
