"""A bridge of an earlier release beside this one: both release what is promoted, and neither commits against the other."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from mlops_build.adapters.registry import Registry
from mlops_build.bridge import reconcile
from mlops_build.release import alias
from tests.conftest import ROOT, git
from tests.release.world import MakeRepository, Promote

# What was tagged (CHANGELOG.md).
RELEASED = {"0.5": "b848a2185daf616aa8327e4135b890c3605769fd", "0.8": "f83d6f4bcae66554335322b603d7bb6770ce2eef"}


def extracted(release: str, folder: Path) -> Path:
    """The package of an earlier release."""
    commit = RELEASED[release]
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit, "mlops_build"], capture_output=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"this clone has no history up to {release}.0 ({commit[:12]}): git fetch --unshallow --tags")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize(
    ("release", "pin"),
    [
        pytest.param("0.5", "0.5", marks=pytest.mark.soak),
        pytest.param("0.8", "0.8", marks=pytest.mark.soak),
        pytest.param("0.8", "0.3", marks=pytest.mark.slow),
        pytest.param("0.8", "0.9", marks=pytest.mark.slow),
    ],
)
def test_an_earlier_bridge_beside_this_one(
    make_repository: MakeRepository, registry: Registry, promote: Promote, tmp_path: Path, release: str, pin: str
) -> None:
    old = extracted(release, tmp_path / "old")
    checkout = make_repository()
    (checkout / "pyproject.toml").write_text(f'[project]\nname = "digits"\ndependencies = ["mlops-build[train]~={pin}.0"]\n')
    git(checkout, "add", "--all")
    git(checkout, "commit", "--quiet", "--message=Pin")
    git(checkout, "push", "--quiet")
    url = f"file://{checkout}.git"

    def theirs() -> dict[str, Any]:
        command = [sys.executable, "-m", "mlops_build", "bridge", "once", "--json", "--repo", url]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": registry.uri, "PYTHONPATH": str(old)}
        done = subprocess.run(command, cwd=old, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        (staging, _) = json.loads(done.stdout)["outcomes"]
        return dict(staging)

    def head() -> str:
        return git(checkout.with_name("digits.git"), "rev-parse", "main")

    for number in (1, 2):
        promote(number)
        if number % 2:
            assert reconcile.once([url], registry)[0].after == f"digits {number}"
        assert theirs()["after"] == f"digits {number}"
        settled = head()
        for _ in range(2):
            assert reconcile.once([url], registry)[0].state == "unchanged"
            assert theirs()["state"] == "unchanged"
        assert head() == settled
    alias.rollback(registry, None, "digits", "staging")
    assert reconcile.once([url], registry)[0].after == "digits 1"
    theirs()
    settled = head()
    assert reconcile.once([url], registry)[0].state == theirs()["state"] == "unchanged"
    assert head() == settled
