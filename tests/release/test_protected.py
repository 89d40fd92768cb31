"""Rollbacks and holds on a protected branch: a pull request, or commands that a person with permission can run."""

import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlops_build.release import record as records
from mlops_build.release import restore
from mlops_build.release.protected import at
from tests import githosts
from tests.conftest import git
from tests.githosts import GitHost
from tests.release.world import Run, change_service

# A Git host's rule: nobody pushes these branches, apart from an administrator.
HOOK = """\
#!/bin/sh
[ "$ADMINISTRATOR" ] && exit 0
while read -r old new ref; do case "$ref" in {refs}) echo "this branch is protected" >&2; exit 1 ;; esac; done
"""


@pytest.fixture
def protect(remote: Path) -> Callable[[str], None]:
    def rule(refs: str) -> None:
        hook = remote / "hooks/pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(HOOK.format(refs=refs))
        hook.chmod(stat.S_IRWXU)

    return rule


def execute(commands: list[str], where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run printed commands literally in a shell, as an administrator."""
    monkeypatch.setenv("ADMINISTRATOR", "yes")
    for command in commands:
        subprocess.run(["/bin/sh", "-ec", command], cwd=where, check=True, capture_output=True, timeout=60)
    monkeypatch.delenv("ADMINISTRATOR")


@pytest.mark.parametrize("without_checkout", [False, True])
@pytest.mark.parametrize("refs", ["refs/heads/main", "refs/heads/*"])
def test_without_a_git_host_the_printed_commands_roll_back(
    released: Path,
    remote: Path,
    protect: Callable[[str], None],
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    refs: str,
    without_checkout: bool,
) -> None:
    protect(refs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path if without_checkout else released)
    head = git(remote, "rev-parse", "main")
    place = ["--repo", f"file://{remote}"] if without_checkout else []
    code, document, _ = run("rollback", "--from-git", "staging", *place)
    assert code == 4
    assert "protected" in document["error"]
    assert git(remote, "rev-parse", "main") == head
    assert git(released, "rev-parse", "HEAD") == head
    assert git(released, "status", "--porcelain") == ""
    assert (document.get("branch") == "rollback/staging") == (refs == "refs/heads/main")
    assert all(command in document["remedy"] for command in document["commands"])
    execute(document["commands"], tmp_path, monkeypatch)
    git(released, "pull", "--quiet")
    assert str(records.read(released, "staging")) == "digits 1"
    assert (released / "deploy/overlays/staging/hold.yaml").exists()


@pytest.fixture
def hosted(request: pytest.FixtureRequest, released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[GitHost]:
    """The Git host of the checkout, Bitbucket or GitLab, which protects main."""
    kind = getattr(request, "param", "bitbucket")
    monkeypatch.setenv("MLOPS_GIT_TOKEN", "t0ken")
    monkeypatch.chdir(released)
    with githosts.HOSTS[kind](tmp_path / "host", "t0ken") as host:
        url = host.make("ml", "digits")
        git(released, "remote", "set-url", "origin", host.bare("ml", "digits").as_uri())
        git(released, "push", "--quiet", "origin", "main")
        change_service(released, "hold: {}", f"git: {{pull_requests: {kind}, api: '{host.url}', commit_prefix: ML-7}}\nhold: {{}}")
        host.protect("ml", "digits")
        git(released, "remote", "set-url", "origin", url)
        yield host


@pytest.mark.parametrize("hosted", list(githosts.HOSTS), indirect=True)
def test_with_a_git_host_a_pull_request_is_opened(hosted: GitHost, released: Path, run: Run) -> None:
    for _ in range(2):
        code, document, printed = run("rollback", "--from-git", "--env", "staging")
        assert (code, document.get("error"), document.get("pushed")) == (0, None, False)
        assert document["request"]["url"] in printed
        assert hosted.head("ml", "digits", "rollback/staging") == document["commit"]
    (pull,) = hosted.pulls
    assert (pull.source, pull.target, pull.title) == ("rollback/staging", "main", "ML-7 Roll staging back to digits 1")
    assert "Restores: " in pull.description
    hosted.merge(1)
    git(released, "pull", "--quiet", hosted.bare("ml", "digits").as_uri(), "main")
    assert str(records.read(released, "staging")) == "digits 1"
    # A second rollback does not return to the bad release.
    assert "no earlier release" in run("rollback", "--from-git", "--env", "staging")[1]["error"]
    assert run("hold", "production", "--why", "an audit")[0] == 0
    assert (hosted.pulls[1].source, hosted.pulls[1].title) == ("hold/production", "ML-7 Hold production")
    assert run("hold", "production", "--why", "another audit")[0] == 0
    assert (len(hosted.pulls), hosted.pulls[1].description) == (2, "another audit")


def test_a_broken_service_yaml_does_not_hide_the_git_host(hosted: GitHost, released: Path, run: Run) -> None:
    (released / "service.yaml").write_text("schema: [\n")
    git(released, "commit", "--quiet", "--all", "--message=Break it")
    git(released, "push", "--quiet", hosted.bare("ml", "digits").as_uri(), "HEAD:refs/heads/broken")
    git(hosted.bare("ml", "digits"), "update-ref", "refs/heads/main", git(released, "rev-parse", "HEAD"))
    code, document, printed = run("rollback", "--from-git", "--env", "staging")
    assert (code, document["request"]["number"], "service.yaml is broken" in printed) == (0, 1, True)


def test_without_permission_to_push_anything_the_commands_are_printed(
    hosted: GitHost, released: Path, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = hosted.bare("ml", "digits")
    git(bare, "config", "http.receivepack", "false")
    code, document, _ = run("rollback", "--from-git", "--env", "staging")
    assert code == 4
    assert "403" in document["error"]
    (bare / "hooks/pre-receive").unlink()
    git(released, "config", "credential.helper", "!f() { echo username=ada; echo password=t0ken; }; f")
    git(bare, "config", "http.receivepack", "true")
    execute(document["commands"], tmp_path, monkeypatch)
    assert "digits 1" in git(bare, "log", "-1", "--format=%s", "main")


def test_a_branch_with_new_commits_is_not_a_protected_one(released: Path, remote: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(remote), "other")
    git(tmp_path / "other", "commit", "--quiet", "--allow-empty", "--message=Meanwhile")
    git(tmp_path / "other", "push", "--quiet")
    assert restore.roll_back(at(released), "staging")[1].pushed
    assert git(remote, "branch", "--list", "rollback/*") == ""
    assert "Meanwhile" in git(remote, "log", "-2", "--format=%s", "main")


def test_a_host_that_refuses_the_request_is_named(hosted: GitHost, run: Run) -> None:
    hosted.answer = (403, '{"errors": [{"message": "You may not open pull requests"}]}', {})
    code, document, _ = run("rollback", "--from-git", "--env", "staging")
    assert (code, document["branch"]) == (4, "rollback/staging")
    assert "You may not open pull requests" in document["error"]
