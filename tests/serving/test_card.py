"""`mlops-build serve` on a simulated node: the lease, the mask, the waiting and the refusals. Real processes, a real driver's interface."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from mlops_build.gpu import testing
from mlops_build.gpu.ledger import Ledger, Promise
from mlops_build.model import files
from mlops_build.packaging.contents import Contents, Model
from tests.conftest import mlops_build
from tests.gpu.conftest import MakeNode, node, simulation
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
    """A build context of a model whose weights are 3 GiB."""
    folder = tmp_path_factory.mktemp("card") / "context"
    model = folder / "models/points"
    model.mkdir(parents=True)
    (model / "MLmodel").write_text(MLMODEL)
    (model / "predictor.py").write_text(PREDICTOR.format(amount=3 * GIB))
    contents = Contents("points", None, "3.11", "2.9.0", (Model("points", 1, files.digest(model)),))
    (folder / "context.json").write_text(json.dumps(contents.as_json()))
    return folder


def on(node: testing.Node, *, cuda: bool = True, **more: str) -> dict[str, str]:
    """The environment of a service there; cuda: with a torch that has CUDA."""
    path = [str(SIMULATED)] if cuda else []
    return {**node.environment, "PYTHONPATH": os.pathsep.join([*path, str(ROOT)]), **more}


def promises(node: testing.Node) -> list[Promise]:
    with Ledger.open(node.environment["MLOPS_GPU_LEASE_DIR"]) as ledger:
        return ledger.promises()


def masked(server: Server) -> str:
    """The cards that the model sees."""
    status, text = ask(f"{server.url}/invocations", BODY)
    assert status == 200, text
    return str(json.loads(text)["predictions"][0]["mask"])


def test_a_service_leases_the_card_with_room_and_sees_no_other(node: MakeNode, context: Path, tmp_path: Path) -> None:
    made = node(testing.SimulatedCard(used="20GiB"), "24GiB")
    second = made.cards[1]
    with serving(tmp_path, str(context), "--port", "0", "--json", "--gpu-memory", "6GiB", **on(made)) as server:
        assert masked(server) == second.uuid
        (promise,) = promises(made)
        assert (promise.uuids, promise.bytes, promise.service, promise.loaded) == ((second.uuid,), 6 * GIB, "points", True)
        assert made.used(1) >= 3 * GIB
        assert made.used(0) == 20 * GIB
        document = json.loads(server.out.read_text())
        assert document["gpu"] == {"cards": [second.uuid], "memory_bytes": 6 * GIB, "lease": promise.id}
        (line,) = re.findall(r"^mlops_build_gpu_promised_bytes(.*) (\S+)$", ask(f"{server.url}/metrics")[1], re.MULTILINE)
        assert (line[0], float(line[1])) == (f'{{card="{second.uuid}"}}', 6 * GIB)
        assert second.uuid in server.log.read_text()
        assert server.stop() == 0
        assert promises(made) == []


def test_a_killed_service_leaves_nothing_behind(node: MakeNode, context: Path, tmp_path: Path) -> None:
    made = node("24GiB")
    with serving(tmp_path, str(context), "--port", "0", "--gpu-memory", "6GiB", **on(made, MLOPS_SERVICE="digits")) as server:
        assert masked(server) == made.cards[0].uuid
        assert [one.service for one in promises(made)] == ["digits"]
        server.stop(signal.SIGKILL)
        assert (promises(made), made.used(0)) == ([], 0)


def test_it_waits_for_the_pod_before_it(node: MakeNode, context: Path, tmp_path: Path) -> None:
    made = node("8GiB")
    before = made.start("6GiB")
    before.wait_for("loaded")
    environment = on(made, MLOPS_DEVICE="gpu", MLOPS_GPU_MODE="shared", MLOPS_GPU_MEMORY="6GiB", MLOPS_GPU_WAIT="120")
    with serving(tmp_path, str(context), "--port", "0", **environment) as server:
        server.wait_for("wait")
        assert "serving" not in server.log.read_text()
        before.terminate()
        assert before.wait(timeout=20) == 0
        assert masked(server) == made.cards[0].uuid


def test_sigterm_ends_the_waiting_too(node: MakeNode, context: Path, tmp_path: Path) -> None:
    made = node(testing.SimulatedCard(total="8GiB", used="6GiB"))
    with serving(tmp_path, str(context), "--port", "0", "--gpu-memory", "6GiB", "--wait", "600", **on(made)) as server:
        server.wait_for("waiting")
        assert server.stop() == 0
        assert "Traceback" not in server.log.read_text()
        assert (promises(made), made.used(0)) == ([], 6 * GIB)


def test_who_outgrows_its_budget_fails_itself(node: MakeNode, context: Path, tmp_path: Path) -> None:
    made = node("24GiB")
    done = mlops_build(tmp_path, "serve", str(context), "--port", "0", "--gpu-memory", "2GiB", expect=1, environment=on(made))
    assert "points cannot be loaded: OutOfMemoryError" in done.stderr
    assert "Traceback" not in done.stderr
    assert (promises(made), made.used(0)) == ([], 0)


def test_no_room_says_of_every_card_why_and_is_never_the_cpu(node: MakeNode, context: Path, tmp_path: Path) -> None:
    made = node(testing.SimulatedCard(used="20GiB"), "24GiB")
    made.lose(1)
    arguments = ("serve", str(context), "--port", "0", "--gpu-memory", "6GiB", "--wait", "0")
    said = mlops_build(tmp_path, *arguments, expect=6, environment=on(made)).stderr
    assert f"{made.cards[0].uuid}: 4.0 GiB of 24.0 GiB left" in said
    assert "fallen off the bus" in said
    assert "--device cpu" in said
    assert "serving" not in said


def test_a_card_of_its_own_needs_no_lease(node: MakeNode, context: Path, tmp_path: Path) -> None:
    """As the device plugin gives it: one of the node's cards, renumbered, no lease directory, no pids."""
    made = node("24GiB", "24GiB", testing.SimulatedCard(used="2GiB"))
    environment = {**made.view(cards=[2], hide_pids=True), "PYTHONPATH": on(made)["PYTHONPATH"], "MLOPS_DEVICE": "gpu"}
    environment["MLOPS_GPU_MODE"] = "exclusive"
    environment["MLOPS_GPU_LEASE_DIR"] = str(tmp_path / "nowhere")
    with serving(tmp_path, str(context), "--port", "0", **environment) as server:
        _ = server.url
        assert made.used(2) >= (2 + 3) * GIB
        log = server.log.read_text()
        assert "should be this service's own, but 2.0 GiB of it are used already" in log
        assert f"device: NVIDIA L4 ({made.cards[2].uuid}), its own" in log
        assert len(log.splitlines()) == 3, f"noise about leases: {log}"
    made.lose(2)
    said = mlops_build(tmp_path, "serve", str(context), "--port", "0", expect=6, environment=environment).stderr
    assert "fallen off the bus" in said


def test_torch_without_cuda_is_told_before_a_card_is_taken(node: MakeNode, context: Path, tmp_path: Path) -> None:
    made = node("24GiB")
    environment = on(made, cuda=False)
    said = mlops_build(tmp_path, "serve", str(context), "--port", "0", "--gpu-memory", "6GiB", expect=6, environment=environment).stderr
    assert "torch here is built without CUDA" in said
    assert not list(Path(environment["MLOPS_GPU_LEASE_DIR"]).iterdir()), "nobody was asked for a card"
