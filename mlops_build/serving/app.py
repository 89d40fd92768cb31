"""The HTTP service: MLflow's scoring protocol for the first model at /, for every model under /models/NAME/; the Open Inference Protocol
under /v2/; and /metrics for Prometheus.

One event loop reads and validates requests and writes responses; one thread per model predicts. docs/reference/http-contract.md describes
the contract with callers.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import orjson

from mlops_build.model.openapi import as_text, openapi
from mlops_build.serving import docs_page, memory
from mlops_build.serving.batcher import Batcher, Disconnected
from mlops_build.serving.encode import encode
from mlops_build.serving.endpoint import Call, Endpoint, Write, answer_bytes
from mlops_build.serving.failure import error_at, failed, inference_error, is_inference, retry_after
from mlops_build.serving.http.answer import Answer, mlflow_error, no_route
from mlops_build.serving.http.body import Budget, Reservation, held, read_body
from mlops_build.serving.http.exchange import Exchange, Submit
from mlops_build.serving.http.head import Head, read_head
from mlops_build.serving.http.protocol import SMALL_BYTES
from mlops_build.serving.http.tokens import Tokens
from mlops_build.serving.input.decode import Decoder, reader_of
from mlops_build.serving.input.json_text import INLINE_BYTES, Reserve
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.liveness import Liveness
from mlops_build.serving.load import Loaded, Serving
from mlops_build.serving.metrics import CONTENT_TYPE, Metrics
from mlops_build.serving.output import Output
from mlops_build.serving.predictor import Fatal
from mlops_build.serving.refusal import Unanswered, inflated
from mlops_build.serving.served_openapi import served, without_contract
from mlops_build.serving.v2 import model as v2
from mlops_build.serving.v2.model import V2
from mlops_build.serving_settings import Settings

if TYPE_CHECKING:
    from mlops_build.gpu import Lease

HTML = b"text/html; charset=utf-8"
# Free memory is returned to the system once the process has grown by LARGE_BYTES, and requests use less than that.
LARGE_BYTES = 32 << 20
CHECK_SECONDS = 1.0

T = TypeVar("T")
log = logging.getLogger("mlops_build.serving")


class Service:
    """The application: maps paths to models.

    lease: the lease on a card, for /metrics. tokens: the valid tokens; None if requests need none. output: for the access log. on_fatal:
    called after a prediction has made CUDA unusable for this process. probes: the paths that are also answered at the limit of connections.
    """

    def __init__(
        self,
        serving: Serving,
        lease: "Lease | None" = None,
        settings: Settings | None = None,
        tokens: Tokens | None = None,
        output: Output | None = None,
    ) -> None:
        self._tokens = tokens
        # Paths without a token: for the cluster's probes, Prometheus, and a browser that opens the page, which has a field for the token.
        self._open = {"/metrics", "/v2/health/live", "/v2/health/ready", "/docs"}
        self._settings = settings or Settings()
        self._metrics = Metrics(serving, lease)
        self.on_fatal: Callable[[], None] = lambda: None
        memory.prepare()
        self._budget = Budget(memory.budget(self._settings.body_limit))
        self._resident = memory.resident()
        # Without a task, a body is not counted while it arrives: together these may take an eighth of the budget.
        self._small = min(SMALL_BYTES, self._settings.body_limit, self._budget.limit // 8 // self._settings.connections)
        self._output = output if self._settings.access_log else None
        if output:
            output.on_drop = self._metrics.dropped.inc
        self._running: Counter[str] = Counter()  # requests by model
        self._stuck = self._settings.deadline + self._settings.stuck
        self._tasks: set[asyncio.Task[None]] = set()  # the event loop keeps only weak references to tasks
        self._endpoints: dict[str, Endpoint] = {}
        self._static: dict[str, Answer] = {"/metrics": Answer(200, b"")}
        self._probes: dict[str, str | None] = {"/v2/health/live": None, "/v2/health/ready": None}  # the model of each; None: all
        self._static["/v2"] = _json(v2.SERVER)
        self._static["/v2/health/live"] = self._static["/v2/health/ready"] = _json({"live": True})
        models: list[tuple[V2, Decoder, Mapping[str, Any] | None]] = []
        for position, loaded in enumerate(serving.models):
            batcher = self._batcher(loaded)
            decoder = Decoder(loaded.model, self._settings.ragged)
            model = V2(loaded.name, loaded.version, decoder, loaded.model.metadata.signature, self._settings.nan)
            self._mlflow(loaded, decoder, batcher, first=position == 0)
            self._inference(loaded, model, batcher)
            models.append((model, decoder, loaded.recorded))
        self.probes = frozenset(path.encode() for path in (*self._probes, "/metrics"))
        document = served(openapi(serving.service, [loaded.described for loaded in serving.models]), models, tokens=tokens is not None)
        self._static["/openapi.json"] = Answer(200, as_text(document).encode())
        self.liveness = Liveness({endpoint.loaded.name: endpoint.batcher for endpoint in self._endpoints.values()}, self._stuck)
        self._static["/docs"] = Answer(200, docs_page.page(document if tokens is None else without_contract(document)), HTML)

    async def __call__(self, exchange: Exchange) -> None:
        endpoint = self._endpoints.get(exchange.path)
        caller = None
        if self._tokens is not None and exchange.path not in self._open:
            caller = self._tokens.caller(exchange.headers)
            if caller is None:
                self._refuse_token(endpoint, exchange)
                return
        if endpoint is not None and exchange.method == b"POST":
            await self._receive(self._call(endpoint, exchange, read_head(exchange.headers), caller))
        else:
            exchange.respond(self._other(exchange))

    def begin(self, exchange: Exchange) -> Submit | None:
        """Decide how to handle a request once only its headers have arrived, before a task exists for it.

        Responds at once if the batcher does not admit it: under overload, most of the work would be refusals. Returns a function that
        submits the body of a small request: a task would be a fifth of the work for it. Returns None for all other requests, which go
        through `__call__`.
        """
        endpoint = self._endpoints.get(exchange.target.decode("latin-1"))
        if endpoint is None or exchange.method != b"POST":
            return None
        head = read_head(exchange.headers)
        try:
            endpoint.batcher.admit()
        except Unanswered as refused:
            self._refuse(endpoint, exchange, head, endpoint.error(*failed(refused, 0)[1]), refused.why)
            return None
        if head.length is None or head.length > self._small:
            return None
        caller = None
        if self._tokens is not None:
            caller = self._tokens.caller(exchange.headers)
            if caller is None:
                return None
        return partial(self._submit_small, endpoint, head, caller)

    def check(self) -> None:
        """Start the regular work: probes, free memory. Call this in the event loop."""
        loop = asyncio.get_running_loop()
        self.liveness.check()
        if memory.resident() > self._resident + LARGE_BYTES >= self._resident + self._budget.used:
            loop.run_in_executor(None, self._trim)
        loop.call_later(min(CHECK_SECONDS, self._stuck / 4), self.check)

    def _trim(self) -> None:
        memory.trim()
        self._resident = memory.resident()

    def _batcher(self, loaded: Loaded) -> Batcher:
        settings, joining = self._settings, loaded.predictor.joining
        batcher = Batcher(
            loaded.predictor.predict,
            max_rows=settings.max_batch,
            max_delay=settings.max_delay_ms / 1000,
            max_queue=settings.max_queue,
            joins=lambda: joining.on,
        )
        batch, predict = self._metrics.batch[loaded.name], self._metrics.predict[loaded.name]

        def observe(rows: int, seconds: float) -> None:
            batch.observe(rows)
            predict.observe(seconds)

        batcher.on_batch = observe
        batcher.on_idle, joining.on_difference = partial(joining.step, idle=True), self._metrics.differences[loaded.name].inc
        self._metrics.batching[loaded.name].set_function(lambda: settings.max_batch > 1 and joining.on)
        if settings.max_batch > 1:
            loaded.predictor.chunk_rows = settings.max_batch
        self._metrics.queued[loaded.name].set_function(lambda: batcher.queued)
        self._metrics.running[loaded.name].set_function(lambda: self._running[loaded.name])
        self._metrics.stuck[loaded.name].set_function(lambda: bool(batcher.stuck))
        return batcher

    def _mlflow(self, loaded: Loaded, decoder: Decoder, batcher: Batcher, *, first: bool) -> None:
        def write(output: Any, *, bare: bool = False) -> Answer:
            return Answer(200, encode(output, nan=self._settings.nan, bare=bare))

        def read(body: bytes, head: Head, reserve: Reserve) -> tuple[Rows, Write]:
            rows = decoder.decode(body, head.kind, reserve)
            return rows, partial(write, bare=True) if rows.bare else write

        endpoint = Endpoint(loaded, batcher, read, mlflow_error, answer_bytes(loaded.recorded))
        version = Answer(200, loaded.mlflow_version.encode())
        for at in (f"/models/{loaded.name}", *([""] if first else [])):
            self._endpoints[f"{at}/invocations"] = endpoint
            self._static[f"{at}/version"] = version
            for probe in (f"{at}/ping", f"{at}/health"):
                self._static[probe], self._probes[probe] = Answer(200, b"\n"), loaded.name if at else None
                self._open.add(probe)

    def _inference(self, loaded: Loaded, model: V2, batcher: Batcher) -> None:
        def read(body: bytes, head: Head, reserve: Reserve) -> tuple[Rows, Write]:
            rows, options = model.read(body, head.kind, head.json_bytes, reserve)
            return rows, lambda output: model.write(output, options)

        endpoint = Endpoint(loaded, batcher, read, inference_error, answer_bytes(loaded.recorded))
        at = f"/v2/models/{loaded.name}"
        for path in (at, *([] if loaded.version is None else [f"{at}/versions/{loaded.version}"])):
            self._endpoints[f"{path}/infer"] = endpoint
            self._static |= {path: _json(model.metadata), f"{path}/ready": _json({"name": loaded.name, "ready": True})}
            self._probes[f"{path}/ready"] = loaded.name

    def _refuse_token(self, endpoint: Endpoint | None, exchange: Exchange) -> None:
        """Respond 401, before the body is read."""
        head = read_head(exchange.headers)
        error = endpoint.error if endpoint is not None else error_at(exchange.path)
        has_token = any(name == b"authorization" for name, _ in exchange.headers)
        challenge = b'Bearer error="invalid_token"' if has_token else b"Bearer"
        message = "the token is not valid" if has_token else "this service requires a token: send Authorization: Bearer …"
        answer = error(401, "UNAUTHENTICATED", message, ((b"www-authenticate", challenge),))
        self._refuse(endpoint, exchange, head, answer, "no valid token")

    def _refuse(self, endpoint: Endpoint | None, exchange: Exchange, head: Head, answer: Answer, why: str) -> None:
        """Respond before the body is read. why: for the metrics."""
        if endpoint is not None:
            self._metrics.refused[endpoint.loaded.name, why].inc()
            self._metrics.count(endpoint.loaded.name, answer.status)
            self._log(self._call(endpoint, exchange, head, None).line(answer, 0.0))
        exchange.respond(answer, head.request_id)

    def _other(self, exchange: Exchange) -> Answer:
        path = exchange.path
        answer = self._static.get(path)
        if answer is not None and exchange.method == b"GET":
            if path == "/metrics":
                return Answer(200, self._metrics.text(), CONTENT_TYPE.encode())
            if path in self._probes and (why := self.liveness.why(self._probes[path])):
                return error_at(path)(503, "TEMPORARILY_UNAVAILABLE", why, retry_after(10))
            return answer
        refused = no_route(path, self._static, self._endpoints)
        if not is_inference(path):
            return refused
        if refused.status == 405:
            return v2.refusal(405, "this method is not allowed", refused.headers)
        return v2.refusal(404, "no such model, version or path; GET /openapi.json lists them")

    def _call(self, endpoint: Endpoint, exchange: Exchange, head: Head, caller: str | None) -> Call:
        return Call(endpoint, exchange, head, caller, Reservation(self._budget), time.perf_counter())

    async def _receive(self, call: Call) -> None:
        """Receive the body of a request, and submit it."""
        self._running[call.endpoint.loaded.name] += 1
        try:
            body = await read_body(call.exchange.receive, call.head.length, self._settings.body_limit, call.reservation.add)
        except Exception as error:
            self._respond(call, error)
        else:
            self._submit(call, body)

    def _submit_small(self, endpoint: Endpoint, head: Head, caller: str | None, exchange: Exchange, body: bytes) -> None:
        self._running[endpoint.loaded.name] += 1
        self._submit(self._call(endpoint, exchange, head, caller), body)

    def _submit(self, call: Call, body: bytes) -> None:
        """Parse a body, and put its rows into the queue."""
        call.ends = time.perf_counter() + self._settings.deadline
        try:
            call.endpoint.batcher.admit()
            if _is_quick(call.head, len(body)):
                self._put(call, self._read(call, body))
            else:
                self._in_thread(call, partial(self._read, call, body), partial(self._put, call))
        except Exception as error:
            self._respond(call, error)

    def _read(self, call: Call, body: bytes) -> tuple[Rows, Write]:
        reservation = call.reservation
        if call.head.encoding:
            body = inflated(body, call.head.encoding, self._settings.body_limit, reservation.add)
        rows, write = call.endpoint.read(body, call.head, reservation.add)
        reservation.keep(held(rows, len(body), reservation.size) + rows.count * call.endpoint.answer)
        return rows, write

    def _put(self, call: Call, read: tuple[Rows, Write]) -> None:
        if call.exchange.answered:  # its caller disconnected while its body was parsed in another thread
            raise Disconnected
        rows, write = read
        call.rows, rows.request_id = rows.count, call.head.request_id
        call.exchange.answer = future = call.endpoint.batcher.put(rows, call.left)
        future.add_done_callback(partial(self._predicted, call, rows, write))

    def _predicted(self, call: Call, rows: Rows, write: Write, future: "asyncio.Future[Any]") -> None:
        try:
            output = future.result()
            if rows.output_bytes:  # instead of the estimate
                call.reservation.add(rows.output_bytes - rows.count * call.endpoint.answer)
                self._in_thread(call, partial(write, output), partial(self._respond, call))
                return
            answer = write(output)
        except BaseException as error:  # otherwise the request would never be answered
            self._respond(call, error)
        else:
            self._respond(call, answer)

    def _in_thread(self, call: Call, function: Callable[[], T], then: Callable[[T], None]) -> None:
        """Call a function in a thread, and `then` with its result. An exception is the response to the request."""

        async def work() -> None:
            try:
                async with asyncio.timeout(call.left):
                    result = await call.reservation.in_thread(function)
                then(result)
            except BaseException as error:
                self._respond(call, error)

        self._tasks.add(task := asyncio.ensure_future(work()))
        task.add_done_callback(self._tasks.discard)

    def _respond(self, call: Call, result: Answer | BaseException) -> None:
        name = call.endpoint.loaded.name
        if isinstance(result, Answer):
            answer = result
        else:
            why, response = failed(result, self._settings.deadline)
            answer = call.endpoint.error(*response)
            if why:
                self._metrics.refused[name, why].inc()
            if isinstance(result, Fatal):
                self.on_fatal()
        self._running[name] -= 1
        call.exchange.respond(answer, call.head.request_id)
        call.exchange.when_sent(call.reservation.close)
        seconds = time.perf_counter() - call.began
        self._metrics.seconds[name].observe(seconds)  # while the caller prepares its next request
        self._metrics.count(name, answer.status)
        self._log(call.line(answer, seconds))

    def _log(self, line: Mapping[str, Any]) -> None:
        if self._output:
            self._output.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def _json(document: Mapping[str, Any]) -> Answer:
    return Answer(200, orjson.dumps(document))


def _is_quick(head: Head, size: int) -> bool:
    """Whether a body may be parsed in the event loop. A form may have thousands of parts, and a few compressed bytes may become many."""
    reader = reader_of(head.kind)
    return size <= INLINE_BYTES and not head.encoding and not (reader is not None and reader.slow)
