"""Messages about what the bridge did: one for each change, and never at the cost of a release."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters import notify
from mlops_build.adapters.registry import Registry
from mlops_build.bridge import notices, reconcile
from mlops_build.bridge.notices import Notices
from mlops_build.bridge.reconcile import Outcome
from mlops_build.errors import Refused
from tests.release.world import Promote, change_service

RELEASED = Outcome("https://git.example.com/ml/digits.git", "staging", "released", "digits 1", "digits 2", "a" * 40)
UNCHANGED = Outcome("https://git.example.com/ml/digits.git", "staging", "unchanged", "digits 2", "digits 2")
FAILED = Outcome(
    "https://git.example.com/ml/digits.git", "staging", "failed", "digits 2", error=Refused("it is dirty", remedy="train again")
)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Address, title and text of each message."""
    messages: list[tuple[str, str, str]] = []
    monkeypatch.setattr(notify, "send", lambda *message: messages.append(message))
    return messages


def wait_for(messages: list[Any], count: int) -> None:
    deadline = time.monotonic() + 20
    while len(messages) < count and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(messages) == count


def test_each_change_is_told_once(sent: list[tuple[str, str, str]]) -> None:
    told = Notices(lambda: ["json://one", "json://two"], pytest.fail)
    for outcome in (RELEASED, RELEASED, UNCHANGED, FAILED, FAILED, UNCHANGED, FAILED):
        told.tell(outcome)
    wait_for(sent, 6)
    assert [title for address, title, _ in sent if address == "json://one"] == [
        "https://git.example.com/ml/digits.git staging: released",
        *["https://git.example.com/ml/digits.git staging: failed"] * 2,
    ]
    assert "digits 1 → digits 2" in sent[0][2]
    assert sent[2][2].endswith("dirty\ntrain again")


def test_a_receiver_that_hangs_delays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ended, lines = threading.Event(), []
    monkeypatch.setattr(notify, "send", lambda *_: ended.wait(20))
    told = Notices(lambda: ["json://hangs"], lines.append)
    for number in range(notices.MOST + 5):
        told.tell(Outcome(RELEASED.repository, f"env-{number}", "released", commit="a" * 40))
    assert any("messages wait" in line for line in lines)
    ended.set()


def test_a_failed_message_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: str) -> None:
        raise notify.NotSent("json://… did not accept the message", remedy="try it")

    monkeypatch.setattr(notify, "send", refused)
    lines: list[str] = []
    notices.send(["json://s3cret"], RELEASED, lines.append)
    assert lines == ["notify: json://… did not accept the message", "    try it"]


def test_a_single_pass_tells_of_what_it_did(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    url = f"file://{checkout}.git"
    assert [notices.is_new(outcome) for outcome in reconcile.once([url], registry)] == [True, False]
    assert [notices.is_new(outcome) for outcome in reconcile.once([url], registry)] == [False, False]
    change_service(checkout, "models:", "models: [")
    assert [notices.is_new(outcome) for outcome in reconcile.once([url], registry)] == [False]
