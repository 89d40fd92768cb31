"""The Git tag of a version's commit, in a real bare repository."""

import subprocess
from pathlib import Path

import pytest

from mlops_build.adapters.git.checkout import Checkout
from mlops_build.training import code_tag
from tests.conftest import git

SERVER = "https://mlflow.example.com"
REFUSING = "#!/bin/sh\ncase $1 in refs/tags/*) echo 'tags are protected' >&2; exit 1;; esac\n"


@pytest.fixture
def checkout(tmp_path: Path, without_git_settings: None) -> Path:
    """A checkout with a pushed commit on a branch; its origin is origin.git."""
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", "origin.git")
    git(tmp_path, "clone", "--quiet", (tmp_path / "origin.git").as_uri(), "work")
    root = tmp_path / "work"
    git(root, "commit", "--quiet", "--allow-empty", "--message=Start")
    git(root, "push", "--quiet", "origin", "HEAD:main")
    git(root, "switch", "--quiet", "--create=retrain/1")
    git(root, "commit", "--quiet", "--allow-empty", "--message=Train")
    git(root, "push", "--quiet", "origin", "retrain/1")
    return root


def tags(root: Path) -> dict[str, str]:
    """Tag → commit in the bare repository."""
    listed = git(root.parent / "origin.git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/tags/").splitlines()
    return {ref.removeprefix("refs/tags/"): commit for ref, commit in map(str.split, listed)}


def test_the_code_outlives_its_branch(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    for _ in range(2):
        assert code_tag.push(Checkout(checkout), SERVER, "digits", commit) is None
        assert tags(checkout) == {f"model/digits/{commit[:12]}": commit}
    git(checkout, "push", "--quiet", "origin", ":retrain/1")
    origin = checkout.parent / "origin.git"
    git(origin, "gc", "--quiet", "--prune=now")
    assert git(origin, "cat-file", "-t", commit) == "commit"


def test_no_tag_for_the_versions_of_one_machine(checkout: Path) -> None:
    commit = git(checkout, "rev-parse", "HEAD")
    assert code_tag.push(Checkout(checkout), "sqlite:///mlflow.db", "digits", commit) is None
    assert code_tag.push(Checkout(checkout), SERVER, "digits", "0" * 40) is None, "the commit is in another clone"
    assert code_tag.push(Checkout(checkout), SERVER, "digits", "main") is None, "it was changed in MLflow"
    git(checkout, "remote", "remove", "origin")
    assert code_tag.push(Checkout(checkout), SERVER, "digits", commit) is None
    assert tags(checkout) == {}


def test_a_tag_that_cannot_be_pushed_is_a_remark_that_says_how(checkout: Path) -> None:
    commit, before = git(checkout, "rev-parse", "HEAD"), git(checkout, "rev-parse", "HEAD~1")
    tag = f"model/digits/{commit[:12]}"
    git(checkout, "push", "--quiet", "origin", f"{before}:refs/tags/{tag}")
    assert "already exists" in str(code_tag.push(Checkout(checkout), SERVER, "digits", commit))
    assert tags(checkout) == {tag: before}, "nobody's tag is moved"
    git(checkout, "push", "--quiet", "origin", f":refs/tags/{tag}")

    hook = checkout.parent / "origin.git/hooks/update"
    hook.write_text(REFUSING)
    hook.chmod(0o755)
    remark = str(code_tag.push(Checkout(checkout), SERVER, "digits", commit))
    assert "tags are protected" in remark
    hook.unlink()
    subprocess.run(remark.partition("By hand: ")[2].split(), cwd=checkout, check=True, capture_output=True, timeout=60)
    assert tags(checkout) == {tag: commit}
    (checkout.parent / "origin.git").rename(checkout.parent / "elsewhere.git")
    assert "was not pushed" in str(code_tag.push(Checkout(checkout), SERVER, "digits", commit))
