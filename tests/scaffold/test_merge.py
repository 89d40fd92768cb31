"""Three trees become one: what Git merges by itself, and how it is configured."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mlops_build.scaffold import tree
from mlops_build.scaffold.merge import Merged, merge
from mlops_build.scaffold.ownership import owners, settings
from tests.conftest import git
from tests.scaffold.trees import Content, Files, Link, Run, commit, only, same, taken

TEN = "".join(f"line {number}\n" for number in range(10))
OWNERS = owners(settings(b"_machine: [/run/*/out/, /state.lock]\n---\n_team: [/src/, /run/, /mine.yaml]\n"))

# merged(old, ours, new): what came out, and its files.
Outcome = tuple[Merged, dict[str, Content]]
Merge = Callable[..., Outcome]


@pytest.fixture
def merged(tmp_path: Path) -> Merge:
    folder = tmp_path / "repository"
    folder.mkdir()

    def run(old: Files, ours: Files, new: Files, **options: object) -> Outcome:
        trees = []
        for files in (old, new, ours):
            only(folder, files)
            commit(folder)
            trees.append(tree.read(folder, "HEAD"))
        result = merge(
            folder,
            trees[0],
            git(folder, "rev-parse", "HEAD^{tree}"),
            trees[1],
            owners=OWNERS,
            **options,  # type: ignore[arg-type]
        )
        git(folder, "read-tree", "--reset", "-u", result.tree)
        return result, taken(folder)

    return run


def line(number: int, text: str, of: str = TEN) -> str:
    """The text with one line changed."""
    return of.replace(f"line {number}\n", f"{text}\n")


def kinds(result: Merged) -> dict[str, str]:
    return {conflict.path: conflict.kind for conflict in result.conflicts}


@pytest.mark.parametrize(
    ("old", "ours", "new", "expected"),
    [
        pytest.param({"a": TEN}, {"a": TEN}, {"a": line(1, "new")}, {"a": line(1, "new")}, id="the template changes"),
        pytest.param({"a": TEN}, {"a": line(1, "mine")}, {"a": TEN}, {"a": line(1, "mine")}, id="the team changes"),
        pytest.param(
            {"a": TEN}, {"a": line(1, "mine")}, {"a": line(8, "new")}, {"a": line(8, "new", line(1, "mine"))}, id="both"
        ),
        pytest.param({"a": TEN}, {"a": line(1, "one")}, {"a": line(1, "one")}, {"a": line(1, "one")}, id="both the same"),
        pytest.param({"a": TEN}, {"a": TEN}, {}, {}, id="the template deletes"),
        pytest.param({"a": TEN}, {}, {"a": TEN}, {}, id="the team deletes"),
        pytest.param({"a": TEN}, {}, {"a": line(1, "new")}, {}, id="the team deletes what the template changes"),
        pytest.param({"a": TEN}, {}, {"b": line(1, "new")}, {}, id="the team deletes what the template renames"),
        pytest.param({}, {"a": TEN}, {"b": TEN}, {"a": TEN, "b": TEN}, id="both add"),
        pytest.param({"a": TEN}, {"a": line(1, "mine")}, {"b": TEN}, {"b": line(1, "mine")}, id="edits follow the template's rename"),
        pytest.param({"a": TEN}, {"b": TEN}, {"a": line(1, "new")}, {"b": line(1, "new")}, id="changes follow the team's rename"),
        pytest.param(
            {"d/a": TEN}, {"d/a": TEN, "d/b": "mine\n"}, {"e/a": TEN}, {"e/a": TEN, "d/b": "mine\n"}, id="what lies beside it stays"
        ),
        pytest.param({"a": TEN}, {"a": TEN}, {"a": Run(TEN)}, {"a": Run(TEN)}, id="the template makes it executable"),
        pytest.param({"a": TEN}, {"a": Run(TEN)}, {"a": line(1, "new")}, {"a": Run(line(1, "new"))}, id="the team makes it executable"),
        pytest.param({"a": Link("x")}, {"a": Link("x")}, {"a": Link("y")}, {"a": Link("y")}, id="a link leads elsewhere"),
        pytest.param({"a": TEN}, {"a": TEN}, {"a": Link("b")}, {"a": Link("b")}, id="a file becomes a link"),
        pytest.param({"a": b"\0old"}, {"a": b"\0old"}, {"a": b"\xff\0new"}, {"a": b"\xff\0new"}, id="a binary file"),
        pytest.param({"ä ö\n\t'\"*": TEN}, {"ä ö\n\t'\"*": line(1, "mine")}, {"ä ö\n\t'\"*": line(8, "new")},
                     {"ä ö\n\t'\"*": line(8, "new", line(1, "mine"))}, id="an odd name"),
        pytest.param({"\udcff": TEN}, {"\udcff": TEN}, {"\udcff": line(1, "new")}, {"\udcff": line(1, "new")}, id="a name of bytes"),
        pytest.param({"a": TEN}, {"a": TEN}, {"a/b": TEN}, {"a/b": TEN}, id="a file becomes a folder"),
        pytest.param(
            {"a": TEN}, {"a": line(1, "mine").replace("\n", "\r\n")}, {"a": line(8, "new")},
            {"a": line(8, "new", line(1, "mine")).replace("\n", "\r\n")}, id="the team's line ends are kept",
        ),
        pytest.param(
            {"a": TEN}, {"b": line(1, "mine").replace("\n", "\r\n")}, {"a": line(8, "new")},
            {"b": line(8, "new", line(1, "mine")).replace("\n", "\r\n")}, id="and in a file that it renamed",
        ),
        pytest.param(
            {"a": TEN}, {"a": TEN.replace("\n", "\r\n")}, {"b": line(8, "new")}, {"b": line(8, "new").replace("\n", "\r\n")},
            id="and in a file that the template renamed",
        ),
    ],
)  # fmt: skip
def test_clean(merged: Merge, old: Files, ours: Files, new: Files, expected: Files) -> None:
    result, files = merged(old, ours, new)
    assert not result.conflicts
    assert same(files, expected), files


@pytest.mark.parametrize(
    ("old", "ours", "new", "expected"),
    [
        pytest.param({"a": TEN}, {"a": line(1, "mine")}, {"a": line(1, "new")}, {"a": "content"}, id="the same line"),
        pytest.param({"a": TEN}, {"a": line(1, "mine")}, {}, {"a": "modify/delete"}, id="the template deletes what the team edited"),
        pytest.param({"a": TEN}, {"a": Run(TEN)}, {}, {"a": "modify/delete"}, id="or made executable"),
        pytest.param({}, {"a": "mine\n"}, {"a": "new\n"}, {"a": "add/add"}, id="both add another"),
        pytest.param({"a": b"\0"}, {"a": b"\0mine"}, {"a": b"\0new"}, {"a": "binary"}, id="a binary file"),
        pytest.param({"a": TEN}, {"b": line(1, "mine")}, {}, {"b": "rename/delete"}, id="the template deletes what the team renamed"),
        pytest.param(
            {"a": TEN}, {"b": TEN}, {"c": TEN}, {"a": "rename/rename", "b": "rename/rename", "c": "rename/rename"}, id="two names"
        ),
        pytest.param({"a": "x\n"}, {"a": "x\n", "b": "mine\n"}, {"a": "x\n", "b/c": "new\n"}, None, id="a folder there"),
        pytest.param({"a": Link("x")}, {"a": Link("mine")}, {"a": Link("new")}, {"a": "content"}, id="a link"),
        pytest.param({"a": TEN}, {"a": Link("mine")}, {"a": line(1, "new")}, None, id="a link where the template has a file"),
    ],
)  # fmt: skip
def test_conflicts(merged: Merge, old: Files, ours: Files, new: Files, expected: dict[str, str] | None) -> None:
    result, _ = merged(old, ours, new)
    assert result.conflicts
    if expected is not None:
        assert kinds(result) == expected
    for conflict in result.conflicts:
        assert conflict.why
        assert conflict.why != "Git cannot merge it"
        assert conflict.remedy


def test_a_conflict_says_whose_side_is_which(merged: Merge) -> None:
    result, files = merged({"a": TEN}, {"a": line(1, "mine")}, {"a": line(1, "new")}, labels=("yours", "template-0.2.0"))
    assert "<<<<<<< yours\nmine\n=======\nnew\n>>>>>>> template-0.2.0\n" in str(files["a"])
    assert {(stage.path, stage.number) for stage in result.stages} == {("a", 1), ("a", 2), ("a", 3)}


def test_a_path_in_conflict_names_the_side(merged: Merge) -> None:
    result, files = merged({"a": "x\n"}, {"a": "x\n", "b": "mine\n"}, {"a": "x\n", "b/c": "new\n"}, labels=("yours", "template-0.2.0"))
    assert files == {"a": "x\n", "b/c": "new\n", "b~yours": "mine\n"}
    assert [*kinds(result)] == ["b~yours"]
    assert {stage.path for stage in result.stages} == {"b~yours"}


def test_a_path_in_conflict_does_not_replace_a_file(merged: Merge) -> None:
    ours = {"a": "x\n", "b": "mine\n", "b~yours": "keep\n"}
    _, files = merged({"a": "x\n"}, ours, {"a": "x\n", "b/c": "new\n"}, labels=("yours", "template-0.2.0"))
    assert files == {"a": "x\n", "b/c": "new\n", "b~yours": "keep\n", "b~yours_0": "mine\n"}


@pytest.mark.parametrize(
    ("old", "ours", "new", "expected"),
    [
        pytest.param({"src/a": "1\n"}, {"src/a": "mine\n"}, {"src/a": "2\n"}, {"src/a": "mine\n"}, id="the team's is never overwritten"),
        pytest.param({"src/a": "1\n"}, {"src/a": "1\n"}, {"src/a": "2\n"}, {"src/a": "1\n"}, id="not even unedited"),
        pytest.param({"src/a": "1\n"}, {"src/a": "mine\n"}, {}, {"src/a": "mine\n"}, id="nor deleted"),
        pytest.param({"src/a": TEN}, {"src/a": TEN}, {"src/b": TEN}, {"src/a": TEN, "src/b": TEN}, id="nor renamed"),
        pytest.param({}, {}, {"src/a": "2\n"}, {"src/a": "2\n"}, id="a new one is added"),
        pytest.param({}, {"src/a": "mine\n"}, {"src/a": "2\n"}, {"src/a": "mine\n"}, id="unless the team has one"),
        pytest.param({"src/a": "1\n"}, {}, {"src/a": "2\n"}, {}, id="or had one, and deleted it"),
        pytest.param({"run/p/out/r": "1\n"}, {"run/p/out/r": "9\n"}, {"run/p/out/r": "2\n"}, {"run/p/out/r": "9\n"}, id="a machine's too"),
        pytest.param({"run/p/out/r": "1\n"}, {}, {"run/p/out/r": "2\n"}, {}, id="also where it was deleted"),
        pytest.param(
            {"run/p/out/r": "1\n"}, {"run/p/out/s": "9\n"}, {"run/p/out/r": "1\n", "run/p/out/t": "2\n"}, {"run/p/out/s": "9\n"},
            id="a machine's folder gets no new parts",
        ),
        pytest.param(
            {"run/p/out/r": "1\n"}, {"run/p/out/r": "1\n"}, {"run/p/out/r": "1\n", "run/q/out/r": "2\n"},
            {"run/p/out/r": "1\n", "run/q/out/r": "2\n"}, id="a whole new one is added",
        ),
        pytest.param({}, {}, {"state.lock": "2\n"}, {"state.lock": "2\n"}, id="and a new file"),
        pytest.param({"a": TEN}, {"a": line(1, "mine")}, {"src/a": TEN}, {"src/a": line(1, "mine")}, id="handed over"),
        pytest.param({"src/a": TEN}, {"src/a": line(1, "mine")}, {"a": TEN}, {"src/a": line(1, "mine"), "a": TEN}, id="taken over from it"),
    ],
)  # fmt: skip
def test_owners(merged: Merge, old: Files, ours: Files, new: Files, expected: Files) -> None:
    result, files = merged(old, ours, new)
    assert not result.conflicts
    assert same(files, expected), files


def test_a_file_of_the_templates_where_the_team_has_a_folder_is_a_conflict(merged: Merge) -> None:
    result, files = merged({"a": "1\n"}, {"a": "1\n", "mine.yaml": "x\n"}, {"a": "2\n", "mine.yaml/b": "y\n"})
    assert kinds(result) == {"mine.yaml/b": "file/directory"}
    assert files == {"a": "2\n", "mine.yaml": "x\n"}


def test_the_answers_are_the_new_renderings(merged: Merge) -> None:
    result, files = merged(
        {".copier-answers.yml": "_commit: 1\n"}, {".copier-answers.yml": "_commit:   1 # mine\n"}, {".copier-answers.yml": "_commit: 2\n"}
    )
    assert files == {".copier-answers.yml": "_commit: 2\n"}
    assert not result.kept


def test_what_is_told(merged: Merge) -> None:
    old = {
        "kept": TEN,
        "moved": TEN.replace("line", "row"),
        "gone": TEN.replace("line", "x"),
        "src/a": "1\n",
        "src/b": "1\n",
        "same": "s\n",
    }
    ours = {"kept": line(1, "mine"), "moved": "first\n" + TEN.replace("line", "row"), "src/a": "1\n", "src/b": "1\n", "same": "s\n"}
    new = {
        "kept": line(8, "new"),
        "renamed": TEN.replace("line", "row"),
        "gone": TEN.replace("line", "y"),
        "src/a": "2\n",
        "src/b": "1\n",
        "same": "s\n",
    }
    result, _ = merged(old, ours, new)
    assert result.kept == ("kept", "renamed")
    assert result.deleted == ("gone",)
    assert result.outdated == ("src/a",)
    assert [(change.what, change.old, change.path) for change in result.changes] == [
        ("changed", None, "kept"),
        ("renamed", "moved", "renamed"),
    ]


def pyproject(requirement: str) -> str:
    return f'[project]\nname = "x"\n\n\n\ntrain = [\n    "a",\n    "{requirement}",\n    "b",\n]\n'


@pytest.mark.parametrize(
    ("ours", "new", "expected"),
    [
        ("mlops-build[train]~=0.1.4", "mlops-build[train]~=0.2.0", "mlops-build[train]~=0.2.0"),
        ("mlops-build[train]~=0.10.0", "mlops-build[train]~=0.2.0", "mlops-build[train]~=0.10.0"),
        ("mlops-build[train]~=0.1.4", "mlops-build[train,serve]~=0.2.0", "mlops-build[train,serve]~=0.2.0"),
        ("mlops-build[train]==0.1.4", "mlops-build[train]~=0.2.0", "mlops-build[train]==0.2.0"),
        ("mlops-build[train]==0.1.4", "mlops-build[train]>=0.2.0", None),
        ("other~=0.1.4", "other~=0.2.0", None),
    ],
)
def test_the_newer_of_two_versions_of_mlops_build_is_kept(merged: Merge, ours: str, new: str, expected: str | None) -> None:
    old = "other~=0.1.0" if ours.startswith("other") else "mlops-build[train]~=0.1.0"
    result, files = merged({"pyproject.toml": pyproject(old)}, {"pyproject.toml": pyproject(ours)}, {"pyproject.toml": pyproject(new)})
    assert kinds(result) == ({} if expected else {"pyproject.toml": "content"})
    assert files["pyproject.toml"] == pyproject(expected) if expected else "<<<<<<< yours" in str(files["pyproject.toml"])


def test_in_no_other_file(merged: Merge) -> None:
    result, _ = merged(*({"other.toml": pyproject(f"mlops-build~={version}")} for version in ("0.1.0", "0.1.4", "0.2.0")))
    assert kinds(result) == {"other.toml": "content"}


@pytest.mark.parametrize(("order", "expected"), [("abc", "c"), ("acb", "b"), ("a", None)])
def test_the_newer_of_two_commits_is_kept(merged: Merge, order: str, expected: str | None) -> None:
    def pin(commit: str) -> dict[str, str]:
        return {"requirements-mlops-build.txt": f"# exact\ngit+https://example.com/t.git@{commit * 40}#egg=mlops-build\n"}

    def is_newer(one: str, other: str) -> bool | None:
        return order.index(one[0]) >= order.index(other[0]) if one[0] in order and other[0] in order else None

    result, files = merged(pin("a"), pin("b"), pin("c"), is_newer=is_newer)
    assert kinds(result) == ({} if expected else {"requirements-mlops-build.txt": "content"})
    assert not expected or files == pin(expected)
