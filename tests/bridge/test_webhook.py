"""MLflow's webhooks: a signed and recent delivery wakes the loop once; everything else changes nothing."""

import asyncio
import base64
import hashlib
import hmac
import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.bridge import endpoint, webhook
from mlops_build.bridge.endpoint import Endpoint
from mlops_build.bridge.loop import Loop
from mlops_build.errors import UsageError
from tests.bridge.test_loop import HOUR, running, subject, until
from tests.bridge.test_reconcile import head, url
from tests.release.world import Promote

SECRET, OTHER = "5" * 32, "6" * 32
BODY = b'{"entity": "model_version_alias", "action": "created", "timestamp": "2026-11-30T12:00:00", "data": {"name": "digits"}}'
numbers = itertools.count()


def signed(
    body: bytes = BODY, *, secret: str = SECRET, delivery: str | None = None, sent_at: float | None = None, version: str = "v1"
) -> dict[str, str]:
    """The headers of a delivery, as MLflow makes them."""
    delivery = f"delivery-{next(numbers)}" if delivery is None else delivery
    timestamp = str(int(time.time() if sent_at is None else sent_at))
    digest = hmac.new(secret.encode(), f"{delivery}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    signature = f"{version},{base64.b64encode(digest).decode()}"
    return {"X-MLflow-Signature": signature, "X-MLflow-Delivery-Id": delivery, "X-MLflow-Timestamp": timestamp}


class Bridge:
    """The endpoint of a loop that does not run."""

    def __init__(self) -> None:
        self.loop = Loop((), lambda: pytest.fail("the registry is not asked"))
        self.wakes = 0
        self.loop.wake = self._wake  # type: ignore[method-assign]
        self._application = Endpoint(self.loop)

    def _wake(self) -> None:
        self.wakes += 1

    def send(self, headers: Mapping[str, str] | None = None, body: Any = BODY, method: str = "POST", path: str = "/webhook") -> int:
        async def call() -> int:
            transport = httpx.ASGITransport(app=self._application)  # type: ignore[arg-type]
            async with httpx.AsyncClient(transport=transport, base_url="http://bridge") as client:
                return (await client.request(method, path, headers=headers, content=body)).status_code

        return asyncio.run(call())


@pytest.fixture
def bridge(monkeypatch: pytest.MonkeyPatch) -> Bridge:
    monkeypatch.setenv(webhook.SECRET, SECRET)
    return Bridge()


def test_a_signed_delivery_wakes_the_loop_and_its_repetition_does_not(bridge: Bridge) -> None:
    headers = signed()
    assert [bridge.send(headers) for _ in range(3)] == [202, 202, 202]
    assert bridge.wakes == 1
    assert bridge.send(signed()) == 202
    assert bridge.wakes == 2


def test_the_signature_is_that_of_mlflow(bridge: Bridge) -> None:
    from mlflow.webhooks.delivery import _generate_hmac_signature

    headers = signed()
    expected = _generate_hmac_signature(SECRET, headers["X-MLflow-Delivery-Id"], headers["X-MLflow-Timestamp"], BODY.decode())
    assert headers["X-MLflow-Signature"] == expected


def test_two_secrets_are_accepted_during_rotation(bridge: Bridge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert bridge.send(signed(secret=OTHER)) == 401
    monkeypatch.setenv(webhook.PREVIOUS, OTHER)
    assert [bridge.send(signed(secret=secret)) for secret in (SECRET, OTHER)] == [202, 202]
    # A mounted file is read again for each delivery.
    mounted = tmp_path / "secret"
    mounted.write_text(f"{OTHER}\n")
    monkeypatch.delenv(webhook.PREVIOUS)
    monkeypatch.setenv(f"{webhook.SECRET}_FILE", str(mounted))
    assert [bridge.send(signed(secret=secret)) for secret in (SECRET, OTHER)] == [401, 202]
    mounted.write_text(SECRET)
    assert [bridge.send(signed(secret=secret)) for secret in (SECRET, OTHER)] == [202, 401]
    mounted.unlink()
    assert bridge.send(signed()) == 401


def test_a_secret_that_can_be_guessed_is_an_error(bridge: Bridge, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(webhook.SECRET, "short")
    with pytest.raises(UsageError, match="shorter than 16"):
        webhook.secrets()
    assert bridge.send(signed(secret="short")) == 401
    monkeypatch.setenv(f"{webhook.SECRET}_FILE", str(tmp_path / "missing"))
    with pytest.raises(UsageError, match="cannot be read"):
        webhook.secrets()
    monkeypatch.delenv(f"{webhook.SECRET}_FILE")
    monkeypatch.delenv(webhook.SECRET)
    assert bridge.send(signed(secret="")) == 401


HOSTILE = [
    "", " ", "0", "-1", "+1", "1e9", "1_0", "0x10", "٣", "²", "NaN", "inf", "9" * 13, "9" * 5000, "None", "null", "true", "[]", "{}", "v1,",
    "v1", "v2,AAAA", ",", ".", "..", "../../etc/passwd", "%00", "%0d%0aX: y", "\\x00", "a\tb", "a b", "a;b", "a,b", "a.b", "a=b", "$(id)",
    "`id`", "${IFS}", "{{7*7}}", "<script>", "'; drop table deliveries; --", '"', "'", "\\", "é", "ÿ", "İ", "🙂", "x" * 101, "x" * 9000,
    "v1,=====",
    "v1,!!!!", "v1 AAAA", "V1,AAAA", "v1,AAAA v1,BBBB", "1.1", "1 ", " 1",
]  # fmt: skip


@pytest.mark.parametrize("name", ["X-MLflow-Signature", "X-MLflow-Delivery-Id", "X-MLflow-Timestamp"])
def test_a_hostile_value_of_a_header_is_refused(bridge: Bridge, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert len(HOSTILE) >= 50
    monkeypatch.setattr(endpoint, "BURST", 10_000)
    bridge = Bridge()
    for value in HOSTILE:
        headers: Any = {key.encode(): content.encode() for key, content in {**signed(), name: value}.items()}
        assert bridge.send(headers) == 401, value
    assert bridge.wakes == 0


def test_forged_old_and_changed_deliveries_are_refused(bridge: Bridge) -> None:
    now, headers = time.time(), signed()
    forged = [
        signed(secret=OTHER),
        signed(sent_at=now - 400),
        signed(sent_at=now + 400),
        signed(version="v2"),
        {**headers, "X-MLflow-Timestamp": str(int(now) + 1)},
        {**headers, "X-MLflow-Delivery-Id": "another"},
        *({key: value for key, value in headers.items() if key != left_out} for left_out in headers),
        signed(delivery="a.1"),  # a point in the id could move the border of what is signed
        {},
    ]
    assert [bridge.send(each) for each in forged] == [401] * len(forged)
    assert bridge.send(headers, BODY + b" ") == 401
    for body in (b"", b"\0" * 100, b"\xff\xfe", BODY * 400, b'{"data": ' * 5000):
        assert bridge.send(headers, body) == 401
    assert bridge.wakes == 0
    # A correct signature over any bytes is accepted, since they are not read.
    for body in (b"", b"\0\xff", b"{", b"[" * 10_000):
        assert bridge.send(signed(body), body) == 202


def test_a_body_is_bounded_in_size_and_time(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    large = b"x" * (endpoint.BODY_BYTES + 1)
    assert bridge.send(signed(large), large) == 401
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1
            yield b"x" * 1000

    assert bridge.send(signed(), endless()) == 401
    assert sent < 100
    monkeypatch.setattr(endpoint, "BODY_SECONDS", 0.05)

    async def slow() -> Any:
        yield b"x"
        await asyncio.sleep(60)

    assert bridge.send(signed(), slow()) == 401


def test_the_rate_is_bounded(monkeypatch: pytest.MonkeyPatch, bridge: Bridge) -> None:
    monkeypatch.setattr(endpoint, "RATE", 0.0)
    answers = [bridge.send({}) for _ in range(endpoint.BURST + 5)]
    assert answers == [401] * endpoint.BURST + [429] * 5
    assert bridge.send(method="GET", path="/health") == 200


def test_memory_of_deliveries_is_bounded(bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "REMEMBERED", 5)
    deliveries = webhook.Deliveries()
    sent = [{key.lower(): value for key, value in signed().items()} for _ in range(20)]
    assert [deliveries.check(headers, BODY) for headers in sent] == ["new"] * 20
    assert len(deliveries._ids) == 5


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/webhook", 405), ("PUT", "/webhook", 405), ("POST", "/health", 405), ("DELETE", "/metrics", 405),
        ("HEAD", "/health", 200),
        ("GET", "/metrics", 200), ("GET", "/", 404), ("POST", "/webhook/", 404), ("POST", "/webhook/webhook", 404),
    ],
)  # fmt: skip
def test_other_methods_and_paths(bridge: Bridge, method: str, path: str, status: int) -> None:
    assert bridge.send({}, b"", method, path) == status
    assert bridge.wakes == 0


def test_a_delivery_releases_at_once_and_forged_reordered_and_repeated_ones_change_nothing(
    checkout: Path, registry: Registry, promote: Promote, bridge: Bridge
) -> None:
    with running(url(checkout), registry=registry, interval=HOUR) as loop:
        until(lambda: loop.passes)
        bridge.loop.wake = loop.wake  # type: ignore[method-assign]
        promote(1)
        first, second = signed(), signed()
        promote(2)
        assert bridge.send(signed(secret=OTHER)) == 401
        time.sleep(1)
        assert subject(checkout) == "First"
        # The second event first: what is released is what the registry says now.
        bridge.send(second)
        until(lambda: subject(checkout) == "Release digits 2 to staging")
        released = head(checkout)
        for headers in (first, second, first, signed(secret=OTHER)):
            bridge.send(headers)
        time.sleep(2)
        assert head(checkout) == released
