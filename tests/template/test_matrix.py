"""Every value of every choice with every other, and GitLab with each example: 80 services.

Each has exactly its files, and no choice shows where it must not.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.template.test_rendered import expected_files

ROOT = Path(__file__).parents[2]
CHOICES = {
    "example": ["image", "tabular", "text", "none"],
    "gpu": ["none", "shared", "exclusive"],
    "python_version": ["3.11", "3.14"],  # the oldest and the newest
    "monitoring": ["annotations", "prometheus-operator", "none"],
    "ci": ["bamboo", "gitlab"],
}
# The CI system shows in files of its own: the other choices of GPU and monitoring would tell no more.
SERVICES = [values for values in product(*CHOICES.values()) if values[4] == "bamboo" or (values[1], values[3]) == ("none", "annotations")]
# A choice may change these files and no others; `src/` stands for everything in it.
SHOWS_IN = {
    "example": {".copier-answers.yml", "README.md", "dvc.yaml", "params.yaml", "pyproject.toml", "src/", "tests/", "bamboo-specs/"},
    "gpu": {".copier-answers.yml", "README.md", "service.yaml", "deploy/", "bamboo-specs/"},
    "python_version": {".copier-answers.yml", "README.md", "Makefile", "pyproject.toml", "service.yaml", "bamboo-specs/", "ci/"},
    "monitoring": {".copier-answers.yml", "README.md", "deploy/"},
    "ci": {".copier-answers.yml", "README.md", "CODEOWNERS", "bamboo-specs/", ".gitlab-ci.yml"},
}
# Words that belong to one choice: in a service that made another, nobody must find them.
BELONGS_TO = {
    ("example", "image"): r"digits\.csv|\bpillow\b|\bPIL\b|base64",
    ("example", "tabular"): r"breast.cancer",
    ("example", "text"): r"\b[Bb]abel\b|vocabulary",
    ("example", "none"): r"# CHANGE \d/\d",
    ("ci", "bamboo"): r"(?i)bamboo",
    ("ci", "gitlab"): r"gitlab-ci|GitLab's pipeline",
    ("monitoring", "annotations"): r"prometheus\.io/",
    ("monitoring", "prometheus-operator"): r"\bServiceMonitor\b|monitoring\.coreos\.com",
}
RENDER = """
import json, sys
from pathlib import Path
from mlops_build.scaffold.child import compile_once
from mlops_build.scaffold.render import copy
compile_once()
for folder, answers in json.load(sys.stdin):
    copy(sys.argv[1], Path(folder), answers)
"""


def answers_of(values: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(CHOICES, values, strict=True))


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """All of them. In two processes, from a folder and without git on PATH: copier asks git several times about each file of a service."""
    plain = tmp_path_factory.mktemp("plain")
    shutil.copy(ROOT / "copier.yml", plain)
    shutil.copytree(ROOT / "template", plain / "template", ignore=shutil.ignore_patterns("__pycache__"))
    where = tmp_path_factory.mktemp("matrix")
    rendered = {values: where / "-".join(values) for values in SERVICES}
    environment = {**os.environ, "PATH": str(plain), "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    processes = []
    for half in (SERVICES[::2], SERVICES[1::2]):
        work = json.dumps([(str(rendered[values]), answers_of(values)) for values in half])
        process = subprocess.Popen(
            [sys.executable, "-c", RENDER, str(plain)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
        )
        assert process.stdin
        process.stdin.write(work)
        process.stdin.close()
        processes.append(process)
    for process in processes:
        assert process.stderr
        said = process.stderr.read()
        assert process.wait(300) == 0, said
    return rendered


@pytest.fixture(scope="module")
def contents(services: dict[tuple[str, ...], Path]) -> dict[tuple[str, ...], dict[str, str]]:
    """The text of every file of every service."""
    return {
        values: {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*") if path.is_file()}
        for values, root in services.items()
    }


def test_the_choices_are_all_there_are() -> None:
    documents = YAML(typ="safe").load_all((ROOT / "copier.yml").read_text())
    questions = {key: value for document in documents for key, value in document.items() if not key.startswith("_")}
    choices = {name: question["choices"] for name, question in questions.items() if "choices" in question}
    del choices["pull_requests"]  # shows only in service.yaml: test_questions.py
    choices["python_version"] = [choices["python_version"][0], choices["python_version"][-1]]
    assert {name: sorted(values.values() if isinstance(values, dict) else values) for name, values in choices.items()} == {
        name: sorted(values) for name, values in CHOICES.items()
    }
    assert len(SERVICES) == 80


@pytest.mark.parametrize("values", SERVICES, ids="-".join)
def test_each_service_has_exactly_its_files(contents: dict[tuple[str, ...], dict[str, str]], values: tuple[str, ...]) -> None:
    assert set(contents[values]) == expected_files(answers_of(values))


def test_nothing_of_the_template_is_left_and_every_file_is_whole(contents: dict[tuple[str, ...], dict[str, str]]) -> None:
    for name, text in {(name, text) for files in contents.values() for name, text in files.items()}:
        assert not re.search(r"\{\{|\{%|\{#", text), name
        assert re.search(r"[^\n]\n\Z", text), f"{name}: ends in one newline"
        assert not re.search(r"[ \t]$", text, re.MULTILINE), f"{name}: space at the end of a line"
        assert "\n\n\n\n" not in text, name
        if name.endswith(".py"):
            compile(text, name, "exec")
        elif name.endswith((".yaml", ".yml")):
            list(YAML(typ="safe").load_all(text))


@pytest.mark.parametrize("choice", CHOICES)
def test_a_choice_shows_only_where_it_may(contents: dict[tuple[str, ...], dict[str, str]], choice: str) -> None:
    place = list(CHOICES).index(choice)
    for values, files in contents.items():
        default = (*values[:place], CHOICES[choice][0], *values[place + 1 :])
        other = contents[default]
        differing = {name for name in files.keys() | other.keys() if files.get(name) != other.get(name)}
        elsewhere = {name for name in differing if name not in SHOWS_IN[choice] and f"{name.partition('/')[0]}/" not in SHOWS_IN[choice]}
        assert elsewhere == set(), f"{values} and {default}"


def test_one_choices_words_are_in_no_other_service(contents: dict[tuple[str, ...], dict[str, str]]) -> None:
    for (choice, value), words in BELONGS_TO.items():
        found = {answers_of(values)[choice] for values, files in contents.items() if re.search(words, "".join(files.values()))}
        assert found == {value}, (choice, value)
    for values, files in contents.items():
        named = set(re.findall(r"(?<![\d.])3\.1[1-9]\b", "".join(text for name, text in files.items() if not name.endswith(".json"))))
        assert named == {answers_of(values)["python_version"]}, values


@pytest.mark.parametrize("python", CHOICES["python_version"])
@pytest.mark.parametrize("example", CHOICES["example"])
def test_what_its_lint_and_tests_read_depends_on_nothing_else(
    services: dict[tuple[str, ...], Path], contents: dict[tuple[str, ...], dict[str, str]], example: str, python: str
) -> None:
    """test_generated_service.py runs each example's tests once: with this, once is enough. Ruff reads the Python version: it runs here."""
    same = [values for values in SERVICES if (values[0], values[2]) == (example, python)]
    read: list[Any] = [
        {name: text for name, text in contents[values].items() if name.endswith((".py", "pyproject.toml", "Makefile"))} for values in same
    ]
    assert len(read) == 10
    assert all(files == read[0] for files in read)
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", str(services[same[0]])],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stdout


@pytest.mark.soak
@pytest.mark.parametrize("example", CHOICES["example"])
def test_mypy_finds_nothing(services: dict[tuple[str, ...], Path], example: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = next(services[values] for values in SERVICES if values[0] == example)
    mypy = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path_factory.getbasetemp() / "mypy")]
    done = subprocess.run(mypy, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, "no issues found in 5 source files" in done.stdout) == (0, True), done.stdout
