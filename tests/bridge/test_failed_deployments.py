"""A release whose deployment failed is rolled back in Git by the bridge, once, and the environment is held."""

from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.bridge.reconcile import Outcome
from mlops_build.release import alias, failure, holding
from mlops_build.release import record as records
from mlops_build.release.failure import Failure
from mlops_build.release.protected import at
from tests.conftest import git
from tests.release.world import Promote

FOLDER = "deploy/overlays/staging/release"


def fail(checkout: Path, registry: Registry, at: str = "2025-11-30T12:00:00+00:00") -> None:
    """What `ci deploy staging` does if the release in the checkout cannot be deployed."""
    git(checkout, "pull", "--quiet", "--rebase")
    files = {path.name: path.read_bytes() for path in (checkout / FOLDER).iterdir()}
    failure.mark(registry, records.read(checkout, "staging"), Failure(at, "it did not become ready", records.digest(files)))


def once(checkout: Path, registry: Registry, **options: Any) -> Outcome:
    """The outcome of a pass for staging."""
    return reconcile.once([f"file://{checkout}.git"], registry, **options)[0]


@pytest.fixture
def failing(checkout: Path, registry: Registry, promote: Promote) -> Path:
    """A checkout of a service in whose staging digits 1 was followed by digits 2, whose deployment failed."""
    for number in (1, 2):
        promote(number)
        once(checkout, registry)
    fail(checkout, registry)
    return checkout


def test_the_previous_release_comes_back_once_and_is_held(failing: Path, registry: Registry) -> None:
    remote = failing.with_name("digits.git")
    head = git(remote, "rev-parse", "main")
    assert once(failing, registry, dry_run=True).state == "would roll back"
    outcome = once(failing, registry)
    assert (outcome.state, outcome.before, outcome.after) == ("rolled back", "digits 2", "digits 1")
    assert "rolled back  digits 2 → digits 1: the deployment of digits 2 failed: it did not become ready  commit " in str(outcome)
    assert git(remote, "rev-parse", "main^") == head
    assert git(remote, "log", "-1", "--format=%cn", "main") == "mlops-build bridge"
    git(failing, "pull", "--quiet")
    assert str(records.read(failing, "staging")) == "digits 1"
    again = once(failing, registry)
    assert (again.state, again.why) == ("held", "the deployment of digits 2 failed: it did not become ready")


def test_every_bridge_creates_the_same_commit(failing: Path, registry: Registry) -> None:
    remote = failing.with_name("digits.git")
    head = git(remote, "rev-parse", "main")
    commits = []
    for _ in range(2):
        commits.append(once(failing, registry).commit)
        git(remote, "update-ref", "refs/heads/main", head)
    assert commits[0] == commits[1] is not None


def test_after_the_hold_it_is_not_rolled_back_again(failing: Path, registry: Registry) -> None:
    once(failing, registry)
    alias.rollback(registry, None, "digits", "staging")
    git(failing, "pull", "--quiet")
    holding.end(at(failing), "staging", lambda: registry)
    assert once(failing, registry).state == "unchanged"


def test_another_promotion_of_the_same_version_is_released(failing: Path, registry: Registry, promote: Promote) -> None:
    once(failing, registry)
    promote(2)
    git(failing, "pull", "--quiet")
    holding.end(at(failing), "staging", lambda: registry, release=True)
    assert once(failing, registry).after == "digits 2"
    assert once(failing, registry).state == "unchanged"


def test_a_release_chosen_after_the_failure_is_not_held(failing: Path, registry: Registry, promote: Promote) -> None:
    promote(3)
    assert (once(failing, registry).state, once(failing, registry).state) == ("released", "unchanged")


def test_the_first_release_has_nothing_to_return_to(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    once(checkout, registry)
    fail(checkout, registry)
    outcome = once(checkout, registry)
    assert outcome.state == "failed"
    assert "the deployment of digits 1 failed: it did not become ready; Git has no earlier release" in str(outcome)


@pytest.mark.parametrize("change", ["another release", "a time in the future"])
def test_a_mark_that_is_not_of_this_release_changes_nothing(failing: Path, registry: Registry, change: str) -> None:
    if change == "another release":
        record = records.read(failing, "staging")
        failure.mark(registry, record, Failure("2025-11-30T12:00:00+00:00", "x", f"sha256:{'1' * 64}"))
    else:
        fail(failing, registry, at="9999-11-30T12:00:00+00:00")
    assert once(failing, registry).state == "unchanged"
