"""The bridge's HTTP endpoint: GET /health, GET /metrics and POST /webhook, each with bounds on what a caller can occupy."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from mlops_build.bridge.loop import Loop
from mlops_build.bridge.metrics import LoopCollector
from mlops_build.bridge.webhook import Deliveries

Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
JSON = b"application/json"
BODY_BYTES = 1 << 16
BODY_SECONDS = 5.0
# Requests to /webhook: so many at once, and then so many in a second.
BURST, RATE = 100, 20.0
# The loop has ended or hangs if its last pass began so long ago; the registry's time limits and retries are shorter.
STALE_SECONDS = 600.0


class Endpoint:
    """An ASGI application. A delivery of MLflow only wakes the loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop, self._deliveries = loop, Deliveries()
        self._webhooks = {"new": 0, "replayed": 0, "refused": 0, "limited": 0}
        self._metrics = CollectorRegistry()
        self._metrics.register(LoopCollector(loop, self._webhooks))
        self._allowed, self._counted_at = float(BURST), time.monotonic()

    async def __call__(self, scope: Mapping[str, Any], receive: Receive, send: Send) -> None:
        methods = {"/health": "GET", "/metrics": "GET", "/webhook": "POST"}
        path, method = str(scope["path"]), str(scope["method"]).replace("HEAD", "GET")
        if methods.get(path) != method:
            await _answer(send, 405 if path in methods else 404, _document("/health, /metrics and POST /webhook exist"))
        elif path == "/health":
            await _answer(send, *self._health())
        elif path == "/metrics":
            await _answer(send, 200, generate_latest(self._metrics), CONTENT_TYPE_LATEST.encode())
        else:
            await _answer(send, *await self._webhook(scope, receive))

    def _health(self) -> tuple[int, bytes]:
        """Not healthy if a restart could help: not if the registry or a Git host does not answer."""
        age = time.monotonic() - self._loop.beat
        failing = sum(bool(watched.failures) for watched in self._loop.repositories)
        document = {"pass_age_seconds": round(age, 1), "registry": bool(self._loop.registry_answers), "failing_repositories": failing}
        return (200 if age < self._loop.interval + STALE_SECONDS else 503), json.dumps(document).encode()

    async def _webhook(self, scope: Mapping[str, Any], receive: Receive) -> tuple[int, bytes]:
        if not self._may_receive():
            self._webhooks["limited"] += 1
            return 429, _document("too many requests")
        try:
            body = await asyncio.wait_for(_body(receive), BODY_SECONDS)
        except TimeoutError:
            body = None
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        verdict = "refused" if body is None else self._deliveries.check(headers, body)
        self._webhooks[verdict] += 1
        if verdict == "new":
            self._loop.wake()
        # The reason is not told: it would help those who guess.
        return (401, _document("not a signed and recent delivery of MLflow")) if verdict == "refused" else (202, b"{}")

    def _may_receive(self) -> bool:
        now = time.monotonic()
        self._allowed = min(BURST, self._allowed + (now - self._counted_at) * RATE)
        self._counted_at = now
        if self._allowed < 1:
            return False
        self._allowed -= 1
        return True


async def _body(receive: Receive) -> bytes | None:
    """The body of a request; None if it is too large or incomplete."""
    body = b""
    while True:
        message = await receive()
        body += bytes(message.get("body", b""))
        if message["type"] == "http.disconnect" or len(body) > BODY_BYTES:
            return None
        if not message.get("more_body"):
            return body


async def _answer(send: Send, status: int, body: bytes, kind: bytes = JSON) -> None:
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _document(message: str) -> bytes:
    return json.dumps({"error": message}).encode()
