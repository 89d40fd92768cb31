"""The Prometheus exporter of a node."""

import logging
import signal
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from mlops_build.errors import Failed
from mlops_build.watch.metrics import METRICS, samples
from mlops_build.watch.node import Watcher

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("mlops_build.watch")
# Snapshots are also taken between scrapes, to record the peaks that decisions use.
IDLE_SECONDS = 10.0


class NodeCollector(Collector):
    """Takes a snapshot when it is scraped; scrapes within a second share one."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def describe(self) -> Iterable["Metric"]:
        """Nothing, so that registering the collector takes no snapshot."""
        return ()

    def collect(self) -> Iterable["Metric"]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for metric in METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            families[metric.name] = kind(metric.name, metric.help, labels=metric.labels)
        for sample in samples(self._watcher.snapshot()):
            values = [sample.labels[label] for label in sample.metric.labels]
            families[sample.metric.name].add_metric(values, sample.value)
        return families.values()


def serve(host: str, port: int) -> None:
    """Answer scrapes until SIGTERM or SIGINT. Raises Failed if the port cannot be used."""
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    watcher = Watcher()
    watcher.snapshot()  # start to count decisions now, not at the first scrape
    registry = CollectorRegistry()
    registry.register(NodeCollector(watcher))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        raise Failed(
            f"cannot listen on {host}:{port}: {error}", remedy="use another --port or --host, or stop the process that uses it"
        ) from None
    log.warning("listening on http://%s:%d/metrics", host, server.server_port)
    while not stopped.wait(IDLE_SECONDS):
        watcher.snapshot()
    server.shutdown()
    server.server_close()
    thread.join()
    watcher.close()
