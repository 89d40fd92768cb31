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
# Somebody has to look although nobody scrapes: neighbours' peaks are what the next decision counts.
IDLE_SECONDS = 10.0


class NodeCollector(Collector):
    """Looks at the node when it is scraped; scrapes within a second share a look."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def describe(self) -> Iterable["Metric"]:
        """Nothing, so that registering it looks at no card."""
        return ()

    def collect(self) -> Iterable["Metric"]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for metric in METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            families[metric.name] = kind(metric.name, metric.help, labels=metric.labels)
        for sample in samples(self._watcher.look()):
            values = [sample.labels[label] for label in sample.metric.labels]
            families[sample.metric.name].add_metric(values, sample.value)
        return families.values()


def serve(host: str, port: int) -> None:
    """Answer scrapes until SIGTERM or SIGINT. Raises Failed if the port cannot be had."""
    over = threading.Event()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: over.set())
    watcher = Watcher()
    watcher.look()  # decisions are counted from now on, not from the first scrape
    registry = CollectorRegistry()
    registry.register(NodeCollector(watcher))
    try:
        server, thread = start_http_server(port, addr=host, registry=registry)
    except (OSError, OverflowError) as error:
        raise Failed(f"cannot listen on {host}:{port}: {error}", remedy="another --port or --host, or end what holds it") from None
    log.warning("listening on http://%s:%d/metrics", host, server.server_port)
    while not over.wait(IDLE_SECONDS):
        watcher.look()
    server.shutdown()
    server.server_close()
    thread.join()
    watcher.close()
