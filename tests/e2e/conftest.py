"""The environment of a page's reader: a shell in which the published address means the working tree."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from mlops_build import __version__
from tests.conftest import MadeOnce, git

ROOT = Path(__file__).parents[2]
TEMPLATE_URL = "https://github.com/mlops-build/mlops-build"


@pytest.fixture(scope="session")
def published(made_once: MadeOnce) -> Path:
    """The working tree, as it would be published: a repository with one commit, tagged."""

    def make(folder: Path) -> None:
        for name in git(ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        git(folder, "init", "--quiet", "--initial-branch=main")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message=Publish")
        git(folder, "tag", __version__)

    return made_once("published", make)


@pytest.fixture
def environment(published: Path, tmp_path: Path) -> dict[str, str]:
    return reader(published, tmp_path)


def reader(template: Path, folder: Path) -> dict[str, str]:
    """A reader's shell: this environment is activated, and the published address means this repository. folder: for settings."""
    (folder / "settings.yml").write_text("{}\n")
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "VIRTUAL_ENV": str(Path(sys.executable).parent.parent),
        # copier adds .git to an address on GitHub.
        "GIT_CONFIG_COUNT": "2",
        **{f"GIT_CONFIG_KEY_{number}": f"url.{template.as_uri()}.insteadOf" for number in range(2)},
        "GIT_CONFIG_VALUE_0": TEMPLATE_URL,
        "GIT_CONFIG_VALUE_1": f"{TEMPLATE_URL}.git",
        "COPIER_SETTINGS_PATH": str(folder / "settings.yml"),
        "PIP_CONFIG_FILE": os.devnull,
        "PYTHONUNBUFFERED": "1",
    }
