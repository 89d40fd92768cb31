"""Rollbacks and holds on a protected branch: a pull request, or commands that a person with permission can run."""

import json
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_build.__main__ import main
from mlops_build.adapters.githost import PullRequest, bitbucket
from mlops_build.adapters.registry import Registry
from mlops_build.release import alias, restore, write
from mlops_build.release import record as records
from mlops_build.release.protected import NotLanded
from tests.conftest import git
from tests.release.world import change_service

Run = Callable[..., tuple[int, Any, str]]
# A Git host's rule: nobody pushes these branches, apart from an administrator.
HOOK = """\
#!/bin/sh
[ "$ADMINISTRATOR" ] && exit 0
while read -r old new ref; do case "$ref" in {refs}) echo "this branch is protected" >&2; exit 1 ;; esac; done
"""


@pytest.fixture
def released(checkout: Path, registry: Registry, register: Callable[..., Any]) -> Path:
    """A checkout in which staging was released twice: digits 1 and 2."""
    for number in (1, 2):
        register()
        alias.promote(registry, None, "digits", number, "staging")
        write.in_checkout(checkout, "staging", registry)
    return checkout


@pytest.fixture
def protect(remote: Path) -> Callable[[str], None]:
    def rule(refs: str) -> None:
        hook = remote / "hooks/pre-receive"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(HOOK.format(refs=refs))
        hook.chmod(stat.S_IRWXU)

    return rule


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run mlops-build; returns the exit code, the JSON and stderr."""

    def call(*arguments: str) -> tuple[int, Any, str]:
        capsys.readouterr()
        code = main([*arguments, "--json"])
        out, err = capsys.readouterr()
        return code, json.loads(out), err

    return call


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


@pytest.mark.parametrize("broken", [False, True])
def test_with_a_git_host_a_pull_request_is_opened(
    released: Path, remote: Path, protect: Callable[[str], None], run: Run, monkeypatch: pytest.MonkeyPatch, broken: bool
) -> None:
    change_service(released, "hold: {}", "git: {pull_requests: bitbucket, api: https://git.example.com, commit_prefix: ML-7}\nhold: {}")
    if broken:
        change_service(released, "schema: 1", "schema: [")
    protect("refs/heads/main")
    opened: list[dict[str, str]] = []

    def open_pull_request(api: str, repository: str, **texts: str) -> PullRequest:
        opened.append({"api": api, "repository": repository, **texts})
        return PullRequest(8, f"{api}/pull-requests/8", new=len(opened) == 1)

    monkeypatch.setattr(bitbucket, "repository_of", lambda url: str(url))
    monkeypatch.setattr(bitbucket, "open_pull_request", open_pull_request)
    monkeypatch.chdir(released)
    for _ in range(2):
        code, document, printed = run("rollback", "--from-git", "--env", "staging")
        assert (code, document["pushed"]) == (0, False)
        assert document["request"]["url"] in printed
        assert git(remote, "rev-parse", "rollback/staging") == document["commit"]
    assert opened[0] == opened[1]
    assert opened[0]["title"] == "ML-7 Roll staging back to digits 1"
    assert (opened[0]["source"], opened[0]["target"]) == ("rollback/staging", "main")
    assert "Restores: " in opened[0]["description"]
    code, document, _ = run("hold", "production", "--why", "an audit")
    assert (code, opened[-1]["source"], opened[-1]["title"]) == (0, "hold/production", "ML-7 Hold production")


def test_a_branch_with_new_commits_is_not_a_protected_one(released: Path, remote: Path, tmp_path: Path) -> None:
    git(tmp_path, "clone", "--quiet", str(remote), "other")
    git(tmp_path / "other", "commit", "--quiet", "--allow-empty", "--message=Meanwhile")
    git(tmp_path / "other", "push", "--quiet")
    with pytest.raises(write.PushRejected, match="rejected"):
        restore.in_checkout(released, "staging")
    assert git(remote, "branch", "--list", "rollback/*") == ""
    git(released, "pull", "--quiet", "--rebase")
    assert restore.in_checkout(released, "staging")[1].pushed, "the refused attempt left the history complete"


def test_a_host_that_refuses_the_request_is_named(released: Path, protect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    change_service(released, "hold: {}", "git: {pull_requests: bitbucket, api: https://git.example.com}\nhold: {}")
    protect("refs/heads/main")
    monkeypatch.delenv("MLOPS_GIT_TOKEN", raising=False)
    monkeypatch.setattr(bitbucket, "repository_of", lambda _: bitbucket.Repository("ml", "digits"))
    with pytest.raises(NotLanded, match="MLOPS_GIT_TOKEN is not set"):
        restore.in_checkout(released, "staging")
