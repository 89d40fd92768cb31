"""Real repositories: bare ones over file://, and one behind an HTTP server with a token and a rule."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import git
from tests.githosts import bitbucket

USER, TOKEN = "bridge", "s3cret-token"


@pytest.fixture(autouse=True)
def alone(without_git_settings: None) -> None:
    """For all tests of this folder."""


@pytest.fixture
def remote(tmp_path: Path) -> Path:
    """A bare repository with one commit on main."""
    bare, work = tmp_path / "remote.git", tmp_path / "person"
    git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    git(tmp_path, "init", "--quiet", "--initial-branch=main", str(work))
    (work / "folder").mkdir()
    (work / "folder" / "a.txt").write_text("a\n")
    (work / "run.sh").write_text("#!/bin/sh\n")
    (work / "run.sh").chmod(0o755)
    git(work, "add", "--all")
    git(work, "commit", "--quiet", "--message=First")
    git(work, "remote", "add", "origin", str(bare))
    git(work, "push", "--quiet", "origin", "main")
    return bare


@pytest.fixture
def person(remote: Path, tmp_path: Path) -> Path:
    """A person's checkout of `remote`."""
    return tmp_path / "person"


@pytest.fixture
def http_remote(remote: Path, tmp_path: Path) -> Iterator[str]:
    """The address of `remote` over http: with a token, and a rule that protects the branch `protected`."""
    git(remote, "config", "http.receivepack", "true")
    git(remote, "branch", "protected", "main")
    with bitbucket(tmp_path / "host", TOKEN) as host:
        (host.folder / "ml").mkdir()
        (host.folder / "ml/remote.git").symlink_to(remote)
        host.protect("ml", "remote", "protected")
        yield f"{host.url}/scm/ml/remote.git"
