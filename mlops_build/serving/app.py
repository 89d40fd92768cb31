"""The HTTP service: MLflow's scoring protocol for the first model at /, for every model under /models/NAME/; the Open Inference Protocol
under /v2/; and /metrics for Prometheus.

One event loop reads and validates requests and writes responses; one thread per model predicts. docs/reference/http-contract.md describes
the contract with callers.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import orjson

from mlops_build.model.openapi import as_text, openapi
from mlops_build.serving import decode, docs_page, json_text, memory, v2
from mlops_build.serving.answer import Answer
from mlops_build.serving.batcher import Batcher, Disconnected, QueueFull, Stuck
from mlops_build.serving.body import Budget, Receive, Reservation, held, read_body
from mlops_build.serving.decode import Decoder
from mlops_build.serving.encode import encode
from mlops_build.serving.endpoint import Call, Endpoint, Write
from mlops_build.serving.exchange import DISCONNECTED, ON_DISCONNECT, Respond, Submit, http_response
from mlops_build.serving.failure import error_at, failed, inference_error, is_inference, mlflow_error, retry_after
from mlops_build.serving.head import Head, read_head
from mlops_build.serving.images import Raw
from mlops_build.serving.json_text import INLINE_BYTES, Reserve
from mlops_build.serving.liveness import Liveness
from mlops_build.serving.load import Loaded, Serving
from mlops_build.serving.metrics import CONTENT_TYPE, Metrics
from mlops_build.serving.output import Output
from mlops_build.serving.pieces import is_large
from mlops_build.serving.predictor import Fatal
from mlops_build.serving.protocol import SMALL_BYTES
from mlops_build.serving.refusal import inflated
from mlops_build.serving.rows import Rows
from mlops_build.serving.served_openapi import served, without_contract
from mlops_build.serving.settings import Settings
from mlops_build.serving.tokens import Tokens
from mlops_build.serving.v2 import V2

if TYPE_CHECKING:
    from mlops_build.gpu import Lease

Scope = MutableMapping[str, Any]

# The last parts of the paths that Kubernetes, Prometheus and load balancers read.
PROBES = ("health", "ping", "live", "ready", "metrics")
HTML = b"text/html; charset=utf-8"
INLINE_FORM_BYTES = 16 * 1024  # a form may contain thousands of parts in the size of one JSON row
# The memory for the answer to a row if the model has no recorded example, in bytes.
ANSWER_BYTES = 256
# Free memory is returned to the system after requests that used more than LARGE_BYTES together, once the service is idle.
LARGE_BYTES, IDLE_SECONDS = 32 << 20, 1.0

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
        # Without a task, a body is not counted while it arrives: together these may take an eighth of the budget.
        self._small = min(SMALL_BYTES, self._settings.body_limit, self._budget.limit // 8 // self._settings.connections)
        self._trimming: asyncio.TimerHandle | None = None
        self._output = output if self._settings.access_log else None
        if output:
            output.on_drop = self._metrics.dropped.inc
        self._running: Counter[str] = Counter()  # requests by model
        self._refused: Counter[str] = Counter()  # requests by model that are not in the metrics yet
        self._writing: set[asyncio.Task[None]] = set()  # the event loop keeps no reference to a task
        self._endpoints: dict[str, Endpoint] = {}
        self._static: dict[str, Answer] = {"/metrics": Answer(200, b"")}
        self._static["/v2"] = _json(v2.SERVER)
        self._static["/v2/health/live"] = self._static["/v2/health/ready"] = _json({"live": True})
        models: list[tuple[V2, Raw, Mapping[str, Any] | None]] = []
        for position, loaded in enumerate(serving.models):
            batcher = self._batcher(loaded)
            decoder = Decoder(loaded.model, self._settings.ragged)
            raw, model = Raw(decoder), V2(loaded.name, loaded.version, decoder, loaded.model.metadata.signature, self._settings.nan)
            self._mlflow(loaded, decoder, raw, batcher, first=position == 0)
            self._inference(loaded, model, batcher)
            models.append((model, raw, loaded.recorded))
        self.probes = frozenset(path.encode() for path in self._static if path.rpartition("/")[2] in PROBES)
        self._targets = {path.encode(): endpoint for path, endpoint in self._endpoints.items()}
        document = served(openapi(serving.service, [loaded.described for loaded in serving.models]), models, tokens=tokens is not None)
        self._static["/openapi.json"] = Answer(200, as_text(document).encode())
        self.liveness = Liveness(
            {endpoint.loaded.name: endpoint.batcher for endpoint in self._endpoints.values()},
            self._settings.deadline + self._settings.stuck,
            self._static,
            lambda path, why: error_at(path)(503, "TEMPORARILY_UNAVAILABLE", why, retry_after(10)),
        )
        self._static["/docs"] = Answer(200, docs_page.page(document if tokens is None else without_contract(document)), HTML)

    async def __call__(self, scope: Scope, receive: Receive, respond: Respond) -> None:
        path = scope["path"]
        endpoint = self._endpoints.get(path)
        caller = None
        if self._tokens is not None and path not in self._open:
            caller = self._tokens.caller(scope["headers"])
            if caller is None:
                self._refuse_token(endpoint, scope, respond)
                return
        if endpoint is not None and scope["method"] == "POST":
            await self._invocation(endpoint, scope, receive, respond, caller)
        else:
            respond(self._other(scope), b"")

    def begin(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes | Submit | None:
        """Decide how to handle a request once only its headers have arrived, before a task exists for it.

        Returns the whole HTTP response if the queue is full: under overload, most of the work would be refusals. Returns a function that
        submits the body if the request is small and has no encoding: a task would be a fifth of the work for it. Returns
        None for all other requests, which go through `__call__`.
        """
        endpoint = self._targets.get(target)
        if endpoint is None or method != b"POST":
            return None
        head = read_head(headers)
        try:
            endpoint.batcher.expect()
        except QueueFull as full:
            if not self._refused:
                asyncio.get_running_loop().call_later(1.0, self._count_refused)
            self._refused[endpoint.loaded.name] += 1
            return http_response(endpoint.error(*failed(full, 0)[1]), b"x-request-id: " + head.request_id)
        except Stuck:
            return None
        if head.length is None or head.length > self._small or head.encoding or _is_slow(head.kind):
            return None
        caller = None
        if self._tokens is not None:
            caller = self._tokens.caller(headers)
            if caller is None:
                return None
        return partial(self._submit, endpoint, head, caller)

    def _count_refused(self) -> None:
        """Count and log the requests that were refused unread, once per second: an overloaded service has no time to do it for each."""
        for name, requests in self._refused.items():
            self._metrics.refused[name, "queue full"].inc(requests)
            self._metrics.count(name, 429, requests)
            self._log({"time": round(time.time(), 3), "model": name, "status": 429, "requests": requests})
        self._refused.clear()

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
        batcher.on_idle, joining.on_difference = loaded.predictor.idle, self._metrics.differences[loaded.name].inc
        self._metrics.batching[loaded.name].set_function(lambda: settings.max_batch > 1 and joining.on)
        if settings.max_batch > 1:
            loaded.predictor.chunk_rows = settings.max_batch
        self._metrics.queued[loaded.name].set_function(lambda: batcher.queued)
        self._metrics.running[loaded.name].set_function(lambda: self._running[loaded.name])
        self._metrics.stuck[loaded.name].set_function(lambda: bool(batcher.stuck))
        return batcher

    def _mlflow(self, loaded: Loaded, decoder: Decoder, raw: Raw, batcher: Batcher, *, first: bool) -> None:
        def write(output: Any, *, bare: bool = False) -> Answer:
            return Answer(200, encode(output, nan=self._settings.nan, bare=bare))

        def read(body: bytes, head: Head, reserve: Reserve) -> tuple[Rows, Write]:
            if head.kind and head.kind != decode.JSON and (raw_rows := raw.read(body, head.kind, reserve)) is not None:
                return raw_rows, write
            rows = decoder.decode(body, head.kind, reserve)
            return rows, partial(write, bare=True) if rows.bare else write

        endpoint = Endpoint(loaded, batcher, read, mlflow_error, _answer_bytes(loaded.recorded))
        version = Answer(200, loaded.mlflow_version.encode())
        for at in (f"/models/{loaded.name}", *([""] if first else [])):
            self._endpoints[f"{at}/invocations"] = endpoint
            self._static |= {f"{at}/ping": Answer(200, b"\n"), f"{at}/health": Answer(200, b"\n"), f"{at}/version": version}
            self._open |= {f"{at}/ping", f"{at}/health"}

    def _inference(self, loaded: Loaded, model: V2, batcher: Batcher) -> None:
        def read(body: bytes, head: Head, reserve: Reserve) -> tuple[Rows, Write]:
            rows, options = model.read(body, head.kind, head.json_bytes, reserve)
            return rows, lambda output: model.write(output, options)

        endpoint = Endpoint(loaded, batcher, read, inference_error, _answer_bytes(loaded.recorded))
        at = f"/v2/models/{loaded.name}"
        for path in (at, *([] if loaded.version is None else [f"{at}/versions/{loaded.version}"])):
            self._endpoints[f"{path}/infer"] = endpoint
            self._static |= {path: _json(model.metadata), f"{path}/ready": _json({"name": loaded.name, "ready": True})}

    def _refuse_token(self, endpoint: Endpoint | None, scope: Scope, respond: Respond) -> None:
        """Respond 401, before the body is read."""
        head = read_head(scope["headers"])
        error = endpoint.error if endpoint is not None else error_at(scope["path"])
        has_token = any(name == b"authorization" for name, _ in scope["headers"])
        challenge = b'Bearer error="invalid_token"' if has_token else b"Bearer"
        message = "the token is not valid" if has_token else "this service requires a token: send Authorization: Bearer …"
        answer = error(401, "UNAUTHENTICATED", message, ((b"www-authenticate", challenge),))
        if endpoint is not None:
            self._metrics.refused[endpoint.loaded.name, "no valid token"].inc()
            self._metrics.count(endpoint.loaded.name, 401)
            self._log(Call(endpoint, head, None, 0.0).line(answer, 0.0))
        respond(answer, head.request_id)

    def _other(self, scope: Scope) -> Answer:
        path, method = scope["path"], scope["method"]
        answer = self._static.get(path)
        if answer is not None and method == "GET":
            if path != "/metrics":
                return answer
            self._count_refused()
            return Answer(200, self._metrics.text(), CONTENT_TYPE.encode())
        inference = is_inference(path)
        if answer is not None or path in self._endpoints:
            allow = ((b"allow", b"POST" if path in self._endpoints else b"GET"),)
            if inference:
                return v2.refusal(405, "this method is not allowed", allow)
            return Answer(405, b'{"detail":"Method Not Allowed"}', headers=allow)
        if inference:
            return v2.refusal(404, "no such model, version or path; GET /openapi.json lists them")
        bare = path.rstrip("/")
        if bare != path and (bare in self._static or bare in self._endpoints):
            return Answer(307, b"", headers=((b"location", bare.encode()),))
        return Answer(404, b'{"detail":"Not Found"}')

    async def _invocation(self, endpoint: Endpoint, scope: Scope, receive: Receive, respond: Respond, caller: str | None) -> None:
        call = Call(endpoint, read_head(scope["headers"]), caller, time.perf_counter())
        self._running[endpoint.loaded.name] += 1
        with Reservation(self._budget) as reservation:
            try:
                async with asyncio.timeout(None) as limit:
                    body = await read_body(receive, call.head.length, self._settings.body_limit, reservation.add)
                    limit.reschedule(asyncio.get_running_loop().time() + self._settings.deadline)
                    endpoint.batcher.admit()
                    # In a thread, if it may take long: a few compressed bytes may become a large body.
                    large = len(body) > (INLINE_FORM_BYTES if _is_slow(call.head.kind) else INLINE_BYTES)
                    read = partial(self._read, call, body, reservation)
                    del body
                    in_thread = large or call.head.encoding or call.head.kind == decode.PARQUET
                    rows, write = await reservation.in_thread(read) if in_thread else read()
                    del read
                    call.rows, rows.request_id = rows.count, call.head.request_id
                    if scope.get(DISCONNECTED):  # while its body was parsed in another thread
                        raise Disconnected
                    future = endpoint.batcher.put(rows, self._settings.deadline)
                    scope[ON_DISCONNECT] = partial(_disconnect, future)
                    output = await future
                    answer = await reservation.in_thread(partial(write, output)) if is_large(output) else write(output)
            except Exception as error:
                answer = self._failed(endpoint, error)
            finally:
                self._running[endpoint.loaded.name] -= 1
            respond(answer, call.head.request_id)
            self._count(call, answer)
        if self._budget.peak > LARGE_BYTES and self._trimming is None:
            self._trimming = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._trim)

    def _read(self, call: Call, body: bytes, reservation: Reservation) -> tuple[Rows, Write]:
        if call.head.encoding:
            body = inflated(body, call.head.encoding, self._settings.body_limit, reservation.add)
        rows, write = call.endpoint.read(body, call.head, reservation.add)
        reservation.keep(held(rows, len(body), reservation.size) + rows.count * call.endpoint.answer)
        return rows, write

    def _trim(self) -> None:
        """Return free memory to the system, unless large requests are running."""
        loop = asyncio.get_running_loop()
        if self._budget.used > LARGE_BYTES:
            self._trimming = loop.call_later(IDLE_SECONDS, self._trim)
        else:
            self._trimming, self._budget.peak = None, 0
            loop.run_in_executor(None, memory.trim)

    def _submit(self, endpoint: Endpoint, head: Head, caller: str | None, body: bytes, respond: Respond) -> Callable[[], None] | None:
        """`_invocation` for a small body that has arrived. Returns the function to call if the caller disconnects."""
        call = Call(endpoint, head, caller, time.perf_counter())
        self._running[endpoint.loaded.name] += 1
        try:
            endpoint.batcher.admit()
            rows, write = endpoint.read(body, head, _inline)
            call.rows, rows.request_id = rows.count, head.request_id
            size = held(rows, len(body)) + rows.count * endpoint.answer
            self._budget.change(0, size)
            call.reserved = size
            future = endpoint.batcher.put(rows, self._settings.deadline)
        except Exception as error:
            self._respond(call, self._failed(endpoint, error), respond)
            return None
        future.add_done_callback(partial(self._predicted, call, write, respond))
        return partial(_disconnect, future)

    def _predicted(self, call: Call, write: Write, respond: Respond, future: "asyncio.Future[Any]") -> None:
        try:
            output = future.result()
            if is_large(output):
                self._writing.add(task := asyncio.ensure_future(self._written(call, write, respond, output)))
                task.add_done_callback(self._writing.discard)
                return
            answer = write(output)
        except BaseException as error:  # otherwise the request would never be answered
            answer = self._failed(call.endpoint, error)
        self._respond(call, answer, respond)

    async def _written(self, call: Call, write: Write, respond: Respond, output: Any) -> None:
        """Write a large response in a thread, and send it."""
        try:
            async with asyncio.timeout(call.began + self._settings.deadline - time.perf_counter()):
                answer = await asyncio.to_thread(write, output)
        except BaseException as error:
            answer = self._failed(call.endpoint, error)
        self._respond(call, answer, respond)

    def _respond(self, call: Call, answer: Answer, respond: Respond) -> None:
        self._running[call.endpoint.loaded.name] -= 1
        respond(answer, call.head.request_id)
        self._budget.change(call.reserved, 0)
        self._count(call, answer)  # while the caller prepares its next request

    def _count(self, call: Call, answer: Answer) -> None:
        name, seconds = call.endpoint.loaded.name, time.perf_counter() - call.began
        self._metrics.seconds[name].observe(seconds)
        self._metrics.count(name, answer.status)
        self._log(call.line(answer, seconds))

    def _log(self, line: Mapping[str, Any]) -> None:
        if self._output:
            self._output.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))

    def _failed(self, endpoint: Endpoint, failure: BaseException) -> Answer:
        """The response to a request that raised `failure`."""
        why, response = failed(failure, self._settings.deadline)
        if why:
            self._metrics.refused[endpoint.loaded.name, why].inc()
        if isinstance(failure, Fatal):
            self.on_fatal()
        return endpoint.error(*response)


def _disconnect(future: "asyncio.Future[Any]") -> None:
    if not future.done():
        future.set_exception(Disconnected())


def _json(document: Mapping[str, Any]) -> Answer:
    return Answer(200, orjson.dumps(document))


def _is_slow(kind: str | None) -> bool:
    """Whether even a small body of this kind may take long: a form has many parts, and Parquet is compressed."""
    return kind is not None and kind != decode.JSON and kind.lower().startswith(("multipart/", decode.PARQUET))


def _inline(_: int) -> None:
    """Takes the place of a reservation while a small body is parsed."""


def _answer_bytes(recorded: Mapping[str, Any] | None) -> int:
    """An upper bound of the memory for the answer to a row, from the recorded example."""
    predictions = recorded.get("predictions") if recorded else None
    if not isinstance(predictions, list) or not predictions:
        return ANSWER_BYTES
    return json_text.size(orjson.dumps(predictions, default=str)) // len(predictions)
