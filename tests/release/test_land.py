"""Releases by pull request, with real repositories behind stand-ins for both Git hosts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mlops_build import service as service_file
from mlops_build.adapters.git.command import PushRejected
from mlops_build.adapters.git.mirror import Mirror
from mlops_build.adapters.git.objects import Identity
from mlops_build.adapters.githost import HOSTS, PullRequest
from mlops_build.errors import UsageError
from mlops_build.model.version import ModelVersion
from mlops_build.release import land
from mlops_build.release import record as records
from mlops_build.release.land import OBSOLETE, Requests
from mlops_build.release.record import Record
from mlops_build.service import Git, Service
from tests import githosts
from tests.githosts import GitHost
from tests.release.world import SERVICE, alone, first_commit

__all__ = ["alone"]

TOKEN, ENV, BRANCH = "t0ken", "production", "release/production"


@dataclass
class Place:
    """A service's repository on a Git host that protects main. folder: for the mirrors of bridges."""

    host: GitHost
    url: str
    service: Service
    folder: Path
    mirrors: int = 0

    def bridge(self) -> tuple[Mirror, Requests]:
        """What a bridge reads first, with a new mirror."""
        self.mirrors += 1
        mirror = Mirror(self.url, "main", self.folder / str(self.mirrors))
        requests = land.look(mirror, self.service, url=self.url, target="main", head=mirror.fetch())
        assert requests
        return mirror, requests

    def release(self, mirror: Mirror, head: str, version: int, promotion: str | None = None, replicas: int = 2) -> str:
        """The commit of a release on top of `head`."""
        digits = ModelVersion("digits", version, f"sha256:{version:064x}", f"{version:032x}")
        record = Record(ENV, (digits,), f"{version:040x}", f"registry.example.com:5000/ml/digits:v{version}-{version:012x}")
        service = service_file.parse(SERVICE.replace("replicas: 2", f"replicas: {replicas}"))
        trailers = [f"Model: digits\nVersion: {version}", *([f"Promotion: {promotion}"] if promotion else [])]
        message = "\n".join([f"Release digits {version} to {ENV}", "", "accuracy 0.9 → 0.95", "", *trailers, ""])
        commit = mirror.commit(
            head, {**records.paths(ENV, records.render(record, service))}, message, Identity("bridge", "b@x", 1700000000)
        )
        assert commit
        return commit

    def propose(self, version: int, promotion: str | None = None, replicas: int = 2, *, insist: bool = False) -> PullRequest:
        """What a bridge does that wants this release."""
        mirror, requests = self.bridge()
        commit = self.release(mirror, requests.head, version, promotion, replicas)
        request = land.propose(mirror, requests, ENV, commit, insist=insist)
        assert request
        return request

    def withdraw(self) -> None:
        """What a bridge does that finds in Git what it wants."""
        land.withdraw(*self.bridge(), ENV, "x")

    def commit(self, path: str, text: str) -> None:
        """A person's commit on main."""
        bare = self.host.bare("ml", "digits")
        objects = Mirror(bare.as_uri(), "main", self.folder / "person")
        made = objects.commit(objects.fetch(depth=None), {path: text.encode()}, f"Edit {path}")
        assert made
        githosts.server.git(bare, "fetch", "--quiet", str(objects.path), made)
        githosts.server.git(bare, "update-ref", "refs/heads/main", made)

    def head(self, branch: str) -> str | None:
        return self.host.head("ml", "digits", f"refs/heads/{branch}")

    @property
    def states(self) -> list[str]:
        return [pull.state for pull in self.host.current()]


@pytest.fixture(params=["gitlab"])  # tests/bridge/test_landing.py has the other one
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.setenv("MLOPS_GIT_TOKEN", TOKEN)
    with githosts.HOSTS[request.param](tmp_path / "host", TOKEN) as host:
        url = host.make("ml", "digits")
        service = f"{SERVICE}git: {{pull_requests: {request.param}, api: '{host.url}'}}\n"
        first_commit(tmp_path / "digits", service, host.bare("ml", "digits"))
        host.protect("ml", "digits")
        yield Place(host, url, service_file.parse(service), tmp_path)


def test_a_release_becomes_one_request_which_is_updated(place: Place) -> None:
    first = place.propose(1, "a" * 16)
    assert (first.state, first.new) == ("open", True)
    (pull,) = place.host.pulls
    assert (pull.source, pull.target, pull.title) == (BRANCH, "main", "Release digits 1 to production")
    assert "accuracy 0.9 → 0.95\n\nModel: digits\nVersion: 1\nPromotion: aaaa" in pull.description
    was = place.head(BRANCH)
    assert place.propose(1, "a" * 16).state == "open"
    assert (place.head(BRANCH), place.states) == (was, ["open"])
    place.propose(2, "b" * 16)
    assert (pull.title, place.states) == ("Release digits 2 to production", ["open"])
    assert "Promotion: bbbb" in pull.description
    merged = place.host.merge(1)
    assert place.head("main") == merged
    mirror, requests = place.bridge()
    assert b"version: 2" in (mirror.read(requests.head, f"{records.folder(ENV)}/record.yaml") or b"")
    assert place.propose(3).state == "open"
    assert place.states == ["merged", "open"]


def test_bridges_create_the_same_commit_and_one_request(place: Place) -> None:
    bridges = [place.bridge() for _ in range(3)]
    commits = [place.release(mirror, requests.head, 1) for mirror, requests in bridges]
    for (mirror, requests), commit in zip(bridges, commits, strict=True):
        assert land.propose(mirror, requests, ENV, commit)
    assert set(commits) == {place.head(BRANCH)}
    assert place.states == ["open"]


def test_a_bridge_that_read_the_aliases_earlier_does_not_replace_a_newer_release(place: Place) -> None:
    place.propose(1)
    late, requests = place.bridge()
    old = place.release(late, requests.head, 3)
    place.propose(2)
    newer = place.head(BRANCH)
    with pytest.raises(PushRejected):
        land.propose(late, requests, ENV, old)
    land.withdraw(late, requests, ENV, "x")
    assert (place.head(BRANCH), place.states) == (newer, ["open"])


def test_other_commits_on_main_do_not_take_away_approvals(place: Place) -> None:
    place.propose(1)
    was = place.head(BRANCH)
    place.commit("README.md", "A person's change\n")
    assert place.propose(1).state == "open"
    assert place.head(BRANCH) == was, "the same commit: its approvals stay"
    place.propose(1, replicas=3)
    assert place.head(BRANCH) != was, "other files"
    changed = place.head(BRANCH)
    place.commit(f"{records.folder(ENV)}/patch.yaml", "a person's edit\n")
    place.propose(1, replicas=3)
    assert place.head(BRANCH) != changed, "it would conflict"


def test_a_closed_request_stays_closed_until_the_next_promotion_or_move(place: Place) -> None:
    place.propose(2, "a" * 16)
    place.host.decline(1)
    place.commit("README.md", "A person's change\n")
    for replicas in (2, 3):
        declined = place.propose(2, "a" * 16, replicas)
        assert (declined.state, declined.number) == ("closed", 1), "also with other settings of service.yaml"
    assert place.states == ["closed"]
    assert place.propose(2, "a" * 16, insist=True).state == "open", "a person asks for it"
    place.host.decline(2)
    assert place.propose(2, "b" * 16).state == "open", "the next promotion"
    place.host.decline(3)
    assert place.propose(3, "b" * 16).state == "open", "a move of the alias"
    assert place.states == ["closed", "closed", "closed", "open"]


def test_closed_settings_stay_closed_until_they_change(place: Place) -> None:
    place.propose(1)
    place.host.merge(1)
    place.propose(1, replicas=3)
    place.host.decline(2)
    assert place.propose(1, replicas=3).state == "closed"
    assert place.propose(1, replicas=4).state == "open"


def test_a_closed_request_whose_branch_was_deleted_is_remembered(place: Place) -> None:
    place.propose(2)
    place.host.decline(1)
    bare = place.host.bare("ml", "digits")
    # As hosts do: a ref of its own keeps the head of each request.
    githosts.server.git(bare, "update-ref", "refs/keep/1", str(place.head(BRANCH)))
    githosts.server.git(bare, "update-ref", "-d", f"refs/heads/{BRANCH}")
    assert place.propose(2).state == "closed"


def test_an_obsolete_request_is_closed_and_can_come_again(place: Place) -> None:
    place.withdraw()
    assert place.host.requests == [], "without a branch, the host is not asked"
    place.propose(2)
    place.withdraw()
    assert (place.states, place.host.pulls[0].title) == (["closed"], f"{OBSOLETE}Release digits 2 to production")
    assert place.head(BRANCH) is None
    assert place.propose(2).state == "open", "a machine closed it, not a person"
    assert place.states == ["closed", "open"]


def test_after_a_merge_the_branch_is_removed_and_after_a_persons_refusal_it_is_kept(place: Place) -> None:
    place.propose(2)
    place.host.merge(1)
    place.withdraw()
    assert place.head(BRANCH) is None
    place.propose(3)
    place.host.decline(2)
    place.withdraw()
    assert place.head(BRANCH)
    assert place.states == ["merged", "closed"]


def test_a_killed_withdrawal_is_completed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.propose(2)
    for operation in ("find_pull_request", "close_pull_request"):
        with monkeypatch.context() as patch:
            patch.setattr(HOSTS[place.service.git.pull_requests], operation, interrupt)
            with pytest.raises(KeyboardInterrupt):
                place.withdraw()
        assert place.states == ["open"]
    place.withdraw()
    assert (place.states, place.host.pulls[0].title.count(OBSOLETE)) == (["closed"], 1)


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_what_comes_from_the_registry_stays_in_its_block() -> None:
    _, description = land.texts("Release digits 1\n\nWhy: ```` @all\n/merge\n", ENV)
    fence = "`" * 5
    assert description.endswith(f"\n{fence}\nWhy: ```` @all\n/merge\n{fence}\n")


def test_the_landing_needs_a_host(place: Place) -> None:
    mirror, _ = place.bridge()
    there = {"url": place.url, "target": "main", "head": "1" * 40}
    assert land.look(mirror, service_file.parse(SERVICE), **there) is None
    with pytest.raises(service_file.ServiceError, match=r"environments.production.landing: pull-request needs `git:"):
        service_file.parse(SERVICE.replace("alias: live", "landing: pull-request"))
    host = "git: {pull_requests: gitlab, api: 'https://git.example.com'}\n"
    pushes, asks = (service_file.parse(text + host) for text in (SERVICE, SERVICE.replace("alias: live", "landing: pull-request")))
    assert (land.by_request(pushes), land.by_request(asks)) == (frozenset(), {ENV})
    elsewhere = {**there, "url": "file:///srv/digits.git"}
    assert land.look(mirror, pushes, **elsewhere) is None, "no request is needed"
    for service, every in ((asks, False), (pushes, True)):
        with pytest.raises(UsageError, match="is not a clone address"):
            land.look(mirror, service, **elsewhere, every=every)


def test_the_token_is_sent_to_the_host_of_the_repository_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    git = Git(pull_requests="gitlab", api="https://other.example.com")
    url = "ssh://git@git.example.com:7999/ml/digits.git"
    with pytest.raises(UsageError, match="the token is not sent there"):
        land.place_of(git, url, "main")
    assert land.place_of(git.model_copy(update={"api": "https://GIT.example.com:8443"}), url, "main")
    monkeypatch.setenv(land.OTHER_HOSTS, "api.example.com other.example.com")
    assert land.place_of(git, url, "main")
