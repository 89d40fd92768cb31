"""`mlops-build watch exporter` as a process on simulated nodes, scraped as Prometheus does."""

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlops_build.gpu.testing import SimulatedCard
from mlops_build.watch.metrics import METRICS
from tests.gpu.conftest import MakeNode
from tests.watch.zabbix_server import until

GIB = 2**30
# Sample by name and labels: ("mlops_gpu_cards", frozenset()) -> 2.0
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
LEASE = """
import sys
from mlops_build import gpu
with gpu.lease(memory=sys.argv[1], service=sys.argv[2]) as lease:
    print(lease.uuids[0], flush=True)
    sys.stdin.read()
"""


class Exporter:
    """A running exporter."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process = process
        self.url = url

    def text(self) -> str:
        # The bound of a test that would hang: a scrape that blocks on a card that hangs does not answer in this time.
        with urllib.request.urlopen(self.url, timeout=30) as answer:
            return str(answer.read().decode())

    def scrape(self) -> Samples:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }


Start = Callable[[Mapping[str, str]], Exporter]


@pytest.fixture
def exporter() -> Iterator[Start]:
    with ExitStack() as stack:
        yield lambda environment: stack.enter_context(exporting(environment))


@contextmanager
def exporting(environment: Mapping[str, str]) -> Iterator[Exporter]:
    command = [sys.executable, "-m", "mlops_build", "watch", "exporter", "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(command, env=dict(environment), stderr=subprocess.PIPE, text=True)
    assert process.stderr
    try:
        found = None
        while not found and (said := process.stderr.readline()):
            found = re.search(r"listening on (\S+)", said)
        assert found
        yield Exporter(process, found[1])
    finally:
        process.terminate()
        process.wait(20)
        process.stderr.close()


@contextmanager
def leasing(memory: str, service: str, environment: Mapping[str, str]) -> Iterator[str]:
    """A process that holds a lease; gives its card."""
    process = subprocess.Popen(
        [sys.executable, "-c", LEASE, memory, service], env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin
    assert process.stdout
    try:
        yield process.stdout.readline().strip()
    finally:
        process.stdin.close()
        process.wait(20)
        process.stdout.close()


def of(samples: Samples, metric: str, /, **labels: str) -> float | None:
    """The one sample with this name and (at least) these labels; None if there is none."""
    found = [value for (one, its), value in samples.items() if one == metric and labels.items() <= dict(its).items()]
    assert len(found) < 2, found
    return found[0] if found else None


def test_every_metric_is_named_by_the_conventions_and_has_a_help() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"mlops_gpu_[a-z_]+", metric.name)
        assert metric.help.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        unit = re.search(r"_(bytes|seconds|celsius|watts|ratio)(_total)?$", metric.name)
        assert unit or not re.search(r"mib|gib|percent|milli", metric.name)


def test_cards_leases_and_neighbours_are_exported(node: MakeNode, exporter: Start) -> None:
    gpus = node(
        SimulatedCard(total="24GiB", utilisation=37, temperature=61, power_watts=55.5, ecc_errors=2),
        SimulatedCard(total="80GiB", name="NVIDIA H100", temperature=None, power_watts=None, ecc_errors=None, utilisation=None),
    )
    small, large = (card.uuid or "" for card in gpus.cards)
    notebook = gpus.start("6GiB", name="notebook", environment={**gpus.environment, "CUDA_VISIBLE_DEVICES": small})
    notebook.wait_for("loaded")
    started = exporter(gpus.environment)
    with leasing("10GiB", "digits", gpus.environment) as card:
        assert card == large
        samples = until(lambda: now if of(now := started.scrape(), "mlops_gpu_service_leases") else None, "the lease")
        text = started.text()
    assert of(samples, "mlops_gpu_driver_up") == 1
    assert of(samples, "mlops_gpu_cards") == 2
    assert of(samples, "mlops_gpu_memory_total_bytes", uuid=small, index="0", name="NVIDIA L4") == 24 * GIB
    assert of(samples, "mlops_gpu_memory_used_bytes", uuid=small) == 6 * GIB
    assert of(samples, "mlops_gpu_memory_external_bytes", uuid=small) == 6 * GIB
    assert of(samples, "mlops_gpu_neighbour_used_bytes", uuid=small) == 6 * GIB
    assert of(samples, "mlops_gpu_utilisation_ratio", uuid=small) == 0.37
    assert of(samples, "mlops_gpu_temperature_celsius", uuid=small) == 61
    assert of(samples, "mlops_gpu_power_watts", uuid=small) == 55.5
    assert of(samples, "mlops_gpu_ecc_uncorrected_errors_total", uuid=small) == 2
    assert of(samples, "mlops_gpu_imbalance_ratio") == 2
    assert of(samples, "mlops_gpu_service_promised_bytes", uuid=large, service="digits") == 10 * GIB
    assert of(samples, "mlops_gpu_service_leases", uuid=large, service="digits") == 1
    assert of(samples, "mlops_gpu_memory_committed_bytes", uuid=large) == 10 * GIB
    assert of(samples, "mlops_gpu_memory_left_bytes", uuid=large) == 70 * GIB
    assert of(samples, "mlops_gpu_decisions_total", outcome="granted") == 1
    # What a card does not say is absent, not 0.
    for name in ("utilisation_ratio", "temperature_celsius", "power_watts", "ecc_uncorrected_errors_total"):
        assert of(samples, f"mlops_gpu_{name}", uuid=large) is None, name
    # What is exported is what the table has, each with its help.
    assert set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE)) == {metric.name for metric in METRICS}
    # The lease is over.
    assert of(until(lambda: without_lease(started), "the end of the lease"), "mlops_gpu_memory_left_bytes", uuid=large) == 80 * GIB


def without_lease(started: Exporter) -> Samples | None:
    samples = started.scrape()
    return samples if of(samples, "mlops_gpu_service_leases") is None else None


def test_a_card_in_trouble_is_told_of_and_hides_no_other(node: MakeNode, exporter: Start) -> None:
    gpus = node("24GiB", "24GiB", SimulatedCard(memory_supported=False))
    lost, well, unsized = (card.uuid or "" for card in gpus.cards)
    started = exporter(gpus.environment)
    samples = started.scrape()
    assert of(samples, "mlops_gpu_trouble", uuid=unsized, reason="memory not supported") == 1
    assert of(samples, "mlops_gpu_memory_used_bytes", uuid=unsized) is None
    assert of(samples, "mlops_gpu_trouble", uuid=lost) is None
    gpus.lose(0)
    samples = until(lambda: told(started, "lost"), "the lost card")
    assert of(samples, "mlops_gpu_trouble", uuid=lost, index="0") == 1
    assert of(samples, "mlops_gpu_memory_used_bytes", uuid=lost) is None
    assert of(samples, "mlops_gpu_memory_used_bytes", uuid=well) == 0
    assert of(samples, "mlops_gpu_cards") == 3
    assert of(samples, "mlops_gpu_cards_ready") == 1


def told(started: Exporter, reason: str) -> Samples | None:
    samples = started.scrape()
    return samples if of(samples, "mlops_gpu_trouble", reason=reason) else None


def test_a_card_that_hangs_blocks_no_scrape(node: MakeNode, exporter: Start) -> None:
    gpus = node("24GiB", "24GiB")
    hanging, well = (card.uuid or "" for card in gpus.cards)
    started = exporter(gpus.environment)
    assert of(started.scrape(), "mlops_gpu_memory_used_bytes", uuid=hanging) == 0
    gpus.fault(0, delay_ms=120_000)
    samples = until(lambda: told(started, "does not answer"), "the card that hangs")
    assert of(samples, "mlops_gpu_trouble", uuid=hanging) == 1
    assert of(samples, "mlops_gpu_memory_used_bytes", uuid=hanging) is None
    assert of(samples, "mlops_gpu_memory_used_bytes", uuid=well) == 0
    gpus.restore()


def test_without_a_driver_it_says_so_and_finds_it_again(node: MakeNode, exporter: Start) -> None:
    gpus = node("24GiB")
    gpus.fail_init(9)
    started = exporter(gpus.environment)
    samples = started.scrape()
    assert of(samples, "mlops_gpu_driver_up") == 0
    assert of(samples, "mlops_gpu_driver_trouble", reason="driver not loaded") == 1
    assert of(samples, "mlops_gpu_cards") is None
    assert of(samples, "mlops_gpu_memory_used_bytes") is None
    gpus.restore()
    samples = until(lambda: now if of(now := started.scrape(), "mlops_gpu_driver_up") else None, "the driver")
    assert of(samples, "mlops_gpu_cards") == 1


def test_a_driver_that_hangs_blocks_no_scrape(node: MakeNode, exporter: Start) -> None:
    gpus = node("24GiB")
    gpus.fault(None, "nvmlDeviceGetCount", delay_ms=120_000)
    samples = exporter(gpus.environment).scrape()
    assert of(samples, "mlops_gpu_driver_up") == 0
    assert of(samples, "mlops_gpu_driver_trouble", reason="does not answer") == 1
    gpus.restore()


def test_a_driver_that_hangs_for_ever_does_not_fill_the_process_with_threads(node: MakeNode, run_python: Callable[..., str]) -> None:
    gpus = node("24GiB")
    gpus.fault(None, "nvmlDeviceGetCount", delay_ms=600_000)
    script = """
import threading
from mlops_build.watch.node import Watcher
watcher = Watcher(fresh=0, patience=5, nvml_seconds=0.01)
looks = [watcher.look() for _ in range(120)]
assert all(seen.driver == "does not answer" and not seen.cards for seen in looks), looks
print(threading.active_count())
"""
    assert int(run_python(script, gpus.environment)) < 60
    gpus.restore()


def test_refusals_are_counted(node: MakeNode, exporter: Start) -> None:
    gpus = node("8GiB")
    started = exporter(gpus.environment)
    assert of(started.scrape(), "mlops_gpu_refusals_total") == 0
    refused = subprocess.run(
        [sys.executable, "-c", LEASE, "20GiB", "large"], env=gpus.environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert "NoRoom" in refused.stderr
    assert until(lambda: of(started.scrape(), "mlops_gpu_refusals_total") or None, "the refusal") == 1


def test_what_neighbours_used_is_kept_for_everybody(node: MakeNode, exporter: Start) -> None:
    gpus = node("24GiB")
    # Where processes can be seen, one that is gone is not counted any more; here they cannot.
    started = exporter(gpus.view(hide_pids=True))
    notebook = gpus.start("6GiB", name="notebook")
    notebook.wait_for("loaded")

    def remembered() -> int | None:
        started.scrape()
        kept = [json.loads(path.read_text()) for path in Path(gpus.environment["MLOPS_GPU_LEASE_DIR"]).glob("peaks-*.json")]
        sizes = [numbers[0] for document in kept for card in document["cards"].values() for numbers in card.values()]
        return max(sizes, default=0) or None

    assert until(remembered, "the peak") == 6 * GIB
    notebook.terminate()
    notebook.wait(20)
    samples = until(lambda: now if of(now := started.scrape(), "mlops_gpu_memory_used_bytes") == 0 else None, "the end of the notebook")
    assert of(samples, "mlops_gpu_memory_external_bytes") == 0
    assert (of(samples, "mlops_gpu_memory_external_counted_bytes") or 0) > 5 * GIB


def test_without_a_lease_directory_cards_are_exported_all_the_same(node: MakeNode, exporter: Start, tmp_path: Path) -> None:
    gpus = node("24GiB")
    samples = exporter({**gpus.environment, "MLOPS_GPU_LEASE_DIR": str(tmp_path / "none")}).scrape()
    assert of(samples, "mlops_gpu_lease_directory_up") == 0
    assert of(samples, "mlops_gpu_memory_left_bytes") == 24 * GIB


def test_a_typing_error_in_the_administrators_file_blinds_nobody(node: MakeNode, exporter: Start) -> None:
    gpus = node("24GiB")
    Path(gpus.environment["MLOPS_GPU_CONFIG"]).write_text("[[neighbour\n")
    samples = exporter(gpus.environment).scrape()
    assert of(samples, "mlops_gpu_driver_up") == 1
    assert of(samples, "mlops_gpu_memory_left_bytes") == 24 * GIB


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(node: MakeNode, exporter: Start, number: signal.Signals) -> None:
    started = exporter(node("24GiB").environment)
    started.scrape()
    started.process.send_signal(number)
    assert started.process.wait(20) == 0
    assert started.process.stderr
    assert started.process.stderr.read() == ""


def test_a_port_that_is_taken_is_an_error_with_a_remedy(node: MakeNode) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "mlops_build", "watch", "exporter", "--host", "127.0.0.1", "--port", str(taken.getsockname()[1])]
        done = subprocess.run(command, env=node("24GiB").environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "another --port" in done.stderr
    assert "Traceback" not in done.stderr
