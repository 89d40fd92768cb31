"""Load slots: how many services load onto a card at the same time."""

import json
import os
import select
from pathlib import Path

import pytest

from mlops_build.gpu import loading
from mlops_build.gpu.ledger import Ledger
from tests.gpu.nodes import GIB, promises


def test_a_service_says_when_it_has_loaded(node, lease) -> None:
    machine = node("24GiB")
    holder = lease(machine.environment, memory="6GiB")
    assert holder.do("with lease.loading(): raise OSError('no such model')")["error"] == "OSError"
    assert not promises(machine)[0].loaded
    assert holder.do(f"with lease.loading(): allocate({GIB})") == {"done": True}, "the load slot is free again"
    assert promises(machine)[0].loaded
    machine.fail_init(18)
    assert holder.do("with lease.loading(): pass") == {"done": True}, "a driver that stops answering does not prevent loading"
    assert "is not reported" in holder.end()


def test_one_service_at_a_time_loads_onto_a_card(node, lease) -> None:
    machine = node("24GiB")
    first, second = (lease(machine.environment, memory="1GiB") for _ in range(2))
    enter = "slots = lease.loading(); slots.__enter__()"
    assert first.do(enter) == {"done": True}
    second.tell(enter)
    assert "waiting to load onto" in second.stderr.readline()
    assert not select.select([second.stdout], [], [], 0.3)[0]
    first.kill()
    assert json.loads(second.line()) == {"done": True}, "the slot of an ended process is free"


def test_the_administrator_sets_how_many_services_load(node, lease) -> None:
    machine = node("24GiB")
    (machine.directory / "mlops-gpu.toml").write_text("loading = 2\n")
    holders = [lease(machine.environment, memory="1GiB") for _ in range(2)]
    for holder in holders:
        assert holder.do("slots = lease.loading(); slots.__enter__()") == {"done": True}


def test_a_service_that_hangs_while_loading_delays_others_only_for_a_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Ledger.open(tmp_path) as ledger:
        first = loading.enter(ledger, ["GPU-a", "GPU-b"])
        assert len(first) == 2
        second = loading.enter(ledger, ["GPU-b", "MIG-GPU-c/1/0"], 0.3)
        assert len(second) == 1
        assert "loading onto GPU-b without a load slot" in caplog.text
        for descriptor in first + second:
            os.close(descriptor)
        third = loading.enter(ledger, ["GPU-a", "GPU-b"], 0)
        assert len(third) == 2
        for descriptor in third:
            os.close(descriptor)


def test_a_load_slot_that_is_not_a_regular_file_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "load-GPU-a-0")
    with Ledger.open(tmp_path) as ledger:
        assert loading.enter(ledger, ["GPU-a"], 60) == []
    assert "loading without a load slot" in caplog.text
