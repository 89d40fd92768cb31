"""`mlops-build watch exporter` as a process on simulated nodes, scraped as Prometheus does."""

import json
import re
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mlops_build.gpu.peaks import SETTLE_SECONDS
from mlops_build.gpu.testing import SimulatedCard
from mlops_build.watch.metrics import METRICS
from tests.gpu.conftest import MakeNode
from tests.gpu.holder import Script, Start
from tests.gpu.nodes import backdate
from tests.watch.zabbix_server import until

GIB = 2**30
# Sample by name and labels: ("mlops_gpu_cards", frozenset()) -> 2.0
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class Exporter:
    """A running exporter."""

    def __init__(self, process: Script) -> None:
        self.process = process
        match = None
        while not match and (line := process.stderr.readline()):
            match = re.search(r"listening on (\S+)", line)
        assert match
        self.url = match[1]

    def text(self) -> str:
        # Ends a test whose scrape blocks on a hanging card.
        with urllib.request.urlopen(self.url, timeout=30) as answer:
            return str(answer.read().decode())

    def scrape(self) -> Samples:
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(self.text())
            for sample in family.samples
        }

    def until(self, metric: str, value: float | None, /, **labels: str) -> Samples:
        """Scrape until a metric has a value."""

        def reached() -> Samples | None:
            samples = self.scrape()
            return samples if value_of(samples, metric, **labels) == value else None

        return until(reached, f"{metric} {value}")


Export = Callable[[Mapping[str, str]], Exporter]
COMMAND = [sys.executable, "-m", "mlops_build", "watch", "exporter", "--host", "127.0.0.1", "--port"]


@pytest.fixture
def exporter(start: Start) -> Export:
    return lambda environment: Exporter(start([*COMMAND, "0"], environment))


def value_of(samples: Samples, metric: str, /, **labels: str) -> float | None:
    """The value of the only sample with this name and (at least) these labels; None if there is none."""
    values = [value for (name, of_sample), value in samples.items() if name == metric and labels.items() <= dict(of_sample).items()]
    assert len(values) < 2, values
    return values[0] if values else None


def test_every_metric_is_named_by_the_conventions_and_has_a_help() -> None:
    for metric in METRICS:
        assert re.fullmatch(r"mlops_gpu_[a-z_]+", metric.name)
        assert metric.help.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        unit = re.search(r"_(bytes|seconds|celsius|watts|ratio)(_total)?$", metric.name)
        assert unit or not re.search(r"mib|gib|percent|milli", metric.name)


def test_cards_leases_and_neighbours_are_exported(node: MakeNode, exporter: Export, lease: Start) -> None:
    gpus = node(
        SimulatedCard(total="24GiB", utilisation=37, temperature=61, power_watts=55.5, ecc_errors=2),
        SimulatedCard(total="80GiB", name="NVIDIA H100", temperature=None, power_watts=None, ecc_errors=None, utilisation=None),
    )
    small, large = (card.uuid or "" for card in gpus.cards)
    notebook = gpus.start("6GiB", name="notebook", environment={**gpus.environment, "CUDA_VISIBLE_DEVICES": small})
    notebook.wait_for("loaded")
    started = exporter(gpus.environment)
    holder = lease(gpus.environment, memory="10GiB", service="digits")
    assert holder.answer["uuids"] == [large]
    samples = started.until("mlops_gpu_service_leases", 1)
    text = started.text()
    assert value_of(samples, "mlops_gpu_driver_up") == 1
    assert value_of(samples, "mlops_gpu_cards") == 2
    assert value_of(samples, "mlops_gpu_memory_total_bytes", uuid=small, index="0", name="NVIDIA L4") == 24 * GIB
    assert value_of(samples, "mlops_gpu_memory_used_bytes", uuid=small) == 6 * GIB
    assert value_of(samples, "mlops_gpu_memory_external_bytes", uuid=small) == 6 * GIB
    assert value_of(samples, "mlops_gpu_neighbour_used_bytes", uuid=small) == 6 * GIB
    assert value_of(samples, "mlops_gpu_utilisation_ratio", uuid=small) == 0.37
    assert value_of(samples, "mlops_gpu_temperature_celsius", uuid=small) == 61
    assert value_of(samples, "mlops_gpu_power_watts", uuid=small) == 55.5
    assert value_of(samples, "mlops_gpu_ecc_uncorrected_errors_total", uuid=small) == 2
    assert value_of(samples, "mlops_gpu_imbalance_ratio") == 2
    assert value_of(samples, "mlops_gpu_service_promised_bytes", uuid=large, service="digits") == 10 * GIB
    assert value_of(samples, "mlops_gpu_service_leases", uuid=large, service="digits") == 1
    assert value_of(samples, "mlops_gpu_memory_committed_bytes", uuid=large) == 10 * GIB
    assert value_of(samples, "mlops_gpu_memory_left_bytes", uuid=large) == 70 * GIB
    assert value_of(samples, "mlops_gpu_movable_lease_bytes", uuid=large) == 0
    assert value_of(samples, "mlops_gpu_service_movable_bytes", uuid=large, service="digits") == 0
    assert value_of(samples, "mlops_gpu_decisions_total", outcome="granted") == 1
    # An unknown value is absent, not 0.
    for name in ("utilisation_ratio", "temperature_celsius", "power_watts", "ecc_uncorrected_errors_total"):
        assert value_of(samples, f"mlops_gpu_{name}", uuid=large) is None, name
    # All metrics of the table are exported, with their help.
    assert set(re.findall(r"^# HELP (\S+) \S", text, re.MULTILINE)) == {metric.name for metric in METRICS}
    holder.kill()
    assert value_of(started.until("mlops_gpu_service_leases", None), "mlops_gpu_memory_left_bytes", uuid=large) == 80 * GIB


def test_faults_are_reported_until_they_end_and_hide_nothing_else(node: MakeNode, exporter: Export) -> None:
    gpus = node("24GiB", "24GiB", SimulatedCard(memory_supported=False))
    faulty, well, unsized = (card.uuid or "" for card in gpus.cards)
    gpus.fail_init(9)
    started = exporter(gpus.environment)
    samples = started.scrape()
    assert value_of(samples, "mlops_gpu_driver_up") == 0
    assert value_of(samples, "mlops_gpu_driver_trouble", reason="driver not loaded") == 1
    assert value_of(samples, "mlops_gpu_cards") is None
    assert value_of(samples, "mlops_gpu_memory_used_bytes") is None
    gpus.restore()
    samples = started.until("mlops_gpu_driver_up", 1)
    assert value_of(samples, "mlops_gpu_trouble", uuid=unsized, reason="memory not supported") == 1
    assert value_of(samples, "mlops_gpu_memory_used_bytes", uuid=unsized) is None
    assert value_of(samples, "mlops_gpu_trouble", uuid=faulty) is None
    for fault, reason in ((lambda: gpus.lose(0), "lost"), (lambda: gpus.fault(0, delay_ms=120_000), "does not answer")):
        fault()
        samples = started.until("mlops_gpu_trouble", 1, uuid=faulty, reason=reason)
        assert value_of(samples, "mlops_gpu_memory_used_bytes", uuid=faulty) is None
        assert value_of(samples, "mlops_gpu_memory_used_bytes", uuid=well) == 0
        assert (value_of(samples, "mlops_gpu_cards"), value_of(samples, "mlops_gpu_cards_ready")) == (3, 1)
        gpus.restore()
        started.until("mlops_gpu_trouble", None, uuid=faulty)


def test_a_driver_that_hangs_blocks_no_scrape(node: MakeNode, exporter: Export) -> None:
    gpus = node("24GiB")
    gpus.fault(None, "nvmlDeviceGetCount", delay_ms=120_000)
    samples = exporter(gpus.environment).scrape()
    assert value_of(samples, "mlops_gpu_driver_up") == 0
    assert value_of(samples, "mlops_gpu_driver_trouble", reason="does not answer") == 1
    gpus.restore()


def test_a_driver_that_hangs_for_ever_does_not_fill_the_process_with_threads(node: MakeNode, run_python: Callable[..., str]) -> None:
    gpus = node("24GiB")
    gpus.fault(None, "nvmlDeviceGetCount", delay_ms=600_000)
    script = """
import threading
from mlops_build.watch.node import Watcher
watcher = Watcher(fresh=0, patience=5, nvml_seconds=0.01)
snapshots = [watcher.snapshot() for _ in range(70)]
assert all(snapshot.driver == "does not answer" and not snapshot.cards for snapshot in snapshots), snapshots
print(threading.active_count())
"""
    assert int(run_python(script, gpus.environment)) < 60
    gpus.restore()


def test_refusals_are_counted(node: MakeNode, exporter: Export, lease: Start) -> None:
    gpus = node("8GiB")
    started = exporter(gpus.environment)
    assert value_of(started.scrape(), "mlops_gpu_refusals_total") == 0
    assert lease(gpus.environment, memory="20GiB").answer["error"] == "NoRoom"
    started.until("mlops_gpu_refusals_total", 1)


def test_peaks_of_processes_without_a_lease_are_recorded(node: MakeNode, exporter: Export) -> None:
    gpus = node("24GiB")
    # With visible processes, an ended one would no longer be counted.
    started = exporter(gpus.view(hide_pids=True))
    notebook = gpus.start("6GiB", name="notebook")
    notebook.wait_for("loaded")
    leases = Path(gpus.environment["MLOPS_GPU_LEASE_DIR"])

    def remembered() -> int | None:
        started.scrape()
        backdate(leases, SETTLE_SECONDS)
        documents = [json.loads(path.read_text()) for path in leases.glob("peaks-*.json")]
        sizes = [numbers[0] for document in documents for card in document["cards"].values() for numbers in card.values()]
        return max(sizes, default=0) or None

    assert until(remembered, "the peak") == 6 * GIB
    notebook.terminate()
    notebook.wait(20)
    samples = started.until("mlops_gpu_memory_used_bytes", 0)
    assert value_of(samples, "mlops_gpu_memory_external_bytes") == 0
    assert (value_of(samples, "mlops_gpu_memory_external_counted_bytes") or 0) > 5 * GIB


def test_without_a_lease_directory_or_a_valid_configuration_cards_are_exported_too(
    node: MakeNode, exporter: Export, tmp_path: Path
) -> None:
    gpus = node("24GiB")
    Path(gpus.environment["MLOPS_GPU_CONFIG"]).write_text("[[neighbour\n")
    samples = exporter({**gpus.environment, "MLOPS_GPU_LEASE_DIR": str(tmp_path / "none")}).scrape()
    assert value_of(samples, "mlops_gpu_driver_up") == 1
    assert value_of(samples, "mlops_gpu_lease_directory_up") == 0
    assert value_of(samples, "mlops_gpu_memory_left_bytes") == 24 * GIB


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(node: MakeNode, exporter: Export, number: signal.Signals) -> None:
    started = exporter(node("24GiB").environment)
    started.scrape()
    started.process.send_signal(number)
    assert started.process.wait(20) == 0
    assert started.process.stderr.read() == ""


def test_a_port_that_is_taken_is_an_error_with_a_remedy(node: MakeNode, start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        process = start([*COMMAND, str(listener.getsockname()[1])], node("24GiB").environment)
        assert process.wait(60) == 1
    errors = process.stderr.read()
    assert "another --port" in errors
    assert "Traceback" not in errors
