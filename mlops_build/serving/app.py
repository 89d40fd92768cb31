"""The HTTP service: MLflow's scoring protocol for the first model at /, for every model under /models/NAME/, and /metrics for Prometheus.

One event loop reads, checks and answers; one thread for each model predicts. docs/reference/http-contract.md says what callers may rely on.
"""

import asyncio
import logging
import os
import re
import sys
import time
import zlib
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from mlops_build.model.openapi import as_text, openapi
from mlops_build.serving import docs_page
from mlops_build.serving.batcher import Batcher, DeadlinePassed, Full
from mlops_build.serving.decode import Decoder, Refusal
from mlops_build.serving.encode import Unencodable, encode
from mlops_build.serving.load import Loaded, Serving
from mlops_build.serving.metrics import CONTENT_TYPE, Metrics
from mlops_build.serving.predictor import Fatal, OutOfMemory
from mlops_build.serving.settings import Settings

if TYPE_CHECKING:
    from mlops_build.gpu import Lease

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

JSON = b"application/json"
# A larger body is read in another thread: parsing it would keep the loop from everybody else.
INLINE_BYTES = 256 * 1024
REQUEST_ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")

log = logging.getLogger("mlops_build.serving")


class Gone(Exception):
    """The caller went away."""


@dataclass(frozen=True)
class Answer:
    """Of one request. headers: beside the content's type and length."""

    status: int
    body: bytes
    kind: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


@dataclass(frozen=True)
class Door:
    """One model as callers meet it."""

    loaded: Loaded
    decoder: Decoder
    batcher: Batcher


class Service:
    """The ASGI application. Guards which models answer where.

    lease: what /metrics says of the card. on_fatal: called once a prediction has lost CUDA for good.
    """

    def __init__(self, serving: Serving, lease: "Lease | None" = None, settings: Settings | None = None) -> None:
        self._settings = settings or Settings()
        self._metrics = Metrics(serving, lease)
        self.on_fatal: Callable[[], None] = lambda: None
        self._doors: dict[str, Door] = {}
        self._plain: dict[str, Answer] = {"/metrics": Answer(200, b"")}
        document = openapi(serving.service, [loaded.described for loaded in serving.models])
        self._plain["/openapi.json"] = Answer(200, as_text(document).encode())
        self._plain["/docs"] = Answer(200, docs_page.page(document), b"text/html; charset=utf-8")
        for place, loaded in enumerate(serving.models):
            door = self._door(loaded)
            version = Answer(200, loaded.mlflow_version.encode())
            for at in (f"/models/{loaded.name}", *([""] if place == 0 else [])):
                self._doors[f"{at}/invocations"] = door
                self._plain |= {f"{at}/ping": Answer(200, b"\n"), f"{at}/health": Answer(200, b"\n"), f"{at}/version": version}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        door = self._doors.get(scope["path"])
        if door is not None and scope["method"] == "POST":
            await self._invocation(door, scope, receive, send)
        else:
            await _send(send, self._other(scope), head=scope["method"] == "HEAD")

    def _door(self, loaded: Loaded) -> Door:
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
        return Door(loaded, Decoder(loaded.model, "pad" if settings.ragged == "pad" else "refuse"), batcher)

    def _other(self, scope: Scope) -> Answer:
        path, method = scope["path"], scope["method"]
        answer = self._plain.get(path)
        if answer is not None and method == "GET":
            return Answer(200, self._metrics.text(), CONTENT_TYPE.encode()) if path == "/metrics" else answer
        if answer is not None or path in self._doors:
            return Answer(405, b'{"detail":"Method Not Allowed"}', headers=((b"allow", b"POST" if path in self._doors else b"GET"),))
        bare = path.rstrip("/")
        if bare != path and (bare in self._plain or bare in self._doors):
            return Answer(307, b"", headers=((b"location", bare.encode()),))
        return Answer(404, b'{"detail":"Not Found"}')

    async def _invocation(self, door: Door, scope: Scope, receive: Receive, send: Send) -> None:
        name, metrics = door.loaded.name, self._metrics
        began = time.perf_counter()
        running = metrics.running[name]
        running.inc()
        kind, encoding, request_id = _headers(scope["headers"])
        rows = 0
        try:
            try:
                body = await _body(receive, scope["headers"], self._settings.body_limit)
                door.batcher.admit()
                if encoding:
                    body = _inflated(body, encoding, self._settings.body_limit)
                if len(body) > INLINE_BYTES:
                    wanted = await asyncio.to_thread(door.decoder.decode, body, kind)
                else:
                    wanted = door.decoder.decode(body, kind)
                rows = wanted.count
                found = await door.batcher.submit(wanted, self._settings.deadline)
                nan = "literal" if self._settings.nan == "literal" else "null"
                answer = Answer(200, encode(found, nan=nan, bare=wanted.bare))  # type: ignore[arg-type]
            except Exception as error:
                answer = self._failed(door, error)
            metrics.seconds[name].observe(time.perf_counter() - began)
            metrics.count(name, answer.status)
        finally:
            running.dec()
        if self._settings.access_log:
            _log_access(request_id, door.loaded, answer, rows, time.perf_counter() - began)
        await _send(send, answer, request_id)

    def _failed(self, door: Door, error: Exception) -> Answer:
        name = door.loaded.name
        if isinstance(error, Refusal):
            return _error(error.status, error.code, error.message)
        if isinstance(error, Full):
            self._metrics.refused[name, "queue full"].inc()
            seconds = str(max(1, round(error.seconds))).encode()
            return _error(429, "REQUEST_LIMIT_EXCEEDED", "too many requests wait already: ask again later", ((b"retry-after", seconds),))
        if isinstance(error, DeadlinePassed):
            self._metrics.refused[name, "deadline"].inc()
            return _error(504, "DEADLINE_EXCEEDED", f"not answered within {self._settings.deadline:g} s", ((b"retry-after", b"1"),))
        if isinstance(error, OutOfMemory):
            self._metrics.refused[name, "out of memory"].inc()
            return _error(503, "RESOURCE_EXHAUSTED", str(error), ((b"retry-after", b"1"),))
        if isinstance(error, Fatal):
            log.error("the card is lost to this process, which ends: %s", error)
            self.on_fatal()
            return _error(503, "TEMPORARILY_UNAVAILABLE", "the service restarts", ((b"retry-after", b"10"),))
        if isinstance(error, Unencodable):
            return _error(500, "INTERNAL_ERROR", str(error))
        if isinstance(error, Gone):
            return Answer(499, b"")
        log.error("a request failed", exc_info=error)
        return _error(500, "INTERNAL_ERROR", "this is a fault of the service; its log has the trace")


def app(serving: Serving, lease: "Lease | None" = None, settings: Settings | None = None) -> Service:
    """The ASGI application of these models."""
    return Service(serving, lease, settings)


def _headers(headers: Sequence[tuple[bytes, bytes]]) -> tuple[str | None, bytes, bytes]:
    """Content-Type, Content-Encoding, and the request's id: the caller's, if it may stand in a log."""
    kind, encoding, request_id = None, b"", b""
    for name, value in headers:
        if name == b"content-type":
            kind = value.decode("latin-1")
        elif name == b"content-encoding":
            encoding = value.strip().lower()
        elif name == b"x-request-id" and REQUEST_ID.fullmatch(value):
            request_id = value
    return kind, b"" if encoding == b"identity" else encoding, request_id or os.urandom(8).hex().encode()


async def _body(receive: Receive, headers: Sequence[tuple[bytes, bytes]], limit: int) -> bytes:
    """Raises Refusal (413) as soon as it is known to be too large, and Gone."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts, size = [body], len(body)
        while message.get("more_body"):
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Gone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        raise Gone
    if len(body) > limit:
        raise _too_large(limit)
    return body


def _inflated(body: bytes, encoding: bytes, limit: int) -> bytes:
    if encoding not in (b"gzip", b"x-gzip", b"deflate"):
        raise Refusal(f"Content-Encoding is {encoding.decode('latin-1')[:40]!r}; this service reads gzip and deflate", status=415)
    inflate = zlib.decompressobj(wbits=47)  # gzip or zlib, as the first bytes say
    try:
        found = inflate.decompress(body, limit + 1)
    except zlib.error as error:
        raise Refusal(f"the body is not {encoding.decode('latin-1')}: {error}") from None
    if len(found) > limit:
        raise _too_large(limit)
    if not inflate.eof:
        raise Refusal(f"the body ends in the midst of its {encoding.decode('latin-1')} stream")
    return found


def _too_large(limit: int) -> Refusal:
    return Refusal(f"the body is larger than {limit} bytes: send fewer rows at once", status=413)


def _error(status: int, code: str, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    if status == 415:  # a plain sentence, as MLflow has it
        return Answer(status, message.encode("utf-8", "replace"), b"text/plain; charset=utf-8", headers)
    body = orjson.dumps({"error_code": code, "message": message.encode("utf-8", "replace").decode()})
    return Answer(status, body, JSON, headers)


async def _send(send: Send, answer: Answer, request_id: bytes = b"", *, head: bool = False) -> None:
    headers = [(b"content-type", answer.kind), (b"content-length", str(len(answer.body)).encode()), *answer.headers]
    if request_id:
        headers.append((b"x-request-id", request_id))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})


def _log_access(request_id: bytes, loaded: Loaded, answer: Answer, rows: int, seconds: float) -> None:
    """One line of JSON on stderr; nothing of what was sent or answered."""
    line = {
        "time": round(time.time(), 3),
        "request_id": request_id.decode(),
        "model": loaded.name,
        "version": loaded.version,
        "status": answer.status,
        "rows": rows,
        "bytes": len(answer.body),
        "ms": round(seconds * 1000, 2),
    }
    sys.stderr.write(orjson.dumps(line).decode() + "\n")
