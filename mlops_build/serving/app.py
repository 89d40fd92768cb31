"""The HTTP service: MLflow's own scoring app for the first model at /, for every model under /models/NAME/, and /metrics for Prometheus."""

import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from mlflow.pyfunc import scoring_server
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, PlatformCollector, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from mlops_build import __version__
from mlops_build.serving.load import Serving

if TYPE_CHECKING:
    from mlops_build.gpu import Lease

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# Seconds; from a small network on a warm CPU to a picture in a queue.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


def app(serving: Serving, lease: "Lease | None" = None) -> App:
    """The ASGI application. What MLflow's protocol is: docs/reference (and `/docs` of the running service).

    lease: what /metrics says of the card.
    """
    root = scoring_server.init(serving.models[0].model)
    for loaded in serving.models:
        root.mount(f"/models/{loaded.name}", scoring_server.init(loaded.model))
    return Measured(root, serving, lease)


class Measured:
    """An ASGI application that counts and times the requests of another, and answers /metrics itself.

    Only /invocations is timed, and no label holds what a caller sent: the number of series stays small.
    """

    def __init__(self, inner: App, serving: Serving, lease: "Lease | None" = None) -> None:
        self.inner = inner
        self.models = {f"/models/{loaded.name}/invocations": loaded.name for loaded in serving.models}
        self.models["/invocations"] = serving.models[0].name
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, that says when it began
        self.registry = CollectorRegistry()
        self.requests = Counter("mlops_build_requests", "Requests to /invocations, by status", ["model", "status"], registry=self.registry)
        self.seconds = Histogram(
            "mlops_build_request_seconds", "Time to answer /invocations", ["model"], buckets=BUCKETS, registry=self.registry
        )
        self.running = Gauge("mlops_build_requests_in_progress", "Requests being answered", ["model"], registry=self.registry)
        info = Gauge(
            "mlops_build_info",
            "What is served; always 1",
            ["service", "model", "version", "digest", "image", "mlops_build"],
            registry=self.registry,
        )
        for loaded in serving.models:
            version = "" if loaded.version is None else str(loaded.version)
            info.labels(serving.service, loaded.name, version, loaded.digest or "", serving.image or "", __version__).set(1)
            self.running.labels(loaded.name)
            self.seconds.labels(loaded.name)
            self.requests.labels(loaded.name, "200")
        if lease:
            promised = Gauge("mlops_build_gpu_promised_bytes", "Budget on a leased card", ["card"], registry=self.registry)
            for uuid in lease.uuids:
                promised.labels(uuid).set(lease.memory_bytes)
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] == "http" and path == "/metrics" and scope["method"] == "GET":
            await _answer(send, generate_latest(self.registry))
        elif scope["type"] == "http" and path in self.models:
            await self._measured(self.models[path], scope, receive, send)
        else:
            await self.inner(scope, receive, send)

    async def _measured(self, model: str, scope: Scope, receive: Receive, send: Send) -> None:
        status = "500"  # unless an answer says otherwise

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        start = time.perf_counter()
        with self.running.labels(model).track_inprogress():
            try:
                await self.inner(scope, receive, watched)
            finally:
                self.seconds.labels(model).observe(time.perf_counter() - start)
                self.requests.labels(model, status).inc()


async def _answer(send: Send, body: bytes) -> None:
    headers = [(b"content-type", CONTENT_TYPE_LATEST.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
