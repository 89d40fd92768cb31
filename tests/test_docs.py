"""The docs say what the code says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_build import __version__
from mlops_build.cli.table import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")] + sorted((ROOT / "docs").rglob("*.md"))


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="argparse writes options differently since 3.13; the pages are those of 3.11")
def test_generated_pages_are_what_the_code_generates() -> None:
    done = subprocess.run([sys.executable, "scripts/docs.py", "--check"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_documented(command: str) -> None:
    assert f"## {command}\n" in (ROOT / "docs/reference/cli.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_has_a_place_in_the_index_and_in_the_site() -> None:
    docs = ROOT / "docs"
    pages = {path.relative_to(docs).as_posix() for path in docs.rglob("*.md")} - {"README.md"}
    index = re.findall(r"\]\(([\w/-]+\.md)\)", (docs / "README.md").read_text())
    navigation = re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(index) == sorted(pages)
    assert [page for page in navigation if page != "README.md"] == index


def test_the_release_is_in_the_list_of_releases() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"| {__version__} |" in changelog
    assert f"## {__version__}\n" in changelog


def test_nothing_committed_names_a_machine() -> None:
    """No path of a development machine and no registry's host: addresses come from the environment."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    for name in listed:
        path = ROOT / name
        if path.is_file() and path != Path(__file__):
            text = path.read_text(errors="replace")
            assert "/opt/wheels" not in text, name
            assert not re.search(r"https?://(files\.pythonhosted|pypi|registry\.npmjs)", text), name
