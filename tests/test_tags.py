"""`make tag`: the releases' tags, from the table in CHANGELOG.md."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from mlops_build.scaffold.source import releases
from tests.conftest import git

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with this script, two commits, and a table that names the first."""
    folder = tmp_path / "clone"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/tag.sh", folder / "scripts")
    git(folder, "init", "--quiet", "--initial-branch=main")
    for name in ("one", "two"):
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--allow-empty", "--message", name)
    row = f"| 0.1.0 | 2026-01-01 | {git(folder, 'rev-parse', 'HEAD~')} | one |"
    table = f"| version | date | commit | in a line |\n| --- | --- | --- | --- |\n{row}\n"
    (folder / "CHANGELOG.md").write_text(f"# Changes\n\n{table}\n## 0.1.0\n")
    return folder


def tag(folder: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["scripts/tag.sh"], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_makes_what_is_missing_once(clone: Path) -> None:
    first, second = tag(clone), tag(clone)
    assert (first.returncode, second.returncode) == (0, 0)
    assert git(clone, "rev-parse", "0.1.0") == git(clone, "rev-parse", "HEAD~")
    assert first.stderr == f"tag: 0.1.0 → {git(clone, 'rev-parse', '--short', 'HEAD~')}\n"
    assert second.stderr == "tag: every release has its tag\n"


def test_leaves_a_tag_on_another_commit_alone(clone: Path) -> None:
    git(clone, "tag", "0.1.0", "HEAD")
    done = tag(clone)
    assert done.returncode == 1
    assert f"0.1.0 is on {git(clone, 'rev-parse', 'HEAD')}, not on {git(clone, 'rev-parse', 'HEAD~')}" in done.stderr
    assert git(clone, "rev-parse", "0.1.0") == git(clone, "rev-parse", "HEAD")


def test_says_what_to_do_in_a_shallow_clone(clone: Path, tmp_path: Path) -> None:
    git(clone, "add", "--all")
    git(clone, "commit", "--quiet", "--message=three")
    git(tmp_path, "clone", "--quiet", "--depth=1", clone.as_uri(), "shallow")
    done = tag(tmp_path / "shallow")
    assert done.returncode == 1
    assert "is not in this clone; get the whole history first: git fetch --unshallow" in done.stderr
    assert not git(tmp_path / "shallow", "tag")


def test_no_table_is_an_error(clone: Path) -> None:
    (clone / "CHANGELOG.md").write_text("# Changes\n")
    assert tag(clone).stderr == "tag: CHANGELOG.md has no table of releases\n"


def test_the_package_reads_the_same_table() -> None:
    table = (ROOT / "CHANGELOG.md").read_text()
    found = releases(table)
    assert found["0.1.0"] == "4e990e4b63a7ea44ed04143e89570910dbc6c2f9"
    assert len(found) == len(re.findall(r"(?m)^\| [0-9]+\.[^|]*\|[^|]*\| [0-9a-f]{40} ", table))
