"""The template as its users have it: every release of CHANGELOG.md's table tagged, and the working tree as the newest one."""

import shutil
import subprocess
from pathlib import Path

import pytest

from mlops_build.scaffold.source import releases
from tests.conftest import git

ROOT = Path(__file__).parents[2]
RELEASES = releases((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
# What the working tree is called here: newer than whatever is released.
NEXT = "99.0.0"
# What copier and updates read of a version.
PARTS = ("CHANGELOG.md", "copier.yml", "template")


def published(folder: Path) -> Path:
    """A repository with the PARTS of each release, tagged, and those of the working tree, tagged NEXT, uncommitted changes included.

    It has few files besides, so that a clone is cheap; NEXT's table of releases names the commits here. Skips the test where a release's
    commit is not in the history (a shallow clone, an export).
    """
    git(folder.parent, "init", "--quiet", "--initial-branch=main", str(folder))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for version, commit in RELEASES.items():
        done = subprocess.run(["git", "-C", str(ROOT), "archive", commit, *PARTS], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"the commit of release {version} is not in this clone's history; git fetch --unshallow")
        clear(folder)
        subprocess.run(["tar", "--extract", "--directory", str(folder)], input=done.stdout, check=True)
        changelog = changelog.replace(commit, tagged(folder, version))
    clear(folder)
    for name in ("copier.yml", "Makefile"):  # a page runs `make tag`
        shutil.copy(ROOT / name, folder)
    for name in ("template", "scripts"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "CHANGELOG.md").write_text(changelog, encoding="utf-8")
    tagged(folder, NEXT)
    git(folder, "repack", "-adq")
    return folder


def clear(folder: Path) -> None:
    for path in folder.iterdir():
        if path.name != ".git":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def tagged(folder: Path, version: str) -> str:
    """Commit everything and tag it; returns the commit."""
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--allow-empty", f"--message=Release {version}")
    git(folder, "tag", version)
    return git(folder, "rev-parse", "HEAD")
