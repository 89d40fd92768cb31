"""The metrics at /metrics, for Prometheus. No label contains a caller's data, so the number of series stays small."""

from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from mlops_build import __version__

if TYPE_CHECKING:
    from mlops_build.gpu import Lease
    from mlops_build.serving.load import Serving

CONTENT_TYPE = CONTENT_TYPE_LATEST
# Seconds: from a small network on the CPU to an image that waits in the queue.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
REFUSED = ("queue full", "deadline", "out of memory", "memory of requests", "caller gone", "no valid token", "stuck")


class Metrics:
    """The metrics of one service."""

    def __init__(self, serving: "Serving", lease: "Lease | None" = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # otherwise each counter has a second series with its creation time
        self.registry = CollectorRegistry()
        self._requests = Counter("mlops_build_requests", "Requests to /invocations, by status", ["model", "status"], registry=self.registry)
        seconds = Histogram(
            "mlops_build_request_seconds", "Time to answer /invocations", ["model"], buckets=BUCKETS, registry=self.registry
        )
        running = Gauge("mlops_build_requests_in_progress", "Requests being answered", ["model"], registry=self.registry)
        batch = Histogram("mlops_build_batch_rows", "Rows predicted together", ["model"], buckets=BATCH_BUCKETS, registry=self.registry)
        predict = Histogram("mlops_build_predict_seconds", "Time of one prediction", ["model"], buckets=BUCKETS, registry=self.registry)
        queued = Gauge("mlops_build_queue_rows", "Rows that wait for their prediction", ["model"], registry=self.registry)
        stuck = Gauge("mlops_build_stuck", "1 while a prediction does not end", ["model"], registry=self.registry)
        batching = Gauge("mlops_build_batching", "1 if requests are predicted in batches", ["model"], registry=self.registry)
        differences = Counter(
            "mlops_build_batching_differences", "Answers that changed with the other rows; batching ends", ["model"], registry=self.registry
        )
        refused = Counter("mlops_build_refused", "Requests that were not answered", ["model", "why"], registry=self.registry)
        info = Gauge(
            "mlops_build_info",
            "What is served; always 1",
            ["service", "model", "version", "digest", "image", "mlops_build"],
            registry=self.registry,
        )
        self.dropped = Counter("mlops_build_log_lines_dropped", "Lines that stderr's reader was too slow for", registry=self.registry)
        # Looked up once, since labels() needs a lock and a hash each time.
        self.seconds: dict[str, Any] = {}
        self.running: dict[str, Any] = {}
        self.batch: dict[str, Any] = {}
        self.predict: dict[str, Any] = {}
        self.queued: dict[str, Any] = {}
        self.stuck: dict[str, Any] = {}
        self.batching: dict[str, Any] = {}
        self.differences: dict[str, Any] = {}
        self.refused: dict[tuple[str, str], Any] = {}
        self._statuses: dict[tuple[str, int], Any] = {}
        for loaded in serving.models:
            name = loaded.name
            version = "" if loaded.version is None else str(loaded.version)
            info.labels(serving.service, name, version, loaded.digest or "", serving.image or "", __version__).set(1)
            self.seconds[name], self.running[name] = seconds.labels(name), running.labels(name)
            self.batch[name], self.predict[name], self.queued[name] = batch.labels(name), predict.labels(name), queued.labels(name)
            self.stuck[name] = stuck.labels(name)
            self.batching[name], self.differences[name] = batching.labels(name), differences.labels(name)
            for why in REFUSED:
                self.refused[name, why] = refused.labels(name, why)
            self.count(name, 200, 0)
        if lease:
            promised = Gauge("mlops_build_gpu_promised_bytes", "Budget on a leased card", ["card"], registry=self.registry)
            for uuid in lease.uuids:
                promised.labels(uuid).set(lease.memory_bytes)
            used = Gauge("mlops_build_gpu_torch_bytes", "Memory that torch has reserved on the card", registry=self.registry)
            used.set_function(_torch_bytes)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    def count(self, model: str, status: int, by: int = 1) -> None:
        counter = self._statuses.get((model, status))
        if counter is None:
            counter = self._statuses[model, status] = self._requests.labels(model, str(status))
        counter.inc(by)

    def text(self) -> bytes:
        return generate_latest(self.registry)


def _torch_bytes() -> float:
    import torch

    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return float(torch.cuda.memory_reserved()) if started else 0.0
