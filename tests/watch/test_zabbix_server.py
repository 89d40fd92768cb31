"""A real Zabbix server with our template and the real agent: discovery, values and triggers. `make soak`: a minute."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_build.watch import shipped
from tests.gpu.conftest import MakeNode
from tests.gpu.holder import Start
from tests.watch.agent import running
from tests.watch.conftest import program
from tests.watch.zabbix_server import Zabbix, until, zabbix

BOTH = {"createMissing": True, "updateExisting": True}
RULES = dict.fromkeys(("groups", "templates", "items", "triggers", "discoveryRules", "valueMaps", "graphs"), BOTH)
# Shorter intervals than the defaults, set with the macros of the template.
QUICK = {"INTERVAL": "2s", "DISCOVERY": "3s", "FOR": "2s", "IMBALANCE.FOR": "2s"}
MOVABLE = "GPU: could move to a card with more room"


@pytest.mark.soak
def test_the_template_discovers_cards_and_triggers_when_one_is_full_or_lost(
    node: MakeNode, lease: Start, commands: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    packages = Path(program("MLOPS_TEST_ZABBIX_SERVER"))
    began = time.monotonic()
    gpus = node("24GiB", "24GiB", "24GiB")
    environment = {**gpus.environment, "PATH": f"{commands}:{os.environ['PATH']}"}
    with zabbix(packages) as server, running(program("MLOPS_TEST_ZABBIX_AGENTD"), tmp_path / "agent", environment) as port:
        up = time.monotonic()
        template = shipped.read("zabbix-template.yaml")
        for _ in range(2):  # the second import updates the first
            assert server.api("configuration.import", format="yaml", source=template, rules=RULES) is True
        host = _host(server, port)
        items = until(lambda: _items(server, host, len(gpus.cards)), "items of every card, with values")
        for card in gpus.cards:
            assert float(items[f"mlops.gpu.memory.total[{card.uuid}]"]["lastvalue"]) == 24 * 2**30
            assert items[f"mlops.gpu.temperature[{card.uuid}]"]["lastvalue"] == "40"
        assert items["mlops.gpu.cards"]["lastvalue"] == "3"
        unsupported = [item for item in items.values() if item["state"] != "0"]
        assert not unsupported, unsupported
        assert _problems(server, host) == set()
        discovered = time.monotonic()

        # Without a lease on the first card, beside a lease; the other cards have room.
        holder = lease(gpus.environment, memory="1GiB", service="digits")
        assert holder.answer["uuids"] == [gpus.cards[0].uuid]
        notebooks = [gpus.start("11GiB", name=f"notebook{number}") for number in range(2)]
        for notebook in notebooks:
            notebook.wait_for("loaded")
        filled = "GPU: processes without a lease fill a card while another has room"
        expected = {"GPU 0: memory is at least 90 % full", "GPU 0: memory used without a lease grows", filled, MOVABLE}
        until(lambda: expected <= _names(server, host) or None, f"the triggers {expected}")
        assert f"{MOVABLE}: digits on card 0 (1.0 GiB)" in _problems(server, host)
        # Only the trigger of the higher threshold fires.
        assert "GPU 0: memory is at least 80 % full" not in _problems(server, host)
        rang = time.monotonic()
        for notebook in notebooks:
            notebook.terminate()
            notebook.wait(20)
        holder.kill()
        gpus.lose(2)
        lost = "GPU: card 2: lost: has fallen off the bus: reset the card or reboot the node"
        until(lambda: (lost in _problems(server, host) and not {filled, MOVABLE} & _names(server, host)) or None, lost)
        gpus.restore()
        until(lambda: lost not in _problems(server, host) or None, "the end of the problem")
        gpus.fail_init(9)
        down = "GPU: driver not loaded: the NVIDIA driver's kernel module is not loaded"
        until(lambda: down in _problems(server, host) or None, down)
        outcome = {
            "zabbix": server.version,
            "postgresql": _version(server),
            "server up": f"{up - began:.0f} s",
            "cards found, with values": f"{discovered - up:.0f} s",
            "triggers fired": f"{rang - discovered:.0f} s",
            "all": f"{time.monotonic() - began:.0f} s",
        }
        print(json.dumps(outcome))
        record_property("zabbix", json.dumps(outcome))


def _host(server: Zabbix, port: int) -> str:
    group = server.api("hostgroup.create", name="GPU nodes")["groupids"][0]
    template = server.api("template.get", filter={"host": ["mlops-build GPU node"]})[0]["templateid"]
    return str(
        server.api(
            "host.create",
            host="node",
            groups=[{"groupid": group}],
            templates=[{"templateid": template}],
            interfaces=[{"type": 1, "main": 1, "useip": 1, "ip": "127.0.0.1", "dns": "", "port": str(port)}],
            macros=[{"macro": f"{{$MLOPS.GPU.{name}}}", "value": value} for name, value in QUICK.items()],
        )["hostids"][0]
    )


def _items(server: Zabbix, host: str, cards: int) -> dict[str, dict[str, str]] | None:
    items = {item["key_"]: item for item in server.api("item.get", hostids=[host], output=["key_", "lastvalue", "lastclock", "state"])}
    # The document itself is not stored (history 0); the values are written to the database one after the other.
    pending = [key for key, item in items.items() if item["lastclock"] == "0" and key != "mlops.gpu[node]"]
    discovered = [key for key in items if key.startswith("mlops.gpu.memory.used[")]
    return items if len(discovered) == cards and not pending else None


def _problems(server: Zabbix, host: str) -> set[str]:
    return {problem["name"] for problem in server.api("problem.get", hostids=[host], output=["name"], suppressed=None)}


def _names(server: Zabbix, host: str) -> set[str]:
    """The problems; those of services and programs without their list."""
    problems = _problems(server, host)
    return problems | {problem.rpartition(": ")[0] for problem in problems if " on card " in problem}


def _version(server: Zabbix) -> str:
    done = subprocess.run([server.postgres, "--version"], capture_output=True, text=True, check=True, timeout=20)
    return done.stdout.split()[2]
