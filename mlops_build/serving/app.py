"""The HTTP service: MLflow's scoring protocol for the first model at /, for every model under /models/NAME/; the Open Inference Protocol
under /v2/; and /metrics for Prometheus.

One event loop reads, checks and answers; one thread for each model predicts. docs/reference/http-contract.md says what callers may rely on.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import orjson

from mlops_build.model.openapi import as_text, openapi
from mlops_build.serving import decode, docs_page, v2
from mlops_build.serving.access_log import AccessLog
from mlops_build.serving.answer import JSON, Answer
from mlops_build.serving.batcher import Batcher, DeadlinePassed, Full, Gone
from mlops_build.serving.body import Bodies, Held, Message, Receive, read_body
from mlops_build.serving.decode import Decoder, Rows
from mlops_build.serving.encode import Unencodable, encode
from mlops_build.serving.head import Head, read_head
from mlops_build.serving.images import Raw
from mlops_build.serving.load import Loaded, Serving
from mlops_build.serving.metrics import CONTENT_TYPE, Metrics
from mlops_build.serving.predictor import Fatal, OutOfMemory
from mlops_build.serving.protocol import GONE, ON_GONE, SMALL_BYTES, Ask, Tell, whole
from mlops_build.serving.refusal import Refusal, inflated
from mlops_build.serving.served_openapi import served, without_contract
from mlops_build.serving.settings import Settings
from mlops_build.serving.tokens import Tokens
from mlops_build.serving.v2 import V2

if TYPE_CHECKING:
    from mlops_build.gpu import Lease

Scope = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]

HTML = b"text/html; charset=utf-8"
# A larger body is read in another thread: parsing it would keep the loop from everybody else.
INLINE_BYTES = 256 * 1024
INLINE_FORM_BYTES = 16 * 1024  # a form may have thousands of parts in what JSON has a row in
# All bodies that are being read may be as large as so many of the largest: thousands of callers can send one at once.
BODIES = 8

log = logging.getLogger("mlops_build.serving")


# An answer of the model as what is sent.
Write = Callable[[Any], Answer]


@dataclass(frozen=True)
class Door:
    """One way to ask one model. read: of a body, what it asks and how to write the answer. error: status, code, message, headers."""

    loaded: Loaded
    batcher: Batcher
    read: Callable[[bytes, Head], tuple[Rows, Write]]
    error: Callable[[int, str, str, tuple[tuple[bytes, bytes], ...]], Answer]


@dataclass(slots=True)
class Call:
    """One request to a model. began: time.perf_counter()."""

    door: Door
    head: Head
    caller: str | None  # the name of the token
    began: float
    rows: int = 0


class Service:
    """The ASGI application. Guards which models answer where.

    lease: what /metrics says of the card. tokens: who may ask; None for everybody. on_fatal: called once a prediction has lost CUDA for
    good.
    """

    def __init__(
        self, serving: Serving, lease: "Lease | None" = None, settings: Settings | None = None, tokens: Tokens | None = None
    ) -> None:
        self._tokens = tokens
        self._open = {"/metrics", "/v2/health/live", "/v2/health/ready"}  # without a token, for the cluster's probes and Prometheus
        self._settings = settings or Settings()
        self._nan: Literal["null", "literal"] = "literal" if self._settings.nan == "literal" else "null"
        self._metrics = Metrics(serving, lease)
        self.on_fatal: Callable[[], None] = lambda: None
        self._bodies = Bodies(BODIES * self._settings.body_limit)
        self._small = min(SMALL_BYTES, self._settings.body_limit)
        self._log = AccessLog() if self._settings.access_log else None
        self._running: Counter[str] = Counter()  # by model
        self._refused: Counter[str] = Counter()  # by model, not counted yet
        self._doors: dict[str, Door] = {}
        self._plain: dict[str, Answer] = {"/metrics": Answer(200, b"")}
        self._plain["/v2"] = _json(v2.SERVER)
        self._plain["/v2/health/live"] = self._plain["/v2/health/ready"] = _json({"live": True})
        models: list[tuple[V2, Raw, Mapping[str, Any] | None]] = []
        for place, loaded in enumerate(serving.models):
            batcher = self._batcher(loaded)
            decoder = Decoder(loaded.model, "pad" if self._settings.ragged == "pad" else "refuse")
            raw, model = Raw(decoder), V2(loaded.name, loaded.version, decoder, loaded.model.metadata.signature, self._nan)
            self._mlflow(loaded, decoder, raw, batcher, first=place == 0)
            self._inference(loaded, model, batcher)
            models.append((model, raw, loaded.recorded))
        self._targets = {path.encode(): door for path, door in self._doors.items()}
        document = served(openapi(serving.service, [loaded.described for loaded in serving.models]), models, tokens=tokens is not None)
        self._plain["/openapi.json"] = Answer(200, as_text(document).encode())
        self._plain["/docs"] = Answer(200, docs_page.page(document if tokens is None else without_contract(document)), HTML)
        self._open.add("/docs")  # a browser sends no token; the page has a field for it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        path = scope["path"]
        door = self._doors.get(path)
        caller = None
        if self._tokens is not None and path not in self._open:
            caller = self._tokens.caller(scope["headers"])
            if caller is None:
                await self._unknown(door, scope, send)
                return
        if door is not None and scope["method"] == "POST":
            await self._invocation(door, scope, receive, send, caller)
        else:
            await _send(send, self._other(scope), head=scope["method"] == "HEAD")

    def begin(self, method: bytes, target: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes | Ask | None:
        """What becomes of a request of which only the head has come, before there is a task for it.

        The whole HTTP answer where its queue is full: under overload most of the work would be to refuse. How to ask, once it is here
        whole, if it is one of the many small plain ones: a task and ASGI's messages would be a third of the work for it. None for all
        others, which go through `__call__`.
        """
        door = self._targets.get(target)
        if door is None or method != b"POST":
            return None
        head = read_head(headers)
        try:
            door.batcher.expect()
        except Full as full:
            if not self._refused:
                asyncio.get_running_loop().call_later(1.0, self._count_refused)
            self._refused[door.loaded.name] += 1
            return whole(_full(door, max(1, round(full.seconds))), b"x-request-id: " + head.request_id)
        if head.length is None or head.length > self._small or head.encoding or _is_form(head.kind):
            return None
        caller = None
        if self._tokens is not None:
            caller = self._tokens.caller(headers)
            if caller is None:
                return None
        return partial(self._ask, door, head, caller)

    def _count_refused(self) -> None:
        """Once a second for all that were refused unread, with one line for them: an overloaded service has no time for each."""
        for name, requests in self._refused.items():
            self._metrics.refused[name, "queue full"].inc(requests)
            self._metrics.count(name, 429, requests)
            if self._log:
                self._log.add({"time": round(time.time(), 3), "model": name, "status": 429, "requests": requests})
        self._refused.clear()

    def _batcher(self, loaded: Loaded) -> Batcher:
        settings = self._settings
        batcher = Batcher(
            loaded.predictor.predict,
            max_rows=settings.max_batch,
            max_delay=settings.max_delay_ms / 1000,
            max_queue=settings.max_queue,
        )
        batch, predict = self._metrics.batch[loaded.name], self._metrics.predict[loaded.name]

        def measured(rows: int, seconds: float) -> None:
            batch.observe(rows)
            predict.observe(seconds)

        batcher.on_batch = measured
        self._metrics.queued[loaded.name].set_function(lambda: batcher.queued)
        self._metrics.running[loaded.name].set_function(lambda: self._running[loaded.name])
        return batcher

    def _mlflow(self, loaded: Loaded, decoder: Decoder, raw: Raw, batcher: Batcher, *, first: bool) -> None:
        nan = self._nan
        write: Write = lambda found: Answer(200, encode(found, nan=nan))  # noqa: E731
        bare: Write = lambda found: Answer(200, encode(found, nan=nan, bare=True))  # noqa: E731

        def read(body: bytes, head: Head) -> tuple[Rows, Write]:
            if head.kind and head.kind != decode.JSON and (special := raw.read(body, head.kind)) is not None:
                return special, write
            rows = decoder.decode(body, head.kind)
            return rows, bare if rows.bare else write

        door = Door(loaded, batcher, read, _error)
        version = Answer(200, loaded.mlflow_version.encode())
        for at in (f"/models/{loaded.name}", *([""] if first else [])):
            self._doors[f"{at}/invocations"] = door
            self._plain |= {f"{at}/ping": Answer(200, b"\n"), f"{at}/health": Answer(200, b"\n"), f"{at}/version": version}
            self._open |= {f"{at}/ping", f"{at}/health"}

    def _inference(self, loaded: Loaded, model: V2, batcher: Batcher) -> None:
        def read(body: bytes, head: Head) -> tuple[Rows, Write]:
            rows, asked = model.read(body, head.kind, head.json_bytes)
            return rows, lambda found: model.write(found, asked)

        door = Door(loaded, batcher, read, _inference_error)
        at = f"/v2/models/{loaded.name}"
        for path in (at, *([] if loaded.version is None else [f"{at}/versions/{loaded.version}"])):
            self._doors[f"{path}/infer"] = door
            self._plain |= {path: _json(model.metadata), f"{path}/ready": _json({"name": loaded.name, "ready": True})}

    async def _unknown(self, door: Door | None, scope: Scope, send: Send) -> None:
        """Told before a byte of the body is read."""
        head = read_head(scope["headers"])
        error = door.error if door is not None else _inference_error if _is_inference(scope["path"]) else _error
        said = any(name == b"authorization" for name, _ in scope["headers"])
        wants = b'Bearer error="invalid_token"' if said else b"Bearer"
        message = "this token is not known here" if said else "this service wants a token: Authorization: Bearer …"
        answer = error(401, "UNAUTHENTICATED", message, ((b"www-authenticate", wants),))
        if door is not None:
            self._metrics.refused[door.loaded.name, "no valid token"].inc()
            self._metrics.count(door.loaded.name, 401)
            if self._log:
                self._log.add(_line(Call(door, head, None, 0.0), answer, 0.0))
        await _send(send, answer, head.request_id, head=scope["method"] == "HEAD")

    def _other(self, scope: Scope) -> Answer:
        path, method = scope["path"], scope["method"]
        answer = self._plain.get(path)
        if answer is not None and method == "GET":
            if path != "/metrics":
                return answer
            self._count_refused()
            return Answer(200, self._metrics.text(), CONTENT_TYPE.encode())
        inference = _is_inference(path)
        if answer is not None or path in self._doors:
            allow = ((b"allow", b"POST" if path in self._doors else b"GET"),)
            if inference:
                return v2.refusal(405, "this method is not known here", allow)
            return Answer(405, b'{"detail":"Method Not Allowed"}', headers=allow)
        if inference:
            return v2.refusal(404, "there is no such model, version or path here: GET /openapi.json names them all")
        bare = path.rstrip("/")
        if bare != path and (bare in self._plain or bare in self._doors):
            return Answer(307, b"", headers=((b"location", bare.encode()),))
        return Answer(404, b'{"detail":"Not Found"}')

    async def _invocation(self, door: Door, scope: Scope, receive: Receive, send: Send, caller: str | None) -> None:
        call = Call(door, read_head(scope["headers"]), caller, time.perf_counter())
        self._running[door.loaded.name] += 1
        try:
            try:
                with Held(self._bodies) as held:
                    body = await read_body(receive, call.head.length, self._settings.body_limit, held)
                    door.batcher.admit()
                    if call.head.encoding:
                        body = inflated(body, call.head.encoding, self._settings.body_limit)
                        held.add(len(body))
                    if len(body) > INLINE_FORM_BYTES and (len(body) > INLINE_BYTES or _is_form(call.head.kind)):
                        wanted, write = await asyncio.to_thread(door.read, body, call.head)
                    else:
                        wanted, write = door.read(body, call.head)
                del body
                call.rows = wanted.count
                if scope.get(GONE):  # while its body was read in another thread
                    raise Gone
                waits = door.batcher.put(wanted, self._settings.deadline)
                scope[ON_GONE] = partial(_gone, waits)
                answer = write(await waits)
            except Exception as error:
                answer = self._failed(door, error)
            self._count(call, answer)
        finally:
            self._running[door.loaded.name] -= 1
        await _send(send, answer, call.head.request_id)

    def _ask(self, door: Door, head: Head, caller: str | None, body: bytes, tell: Tell) -> Callable[[], None] | None:
        """As `_invocation`, for a small body that is here. Returns what is called when the caller goes away."""
        call = Call(door, head, caller, time.perf_counter())
        self._running[door.loaded.name] += 1
        try:
            door.batcher.admit()
            wanted, write = door.read(body, head)
            call.rows = wanted.count
            waits = door.batcher.put(wanted, self._settings.deadline)
        except Exception as error:
            self._tell(call, self._failed(door, error), tell)
            return None
        waits.add_done_callback(partial(self._asked, call, write, tell))
        return partial(_gone, waits)

    def _asked(self, call: Call, write: Write, tell: Tell, waits: "asyncio.Future[Any]") -> None:
        try:
            answer = write(waits.result())
        except Exception as error:
            answer = self._failed(call.door, error)
        self._tell(call, answer, tell)

    def _tell(self, call: Call, answer: Answer, tell: Tell) -> None:
        self._running[call.door.loaded.name] -= 1
        self._count(call, answer)
        tell(answer, call.head.request_id)

    def _count(self, call: Call, answer: Answer) -> None:
        name, seconds = call.door.loaded.name, time.perf_counter() - call.began
        self._metrics.seconds[name].observe(seconds)
        self._metrics.count(name, answer.status)
        if self._log:
            self._log.add(_line(call, answer, seconds))

    def _failed(self, door: Door, failure: Exception) -> Answer:
        name, error = door.loaded.name, door.error
        if isinstance(failure, Refusal):
            return error(failure.status, failure.code, failure.message, ())
        if isinstance(failure, Full):
            self._metrics.refused[name, "queue full"].inc()
            return _full(door, max(1, round(failure.seconds)))
        if isinstance(failure, DeadlinePassed):
            self._metrics.refused[name, "deadline"].inc()
            return error(504, "DEADLINE_EXCEEDED", f"not answered within {self._settings.deadline:g} s", ((b"retry-after", b"1"),))
        if isinstance(failure, OutOfMemory):
            self._metrics.refused[name, "out of memory"].inc()
            return error(503, "RESOURCE_EXHAUSTED", str(failure), ((b"retry-after", b"1"),))
        if isinstance(failure, Fatal):
            log.error("the card is lost to this process, which ends: %s", failure)
            self.on_fatal()
            return error(503, "TEMPORARILY_UNAVAILABLE", "the service restarts", ((b"retry-after", b"10"),))
        if isinstance(failure, Unencodable):
            return error(500, "INTERNAL_ERROR", str(failure), ())
        if isinstance(failure, Gone):
            self._metrics.refused[name, "caller gone"].inc()
            return Answer(499, b"")
        log.error("a request failed", exc_info=failure)
        return error(500, "INTERNAL_ERROR", "this is a fault of the service; its log has the trace", ())


def app(serving: Serving, lease: "Lease | None" = None, settings: Settings | None = None, tokens: Tokens | None = None) -> Service:
    """The ASGI application of these models."""
    return Service(serving, lease, settings, tokens)


def _gone(waits: "asyncio.Future[Any]") -> None:
    if not waits.done():
        waits.set_exception(Gone())


def _full(door: Door, seconds: int) -> Answer:
    again = ((b"retry-after", b"%d" % seconds),)
    return door.error(429, "REQUEST_LIMIT_EXCEEDED", "too many requests wait already: ask again later", again)


def _json(document: Mapping[str, Any]) -> Answer:
    return Answer(200, orjson.dumps(document))


def _error(status: int, code: str, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    if status == 415:  # a plain sentence, as MLflow has it
        return Answer(status, message.encode("utf-8", "replace"), b"text/plain; charset=utf-8", headers)
    body = orjson.dumps({"error_code": code, "message": message.encode("utf-8", "replace").decode()})
    return Answer(status, body, JSON, headers)


def _is_form(kind: str | None) -> bool:
    return kind is not None and kind[:10].lower() == "multipart/"


def _is_inference(path: str) -> bool:
    return path == "/v2" or path.startswith("/v2/")


def _inference_error(status: int, _: str, message: str, headers: tuple[tuple[bytes, bytes], ...]) -> Answer:
    return v2.refusal(status, message, headers)


async def _send(send: Send, answer: Answer, request_id: bytes = b"", *, head: bool = False) -> None:
    headers = [(b"content-type", answer.kind), (b"content-length", str(len(answer.body)).encode()), *answer.headers]
    if request_id:
        headers.append((b"x-request-id", request_id))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})


def _line(call: Call, answer: Answer, seconds: float) -> dict[str, Any]:
    """Of the access log; nothing of what was sent or answered."""
    line = {
        "time": round(time.time(), 3),
        "request_id": call.head.request_id.decode(),
        "model": call.door.loaded.name,
        "version": call.door.loaded.version,
        "status": answer.status,
        "rows": call.rows,
        "bytes": len(answer.body),
        "ms": round(seconds * 1000, 2),
    }
    if call.caller is not None:
        line["caller"] = call.caller
    return line
