"""The bridge and `mlops-build release` with landing by pull request: a real registry, real Git over http, stand-ins for both Git hosts."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile, status
from mlops_build.bridge.reconcile import Outcome
from mlops_build.release import alias, write
from tests import githosts
from tests.conftest import git
from tests.githosts import GitHost
from tests.release.world import SERVICE, first_commit

Register = Callable[..., Any]
TOKEN = "t0ken"


@dataclass
class Place:
    """The service digits on a Git host; its production lands by pull request, its staging by push."""

    host: GitHost
    url: str
    work: Path
    registry: Registry
    uri: str

    def promote(self, version: int, env: str = "production") -> None:
        alias.promote_all(self.registry, None, {"digits": version}, "live" if env == "production" else env)

    def bridge(self) -> dict[str | None, Outcome]:
        return {outcome.environment: outcome for outcome in reconcile.once([self.url], self.registry)}

    def head(self, branch: str = "main") -> str | None:
        return self.host.head("ml", "digits", f"refs/heads/{branch}")

    @property
    def states(self) -> list[str]:
        return [pull.state for pull in self.host.current()]


@pytest.fixture(params=["bitbucket"])  # tests/release/test_land.py has the other one
def place(
    request: pytest.FixtureRequest, tmp_path: Path, registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """With the versions 1, 2 and 3."""
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    with githosts.HOSTS[request.param](tmp_path / "host", TOKEN) as host:
        url = host.make("ml", "digits")
        text = SERVICE.replace("    alias: live\n", "    alias: live\n    landing: pull-request\n")
        text += f"git: {{pull_requests: {request.param}, api: '{host.url}'}}\n"
        work = first_commit(tmp_path / "digits", text, host.bare("ml", "digits"))
        git(work, "remote", "set-url", "origin", url)
        for _ in range(3):
            register()
        yield Place(host, url, work, registry, f"sqlite:///{tmp_path / 'mlflow.db'}")


def test_staging_is_pushed_and_production_waits_for_a_merge(place: Place) -> None:
    place.promote(1, "staging"), place.promote(1)
    first = place.head()
    outcomes = place.bridge()
    assert {env: outcome.state for env, outcome in outcomes.items()} == {"staging": "released", "production": "requested"}
    assert place.head() == outcomes["staging"].commit
    assert git(place.host.bare("ml", "digits"), "rev-parse", "release/production^") == first, "only its own commit"
    (pull,) = place.host.pulls
    assert (pull.title, pull.state) == ("Release digits 1 to production", "open")
    assert "\nVersion: 1\n" in pull.description
    request = outcomes["production"].request
    assert request
    assert str(outcomes["production"]).endswith(f"requested  nothing → digits 1  commit {pull.commit[:12]}  {request.url}")
    assert outcomes["production"].as_json()["request"] == {"number": 1, "url": request.url, "new": True}
    again = place.bridge()
    assert {env: outcome.state for env, outcome in again.items()} == {"staging": "unchanged", "production": "requested"}
    assert (place.head("release/production"), place.states) == (pull.commit, ["open"])

    place.host.merge(1)
    merged = place.bridge()
    assert (merged["production"].state, merged["production"].after) == ("unchanged", "digits 1")
    assert (place.head("release/production"), place.states) == (None, ["merged"])


def test_after_a_squash_merge_the_next_release_is_another_request(place: Place) -> None:
    for number, version in enumerate((1, 2, 1), start=1):
        place.promote(version)
        assert place.bridge()["production"].state == "requested"
        place.host.merge(number, squash=True)
    assert place.bridge()["production"].state == "unchanged"
    assert place.states == ["merged"] * 3


def test_a_hold_closes_the_request_and_after_it_there_is_another(place: Place) -> None:
    def hold(text: str) -> None:
        (place.work / "service.yaml").write_text((place.work / "service.yaml").read_text().replace(*text.split(" > ")))
        git(place.work, "commit", "--quiet", "--all", "--message=Edit the hold")
        git(place.work, "push", "--quiet", str(place.host.bare("ml", "digits")), "HEAD:refs/heads/main")

    place.promote(1)
    assert place.bridge()["production"].state == "requested"
    hold("hold: {} > hold: {production: audit}")
    for _ in range(2):
        assert place.bridge()["production"].state == "held"
        assert (place.states, place.head("release/production")) == (["closed"], None)
    hold("hold: {production: audit} > hold: {}")
    assert place.bridge()["production"].state == "requested"
    assert place.states == ["closed", "open"]


def test_status_shows_the_request_and_the_result_of_its_builds(place: Place) -> None:
    place.promote(1)
    request = place.bridge()["production"].request
    for builds, expected in (([], "none"), (["INPROGRESS"], "running"), (["SUCCESSFUL"], "passed")):
        place.host.builds[str(place.head("release/production"))] = builds
        (_, row) = status.read([place.url], place.registry)
        assert (row.state, row.request, row.checks) == ("would release", request and request.url, expected)


def test_a_removed_alias_closes_the_request(place: Place) -> None:
    place.promote(1)
    assert place.bridge()["production"].state == "requested"
    place.registry.delete_alias("digits", "live")
    assert place.bridge()["production"].state == "nothing promoted yet"
    assert place.states == ["closed"]


def test_a_persons_refusal_stands_until_the_next_move(place: Place) -> None:
    place.promote(1)
    place.bridge()
    place.host.decline(1)
    for _ in range(2):
        declined = place.bridge()["production"]
        assert (declined.state, declined.commit) == ("declined", None)
        assert "a person closed the request for digits 1" in str(declined)
        planned = reconcile.once([place.url], place.registry, dry_run=True)[1]
        assert (planned.state, planned.request) == ("declined", declined.request)
    assert reconcile.exit_code([declined]) == 0
    place.promote(2)
    assert place.bridge()["production"].state == "requested"
    assert place.states == ["closed", "open"]


def test_a_protected_branch_becomes_a_request_that_says_so(place: Place) -> None:
    place.host.protect("ml", "digits")
    place.promote(1, "staging"), place.promote(1)
    first = place.head()
    outcomes = place.bridge()
    assert {outcome.state for outcome in outcomes.values()} == {"requested"}
    assert "main is protected" in outcomes["staging"].remarks[-1]
    assert not any("protected" in remark for remark in outcomes["production"].remarks)
    assert {pull.source for pull in place.host.pulls} == {"release/staging", "release/production"}
    assert {git(place.host.bare("ml", "digits"), "rev-parse", f"{pull.source}^") for pull in place.host.pulls} == {first}
    place.promote(2, "staging")
    place.bridge()
    place.host.merge(1)
    place.bridge()
    assert place.states == ["merged", "open"]
    assert place.head("release/staging") is None


def test_a_host_that_does_not_answer_delays_only_what_needs_it(place: Place) -> None:
    place.promote(1, "staging"), place.promote(1)
    place.host.answer = (503, "{}", {})
    outcomes = place.bridge()
    assert {env: outcome.state for env, outcome in outcomes.items()} == {"staging": "released", "production": "failed"}
    assert "503" in str(outcomes["production"])
    place.host.answer = None
    assert place.bridge()["production"].state == "requested"
    place.host.merge(1)
    place.host.answer = (503, "{}", {})
    outcome = place.bridge()["production"]
    assert (outcome.state, len(outcome.remarks)) == ("unchanged", 1)


def test_two_bridges_open_one_request(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second reads everything before the first has done anything."""
    place.promote(1)
    propose, first = reconcile.propose, ["bridge"]

    def late(*arguments: Any) -> Any:
        if first and first.pop():
            assert place.bridge()["production"].state == "requested"
        return propose(*arguments)

    monkeypatch.setattr(reconcile, "propose", late)
    assert place.bridge()["production"].state == "requested"
    assert place.states == ["open"]


@pytest.mark.soak
def test_many_bridges_at_once_open_one_request_and_agree_on_its_commit(place: Place) -> None:
    place.promote(1, "staging"), place.promote(1)
    with ThreadPoolExecutor(6) as bridges:
        passes = list(bridges.map(lambda _: reconcile.once([place.url], Registry(place.uri)), range(18)))
    results = {(outcome.environment, outcome.state) for outcomes in passes for outcome in outcomes}
    assert results <= {(env, state) for env in ("staging", "production") for state in ("released", "unchanged", "requested", "waiting")}
    assert {outcome.commit for outcomes in passes for outcome in outcomes if outcome.state == "released"} == {place.head()}
    assert place.bridge()["production"].state == "requested"
    assert place.states == ["open"]
    place.promote(2)
    with ThreadPoolExecutor(6) as bridges:
        list(bridges.map(lambda _: reconcile.once([place.url], Registry(place.uri)), range(12)))
    assert (place.states, place.host.pulls[0].title) == (["open"], "Release digits 2 to production")
    assert place.host.pulls[0].commit == place.head("release/production")


def test_release_opens_a_request_and_leaves_the_branch(place: Place) -> None:
    place.promote(1)
    first = git(place.work, "rev-parse", "HEAD")
    made = write.in_checkout(place.work, "production", place.registry)
    assert made.request
    assert (made.pushed, place.states) == (False, ["open"])
    assert (git(place.work, "rev-parse", "HEAD"), place.head()) == (first, first)
    assert place.bridge()["production"].state == "requested"
    assert place.head("release/production") == made.commit, "the bridge creates the same commit"
    place.host.decline(1)
    assert place.bridge()["production"].state == "declined"
    assert write.in_checkout(place.work, "production", place.registry).request, "a person asks for it"
    assert place.states == ["closed", "open"]
    assert place.bridge()["production"].state == "requested"


def test_release_on_a_protected_branch_opens_a_request(place: Place) -> None:
    place.host.protect("ml", "digits")
    place.promote(1, "staging")
    made = write.in_checkout(place.work, "staging", place.registry)
    assert made.request
    assert "main is protected" in made.remarks[-1]
    assert made.as_json()["request"]["number"] == 1
    assert [pull.source for pull in place.host.pulls] == ["release/staging"]
