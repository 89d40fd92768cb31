"""`bridge status`: what should run, what Git says, and what a service answers."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_build.__main__ import main
from mlops_build.adapters import http
from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.model import identity
from mlops_build.release import record
from tests import servers
from tests.conftest import git
from tests.release.world import SERVICE, MakeRepository, Promote


@pytest.fixture
def answering() -> Iterator[Callable[[object], str]]:
    """answering(document): the host and port of a service that answers every request with this document."""
    with contextlib.ExitStack() as started:

        def start(document: object) -> str:
            class Service(servers.Handler):
                def do_GET(self) -> None:
                    assert self.path == "/v2/models/digits"
                    self.reply(200, json.dumps(document).encode())

            return started.enter_context(servers.serve(Service))

        yield start


def rows(capsys: pytest.CaptureFixture[str], *urls: str) -> list[dict[str, str]]:
    assert main(["bridge", "status", "--json", *(word for url in urls for word in ("--repo", url))]) == 0
    listed: list[dict[str, str]] = json.loads(capsys.readouterr().out)["environments"]
    return listed


def test_a_row_tells_what_should_run_and_why_it_does_not(
    checkout: Path, registry: Registry, promote: Promote, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{checkout}.git"
    promote(1)
    reconcile.once([url], registry)
    promote(2)
    staging, production, missing = rows(capsys, url, f"file://{checkout}-missing.git")
    assert (staging["wanted"], staging["git"], staging["running"], staging["state"]) == ("digits 2", "digits 1", "-", "would release")
    assert (production["wanted"], production["git"], production["state"]) == ("-", "-", "nothing promoted yet")
    assert (missing["environment"], missing["state"]) == ("-", "failed")
    assert missing["reason"]
    assert main(["bridge", "status", "--repo", url]) == 0
    heading, first, _ = capsys.readouterr().out.splitlines()
    assert heading.split() == ["repository", "environment", "wanted", "git", "image", "running", "state", "request", "checks", "reason"]
    assert first.index("digits 2") == heading.index("wanted")


def test_a_release_has_the_time_of_its_image(
    checkout: Path, registry: Registry, promote: Promote, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(1)
    reconcile.once([f"file://{checkout}.git"], registry)
    git(checkout, "pull", "--quiet")
    monkeypatch.chdir(checkout)
    written = record.read(checkout, "staging")
    committed = int(git(checkout, "log", "-1", "--format=%ct"))
    name = f"{identity.IMAGE_TIME_PREFIX}{str(written.image).rpartition(':')[2]}"
    for tag, text, shown, seconds in (
        (name, f"{committed + 14} 14", "+14 s", 14),
        (name, f"{committed - 90} 70", "+1 min", 0),  # made for an earlier release
        (name, f"{committed} -1", "-", None),
        (name, "² 14", "-", None),
        (f"{name}0", f"{committed} 14", "-", None),
    ):
        registry.set_tag("digits", 1, tag, text)
        assert rows(capsys, f"file://{checkout}.git")[0]["image"] == shown
        assert main(["history", "staging", "--images", "--json"]) == 0
        assert [entry["image_seconds"] for entry in json.loads(capsys.readouterr().out)["staging"]] == [seconds]
        registry.delete_tag("digits", 1, tag)
    assert main(["history", "staging", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["staging"][0]["image_seconds"] is None


@pytest.mark.parametrize(
    ("document", "running"),
    [({"versions": ["7"]}, "digits 7"), ({"versions": ["7\n"]}, "-"), ({"versions": []}, "-"), ([], "-"), ({"versions": "x"}, "-")],
)
def test_what_runs_is_asked_of_the_service(
    make_repository: MakeRepository,
    registry: Registry,
    capsys: pytest.CaptureFixture[str],
    answering: Callable[[object], str],
    monkeypatch: pytest.MonkeyPatch,
    document: object,
    running: str,
) -> None:
    address = answering(document)
    checkout = make_repository(service=SERVICE.replace("digits-staging.example.com", "digits-staging.test"))
    send = http.call
    # A host in service.yaml has no port.
    monkeypatch.setattr(http, "call", lambda method, url, **options: send(method, url.replace("digits-staging.test", address), **options))
    assert rows(capsys, f"file://{checkout}.git")[0]["running"] == running


def test_many_repositories_at_once_leave_stdout_in_place(
    make_repository: MakeRepository, registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = [f"file://{make_repository(f'digits-{number}')}.git" for number in range(6)]
    before = sys.stdout
    assert len(rows(capsys, *urls)) == 12
    assert sys.stdout is before
