"""A tiny template with two releases, and services made from the first."""

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.conftest import git
from tests.scaffold.trees import Files, commit, only

COPIER_YML = """\
_subdirectory: template
_exclude: ["*.py[co]", "{% if _copier_operation == 'update' %}once.txt{% endif %}"]
_envops: {undefined: jinja2.StrictUndefined, trim_blocks: true, keep_trailing_newline: true}
name: {type: str, default: points}
kind: {type: str, choices: [one, two], default: one}
---
_machine: &machine [/run/*/out/]
_skip_if_exists: *machine
---
_team: &team [/src/, /run/, /service.yaml]
_skip_if_exists: *team
"""
ANSWERS_FILE = {"template/{{ _copier_conf.answers_file }}.jinja": "# Written by copier.\n{{ _copier_answers | to_nice_yaml -}}\n"}
PINNED = "git+file://{{ _copier_answers._src_path }}@{{ _copier_conf.vcs_ref_hash }}#egg=mlops-build\n"
PIN = {"template/requirements-mlops-build.txt.jinja": PINNED}
TEN = "".join(f"line {number}\n" for number in range(10))
FIRST: dict[str, str] = {
    "copier.yml": COPIER_YML,
    **ANSWERS_FILE,
    **PIN,
    "template/kept.txt": TEN,
    "template/moved.txt": TEN.replace("line", "row"),
    "template/named.txt.jinja": "{{ name }} {{ kind }}\n",
    "template/once.txt": "1\n",
    "template/src/code.py": "print(1)\n",
    "template/run/staging/out/record.yaml": "nothing\n",
    "template/service.yaml.jinja": "team: {{ name }}\n",
}
SECOND: dict[str, str] = {
    **{name: content for name, content in FIRST.items() if name != "template/moved.txt"},
    "template/kept.txt": TEN.replace("line 8\n", "line eight\n"),
    "template/renamed.txt": TEN.replace("line", "row"),
    "template/once.txt": "2\n",
    "template/src/code.py": "print(2)\n",
    "template/added.txt": "new\n",
}

# template(1={…}, 2={…}): a repository with these releases. make(template, version): a service of it, committed.
Releases = Mapping[str, Files]
MakeTemplate = Callable[[Releases], Path]
MakeService = Callable[..., Path]


@pytest.fixture
def make_template(tmp_path: Path) -> MakeTemplate:
    def make(releases: Releases) -> Path:
        folder = tmp_path / "template"
        folder.mkdir()
        for version, files in releases.items():
            only(folder, files)
            commit(folder, version)
            git(folder, "tag", version)
        return folder

    return make


@pytest.fixture
def make_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeService:
    from copier import run_copy

    (tmp_path / "settings.yml").write_text("{}\n")
    monkeypatch.setenv("COPIER_SETTINGS_PATH", str(tmp_path / "settings.yml"))
    monkeypatch.setenv("COPIER_CACHE_DIR", str(tmp_path / "copier"))

    def make(template: Path | str, version: str | None = "0.1.0", *, name: str = "service", under: str = "", **answers: str) -> Path:
        top = tmp_path / name
        folder = top / under
        run_copy(str(template), folder, data=answers, vcs_ref=version, defaults=True, quiet=True)
        commit(top, "Start from the template")
        return folder

    return make


@pytest.fixture
def template(make_template: MakeTemplate) -> Path:
    """Releases 0.1.0 and 0.2.0."""
    return make_template({"0.1.0": FIRST, "0.2.0": SECOND})


@pytest.fixture
def service(template: Path, make_service: MakeService) -> Path:
    """Made from 0.1.0."""
    return make_service(template)
