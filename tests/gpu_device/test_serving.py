"""A service on a real card: batches, one copy of the model however many ask, memory that runs out, a card that is lost. What needs no card
of this is in tests/serving/test_http.py and test_card.py, with simulated ones."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import models
from tests.serving.conftest import Server, serving
from tests.serving.test_http import ask, body

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("torch_card")]

# 512 MiB of weights. The first column: -3 asks for more memory than a card has, -4 reads beyond a tensor on the card.
MODEL = """
    def load_context(self, context):
        import torch

        self.weight = torch.ones(1 << 27, device="cuda:0")

    def predict(self, context, data, params=None):
        import torch

        first = torch.tensor(data["a"].to_numpy(), device="cuda:0")
        if bool((first == -3).any()):
            torch.empty(1 << 44, dtype=torch.uint8, device="cuda:0")
        if bool((first == -4).any()):
            self.weight[torch.tensor([1 << 40], device="cuda:0")].sum().item()
        return (first * self.weight[0]).tolist()
"""
OOM, FATAL = -3, -4
WEIGHTS = 1 << 29


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gpu-serving") / "saved"
    models.save(folder, models.FLOATS, MODEL)
    return folder / "model"


@pytest.fixture
def server(folder: Path, tmp_path: Path, environment: dict[str, str]) -> Iterator[Server]:
    leases = environment["MLOPS_GPU_LEASE_DIR"]
    options = ["--port", "0", "--device", "gpu", "--rows-independent", "a function of each row"]
    with serving(tmp_path / "served", str(folder), *options, MLOPS_GPU_LEASE_DIR=leases, MLOPS_GPU_MEMORY="3GiB") as started:
        assert started.url
        yield started


def figure(server: Server, name: str) -> float:
    match = re.search(rf"^{re.escape(name)} (\S+)$", ask(server, b"", "GET", "/metrics")[2].decode(), re.MULTILINE)
    assert match, name
    return float(match[1])


def ask_by(server: Server, clients: int, times: int) -> Counter[int]:
    statuses: Counter[int] = Counter()

    def client() -> None:
        for _ in range(times):
            statuses[ask(server, body(1.5))[0]] += 1

    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return statuses


def test_64_clients_receive_batched_answers_of_one_copy_of_the_model(server: Server) -> None:
    assert ask(server, body(1.5))[2] == b'{"predictions":[1.5]}'
    alone = figure(server, "mlops_build_gpu_torch_bytes")
    assert WEIGHTS <= alone < 2 * WEIGHTS
    batches = figure(server, 'mlops_build_batch_rows_count{model="model"}')
    assert ask_by(server, 64, 20) == {200: 64 * 20}
    assert figure(server, 'mlops_build_batch_rows_count{model="model"}') - batches < 64 * 20, "some requests were batched"
    assert figure(server, "mlops_build_gpu_torch_bytes") < 2 * WEIGHTS, "the weights are in memory once for any number of clients"


def test_out_of_memory_is_503_and_counted_and_the_process_continues(server: Server) -> None:
    status, headers, text = ask(server, body(OOM))
    assert (status, headers["retry-after"]) == (503, "1")
    assert json.loads(text)["error_code"] == "RESOURCE_EXHAUSTED"
    assert figure(server, 'mlops_build_refused_total{model="model",why="out of memory"}') == 1
    assert ask(server, body(1.5))[0] == 200


def test_a_card_that_is_lost_to_the_process_ends_it(server: Server) -> None:
    assert ask(server, body(FATAL))[0] == 503
    assert server.process.wait(timeout=60) == 1
    assert "can no longer use its card" in server.log.read_text()
