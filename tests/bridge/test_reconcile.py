"""The bridge with real repositories and a real registry: what it commits, what it does not change, and several bridges at once."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_build import service
from mlops_build.adapters.git.mirror import Mirror
from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.errors import UsageError
from mlops_build.model import identity, openapi
from mlops_build.packaging.name import image_name
from mlops_build.release import alias, record, write
from mlops_build.service.pin import Pin
from tests.conftest import git
from tests.release.world import SERVICE, Promote, change_service, service_files
from tests.release.world import write as write_files

Register = Callable[..., Any]


def url(checkout: Path) -> str:
    return f"file://{checkout}.git"


def head(checkout: Path) -> str:
    return git(checkout.with_name(f"{checkout.name}.git"), "rev-parse", "main")


def states(outcomes: list[reconcile.Outcome]) -> dict[str | None, str]:
    return {outcome.environment: outcome.state for outcome in outcomes}


def test_a_moved_alias_becomes_a_commit_and_nothing_else_does(checkout: Path, registry: Registry, promote: Promote) -> None:
    first = head(checkout)
    assert states(reconcile.once([url(checkout)], registry)) == {"staging": "nothing promoted yet", "production": "nothing promoted yet"}
    assert head(checkout) == first
    promote(1)
    outcomes = reconcile.once([url(checkout)], registry)
    assert states(outcomes) == {"staging": "released", "production": "nothing promoted yet"}
    assert outcomes[0].commit == head(checkout)
    assert str(outcomes[0]).endswith(f"staging  released  nothing → digits 1  commit {head(checkout)[:12]}")
    for _ in range(2):
        again = reconcile.once([url(checkout)], registry)
        assert states(again)["staging"] == "unchanged"
        assert again[0].commit is None
        assert head(checkout) == outcomes[0].commit
    git(checkout, "pull", "--quiet")
    assert git(checkout, "log", "-1", "--format=%s") == "Release digits 1 to staging"


def require(checkout: Path, release: str) -> None:
    """A person requires another release of mlops-build, and pushes that."""
    git(checkout, "pull", "--quiet")
    write_files(checkout, {"pyproject.toml": f'[project.optional-dependencies]\ntrain = ["mlops-build[train]{release}"]\n'})
    git(checkout, "add", "pyproject.toml")
    git(checkout, "commit", "--quiet", f"--message=Require {release}")
    git(checkout, "push", "--quiet", "origin", "HEAD:main")


def test_the_image_has_the_name_that_the_services_own_release_computes(
    checkout: Path, registry: Registry, register: Register, promote: Promote
) -> None:
    promote(1)
    for text, pin in (("~=0.2.0", Pin(0, 2)), ("~=0.8.0", Pin(0, 8)), ("~=0.9.0", None)):
        require(checkout, text)
        registry.set_alias("digits", "staging", register().version)
        assert states(reconcile.once([url(checkout)], registry))["staging"] == "released"
        git(checkout, "pull", "--quiet")
        made = record.read(checkout, "staging")
        assert made.image == image_name(service.load(checkout), made.models, pin=pin)


def test_a_release_is_renamed_only_if_its_own_ci_would_refuse_the_name(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    expected = [
        ("~=0.2.0", "released"),
        ("~=0.3.0", "unchanged"),
        ("~=0.4.0", "released"),
        ("~=0.8.0", "unchanged"),
        ("~=0.9.0", "unchanged"),
    ]
    for release, state in expected:
        require(checkout, release)
        assert (release, states(reconcile.once([url(checkout)], registry))["staging"]) == (release, state)
    git(checkout, "pull", "--quiet")
    made = record.read(checkout, "staging")
    assert made.image == image_name(service.load(checkout), made.models, pin=Pin(0, 4))


def test_a_bridge_does_not_take_back_what_another_one_releases_meanwhile(
    checkout: Path, registry: Registry, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its aliases were read before the head that it compares them with."""
    promote(1)
    reconcile.once([url(checkout)], registry)
    fetch, meanwhile = Mirror.fetch, ["once"]

    def late(mirror: Mirror, **options: Any) -> str:
        if meanwhile.pop() if meanwhile else None:
            promote(2)
            assert states(reconcile.once([url(checkout)], registry))["staging"] == "released"
        return fetch(mirror, **options)

    monkeypatch.setattr(Mirror, "fetch", late)
    outcome = reconcile.once([url(checkout)], registry)[0]
    assert (outcome.state, outcome.after) == ("unchanged", "digits 2")


def test_a_released_version_that_was_deleted_is_a_failure(checkout: Path, registry: Registry, promote: Promote) -> None:
    from mlflow import MlflowClient

    promote(1)
    reconcile.once([url(checkout)], registry)
    registry.delete_alias("digits", "staging")
    assert states(reconcile.once([url(checkout)], registry))["staging"] == "nothing promoted yet"
    MlflowClient(registry.uri).delete_model_version("digits", "1")
    outcomes = reconcile.once([url(checkout)], registry)
    assert states(outcomes) == {"staging": "failed", "production": "nothing promoted yet"}
    assert "digits 1 was deleted or renamed in MLflow, but Git releases it" in str(outcomes[0])
    assert reconcile.exit_code(outcomes) == 3


def test_one_commit_for_each_environment_in_one_push(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(2)
    promote(1, "live")
    outcomes = reconcile.once([url(checkout)], registry)
    git(checkout, "pull", "--quiet")
    assert git(checkout, "log", "--format=%s").splitlines() == ["Release digits 1 to production", "Release digits 2 to staging", "First"]
    assert [outcome.commit for outcome in outcomes] == [git(checkout, "rev-parse", name) for name in ("HEAD~1", "HEAD")]


def test_a_rollback_restores_the_previous_release_in_git(checkout: Path, registry: Registry, promote: Promote) -> None:
    trees = []
    for number in (1, 2):
        promote(number)
        reconcile.once([url(checkout)], registry)
        trees.append(git(checkout.with_name("digits.git"), "rev-parse", "main:deploy"))
    alias.rollback(registry, None, "digits", "staging")
    outcomes = reconcile.once([url(checkout)], registry)
    assert (outcomes[0].before, outcomes[0].after) == ("digits 2", "digits 1")
    assert git(checkout.with_name("digits.git"), "rev-parse", "main:deploy") == trees[0]
    assert trees[0] != trees[1]


def test_the_bridge_and_a_release_by_hand_make_the_same_commit(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    first = head(checkout)
    made = reconcile.once([url(checkout)], registry)[0].commit
    git(checkout.with_name("digits.git"), "update-ref", "refs/heads/main", first)
    assert write.in_checkout(checkout, "staging", registry).commit == made


def test_a_changed_service_yaml_is_listed_as_its_changes(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    reconcile.once([url(checkout)], registry)
    change_service(checkout, "host: digits-staging.example.com", "host: digits-staging.example.com\n    replicas: 4")
    planned = reconcile.once([url(checkout)], registry, dry_run=True)[0]
    assert str(planned).endswith("staging  would release  digits 1, replicas 1 → 4")
    outcome = reconcile.once([url(checkout)], registry)[0]
    assert str(outcome).endswith(f"staging  released  digits 1, replicas 1 → 4  commit {head(checkout)[:12]}")
    assert outcome.as_json()["changes"] == ("replicas 1 → 4",)


def test_a_hold_is_respected_and_shown(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    reconcile.once([url(checkout)], registry)
    change_service(checkout, "hold: {}", "hold: {staging: black friday}")
    promote(2)
    before = head(checkout)
    outcomes = reconcile.once([url(checkout)], registry)
    assert states(outcomes)["staging"] == "held"
    assert str(outcomes[0]).endswith("staging  held  black friday  Git keeps digits 1")
    assert head(checkout) == before
    change_service(checkout, "hold: {staging: black friday}", "hold: {}")
    assert reconcile.once([url(checkout)], registry)[0].after == "digits 2"


def test_an_alias_that_is_gone_leaves_the_release(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    reconcile.once([url(checkout)], registry)
    before = head(checkout)
    registry.delete_alias("digits", "staging")
    outcomes = reconcile.once([url(checkout)], registry)
    assert str(outcomes[0]).endswith("staging  nothing promoted yet  Git keeps digits 1")
    assert head(checkout) == before


def test_a_dry_run_writes_nothing(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    before = head(checkout)
    outcomes = reconcile.once([url(checkout)], registry, dry_run=True)
    assert (outcomes[0].state, outcomes[0].after, outcomes[0].commit) == ("would release", "digits 1", None)
    assert head(checkout) == before


def test_one_broken_repository_does_not_stop_the_others(make_repository: Any, registry: Registry, promote: Promote, tmp_path: Path) -> None:
    promote(1)
    good, wrong, no_service = make_repository(), make_repository("wrong", service="schema: 1\nnam: x\n"), make_repository("none")
    git(no_service, "rm", "--quiet", "service.yaml")
    git(no_service, "commit", "--quiet", "--message=Gone")
    git(no_service, "push", "--quiet")
    urls = [f"file://{tmp_path}/nothing.git", url(wrong), url(no_service), "ext::sh -c id", url(good)]
    outcomes = reconcile.once(urls, registry)
    failed = [outcome for outcome in outcomes if outcome.error]
    assert [outcome.error.exit_code for outcome in failed if outcome.error] == [5, 4, 3, 2]
    assert all(outcome.error.remedy for outcome in failed if outcome.error)
    assert reconcile.exit_code(outcomes) == 1
    assert reconcile.exit_code(failed[:1]) == 5
    assert states(outcomes)["staging"] == "released"
    assert "Release digits 1" in git(good.with_name("digits.git"), "log", "-1", "--format=%s", "main")


def test_a_refusal_of_the_git_host_is_shown(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    hook = checkout.with_name("digits.git") / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho 'only pull requests here'; exit 1\n")
    hook.chmod(0o755)
    (outcome,) = reconcile.once([url(checkout)], registry)
    assert outcome.error is not None
    assert (outcome.state, outcome.error.exit_code) == ("failed", 4)
    assert "only pull requests here" in outcome.error.message
    assert git(checkout.with_name("digits.git"), "rev-list", "--count", "main") == "1"


def test_one_bad_environment_does_not_stop_the_other(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    promote(2, "live")
    registry.set_tag("digits", 1, "mlops_build.digest", "x\n\nVersion: 666")
    outcomes = reconcile.once([url(checkout)], registry)
    assert states(outcomes) == {"staging": "failed", "production": "released"}
    assert reconcile.exit_code(outcomes) == 4
    assert "\n" not in str(outcomes[0])
    assert "666" not in git(checkout.with_name("digits.git"), "log", "--format=%B", "main")


def test_an_alias_moved_by_hand_onto_what_breaks_callers_is_not_released(checkout: Path, registry: Registry, register: Register) -> None:
    for names in ("ab", "a"):
        signature = {"inputs": json.dumps([{"type": "double", "name": name} for name in names])}
        document = openapi.openapi("digits", [openapi.Described("digits", None, signature, None)])
        write_files(checkout, {"openapi.json": openapi.as_text(document)})
        git(checkout, "add", "--all")
        git(checkout, "commit", "--quiet", f"--message=Train {names}")
        register(tags={identity.COMMIT_TAG: git(checkout, "rev-parse", "HEAD")}, signature=signature)
    git(checkout, "push", "--quiet")
    registry.set_alias("digits", "staging", 1)
    assert states(reconcile.once([url(checkout)], registry))["staging"] == "released"
    registry.set_alias("digits", "staging", 2)
    released = head(checkout)
    staging = reconcile.once([url(checkout)], registry)[0]
    assert staging.state == "failed"
    assert "digits: input column b (double) is gone" in str(staging.error)
    assert head(checkout) == released
    assert states(reconcile.once([url(checkout)], registry, despite_findings=True))["staging"] == "released"


def test_a_service_newer_than_the_bridge_is_understood(make_repository: Any, registry: Registry, promote: Promote) -> None:
    checkout = make_repository(service=SERVICE + "novelty: {a: 1}\n")
    promote(1)
    assert states(reconcile.once([url(checkout)], registry))["staging"] == "released"


def test_the_alias_map_is_read_once_and_aliases_again_for_a_release(
    make_repository: Any, registry: Registry, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(1)
    checkouts = [make_repository(name) for name in ("one", "two", "three")]
    requests = []
    for name in ("alias_map", "aliases", "version"):
        real = getattr(Registry, name)
        monkeypatch.setattr(Registry, name, lambda *args, real=real, name=name: (requests.append(name), real(*args))[1])
    assert len(reconcile.once(map(url, checkouts), registry)) == 6
    assert sorted(requests) == ["alias_map", "aliases", "aliases", "aliases", "version", "version", "version"]
    requests.clear()
    reconcile.once(map(url, checkouts), registry)
    assert requests == ["alias_map"]


def test_six_bridges_at_the_same_moment_make_one_commit(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    aliases = registry.alias_map()
    start = threading.Barrier(6)
    results: list[list[reconcile.Outcome]] = []

    def reconcile_once() -> None:
        start.wait()
        results.append(reconcile.repository(url(checkout), "main", registry, aliases))

    threads = [threading.Thread(target=reconcile_once) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [outcomes[0].state for outcomes in results if outcomes[0].state not in ("released", "unchanged")] == []
    assert {outcomes[0].commit for outcomes in results} - {None} == {head(checkout)}
    assert git(checkout.with_name("digits.git"), "rev-list", "--count", "main") == "2"


def meanwhile(monkeypatch: pytest.MonkeyPatch, *acts: Callable[[], object]) -> None:
    """Each of these happens before the bridge reads a version, which it does between its fetch and its push."""
    version, waiting = Registry.version, list(acts)

    def racing(*arguments: Any) -> Any:
        if waiting:
            waiting.pop(0)()
        return version(*arguments)

    monkeypatch.setattr(Registry, "version", racing)


def test_a_person_who_pushes_all_the_time_loses_nothing(
    checkout: Path, registry: Registry, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(1)

    def push() -> None:
        git(checkout, "commit", "--quiet", "--allow-empty", "--message=Person")
        git(checkout, "push", "--quiet")

    meanwhile(monkeypatch, push, push)
    outcomes = reconcile.once([url(checkout)], registry)
    assert states(outcomes)["staging"] == "released"
    log = git(checkout.with_name("digits.git"), "log", "--format=%s", "main").splitlines()
    assert log == ["Release digits 1 to staging", "Person", "Person", "First"]


def test_a_change_between_fetch_and_push_is_respected(
    checkout: Path, registry: Registry, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person sets a hold after the bridge's fetch: the bridge must not release."""
    promote(1)
    meanwhile(monkeypatch, lambda: change_service(checkout, "hold: {}", "hold: {staging: stop}"))
    outcomes = reconcile.once([url(checkout)], registry)
    assert states(outcomes)["staging"] == "held"
    assert git(checkout.with_name("digits.git"), "log", "-1", "--format=%s", "main") == "Edit service.yaml"


def test_another_branch(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    git(checkout, "push", "--quiet", "origin", "main:refs/heads/release/1.x")
    before = head(checkout)
    assert states(reconcile.once([url(checkout)], registry, branch="release/1.x"))["staging"] == "released"
    assert head(checkout) == before
    (outcome,) = reconcile.once([url(checkout)], registry, branch="--force")
    assert isinstance(outcome.error, UsageError)


def test_a_bridge_leaves_no_files(checkout: Path, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    reconcile.once([url(checkout), "file:///nothing.git"], registry)
    assert os.listdir(scratch) == []  # noqa: PTH208


def test_an_invalid_record_is_written_again(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    write_files(checkout, {"deploy/overlays/staging/release/record.yaml": "broken: [\n"})
    git(checkout, "commit", "--quiet", "--all", "--message=Break it")
    git(checkout, "push", "--quiet")
    (outcome, _) = reconcile.once([url(checkout)], registry)
    assert (outcome.state, outcome.before, outcome.after) == ("released", None, "digits 1")
    assert set(service_files()) - set(git(checkout.with_name("digits.git"), "ls-tree", "-r", "--name-only", "main").split()) == set()
