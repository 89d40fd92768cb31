"""`mlops-build update --show FILE`: how a file of the team differs from the template's."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.conftest import git, mlops_build
from tests.scaffold.trees import commit, put

DIFFERENCE = """\
--- yours/src/code.py
+++ template/src/code.py
@@ -1 +1 @@
-mine
+print(2)
"""


def test_the_difference_leads_from_the_service_to_the_newest_template(service: Path) -> None:
    put(service, {"src/code.py": "mine\n"})
    before = git(service, "status", "--porcelain")
    shown = mlops_build(service, "update", "--show", "src/code.py").stdout
    assert shown.endswith(DIFFERENCE)
    assert git(service, "status", "--porcelain") == before
    document = json.loads(mlops_build(service.parent, "update", service.name, "--json", "--show", "src/code.py").stdout)
    assert document == {"file": "src/code.py", "version": "0.2.0", "diff": shown}
    subprocess.run(["git", "apply"], input=shown, text=True, cwd=service, check=True)
    assert mlops_build(service, "update", "--show", "src/code.py").stdout == "src/code.py is equal to the template's (0.2.0)\n"


def test_answers_version_and_line_ends_of_the_service_count(service: Path) -> None:
    put(service, {"src/code.py": "print(1)\r\n"})
    assert "is equal" in mlops_build(service, "update", "--to", "0.1.0", "--show", "src/code.py").stdout
    shown = mlops_build(service, "update", "--data", "name=lines", "--show", "service.yaml").stdout
    assert shown.endswith("-team: points\n+team: lines\n")


def test_a_file_that_the_team_deleted_is_shown_as_a_whole(service: Path) -> None:
    (service / "src/code.py").unlink()
    assert mlops_build(service, "update", "--show", "src/code.py").stdout.endswith("@@ -0,0 +1 @@\n+print(2)\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["kept.txt"], 4, "kept.txt belongs to the template: an update merges the template's changes into it\n"),
        (["run/staging/out/record.yaml"], 4, "record.yaml is written by mlops-build, the bridge or DVC\n"),
        (["none.txt"], 3, "the template (0.2.0) has no file none.txt\n    its files of the team: service.yaml, src/code.py\n"),
        (["src"], 3, "has no file src\n"),
        (["../template/src/code.py"], 3, "has no file ../template/src/code.py\n"),
        (["src/code.py", "--to", "9.9"], 3, "the template has no version 9.9\n"),
        (["src/code.py", "--data", "kind=five"], 4, "kind: 'five': 'five' is not in ['one', 'two']\n"),
        (["src/code.py", "--data", "nobody=asks"], 2, "the template has no such question\n"),
    ],
)
def test_other_files_get_a_reason(service: Path, arguments: list[str], code: int, message: str) -> None:
    done = mlops_build(service, "update", "--show", *arguments, expect=code)
    assert message in done.stderr
    assert done.stdout == ""


def test_a_folder_that_is_not_a_service(tmp_path: Path) -> None:
    commit(tmp_path)
    assert "it was not generated from a template" in mlops_build(tmp_path, "update", "--show", "x", expect=3).stderr
