"""Rolling back from Git while MLflow is down: the release before comes back, and a hold keeps it."""

from pathlib import Path

import pytest

from mlops_build import service as service_file
from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.registry import Registry
from mlops_build.errors import NotFound
from mlops_build.release import alias, history, restore, write
from mlops_build.release import record as records
from mlops_build.release.hold import in_service
from mlops_build.release.protected import at
from mlops_build.release.restore import NothingBefore
from tests.conftest import git
from tests.release.world import SERVICE, Promote, change_service

FOLDER = "deploy/overlays/staging/release"


@pytest.fixture
def released(checkout: Path, registry: Registry, promote: Promote) -> Path:
    """A checkout in which staging was released three times: digits 1, 2 and 3, with other commits in between."""
    for number in (1, 2, 3):
        promote(number)
        write.in_checkout(checkout, "staging", registry)
        git(checkout, "commit", "--quiet", "--allow-empty", "--message=Something else")
    git(checkout, "push", "--quiet")
    return checkout


def tree(checkout: Path, commit: str) -> str:
    return git(checkout, "rev-parse", f"{commit}:{FOLDER}")


def test_the_release_before_comes_back_in_one_commit(released: Path, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    before = git(released, "rev-parse", "HEAD")
    restored, landed = restore.roll_back(at(released), "staging", "it answers nonsense")
    assert landed.pushed
    assert (str(restored.before), str(restored.after)) == ("digits 3", "digits 2")
    assert git(released, "rev-parse", "HEAD~1") == before
    assert git(remote, "rev-parse", "main") == restored.commit
    assert tree(released, "HEAD") == tree(released, "HEAD~3")
    assert str(records.read(released, "staging")) == "digits 2"
    assert git(released, "status", "--porcelain") == ""
    changed = git(released, "show", "--format=", "--name-only", "HEAD").splitlines()
    assert {path for path in changed if not path.startswith(f"{FOLDER}/")} == {"service.yaml", "deploy/overlays/staging/hold.yaml"}
    assert service_file.load(released).hold == {"staging": "it answers nonsense"}
    said = git(released, "log", "-1", "--format=%B")
    assert said.startswith("Roll staging back to digits 2")
    assert "Previous-Version: 3" in said
    assert "\nWhy: it answers nonsense" in said
    newest = history.read(Checkout(released), "HEAD", "staging")["staging"][0]
    assert newest.why == "Roll staging back to digits 2: it answers nonsense"
    # One line became two: comments and all else stay.
    assert git(released, "show", "--format=", "--numstat", "HEAD", "--", "service.yaml").split()[:2] == ["2", "1"]


def test_a_release_comes_back_with_the_files_it_had(released: Path, registry: Registry) -> None:
    folder = released / FOLDER
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    change_service(released, "host: digits-staging.example.com", "host: digits-staging.example.com\n    replicas: 3")
    write.in_checkout(released, "staging", registry)
    git(released, "push", "--quiet")
    assert {path.name for path in folder.iterdir()} == {*before, "pdb.yaml"}
    restore.roll_back(at(released), "staging")
    # Byte for byte, and the budget of three pods is gone with them.
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert git(released, "status", "--porcelain") == ""


def test_a_restored_release_counts_as_the_original_after_a_merge_of_its_request(released: Path) -> None:
    checkout = Checkout.find(released)
    assert checkout
    for expected in ("digits 2", "digits 1"):
        restored = restore.restore(checkout, str(checkout.head()), "staging")
        assert str(restored.after) == expected
        git(released, "merge", "--quiet", "--no-ff", "--message=Merge rollback/staging", restored.commit)


def test_doing_it_again_goes_a_step_further_and_then_ends(released: Path) -> None:
    assert str(restore.roll_back(at(released), "staging")[0].after) == "digits 2"
    assert str(restore.roll_back(at(released), "staging")[0].after) == "digits 1"
    with pytest.raises(NothingBefore, match="no earlier release of staging"):
        restore.roll_back(at(released), "staging")
    assert str(records.read(released, "staging")) == "digits 1"


def test_a_release_after_a_restored_one_is_rolled_back_to_it(released: Path, registry: Registry, promote: Promote) -> None:
    restore.roll_back(at(released), "staging")
    promote(4)
    write.in_checkout(released, "staging", registry, despite_hold=True)
    assert str(restore.roll_back(at(released), "staging")[0].after) == "digits 2"


def test_what_a_person_reverted_does_not_come_back(released: Path) -> None:
    git(released, "checkout", "HEAD~4", "--", FOLDER)
    git(released, "commit", "--quiet", "--message=Back to 1 by hand")
    git(released, "push", "--quiet")
    with pytest.raises(NothingBefore, match="apart from those that were taken back") as nothing:
        restore.roll_back(at(released), "staging")
    assert "kubectl --namespace ml-staging scale deployment digits --replicas=0" in str(nothing.value.remedy)


def test_what_the_registry_rolled_back_does_not_come_back(released: Path, registry: Registry) -> None:
    alias.rollback(registry, None, "digits", "staging", None)
    change_service(released, "memory: 1536MiB", "memory: 2GiB")
    assert str(write.in_checkout(released, "staging", registry).after) == "digits 2"
    assert str(restore.roll_back(at(released), "staging")[0].after) == "digits 1"


@pytest.mark.parametrize("state", ["another branch", "an old clone", "a local commit", "a detached HEAD", "uncommitted changes"])
def test_the_release_of_origin_is_rolled_back_whatever_the_checkout_has(released: Path, remote: Path, state: str) -> None:
    if state == "another branch":
        git(released, "switch", "--quiet", "--create", "feature", "HEAD~3")
    elif state == "an old clone":
        git(released, "reset", "--quiet", "--hard", "HEAD~3")
    elif state == "a local commit":
        git(released, "commit", "--quiet", "--allow-empty", "--message=Mine")
    elif state == "a detached HEAD":
        git(released, "switch", "--quiet", "--detach")
    else:
        (released / "service.yaml").write_text("# mine\n")
    before = [git(released, *command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain"), ("branch", "--list"))]
    restored, landed = restore.roll_back(at(released), "staging")
    assert (str(restored.before), str(restored.after)) == ("digits 3", "digits 2")
    assert (landed.pushed, landed.is_elsewhere) == (True, True)
    assert git(remote, "rev-parse", "main") == restored.commit
    assert git(remote, "log", "--format=%s", "--grep=Mine", "main") == ""
    assert git(remote, "branch", "--format=%(refname:short)") == "main"
    assert before == [git(released, *command) for command in (("rev-parse", "HEAD"), ("status", "--porcelain"), ("branch", "--list"))]


def test_with_a_broken_service_yaml(released: Path, remote: Path) -> None:
    (released / "service.yaml").write_text("models: [\n")
    git(released, "commit", "--quiet", "--all", "--message=Break it")
    git(released, "push", "--quiet")
    restored, landed = restore.roll_back(at(released), "staging")
    assert landed.pushed
    assert str(restored.after) == "digits 2"
    assert restored.is_broken
    assert (released / "service.yaml").read_text() == "models: [\n"
    assert "rolled back from Git" in (released / "deploy/overlays/staging/hold.yaml").read_text()
    assert str(restore.roll_back(at(f"file://{remote}"), "staging")[0].after) == "digits 1"
    with pytest.raises(NotFound, match="there is no deploy/overlays/nowhere/release"):
        restore.roll_back(at(released), "nowhere")


def test_without_service_yaml(released: Path) -> None:
    git(released, "rm", "--quiet", "service.yaml")
    git(released, "commit", "--quiet", "--message=Remove it")
    git(released, "push", "--quiet")
    hook = released / ".git/hooks/pre-push"
    hook.write_text("#!/bin/sh\nexit 1\n")
    hook.chmod(0o755)
    restored, landed = restore.roll_back(at(released), "staging")
    assert (landed.pushed, restored.is_broken, str(restored.after)) == (True, True, "digits 2")


def test_where_nothing_was_released_before(checkout: Path, registry: Registry, promote: Promote) -> None:
    with pytest.raises(NothingBefore):
        restore.roll_back(at(checkout), "staging")
    promote(1)
    write.in_checkout(checkout, "staging", registry)
    with pytest.raises(NothingBefore):
        restore.roll_back(at(checkout), "staging")
    with pytest.raises(NotFound, match="no environment 'nowhere'"):
        restore.roll_back(at(checkout), "nowhere")


def test_a_shallow_clone_says_that_it_is_one(released: Path, remote: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{remote}", str(tmp_path / "shallow"))
    with pytest.raises(NothingBefore, match="git fetch --unshallow"):
        restore.roll_back(at(tmp_path / "shallow"), "staging")


def test_a_record_that_cannot_be_read_is_left_behind(released: Path) -> None:
    (released / FOLDER / "record.yaml").write_text("broken: [\n")
    git(released, "commit", "--quiet", "--all", "--message=Break it")
    git(released, "push", "--quiet")
    restored, _ = restore.roll_back(at(released), "staging")
    assert (restored.before, str(restored.after)) == (None, "digits 3")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("hold: {} # `production: why` stops the bridge\n", ""),
        ("hold: {}", "hold: {staging: old}"),
        ("hold: {} # `production: why` stops the bridge\n", "hold:\n  # first\n  production: 'x' # second\n"),
        ("models: # the first answers\n  - name: digits\n", "models:\n# the first\n- name: digits\n"),
        ("", ""),
    ],
)
@pytest.mark.parametrize("reason", ["bad", "it's: {a} # [test]", "é" * 200, "line\nbreak", "null"])
def test_only_hold_changes_in_service_yaml(old: str, new: str, reason: str) -> None:
    text = SERVICE.replace(old, new) if old else SERVICE
    edited = in_service(text, "staging", reason)
    assert service_file.parse(edited).hold == {**service_file.parse(text).hold, "staging": reason}
    assert service_file.parse(edited).model_copy(update={"hold": {}}) == service_file.parse(text).model_copy(update={"hold": {}})
    above = text.index("hold:") if "hold:" in text else len(text)
    assert edited[:above] == text[:above]
    for comment in ("# first", "# second", "# What this service is.", "# the image is named after it"):
        assert (comment in edited) is (comment in text)


def test_earlier_follows_first_parents(released: Path, registry: Registry) -> None:
    """What a merged branch went through on its way was never released."""
    git(released, "switch", "--quiet", "--create", "feature", "HEAD~1")
    (released / FOLDER / "record.yaml").write_text("by: hand\n")
    git(released, "commit", "--quiet", "--all", "--message=Detour")
    git(released, "checkout", "--quiet", "main", "--", FOLDER)
    git(released, "commit", "--quiet", "--message=And back")
    git(released, "switch", "--quiet", "main")
    git(released, "merge", "--quiet", "--no-ff", "--message=Merge", "feature")
    found = restore.earlier(Checkout(released), git(released, "rev-parse", "HEAD"), "staging")
    assert tree(released, found) != tree(released, "HEAD")
    assert "digits 2" in git(released, "log", "-1", "--format=%s", found)
    # Two releases in a pull request: only the second one was ever on main.
    git(released, "switch", "--quiet", "feature")
    for commit in ("main~5", "main~3"):
        git(released, "checkout", commit, "--", FOLDER)
        git(released, "commit", "--quiet", "--message=By hand")
    git(released, "switch", "--quiet", "main")
    git(released, "merge", "--quiet", "--no-ff", "--message=Merge", "feature")
    found = restore.earlier(Checkout(released), git(released, "rev-parse", "HEAD"), "staging")
    assert "digits 1" in git(released, "log", "-1", "--format=%s", found), "digits 3 was taken back"
