"""Messages by apprise to a webhook on this machine."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from mlops_build.adapters import notify
from mlops_build.adapters.notify import NotSent
from tests import servers


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[Any]]]:
    """Host and port of a webhook, and the documents that it received; the path /refuse is answered with 500."""
    received: list[Any] = []

    class Webhook(servers.Handler):
        def do_POST(self) -> None:
            received.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.reply(500 if self.path == "/refuse" else 200)

    with servers.serve(Webhook) as host:
        yield host, received


def test_a_secret_part_of_an_address_is_in_the_environment(webhook: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    host, received = webhook
    monkeypatch.setenv("MLOPS_NOTIFY_TOKEN", "s3cret")
    notify.send(f"json://{host}/${{MLOPS_NOTIFY_TOKEN}}", "digits staging", "released <b>digits 2</b>")
    ((path, document),) = received
    assert path.rstrip("/") == "/s3cret"
    assert (document["title"], document["message"]) == ("digits staging", "released <b>digits 2</b>")


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("json://HOST/${MLOPS_NOTIFY_MISSING}", "MLOPS_NOTIFY_MISSING is not set"),
        ("nothing://s3cret", "nothing://… is not an address of apprise"),
        ("s3cret", "unknown://… is not an address"),
        ("json://HOST/refuse", "json://… did not accept the message"),
        ("json://127.0.0.1:9/s3cret", "json://… did not accept the message"),
    ],
)
def test_what_is_not_sent_is_reported_without_the_address(webhook: tuple[str, list[Any]], address: str, why: str) -> None:
    with pytest.raises(NotSent) as error:
        notify.send(address.replace("HOST", webhook[0]), "title", "text")
    assert why in error.value.message
    assert "s3cret" not in f"{error.value.message}{error.value.remedy}"


def test_other_variables_are_not_read(webhook: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may change fleet.yaml must not receive the bridge's token."""
    host, received = webhook
    monkeypatch.setenv("MLOPS_GIT_TOKEN", "s3cret")
    notify.send(f"json://{host}/${{MLOPS_GIT_TOKEN}}", "title", "text")
    assert "s3cret" not in received[0][0]
