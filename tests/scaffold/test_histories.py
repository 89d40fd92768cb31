"""Random histories of a template and a team: no edit is ever lost unsaid, and where `copier update` is right the result is the same.

`copier update` is not right where the template renames or deletes a file that the team edited (the edits go without a word), where it
renames one that the team deleted (it comes back), and where the team renames a file that the template changes (the change is lost).
"""

import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis.strategies import SearchStrategy

from mlops_build.scaffold import tree
from mlops_build.scaffold.merge import merge
from mlops_build.scaffold.ownership import Owners
from mlops_build.scaffold.update import update
from tests.conftest import git
from tests.scaffold.histories import History, histories, lines_of
from tests.scaffold.trees import Files, Run, commit, only, same, taken

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "400"))
HISTORIES: SearchStrategy[History] = histories()
COMMON: Any = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
TEMPLATE = {
    "copier.yml": "_subdirectory: template\nname: points\n",
    "template/{{ _copier_conf.answers_file }}.jinja": "{{ _copier_answers | to_nice_yaml -}}\n",
}
ANSWERS = ".copier-answers.yml"


def check_nothing_is_lost(history: History, result: Files, conflicts: set[str]) -> None:
    """Each line that the team wrote is there, each that it took out is not, modes are as it set them; or the path was reported."""
    found, before = lines_of(result), lines_of(history.start)
    for name, path in history.team.now.items():
        places = {name, path, history.template.now[name]} - {None}
        if places & conflicts:
            continue
        ours = lines_of({"": history.team.files[path]}) if path else set()
        theirs = history.template.now[name]
        assert (ours - before) <= found, f"{name}: lines that the team wrote are gone"
        assert not (lines_of({"": history.start[name]}) - ours) & found, f"{name}: lines that the team took out are back"
        if path and name in history.team.edited and type(history.team.files[path]) is not type(history.start[name]):
            there = [place for place in places if place in result]
            assert there, f"{name}: gone"
            assert all(isinstance(result[str(place)], Run) == isinstance(history.team.files[path], Run) for place in there)
        if path and theirs:
            # And what the template did is done.
            assert (lines_of({"": history.template.files[theirs]}) - before) <= found
    for name in history.team.files.keys() - set(history.team.now.values()):
        assert name in conflicts or same({"": result[name]}, {"": history.team.files[name]}), f"{name}: the team added it"


def merged(history: History) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        trees = []
        for files in (history.start, history.template.files, history.team.files):
            only(folder, files)
            commit(folder)
            trees.append(tree.read(folder, "HEAD"))
        ours = git(folder, "rev-parse", "HEAD^{tree}")
        done = merge(folder, trees[0], ours, trees[1], owners=Owners())
        conflicts = {conflict.path for conflict in done.conflicts}
        event("conflict" if conflicts else "clean")
        git(folder, "read-tree", "--reset", "-u", done.tree)
        check_nothing_is_lost(history, taken(folder), conflicts)
        if not history.team.edited and history.team.files == history.start:
            assert not conflicts
            assert same(taken(folder), history.template.files)


def copier_is_right(history: History) -> bool:
    """Whether nothing of what this file's first lines list happened."""
    for name in history.start:
        ours, theirs = history.team.now[name], history.template.now[name]
        if theirs != name and (ours != name or name in history.team.edited):
            return False
        if ours not in (name, None) and name in history.template.edited:
            return False
    return True


def compared_with_copier(history: History) -> None:
    from copier import run_copy, run_update

    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        (Path(scratch) / "settings.yml").write_text("{}\n")
        patch.setenv("COPIER_SETTINGS_PATH", str(Path(scratch) / "settings.yml"))
        template = Path(scratch) / "template"
        template.mkdir()
        for version, files in (("0.1.0", history.start), ("0.2.0", history.template.files)):
            only(template, {**TEMPLATE, **{f"template/{name}": content for name, content in files.items()}})
            commit(template)
            git(template, "tag", version)
        services = [Path(scratch) / name for name in ("ours", "copiers")]
        run_copy(str(template), services[0], vcs_ref="0.1.0", defaults=True, quiet=True)
        answers = taken(services[0])[ANSWERS]
        only(services[0], {**history.team.files, ANSWERS: answers})
        commit(services[0])
        subprocess.run(["cp", "-r", *map(str, services)], check=True)
        done = update(services[0])
        assert done.merged is not None
        conflicts = {conflict.path for conflict in done.merged.conflicts}
        result = taken(services[0])
        del result[ANSWERS]
        if conflicts:
            assert same(result, history.team.files)
            event("conflict")
            return
        check_nothing_is_lost(history, result, conflicts)
        run_update(str(services[1]), defaults=True, overwrite=True, quiet=True)
        copiers = taken(services[1])
        assert copiers.pop(ANSWERS) == (services[0] / ANSWERS).read_text()
        if any("<<<<<<< before updating" in str(content) for content in copiers.values()):
            event("copier leaves markers, Git merges")
        elif copier_is_right(history):
            event("the same")
            assert same(result, copiers)
        else:
            event("the same, by luck" if same(result, copiers) else "copier loses something")


@settings(max_examples=24, derandomize=True, **COMMON)
@given(HISTORIES)
def test_no_edit_is_lost_unsaid(history: History) -> None:
    merged(history)


@settings(max_examples=8, derandomize=True, **COMMON)
@given(HISTORIES)
def test_the_same_as_copier_where_that_is_right(history: History) -> None:
    compared_with_copier(history)


@pytest.mark.soak
@settings(max_examples=EXAMPLES * 5, **COMMON)
@given(HISTORIES)
def test_many_histories(history: History) -> None:
    merged(history)


@pytest.mark.soak
@settings(max_examples=EXAMPLES, **COMMON)
@given(HISTORIES)
def test_many_histories_against_copier(history: History) -> None:
    compared_with_copier(history)
