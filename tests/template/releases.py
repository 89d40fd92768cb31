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


def published(folder: Path) -> Path:
    """A clone of this repository with the releases' tags, and what the working tree holds, uncommitted changes too, as NEXT.

    Skips the test where a release's commit is not in the history (a shallow clone, an export).
    """
    if subprocess.run(["git", "clone", "--quiet", "--no-tags", str(ROOT), str(folder)], capture_output=True, check=False).returncode:
        pytest.skip("this copy of the repository has no Git history")
    for version, commit in RELEASES.items():
        done = subprocess.run(["git", "-C", str(folder), "tag", version, commit], capture_output=True, check=False)
        if done.returncode:
            pytest.skip(f"the commit of release {version} is not in this clone's history; git fetch --unshallow")
    here = set(git(ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")) - {""}
    for name in set(git(folder, "ls-files", "-z").split("\0")) - {""}:
        (folder / name).unlink()
    for name in here:
        source = ROOT / name
        if source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    git(folder, "add", "--all", "--force")
    git(folder, "commit", "--quiet", "--allow-empty", "--message=The working tree")
    git(folder, "tag", NEXT)
    return folder
