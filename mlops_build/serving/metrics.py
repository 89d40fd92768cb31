"""The metrics at /metrics, for Prometheus. No label contains a caller's data, so the number of series stays small."""

from typing import TYPE_CHECKING, Any, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from mlops_build import __version__

if TYPE_CHECKING:
    from mlops_build.gpu import Lease
    from mlops_build.serving.load import Serving

M = TypeVar("M", Counter, Gauge, Histogram)

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
        names = [loaded.name for loaded in serving.models]

        def by_model(kind: type[M], name: str, text: str, **options: Any) -> dict[str, M]:
            """A metric's parts by model. They are looked up once, since labels() needs a lock and a hash each time."""
            metric = kind(f"mlops_build_{name}", text, ["model"], registry=self.registry, **options)
            return {model: metric.labels(model) for model in names}

        self._requests = Counter("mlops_build_requests", "Requests to /invocations, by status", ["model", "status"], registry=self.registry)
        self._statuses: dict[tuple[str, int], Counter] = {}
        for name in names:
            self.count(name, 200, 0)
        self.seconds = by_model(Histogram, "request_seconds", "Time to answer /invocations", buckets=BUCKETS)
        self.running = by_model(Gauge, "requests_in_progress", "Requests being answered")
        self.batch = by_model(Histogram, "batch_rows", "Rows predicted together", buckets=BATCH_BUCKETS)
        self.predict = by_model(Histogram, "predict_seconds", "Time of one prediction", buckets=BUCKETS)
        self.queued = by_model(Gauge, "queue_rows", "Rows that wait for their prediction")
        self.stuck = by_model(Gauge, "stuck", "1 while a prediction is stuck")
        self.batching = by_model(Gauge, "batching", "1 if requests are predicted in batches")
        self.differences = by_model(
            Counter, "batching_differences", "How often batching was turned off because an answer depended on other rows"
        )
        refused = Counter("mlops_build_refused", "Requests that were not answered", ["model", "why"], registry=self.registry)
        self.refused = {(name, why): refused.labels(name, why) for name in names for why in REFUSED}
        labels = ["service", "model", "version", "digest", "image", "mlops_build"]
        info = Gauge("mlops_build_info", "What is served; always 1", labels, registry=self.registry)
        for loaded in serving.models:
            version = "" if loaded.version is None else loaded.version
            info.labels(serving.service, loaded.name, version, loaded.digest or "", serving.image or "", __version__).set(1)
        self.dropped = Counter(
            "mlops_build_log_lines_dropped", "Log lines that were dropped because the reader of stderr was too slow", registry=self.registry
        )
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
