"""From an alias to a commit in a checkout: what it says, who signs it, and what is refused."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters.git.checkout import Checkout
from mlops_build.adapters.git.command import PushRejected
from mlops_build.adapters.registry import Registry
from mlops_build.errors import Failed, NotFound, Refused
from mlops_build.model.version import BadVersion
from mlops_build.release import alias, write
from mlops_build.release import record as records
from tests.conftest import git
from tests.release.world import SERVICE, Promote, change_service
from tests.release.world import write as write_files

Register = Callable[..., Any]


def test_a_release_is_one_commit_of_the_machines_files(
    checkout: Path, remote: Path, registry: Registry, register: Register, promote: Promote
) -> None:
    version = register()
    promote(1)
    (checkout / "mine.txt").write_text("not committed\n")
    made = write.in_checkout(checkout, "staging", registry)
    assert (made.before, made.after, made.pushed) == (None, "digits 1", True)
    assert git(checkout, "rev-parse", "HEAD") == git(remote, "rev-parse", "main") == made.commit
    changed = git(checkout, "show", "--format=", "--name-status", "HEAD").splitlines()
    folder = "deploy/overlays/staging/release"
    assert changed == [f"M\t{folder}/kustomization.yaml", f"A\t{folder}/patch.yaml", f"M\t{folder}/record.yaml"]
    assert git(checkout, "status", "--porcelain") == "?? mine.txt"
    record = records.read(checkout, "staging")
    assert [(one.name, one.version, one.run) for one in record.models] == [("digits", 1, version.run_id)]
    assert record.image is not None
    assert record.image.startswith("registry.example.com:5000/ml/digits:v1-")
    assert record.commit == version.tags["mlops_build.commit"]

    again = write.in_checkout(checkout, "staging", registry)
    assert (again.commit, again.after) == (None, "digits 1")
    assert git(checkout, "rev-parse", "HEAD") == made.commit


def test_what_the_commit_says(checkout: Path, registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLOPS_GIT_NAME", "Ada")
    monkeypatch.setenv("MLOPS_GIT_EMAIL", "ada@example.com")
    _, version = register(), register()
    for number in (1, 2):
        _, made = alias.promote_all(registry, None, {"digits": number}, "live", why="fewer false alarms")
        write.in_checkout(checkout, "production", registry)
    assert git(checkout, "log", "-1", "--format=%an <%ae> %cn <%ce>") == " ".join(["mlops-build bridge <bridge@mlops-build.invalid>"] * 2)
    assert git(checkout, "log", "-1", "--format=%B").splitlines()[:3] == ["Release digits 2 to production", "", "fewer false alarms"]
    assert int(git(checkout, "log", "-1", "--format=%ct")) >= made.at
    assert git(checkout, "log", "-1", "--format=%(trailers)").splitlines() == [
        "Model: digits",
        "Version: 2",
        f"Run: {2:032x}",
        "Alias: live",
        "Previous-Version: 1",
        f"Code: {2:040x}",
        f"Data: sha256:{2:064x}",
        f"Registered: {datetime.fromtimestamp(version.created_ms // 1000, UTC):%Y-%m-%dT%H:%M:%SZ}",
        f"Promotion: {made.id}",
        "Promoted-By: Ada <ada@example.com>",
        "Why: fewer false alarms",
    ]
    assert "Previous-Version: none" in git(checkout, "log", "-1", "--format=%(trailers)", "HEAD~1")


def test_a_changed_service_yaml_is_a_release_too_once_it_is_committed(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1, "live")
    write.in_checkout(checkout, "production", registry)
    text = (checkout / "service.yaml").read_text()
    (checkout / "service.yaml").write_text(text.replace("replicas: 2", "replicas: 4"))
    ignored = write.in_checkout(checkout, "production", registry)
    assert ignored.commit is None
    assert ignored.remarks == ("uncommitted changes in service.yaml are ignored: commit them, then release again",)
    git(checkout, "commit", "--quiet", "--all", "--message=More")
    made = write.in_checkout(checkout, "production", registry)
    assert made.commit
    assert (made.changes, str(made)) == (("replicas 2 → 4",), f"production: digits 1, replicas 2 → 4  commit {made.commit[:12]}")
    assert "replicas: 4" in (checkout / "deploy/overlays/production/release/patch.yaml").read_text()
    assert git(checkout, "log", "-1", "--format=%s") == "Release digits 1 to production: replicas 2 → 4"
    assert "The models did not change." in git(checkout, "log", "-1", "--format=%b")


def test_several_changes_are_listed_in_the_message(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1, "live")
    write.in_checkout(checkout, "production", registry)
    change_service(checkout, "replicas: 2\n    memory: 1536MiB", "replicas: 1\n    memory: 2GiB\n    cpu: '2'")
    change_service(checkout, "host: digits.example.com", "host: numbers.example.com")
    change_service(checkout, "gpu: {mode: none}", "serving: {max_batch: 16, startup_seconds: 60}")
    settings = (
        "replicas 2 → 1",
        "memory 1536MiB → 2GiB",
        "cpu 500m → 2",
        "host digits.example.com → numbers.example.com",
        "serving.max_batch none → 16",
        "serving.startup_seconds 120 → 60",
    )
    dry = git(checkout, "rev-parse", "HEAD")
    made = write.in_checkout(checkout, "production", registry)
    assert set(made.changes) == set(settings)
    subject, _, body = git(checkout, "log", "-1", "--format=%B").partition("\n\n")
    assert subject == "Release digits 1 to production: 6 changes of its settings"
    assert all(f"\n- {setting}\n" in body for setting in settings)
    assert "Previous-Version: 1" in git(checkout, "log", "-1", "--format=%(trailers)")

    # The same with a new version: its image and its labels are not reported again.
    git(checkout, "reset", "--quiet", "--hard", dry)
    git(checkout, "push", "--quiet", "--force")
    promote(2, "live")
    made = write.in_checkout(checkout, "production", registry)
    assert set(made.changes) == set(settings)
    assert str(made).startswith("production: digits 1 → digits 2, ")
    assert git(checkout, "log", "-1", "--format=%s") == "Release digits 2 to production"
    assert "\n- replicas 2 → 1\n" in git(checkout, "log", "-1", "--format=%B")


def test_a_change_that_no_setting_names_is_a_change_of_a_file(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    write.in_checkout(checkout, "staging", registry)
    folder = checkout / "deploy/overlays/staging/release"
    for text in ("# By hand.\n" + (folder / "patch.yaml").read_text(), "a: b: c\n"):
        write_files(folder, {"patch.yaml": text, "extra.yaml": "x: 1\n"})
        git(checkout, "add", "--all")
        git(checkout, "commit", "--quiet", "--message=By hand")
        assert write.in_checkout(checkout, "staging", registry).changes == ("extra.yaml removed", "patch.yaml rewritten")


def test_the_date_follows_from_what_is_released(checkout: Path, registry: Registry, register: Register) -> None:
    version = register()
    registry.set_alias("digits", "staging", 1)
    parent = int(git(checkout, "log", "-1", "--format=%ct"))
    write.in_checkout(checkout, "staging", registry)
    assert int(git(checkout, "log", "-1", "--format=%ct")) == max(parent, version.created_ms // 1000)
    assert git(checkout, "log", "-1", "--format=%ci").endswith("+0000")


def test_somebody_elses_files_in_the_folder_are_removed(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    extra = checkout / "deploy/overlays/staging/release/extra.yaml"
    extra.write_text("x: 1\n")
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message=By hand")
    write.in_checkout(checkout, "staging", registry)
    assert not extra.exists()
    assert git(checkout, "status", "--porcelain") == ""


def test_what_service_yaml_wants_no_more_leaves_git_with_the_next_release(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1, "live")
    change_service(checkout, "{mode: none}", "{mode: shared}")
    change_service(checkout, "    replicas: 2\n", "    replicas: 2\n    autoscale: {max_replicas: 4, target: 2}\n")
    told = "verify: {ignore: {hpa-no-monitoring: this cluster's Prometheus asks every pod}}\n"
    change_service(checkout, "environments:\n", f"{told}environments:\n")
    write.in_checkout(checkout, "production", registry)
    folder = checkout / "deploy/overlays/production/release"
    always = {"record.yaml", "kustomization.yaml", "patch.yaml"}
    assert {path.name for path in folder.iterdir()} == always | {"pdb.yaml", "hpa.yaml", "gpu-leases.yaml"}
    change_service(checkout, "{mode: shared}", "{mode: exclusive}")
    change_service(checkout, "    replicas: 2\n    autoscale: {max_replicas: 4, target: 2}\n", "    replicas: 1\n")
    assert write.in_checkout(checkout, "production", registry).commit
    assert {path.name for path in folder.iterdir()} == always
    assert "resources" not in (folder / "kustomization.yaml").read_text()
    assert git(checkout, "status", "--porcelain") == ""


def test_uncommitted_changes_of_the_record_are_not_lost(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    (checkout / "deploy/overlays/staging/release/record.yaml").write_text("mine\n")
    head = git(checkout, "rev-parse", "HEAD")
    with pytest.raises(Refused, match=r"uncommitted changes in deploy/overlays/staging/release/record\.yaml"):
        write.in_checkout(checkout, "staging", registry)
    assert git(checkout, "rev-parse", "HEAD") == head


def test_a_checkout_that_is_behind_stays_as_it_was(
    checkout: Path, remote: Path, registry: Registry, promote: Promote, tmp_path: Path
) -> None:
    promote(1)
    other = tmp_path / "other"
    git(tmp_path, "clone", "--quiet", str(remote), str(other))
    git(other, "commit", "--quiet", "--allow-empty", "--message=Quicker")
    git(other, "push", "--quiet")
    head = git(checkout, "rev-parse", "HEAD")
    with pytest.raises(PushRejected) as rejected:
        write.in_checkout(checkout, "staging", registry)
    assert "git pull" in str(rejected.value.remedy)
    assert git(checkout, "rev-parse", "HEAD") == head
    assert git(checkout, "status", "--porcelain") == ""


def test_without_an_origin_the_commit_stays_here(checkout: Path, registry: Registry, promote: Promote) -> None:
    promote(1)
    git(checkout, "remote", "remove", "origin")
    made = write.in_checkout(checkout, "staging", registry)
    assert made.commit
    assert not made.pushed


def test_nothing_promoted_and_unknown_environments(checkout: Path, registry: Registry, promote: Promote) -> None:
    with pytest.raises(NotFound, match="no version has the alias 'live'") as nothing:
        write.in_checkout(checkout, "production", registry)
    assert nothing.value.exit_code == 3
    with pytest.raises(NotFound, match="no environment 'nowhere'"):
        write.in_checkout(checkout, "nowhere", registry)
    change_service(checkout, "environments:\n", "environments:\n  eu: {namespace: eu, host: eu.example.com}\n")
    promote(1, "eu")
    with pytest.raises(NotFound, match=r"deploy/overlays/eu/kustomization\.yaml is missing"):
        write.in_checkout(checkout, "eu", registry)


@pytest.mark.parametrize("value", ["a" * 40 + "\n", "../../x", "{{ x }}", f"{'a' * 40}\n\nVersion: 9", "A" * 40])
def test_nothing_of_a_forged_tag_reaches_git(checkout: Path, registry: Registry, promote: Promote, value: str) -> None:
    promote(1)
    # After the promotion, by whoever may write to MLflow.
    registry.set_tag("digits", 1, "mlops_build.commit", value)
    head = git(checkout, "rev-parse", "HEAD")
    with pytest.raises(BadVersion, match=r"'digits' version 1: the tag mlops_build.commit is not valid"):
        write.in_checkout(checkout, "staging", registry)
    assert git(checkout, "rev-parse", "HEAD") == head


@pytest.mark.parametrize("run", ["", "../x", "a" * 31 + "\n"])
def test_a_run_that_is_none_is_refused(checkout: Path, registry: Registry, register: Register, run: str) -> None:
    register(run=run)
    registry.set_alias("digits", "staging", 1)
    with pytest.raises(BadVersion, match=r"\brun\b"):
        write.in_checkout(checkout, "staging", registry)


def test_who_signs_can_be_chosen_but_not_forged(
    checkout: Path, registry: Registry, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(1)
    monkeypatch.setenv("MLOPS_BRIDGE_NAME", "Bot")
    monkeypatch.setenv("MLOPS_BRIDGE_EMAIL", "bot@example.com> 0 +0000\nx")
    with pytest.raises(Failed, match="MLOPS_BRIDGE_EMAIL"):
        write.in_checkout(checkout, "staging", registry)
    monkeypatch.setenv("MLOPS_BRIDGE_EMAIL", "bot@example.com")
    write.in_checkout(checkout, "staging", registry)
    assert git(checkout, "log", "-1", "--format=%an %ce") == "Bot bot@example.com"


def test_a_folder_that_is_no_repository(tmp_path: Path, registry: Registry) -> None:
    write_files(tmp_path / "x", {"service.yaml": SERVICE})
    with pytest.raises(NotFound, match="has no Git commit"):
        write.in_checkout(tmp_path / "x", "staging", registry)


def test_a_commit_that_another_process_pushes_at_the_same_time_is_released(
    checkout: Path, remote: Path, registry: Registry, promote: Promote, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(1, "live")
    push = Checkout.push

    def pushed_first(self: Checkout, commit: str = "HEAD") -> None:
        push(self, commit)
        git(self.path, "update-ref", "HEAD", commit)
        raise PushRejected("cannot lock ref 'refs/heads/main'")

    monkeypatch.setattr(Checkout, "push", pushed_first)
    made = write.in_checkout(checkout, "production", registry)
    assert made.commit == git(remote, "rev-parse", "main") == git(checkout, "rev-parse", "HEAD")
    assert (checkout / "deploy/overlays/production/release/record.yaml").read_text() == git(
        checkout, "show", "HEAD:deploy/overlays/production/release/record.yaml"
    ) + "\n"
