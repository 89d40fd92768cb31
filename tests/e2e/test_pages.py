"""The README and the tutorial, done as a reader does them: every command is run, and prints what the page shows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_build import __version__
from tests.e2e import console

ROOT = Path(__file__).parents[2]
TEMPLATE_URL = "https://github.com/mlops-build/mlops-build"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working tree, as it would be published: a repository with one commit, tagged."""
    folder = tmp_path_factory.mktemp("published")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "--all"],
        ["commit", "--quiet", "--message=Publish"],
        ["tag", __version__],
    ):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


@pytest.fixture
def environment(published: Path, tmp_path: Path) -> dict[str, str]:
    """A reader's shell: our environment activated, and the published address leading to the working tree."""
    (tmp_path / "settings.yml").write_text("{}\n")
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "VIRTUAL_ENV": str(Path(sys.executable).parent.parent),
        # copier adds .git to an address on GitHub.
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": f"url.{published.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": TEMPLATE_URL,
        "GIT_CONFIG_KEY_1": f"url.{published.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_1": f"{TEMPLATE_URL}.git",
        "COPIER_SETTINGS_PATH": str(tmp_path / "settings.yml"),
        "PYTHONUNBUFFERED": "1",
    }


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial/first-service.md"])
def test_every_command_prints_what_the_page_shows(page: str, tmp_path: Path, environment: dict[str, str]) -> None:
    folder = tmp_path / "reader"
    folder.mkdir()
    done = console.run((ROOT / page).read_text(), folder, environment)
    assert len(done) >= 8
    wrong = [
        f"$ {command.text}\n--- the page:\n{command.expected}\n--- printed:\n{printed}"
        for command, printed in done
        if not console.matches(command.expected, printed)
    ]
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize(
    ("expected", "printed", "fits"),
    [
        ("a\nb", "a\nb\n", True),
        ("a …\nb", "a x y\nb", True),
        ("a\n…\nz", "a\nb\nc\nz", True),
        ("a\n…", "a\n", True),
        ("", "", True),
        ("", "said", False),
        ("a", "b", False),
        ("a\nb", "a", False),
    ],
)
def test_what_the_comparison_accepts(expected: str, printed: str, fits: bool) -> None:
    assert console.matches(expected, printed) is fits


def test_pages_are_read_as_commands_and_files() -> None:
    page = '```console\n$ one \\\n> two\nout\n$ three\n```\n\n```yaml title="a.yaml"\nb: 1\n```\n'
    assert console.steps(page) == [
        console.Command("one \\\ntwo", "out"),
        console.Command("three", ""),
        console.File("a.yaml", "b: 1\n", is_diff=False),
    ]
