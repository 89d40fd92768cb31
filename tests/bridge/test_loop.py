"""The loop with real repositories, hosts that hang and a real registry: what it reconciles, when, and what it reports."""

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from mlflow import MlflowClient
from prometheus_client.parser import text_string_to_metric_families

from mlops_build import service as service_file
from mlops_build.__main__ import main
from mlops_build.adapters.git import remote
from mlops_build.adapters.registry import Registry
from mlops_build.bridge import loop as loops
from mlops_build.bridge import reconcile, server
from mlops_build.bridge.loop import Loop
from mlops_build.cli.parser import problem_of
from mlops_build.fleet.repositories import Repositories
from mlops_build.model import identity
from mlops_build.release import alias
from tests.bridge.test_reconcile import head, url
from tests.conftest import git
from tests.release.world import SERVICE, MakeRepository, Promote

Register = Callable[..., Any]
HOUR = 3600.0


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


@contextlib.contextmanager
def running(*urls: str, registry: Registry, interval: float = 1.0, **options: Any) -> Iterator[Loop]:
    options.setdefault("say", [].append)
    loop = Loop(urls, lambda: Registry(registry.uri), interval=interval, **options)
    thread = threading.Thread(target=loop.run)
    thread.start()
    try:
        yield loop
    finally:
        loop.stop()
        thread.join(timeout=60)


@pytest.fixture
def silent_host() -> Iterator[socket.socket]:
    """A Git host that accepts connections and never answers, until it is closed."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def at(host: socket.socket, name: object) -> str:
    return f"git://127.0.0.1:{host.getsockname()[1]}/{name}.git"


@pytest.fixture
def reconciled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The repositories that are reconciled."""
    urls: list[str] = []
    repository = reconcile.repository

    def recorded(url: str, *arguments: Any, **options: Any) -> Any:
        urls.append(url)
        return repository(url, *arguments, **options)

    monkeypatch.setattr(reconcile, "repository", recorded)
    return urls


def subject(checkout: Path) -> str:
    return git(checkout.with_name(f"{checkout.name}.git"), "log", "-1", "--format=%s", "main")


def test_it_reconciles_what_changed_and_nothing_else(
    checkout: Path, make_repository: Callable[..., Path], registry: Registry, promote: Promote, reconciled: list[str]
) -> None:
    other = make_repository("spam", SERVICE.replace("digits", "spam"))
    with running(url(checkout), url(other), registry=registry) as loop:
        until(lambda: loop.passes >= 3)
        assert sorted(reconciled) == [url(checkout), url(other)]
        promote(1)
        until(lambda: subject(checkout) == "Release digits 1 to staging")
        passes = loop.passes
        until(lambda: loop.passes >= passes + 3)
        assert (reconciled.count(url(checkout)), reconciled.count(url(other))) == (2, 1)
        git(other, "commit", "--quiet", "--allow-empty", "--message=Empty")
        git(other, "push", "--quiet")
        until(lambda: reconciled.count(url(other)) == 2)
        assert reconciled.count(url(checkout)) == 2


def test_a_moved_alias_does_not_wait_for_the_other_repositories_of_a_pass(
    make_repository: Callable[..., Path], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"model-{number}" for number in range(5)]
    urls = [url(make_repository(name, SERVICE.replace("digits", name))) for name in names]
    MlflowClient(registry.uri).create_registered_model(names[4])
    MlflowClient(registry.uri).create_model_version(names[4], "file:///nowhere")
    asked: list[str] = []
    may_go, head_of = threading.Event(), remote.head

    def head_after_a_while(address: str, branch: str) -> str:
        asked.append(address)
        may_go.wait(60)
        return head_of(address, branch)

    may_go.set()
    monkeypatch.setattr(remote, "head", head_after_a_while)
    with running(*urls, registry=registry, workers=1) as loop:
        until(lambda: loop.passes)
        may_go.clear()
        asked.clear()
        until(lambda: asked)
        registry.set_alias(names[4], "staging", 1)
        until(lambda: loop.repositories[4].queued == loops.URGENT)
        may_go.set()
        until(lambda: len(asked) > 1)
    assert asked[1] == urls[4]


def test_an_open_request_is_not_looked_at_in_each_pass(checkout: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commit is not the head of the branch that releases land on."""
    requested = reconcile.Outcome(url(checkout), "production", "requested", commit="a" * 40)
    calls: list[str] = []

    def repository(address: str, *_: Any, **__: Any) -> list[reconcile.Outcome]:
        calls.append(address)
        return [requested]

    monkeypatch.setattr(reconcile, "repository", repository)
    with running(url(checkout), registry=registry) as loop:
        until(lambda: loop.passes >= 3)
    assert calls == [url(checkout)]


def test_an_unchanged_repository_is_refreshed(
    checkout: Path, registry: Registry, reconciled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not every change of the registry moves an alias."""
    monkeypatch.setattr(loops, "REFRESH_SECONDS", 0.1)
    with running(url(checkout), registry=registry):
        until(lambda: len(reconciled) > 2)


@pytest.mark.parametrize("interval", [0.5, HOUR])
def test_what_a_person_took_back_follows_the_next_promotion(
    checkout: Path, registry: Registry, promote: Promote, interval: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No alias moves. At the next pass, or when MLflow wakes the loop."""
    monkeypatch.setattr(loops, "AGAIN_SECONDS", 0.2)
    promote(1)
    reconcile.once([url(checkout)], registry)
    git(checkout, "pull", "--quiet")
    git(checkout, "revert", "--no-edit", "HEAD")
    git(checkout, "push", "--quiet")
    with running(url(checkout), registry=registry, interval=interval) as loop:
        until(lambda: loop.repositories[0].states.get("staging") == "reverted")
        promote(1)
        if interval == HOUR:
            loop.wake()
        until(lambda: subject(checkout) == "Release digits 1 to staging")


def test_a_version_that_was_refused_follows_the_next_promotion(
    checkout: Path, registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "AGAIN_SECONDS", 0.2)
    register(tags={identity.DIRTY: "train.py"})
    registry.set_alias("digits", "live", 1)
    with running(url(checkout), registry=registry) as loop:
        until(lambda: loop.repositories[0].states.get("production") == "failed")
        alias.promote_all(registry, service_file.load(checkout), {"digits": 1}, "production", force_dirty=True)
        until(lambda: subject(checkout) == "Release digits 1 to production")


def test_a_host_that_hangs_delays_only_its_own_repositories(
    checkout: Path, registry: Registry, promote: Promote, silent_host: socket.socket
) -> None:
    hanging = [at(silent_host, number) for number in range(30)]
    with running(*hanging, url(checkout), registry=registry, workers=2) as loop:
        until(lambda: loop.repositories[-1].examined)
        promote(1)
        until(lambda: subject(checkout) == "Release digits 1 to staging")
        assert all(watched.queued or watched.examining for watched in loop.repositories[:-1])
        assert loop.passes == 0
        silent_host.close()
        until(lambda: loop.passes)


def test_a_failed_repository_is_tried_again(
    tmp_path: Path, checkout: Path, registry: Registry, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(1)
    bare = checkout.with_name("digits.git")
    bare.rename(tmp_path / "away.git")
    with running(url(checkout), registry=registry) as loop:
        watched = loop.repositories[0]
        until(lambda: watched.failures)
        assert loops.FIRST_WAIT / 2 - 5 < watched.again_at - time.monotonic() <= loops.FIRST_WAIT
        passes = loop.passes
        until(lambda: loop.passes > passes + 2)
        assert watched.failures == 1
        (tmp_path / "away.git").rename(bare)
        watched.again_at = 0
        until(lambda: subject(checkout) == "Release digits 1 to staging")
        until(lambda: not watched.failures)


def test_a_failed_environment_is_tried_again_at_once_after_a_change(
    checkout: Path, registry: Registry, register: Register, promote: Promote, reconciled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loops, "MOST_AGAIN", 0)
    register(), register(tags={"mlops_build.digest": None})
    promote(1)
    registry.set_alias("digits", "staging", 2)
    with running(url(checkout), registry=registry) as loop:
        watched = loop.repositories[0]
        until(lambda: watched.failures)
        assert watched.changed_at
        passes = loop.passes
        until(lambda: loop.passes > passes + 1)
        assert len(reconciled) == 1
        registry.set_alias("digits", "staging", 1)
        until(lambda: subject(checkout) == "Release digits 1 to staging")
        until(lambda: watched.changed_at is None)


def test_a_defect_in_one_reconciliation_does_not_end_the_loop(
    checkout: Path, registry: Registry, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository, defects = reconcile.repository, [True]

    def defective(*arguments: Any, **options: Any) -> Any:
        if defects and defects.pop():
            raise RuntimeError("a defect")
        return repository(*arguments, **options)

    monkeypatch.setattr(reconcile, "repository", defective)
    monkeypatch.setattr(loops, "FIRST_WAIT", 0.1)
    promote(1)
    with running(url(checkout), registry=registry):
        until(lambda: subject(checkout) == "Release digits 1 to staging")


def test_it_waits_for_a_registry_that_does_not_answer(checkout: Path, registry: Registry, promote: Promote, tmp_path: Path) -> None:
    promote(1)
    database = Path(registry.uri.removeprefix("sqlite:///"))
    database.rename(tmp_path / "away.db")
    lines: list[str] = []
    with running(url(checkout), registry=registry, say=lines.append) as loop:
        until(lambda: loop.registry_answers is False)
        (tmp_path / "away.db").rename(database)
        until(lambda: subject(checkout) == "Release digits 1 to staging")
        assert loop.registry_answers
    assert lines[0].startswith("the registry cannot be read: MLflow's database ")
    assert lines[1].startswith("    correct MLFLOW_TRACKING_URI")
    assert [line for line in lines if line == "the registry answers again"] == ["the registry answers again"]


def test_a_wrong_address_of_mlflow_ends_it_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bridge", "run", "--repo", "file:///nowhere.git", "--port", "0", "--tracking-uri", "127.0.0.1:5000"]) == 2
    assert "write http://127.0.0.1:5000 " in capsys.readouterr().err


def test_a_registry_that_does_not_answer_is_asked_once_an_interval(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Loop, "_connection", lambda _: asked.append(1))
    with running(registry=registry, interval=HOUR) as loop:
        until(lambda: loop.registry_answers is False)
        time.sleep(1)
    assert asked == [1]


def test_every_state_of_an_environment_is_settled_or_looked_at_again() -> None:
    assert set(get_args(reconcile.State)) - loops.SETTLED == {"would release", "would roll back", "waiting", "failed"}
    assert set(get_args(reconcile.State)) > loops.SETTLED


# -- as a process --


@contextlib.contextmanager
def process(*urls: str, interval: float = 1, **environment: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """`mlops-build bridge run`, and its address."""
    command = [sys.executable, "-m", "mlops_build", "bridge", "run", "--port", "0", "--interval", str(interval)]
    for address in urls:
        command += ["--repo", address]
    bridge = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment})
    try:
        assert bridge.stderr
        where = ""
        while not where:
            line = bridge.stderr.readline()
            assert line, "it ended"
            where = (re.findall(r"listens on (http://\S+)", line) or [""])[0]
        threading.Thread(target=bridge.stderr.read, daemon=True).start()
        yield bridge, where
    finally:
        bridge.kill()
        bridge.wait(timeout=30)


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return str(answer.read().decode())


def metrics(where: str) -> dict[str, float]:
    """Metric → value; the values of its labels are part of its name."""
    samples = [sample for family in text_string_to_metric_families(read(f"{where}/metrics")) for sample in family.samples]
    return {"/".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def closed(connections: list[socket.socket]) -> int:
    """How many of them the server has closed."""
    return len(select.select(connections, [], [], 0)[0])


def test_options_before_the_action_are_understood_as_in_earlier_releases() -> None:
    assert problem_of(["bridge", "--repo", "file:///a", "--dry-run", "once"]) is None


@pytest.mark.real_python
def test_metrics_and_health(checkout: Path, registry: Registry, register: Register, promote: Promote, tmp_path: Path) -> None:
    register(), register(tags={"mlops_build.digest": None})
    promote(1)
    registry.set_alias("digits", "live", 2)
    missing = f"file://{tmp_path}/missing.git"
    with process(url(checkout), missing) as (_, where):
        until(lambda: metrics(where)["mlops_bridge_passes_total"] >= 2)
        values = metrics(where)
        assert values["mlops_bridge_repositories"] == 2
        assert values["mlops_bridge_registry_up"] == 1
        assert values["mlops_bridge_drift_environments"] == values["mlops_bridge_environments/failed"] == 1
        assert values["mlops_bridge_unreleased_age_seconds"] > 0
        assert values["mlops_bridge_pass_duration_seconds"] > 0
        assert values[f"mlops_bridge_failures_total/{missing}"] >= values[f"mlops_bridge_failing/{missing}"] == 1
        health = read(f"{where}/health")
        assert '"registry": true' in health
        # Connections that send nothing cannot occupy all places: the oldest ones are closed.
        host, port = where.removeprefix("http://").split(":")
        with contextlib.ExitStack() as stack:
            idle = [stack.enter_context(socket.create_connection((host, int(port)))) for _ in range(server.MOST_CONNECTIONS + 10)]
            until(lambda: closed(idle) >= 10)
            assert read(f"{where}/health")
            assert closed(idle) < len(idle)
        registry.set_alias("digits", "live", 1)
        until(lambda: metrics(where)["mlops_bridge_drift_environments"] == 0)
        until(lambda: metrics(where)["mlops_bridge_failing/" + url(checkout)] == 0)


@pytest.mark.real_python
def test_sigterm_ends_it_and_the_programs_that_it_runs(checkout: Path, registry: Registry, silent_host: socket.socket) -> None:
    with process(at(silent_host, "a"), url(checkout)) as (bridge, where):
        until(lambda: metrics(where)["mlops_bridge_environments/nothing promoted yet"] == 2)
        children = subprocess.run(["pgrep", "-P", str(bridge.pid)], capture_output=True, text=True, timeout=20, check=True).stdout.split()
        assert children
        bridge.send_signal(signal.SIGTERM)
        assert bridge.wait(timeout=30) == 0
        assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


@pytest.mark.real_python
@pytest.mark.soak
def test_a_kill_loses_nothing_and_releases_nothing_twice(checkout: Path, promote: Promote) -> None:
    first = head(checkout)
    for number in range(1, 9):
        promote(number)
        with process(url(checkout)):
            time.sleep(number * 0.2)
    with process(url(checkout)):
        until(lambda: subject(checkout) == "Release digits 8 to staging")
    subjects = git(checkout.with_name("digits.git"), "log", "--format=%s", f"{first}..main").splitlines()
    assert len(subjects) == len(set(subjects))


def test_repositories_come_and_go_while_it_runs(make_repository: MakeRepository, registry: Registry, promote: Promote) -> None:
    """A repository of the project without a service.yaml is no failure; one that the Git host no longer lists is no longer watched."""
    promote(1)
    first, second = make_repository("first"), make_repository("second")
    git(second, "rm", "--quiet", "service.yaml")
    git(second, "commit", "--quiet", "--message=Not a service")
    git(second, "push", "--quiet")
    urls = [f"file://{first}.git", f"file://{second}.git"]
    there = list(urls[1:])
    with running(registry=registry, interval=0.5, listed=lambda _: Repositories(discovered=tuple(there))) as loop:
        until(lambda: loop.repositories and loop.repositories[0].examined)
        assert loop.repositories[0].failures == 0
        there.append(urls[0])
        until(lambda: subject(first) == "Release digits 1 to staging")
        del there[0]
        until(lambda: [watched.url for watched in loop.repositories] == urls[:1])
