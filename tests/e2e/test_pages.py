"""Run README and other pages like a reader: every command must print what the page shows."""

from pathlib import Path

import pytest

from tests.conftest import git
from tests.e2e import console

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        *(pytest.param(f"docs/{page}.md", marks=pytest.mark.slow) for page in ("tutorial/first-service", "how-to/host-your-own-copy")),
    ],
)
def test_every_command_prints_what_the_page_shows(page: str, tmp_path: Path, environment: dict[str, str], published: Path) -> None:
    folder = tmp_path / "reader"
    if page == "README.md":  # its reader is in a clone
        git(tmp_path, "clone", "--quiet", str(published), str(folder))
    else:
        folder.mkdir()
    console.check((ROOT / page).read_text(), folder, environment, at_least=8)


@pytest.mark.parametrize(
    ("expected", "printed", "fits"),
    [
        ("a\nb", "a\nb\n", True),
        ("a …\nb", "a x y\nb", True),
        ("a\n…\nz", "a\nb\nc\nz", True),
        ("a\n…", "a\n", True),
        ("", "", True),
        ("", "text", False),
        ("a", "b", False),
        ("a\nb", "a", False),
    ],
)
def test_the_comparison(expected: str, printed: str, fits: bool) -> None:
    assert console.matches(expected, printed) is fits


def test_pages_are_read_as_commands_and_files() -> None:
    page = '```console\n$ one \\\n> two\nout\n$ three\n```\n\n```yaml title="a.yaml"\nb: 1\n```\n'
    assert console.steps(page) == [
        console.Command("one \\\ntwo", "out"),
        console.Command("three", ""),
        console.File("a.yaml", "b: 1\n", is_diff=False),
    ]
