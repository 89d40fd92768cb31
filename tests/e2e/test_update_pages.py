"""Run the how-to pages about updates like a reader."""

import os
import sys
from pathlib import Path

import pytest

from tests.conftest import MadeOnce
from tests.e2e import console
from tests.template.releases import published

ROOT = Path(__file__).parents[2]
TEMPLATE_URL = "https://github.com/mlops-build/mlops-build"


@pytest.fixture(scope="module")
def template(made_once: MadeOnce) -> Path:
    return made_once("releases", published)


@pytest.mark.parametrize("page", ["roll-a-template-change-out.md", "resolve-a-conflicting-update.md"])
def test_every_command_prints_what_the_page_shows(page: str, tmp_path: Path, template: Path) -> None:
    (tmp_path / "settings.yml").write_text("{}\n")
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        # copier adds .git to an address on GitHub.
        "GIT_CONFIG_COUNT": "2",
        **{f"GIT_CONFIG_KEY_{number}": f"url.{template.as_uri()}.insteadOf" for number in range(2)},
        "GIT_CONFIG_VALUE_0": TEMPLATE_URL,
        "GIT_CONFIG_VALUE_1": f"{TEMPLATE_URL}.git",
        "COPIER_SETTINGS_PATH": str(tmp_path / "settings.yml"),
        "COPIER_CACHE_DIR": str(tmp_path / "copier"),
        "PYTHONUNBUFFERED": "1",
    }
    folder = tmp_path / "reader"
    folder.mkdir()
    console.check((ROOT / "docs/how-to" / page).read_text(), folder, environment, at_least=10)
