"""A freeze of fleet.yaml in the bridge and in `release`: what waits, what goes back, and what follows when it ends."""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from mlops_build.__main__ import main
from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.errors import Unreachable
from mlops_build.fleet import Fleet, Freeze, repositories, rules
from mlops_build.fleet.repositories import Repositories
from mlops_build.fleet.rules import Frozen, Rules
from mlops_build.release import write
from tests.bridge.test_loop import running, until
from tests.bridge.test_reconcile import head, states, url
from tests.conftest import git
from tests.release.world import Promote

Register = Callable[..., Any]
CHRISTMAS = "schema: 1\nfreeze: [{environments: [production], from: 2020-01-01T00:00Z, until: 2999-01-01T00:00Z, why: Christmas}]\n"


def freeze(*environments: str) -> Rules:
    """These environments are frozen now."""
    now = datetime.now(UTC)
    times = {"from": now - timedelta(hours=1), "until": now + timedelta(hours=1)}
    return Rules(Fleet(schema=1, freeze=[Freeze.model_validate({"environments": list(environments), **times, "why": "Christmas"})]))


@pytest.fixture
def released(checkout: Path, registry: Registry, register: Register, promote: Promote) -> Path:
    """Both environments run version 2."""
    promote(2), promote(2, "live")
    register()
    assert set(states(reconcile.once([url(checkout)], registry)).values()) == {"released"}
    return checkout


def move(registry: Registry, version: int) -> None:
    for name in ("staging", "live"):
        registry.set_alias("digits", name, version)


def test_a_release_waits_for_the_end_of_a_freeze(released: Path, registry: Registry) -> None:
    move(registry, 3)
    outcomes = reconcile.once([url(released)], registry, rules=freeze("production"))
    assert states(outcomes) == {"staging": "released", "production": "frozen"}
    assert reconcile.exit_code(outcomes) == 0
    assert "production  frozen  production is not changed: frozen until" in str(outcomes[1])
    assert str(outcomes[1]).endswith("Christmas  Git keeps digits 2")
    before = head(released)
    assert states(reconcile.once([url(released)], registry, rules=freeze("production")))["production"] == "frozen"
    assert head(released) == before
    assert states(reconcile.once([url(released)], registry))["production"] == "released"


def test_going_back_does_not_wait(released: Path, registry: Registry) -> None:
    move(registry, 1)
    assert set(states(reconcile.once([url(released)], registry, rules=freeze("production", "staging"))).values()) == {"released"}
    assert git(released.with_name("digits.git"), "log", "-1", "--format=%s", "main") == "Release digits 1 to production"


@pytest.mark.parametrize(("version", "production"), [(3, "frozen"), (1, "released")])
def test_while_fleet_yaml_cannot_be_read_production_only_goes_back(
    released: Path, registry: Registry, version: int, production: str
) -> None:
    move(registry, version)
    rules = Rules(error=Unreachable("git.example.com does not answer"))
    outcomes = reconcile.once([url(released)], registry, rules=rules)
    assert states(outcomes) == {"staging": "released", "production": production}
    if version == 3:
        assert "whether production is frozen is not known: git.example.com does not answer" in str(outcomes[1])


def test_release_is_refused_in_a_freeze_unless_it_goes_back(
    released: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    git(released, "pull", "--quiet")
    move(registry, 3)
    with pytest.raises(Frozen, match=r"production is not changed: frozen until .*Christmas"):
        write.in_checkout(released, "production", registry, rules=freeze("production"))
    (tmp_path / "fleet.yaml").write_text(CHRISTMAS)
    monkeypatch.chdir(released)
    assert main(["release", "production", "--fleet", str(tmp_path / "fleet.yaml")]) == 4
    monkeypatch.setenv("MLOPS_FLEET", str(tmp_path / "fleet.yaml"))
    assert main(["release", "production"]) == 4
    assert "wait, or change fleet.yaml; going back is always possible" in capsys.readouterr().err
    assert main(["release", "staging"]) == 0
    move(registry, 1)
    assert main(["release", "production"]) == 0


def test_the_repositories_of_fleet_yaml(
    released: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet.yaml"
    monkeypatch.setenv("MLOPS_FLEET", str(fleet))
    assert main(["bridge", "once"]) == 3
    assert "fleet.yaml cannot be read" in capsys.readouterr().err
    fleet.write_text(CHRISTMAS)
    assert main(["bridge", "once"]) == 2
    assert "no repository is given" in capsys.readouterr().err
    fleet.write_text(f"{CHRISTMAS}repositories: {{urls: [{url(released)}]}}\n")
    move(registry, 3)
    assert main(["bridge", "once", "--repo", url(released)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[1] for line in lines] == ["released", "frozen"]


def test_the_loop_follows_a_changed_fleet_yaml(released: Path, registry: Registry) -> None:
    """Without a change in the repository or the registry."""
    now = freeze("production")
    move(registry, 3)
    with running(url(released), registry=registry, rules=lambda: now) as loop:
        until(lambda: loop.repositories[0].states.get("production") == "frozen")
        now = Rules()
        until(lambda: loop.repositories[0].states.get("production") == "released")


def test_a_slow_git_host_delays_no_freeze(released: Path, registry: Registry) -> None:
    """The discovery of repositories hangs, while fleet.yaml changes."""
    now, hangs, may_end = Rules(Fleet(schema=1)), threading.Event(), threading.Event()

    def listed(_: Rules) -> Repositories:
        hangs.set()
        may_end.wait(60)
        return Repositories()

    with running(url(released), registry=registry, rules=lambda: now, listed=listed) as loop:
        until(hangs.is_set)
        now = freeze("production")
        until(lambda: loop.repositories[0].rules is now)
        move(registry, 3)
        until(lambda: loop.repositories[0].states == {"staging": "released", "production": "frozen"})
        may_end.set()


def test_while_a_git_host_does_not_answer_what_is_known_is_released(
    released: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLOPS_GIT_TOKEN", "x")
    for kind, place in ("bitbucket", "project: ML"), ("gitlab", "group: ml"):
        (tmp_path / "fleet.yaml").write_text(
            f"schema: 1\nrepositories: {{urls: [{url(released)}], {kind}: {{api: 'http://127.0.0.1:9', {place}}}}}\n"
        )
        move(registry, 3 if kind == "bitbucket" else 1)
        assert main(["bridge", "once", "--fleet", str(tmp_path / "fleet.yaml")]) == 5
        out, err = capsys.readouterr()
        assert [line.split("  ")[1] for line in out.splitlines()] == ["released", "released"]
        assert "not all repositories of fleet.yaml are known: http://127.0.0.1:9 does not answer" in err


@pytest.mark.parametrize(
    ("content", "code", "message"), [("freezes: []", 4, "unknown key"), ("", 4, "not a mapping"), (None, 3, "cannot be read")]
)
def test_a_broken_fleet_yaml_is_reported_also_while_nothing_is_released(
    released: Path, content: str | None, code: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fleet = tmp_path / "fleet.yaml"
    if content is not None:
        fleet.write_text(f"schema: 1\n{content}\n" if content else "")
    for action in ["once"], ["once", "--dry-run"], ["status"]:
        assert main(["bridge", *action, "--repo", url(released), "--fleet", str(fleet)]) == (0 if action == ["status"] else code)
        out, err = capsys.readouterr()
        assert "unchanged" in out
        assert "production is not changed, except to go back: " in err
        assert message in err


def test_a_freeze_of_an_environment_that_no_service_has_is_reported(
    released: Path, registry: Registry, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fleet.yaml").write_text(CHRISTMAS.replace("production", "prod, staging"))
    remark = "fleet.yaml freezes prod, but no examined service has such an environment"
    assert main(["bridge", "once", "--repo", url(released), "--fleet", str(tmp_path / "fleet.yaml")]) == 0
    assert remark in capsys.readouterr().err
    said: list[str] = []
    with running(url(released), registry=registry, interval=0.5, rules=lambda: freeze("prod", "staging"), say=said.append) as loop:
        until(lambda: remark in said)
        passes = loop.passes
        until(lambda: loop.passes > passes + 2)
    assert said.count(remark) == 1


def test_the_loop_waits_for_a_fleet_yaml_that_cannot_be_read(released: Path, registry: Registry, tmp_path: Path) -> None:
    move(registry, 3)
    fleet, said = tmp_path / "fleet.yaml", list[str]()
    options: dict[str, Any] = {"rules": lambda: rules.read(str(fleet)), "listed": lambda known: repositories.find((), known)}
    with running(registry=registry, interval=0.5, say=said.append, **options) as loop:
        until(lambda: any("fleet.yaml cannot be read, so production is not changed" in line for line in said))
        assert loop.fleet_answers is False
        fleet.write_text(f"schema: 1\nrepositories: {{urls: [{url(released)}]}}\n")
        until(lambda: loop.repositories and loop.repositories[0].states.get("production") == "released")
        assert loop.fleet_answers
        fleet.write_text("")
        until(lambda: loop.fleet_answers is False)
        loop._list(lambda _: Repositories())  # a slow host answers now
        assert [watched.url for watched in loop.repositories] == [url(released)]
    assert "watches 1 repositories" in said


def test_the_loop_releases_nothing_to_production_before_it_knows_the_rules(released: Path, registry: Registry) -> None:
    move(registry, 3)

    def broken() -> Rules:
        raise ZeroDivisionError

    with running(url(released), registry=registry, rules=broken) as loop:
        until(lambda: loop.repositories[0].states == {"staging": "released", "production": "frozen"})
        assert "ZeroDivisionError" in loop.repositories[0].lines["production"]
