"""`mlops-build serve` on a simulated node: leases, masks, waiting and refusals, with real processes and the driver's real interface."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from mlops_build.gpu import testing
from mlops_build.gpu.ledger import Ledger
from mlops_build.gpu.promise import Promise
from tests.conftest import mlops_build
from tests.gpu.conftest import MakeNode, node, simulation
from tests.serving import models
from tests.serving.conftest import Server, serving
from tests.serving.test_serve import ask

__all__ = ["node", "simulation"]  # fixtures of tests/gpu

SIMULATED = Path(__file__).parent / "simulated"
ROOT = Path(__file__).parents[2]
GIB = 2**30
PREDICTOR = '''
import os

import mlflow
import pandas as pd
import torch


class Predictor(mlflow.pyfunc.PythonModel):
    """Weights of {amount} bytes on cuda:0; it answers with what this process sees."""

    def load_context(self, context):
        torch.allocate({amount})

    def predict(self, context, model_input: pd.DataFrame, params=None):
        return pd.DataFrame({{"mask": [os.environ.get("CUDA_VISIBLE_DEVICES")] * len(model_input)}})


mlflow.models.set_model(Predictor())
'''
MLMODEL = """\
flavors:
  python_function:
    env: {}
    loader_module: mlflow.pyfunc.model
    model_code_path: predictor.py
    python_version: 3.11.0
    streamable: false
"""
BODY = {"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build context for a model with 3 GiB of weights."""
    model = tmp_path_factory.mktemp("card") / "model"
    model.mkdir()
    (model / "MLmodel").write_text(MLMODEL)
    (model / "predictor.py").write_text(PREDICTOR.format(amount=3 * GIB))
    return models.context(model.with_name("context"), points=model)


def on(node: testing.Node, *, cuda: bool = True, **more: str) -> dict[str, str]:
    """The environment of a service on the node. cuda: whether its torch has CUDA."""
    path = [str(SIMULATED)] if cuda else []
    return {**node.environment, "MLOPS_DEVICE": "auto", "PYTHONPATH": os.pathsep.join([*path, str(ROOT)]), **more}


def promises(node: testing.Node) -> list[Promise]:
    with Ledger.open(node.environment["MLOPS_GPU_LEASE_DIR"]) as ledger:
        return ledger.promises()


def masked(server: Server) -> str:
    """The cards that the model sees."""
    status, text = ask(f"{server.url}/invocations", BODY)
    assert status == 200, text
    return str(json.loads(text)["predictions"][0]["mask"])


def test_a_service_leases_the_card_with_room_and_sees_no_other(node: MakeNode, context: Path, tmp_path: Path) -> None:
    machine = node(testing.SimulatedCard(used="20GiB"), "24GiB")
    second = machine.cards[1]
    with serving(tmp_path, str(context), "--json", "--gpu-memory", "6GiB", **on(machine)) as server:
        assert masked(server) == second.uuid
        (promise,) = promises(machine)
        assert (promise.uuids, promise.bytes, promise.service, promise.loaded) == ((second.uuid,), 6 * GIB, "points", True)
        assert machine.used(1) >= 3 * GIB
        assert machine.used(0) == 20 * GIB
        document = json.loads(server.out.read_text())
        assert document["gpu"] == {"cards": [second.uuid], "memory_bytes": 6 * GIB, "lease": promise.id}
        (line,) = re.findall(r"^mlops_build_gpu_promised_bytes(.*) (\S+)$", ask(f"{server.url}/metrics")[1], re.MULTILINE)
        assert (line[0], float(line[1])) == (f'{{card="{second.uuid}"}}', 6 * GIB)
        assert second.uuid in server.log.read_text()
        assert server.stop() == 0
        assert promises(machine) == []


def test_a_killed_service_leaves_no_lease(node: MakeNode, context: Path, tmp_path: Path) -> None:
    machine = node("24GiB")
    with serving(tmp_path, str(context), "--gpu-memory", "6GiB", **on(machine, MLOPS_SERVICE="digits")) as server:
        assert masked(server) == machine.cards[0].uuid
        assert [promise.service for promise in promises(machine)] == ["digits"]
        server.stop(signal.SIGKILL)
        assert (promises(machine), machine.used(0)) == ([], 0)


def test_a_service_waits_for_the_previous_pod(node: MakeNode, context: Path, tmp_path: Path) -> None:
    machine = node("8GiB")
    before = machine.start("6GiB")
    before.wait_for("loaded")
    environment = on(machine, MLOPS_DEVICE="gpu", MLOPS_GPU_MODE="shared", MLOPS_GPU_MEMORY="6GiB", MLOPS_GPU_WAIT="120")
    with serving(tmp_path, str(context), **environment) as server:
        server.wait_for("wait")
        assert "serving" not in server.log.read_text()
        before.terminate()
        assert before.wait(timeout=20) == 0
        assert masked(server) == machine.cards[0].uuid


def test_sigterm_ends_the_wait(node: MakeNode, context: Path, tmp_path: Path) -> None:
    machine = node(testing.SimulatedCard(total="8GiB", used="6GiB"))
    with serving(tmp_path, str(context), "--gpu-memory", "6GiB", "--wait", "600", **on(machine)) as server:
        server.wait_for("waiting")
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
        assert (promises(machine), machine.used(0)) == ([], 6 * GIB)


def test_a_service_that_exceeds_its_budget_fails_alone(node: MakeNode, context: Path, tmp_path: Path) -> None:
    machine = node("24GiB")
    done = mlops_build(tmp_path, "serve", str(context), "--port", "0", "--gpu-memory", "2GiB", expect=1, environment=on(machine))
    assert "points cannot be loaded: OutOfMemoryError" in done.stderr
    assert "Traceback" not in done.stderr
    assert (promises(machine), machine.used(0)) == ([], 0)


def test_without_room_the_reason_for_every_card_is_shown_and_the_cpu_is_not_used(node: MakeNode, context: Path, tmp_path: Path) -> None:
    machine = node(testing.SimulatedCard(used="20GiB"), "24GiB")
    machine.lose(1)
    arguments = ("serve", str(context), "--port", "0", "--gpu-memory", "6GiB", "--wait", "0")
    output = mlops_build(tmp_path, *arguments, expect=6, environment=on(machine)).stderr
    assert f"{machine.cards[0].uuid}: 4.0 GiB of 24.0 GiB left" in output
    assert "fallen off the bus" in output
    assert "--device cpu" in output
    assert "serving" not in output


def test_an_exclusive_card_needs_no_lease(node: MakeNode, context: Path, tmp_path: Path) -> None:
    """A container as the device plugin sets it up: one of the node's cards, renumbered, without a lease directory and without pids."""
    machine = node("24GiB", "24GiB", testing.SimulatedCard(used="2GiB"))
    environment = {**machine.view(cards=[2], hide_pids=True), "PYTHONPATH": on(machine)["PYTHONPATH"], "MLOPS_DEVICE": "gpu"}
    environment["MLOPS_GPU_MODE"] = "exclusive"
    environment["MLOPS_GPU_LEASE_DIR"] = str(tmp_path / "nowhere")
    with serving(tmp_path, str(context), **environment) as server:
        _ = server.url
        assert machine.used(2) >= (2 + 3) * GIB
        log = server.log.read_text()
        assert "should be exclusive to this service, but 2.0 GiB of it are already in use" in log
        assert f"device: NVIDIA L4 ({machine.cards[2].uuid}), exclusive" in log
        assert not re.search(r"\blease", log)
    machine.lose(2)
    output = mlops_build(tmp_path, "serve", str(context), "--port", "0", expect=6, environment=environment).stderr
    assert "fallen off the bus" in output


def test_torch_without_cuda_is_an_error_before_a_card_is_leased(node: MakeNode, context: Path, tmp_path: Path) -> None:
    machine = node("24GiB")
    environment = on(machine, cuda=False)
    output = mlops_build(tmp_path, "serve", str(context), "--port", "0", "--gpu-memory", "6GiB", expect=6, environment=environment).stderr
    assert "the installed torch is built without CUDA" in output
    assert not list(Path(environment["MLOPS_GPU_LEASE_DIR"]).iterdir()), "no lease was requested"
