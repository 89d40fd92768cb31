"""`mlops-build update` on a tiny template: what comes out, what is refused, and that nothing is half done."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlops_build.scaffold.answers import Answers, parse
from mlops_build.scaffold.update import plan, update
from tests.conftest import git, mlops_build
from tests.scaffold.conftest import COPIER_YML, FIRST, SECOND, TEN, MakeService, MakeTemplate
from tests.scaffold.trees import Link, Run, commit, only, put, same, taken


def edit(service: Path, name: str, old: str, new: str) -> None:
    path = service / name
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))


def document(service: Path, *arguments: str, expect: int = 0) -> dict[str, Any]:
    """What the command line says as JSON."""
    found: dict[str, Any] = json.loads(mlops_build(service, "update", "--json", *arguments, expect=expect).stdout)
    return found


def test_an_update_without_edits_is_a_fresh_rendering(service: Path, make_service: MakeService, template: Path) -> None:
    done = document(service)
    assert done["status"] == "merged"
    assert done["from"] == {"name": "0.1.0", "commit": git(template, "rev-parse", "0.1.0")}
    assert done["to"] == {"name": "0.2.0", "commit": git(template, "rev-parse", "0.2.0")}
    assert {(one["what"], one.get("old"), one["path"]) for one in done["changes"]} == {
        ("added", None, "added.txt"),
        ("changed", None, ".copier-answers.yml"),
        ("changed", None, "kept.txt"),
        ("changed", None, "requirements-mlops-build.txt"),
        ("renamed", "moved.txt", "renamed.txt"),
    }
    # The team's code stays; what is not rendered in updates stays too.
    fresh = taken(make_service(template, "0.2.0", name="fresh"))
    assert taken(service) == {**fresh, "src/code.py": "print(1)\n", "once.txt": "1\n"}
    assert done["outdated"] == ["src/code.py"]
    # It is staged, nothing else is changed, and after a commit there is nothing to do.
    assert not git(service, "diff", "--name-only")
    assert "uncommitted changes: " in mlops_build(service, "update", expect=4).stderr
    commit(service)
    again = document(service)
    assert (again["status"], again["changes"]) == ("nothing", [])
    assert not git(service, "status", "--porcelain")


def test_edits_are_kept_and_follow_a_rename(service: Path) -> None:
    edit(service, "kept.txt", "line 1\n", "mine\n")
    edit(service, "moved.txt", "row 1\n", "mine\n")
    (service / "named.txt").unlink()
    put(service, {"extra.txt": Run("mine\n"), "link": Link("extra.txt"), "src/more.py": "x = 1\n"})
    commit(service)
    (service / "untracked.txt").write_text("mine\n")
    done = mlops_build(service, "update")
    assert "0.1.0 → 0.2.0\n" in done.stdout
    assert "  renamed  moved.txt → renamed.txt\n" in done.stdout
    assert "your edits are kept in: kept.txt, renamed.txt\n" in done.stdout
    assert done.stderr == "next: git diff --staged, then git commit\n"
    files = taken(service)
    assert files["kept.txt"] == TEN.replace("line 1\n", "mine\n").replace("line 8\n", "line eight\n")
    assert files["renamed.txt"] == TEN.replace("line", "row").replace("row 1\n", "mine\n")
    assert not {"named.txt", "moved.txt"} & files.keys()
    mine = {"extra.txt": Run("mine\n"), "link": Link("extra.txt"), "untracked.txt": "mine\n"}
    assert same({name: files[name] for name in mine}, mine)


def test_a_conflict_leaves_everything_as_it_was(service: Path) -> None:
    edit(service, "kept.txt", "line 8\n", "mine\n")
    commit(service)
    before, head = taken(service), git(service, "rev-parse", "HEAD")
    done = mlops_build(service, "update", expect=4)
    assert "0.1.0 → 0.2.0 (nothing is written)\n" in done.stdout
    assert "  CONFLICT kept.txt: you and the template changed the same lines [content]\n" in done.stdout
    assert "--write-conflicts" in done.stderr
    found = document(service, expect=4)
    assert [one["path"] for one in found["conflicts"]] == ["kept.txt"]
    assert (found["status"], found["written"]) == ("conflict", False)
    assert (taken(service), git(service, "rev-parse", "HEAD"), git(service, "status", "--porcelain")) == (before, head, "")

    # On demand both sides are put in, as a merge would.
    done = mlops_build(service, "update", "--write-conflicts", expect=4)
    assert "git status lists them" in done.stderr
    assert "<<<<<<< yours\nmine\n=======\nline eight\n>>>>>>> template-0.2.0\n" in (service / "kept.txt").read_text()
    assert "UU kept.txt" in git(service, "status", "--porcelain")
    assert (service / "added.txt").read_text() == "new\n"
    edit(service, "kept.txt", "<<<<<<< yours\nmine\n=======\nline eight\n>>>>>>> template-0.2.0\n", "mine, eight\n")
    commit(service)
    assert document(service)["status"] == "nothing"


def test_a_dry_run_writes_nothing(service: Path) -> None:
    before = taken(service)
    found = document(service, "--dry-run")
    assert (found["status"], found["written"]) == ("merged", False)
    assert found["changes"]
    assert (taken(service), git(service, "status", "--porcelain")) == (before, "")


def test_commit(service: Path, template: Path) -> None:
    found = document(service, "--commit")
    assert git(service, "log", "-1", "--format=%H %s") == f"{found['commit']} Update from the template: 0.1.0 → 0.2.0"
    assert not git(service, "status", "--porcelain")


def test_a_service_in_a_folder_of_a_repository(template: Path, make_service: MakeService) -> None:
    service = make_service(template, under="services/ä points")
    top = service.parents[1]
    put(top, {"other/file": "1\n", ".gitattributes": "*.bin -text\n"})
    edit(service, "kept.txt", "line 1\n", "mine\n")
    commit(top)
    put(top, {"other/file": "2\n", "other/staged": "1\n"})
    git(top, "add", "other/staged")
    done = document(service)
    assert done["status"] == "merged"
    assert "kept.txt" in [one["path"] for one in done["changes"]]
    assert (service / "kept.txt").read_text() == TEN.replace("line 1\n", "mine\n").replace("line 8\n", "line eight\n")
    assert (service / "renamed.txt").is_file()
    # What is under way beside it stays under way.
    status = git(top, "-c", "core.quotePath=false", "status", "--porcelain").splitlines()
    assert {" M other/file", "A  other/staged"} <= {line for line in status if "other/" in line}
    assert all("services/ä points/" in line or "other/" in line for line in status)
    assert not (top / "kept.txt").exists()


@pytest.mark.parametrize("kind", ["file", "ignored", "folder", "parent"])
def test_files_that_git_does_not_have_are_not_written_over(make_template: MakeTemplate, make_service: MakeService, kind: str) -> None:
    name = "template/new/added.txt" if kind == "parent" else "template/added.txt"
    service = make_service(make_template({"0.1.0": FIRST, "0.2.0": {**FIRST, name: "new\n"}}))
    put(service, {".gitignore": "/added.txt\n" if kind == "ignored" else ""})
    commit(service)
    mine = {"file": "added.txt", "ignored": "added.txt", "folder": "added.txt/mine", "parent": "new"}[kind]
    put(service, {mine: "mine\n"})
    before = taken(service)
    done = mlops_build(service, "update", expect=4)
    assert f"overwrite untracked files: {mine}\n" in done.stderr
    assert taken(service) == before


def test_changes_that_are_not_committed_are_refused(service: Path) -> None:
    edit(service, "kept.txt", "line 1\n", "mine\n")
    done = mlops_build(service, "update", expect=4)
    assert done.stderr.startswith("mlops-build update: uncommitted changes: kept.txt\n    run git commit or git stash")


def test_where_there_is_no_commit_no_git_or_no_template(service: Path, tmp_path: Path) -> None:
    shutil.rmtree(service / ".git")
    assert "is not under Git" in mlops_build(service, "update", expect=4).stderr
    git(service, "init", "--quiet")
    assert "has no commit yet" in mlops_build(service, "update", expect=4).stderr
    (tmp_path / "empty").mkdir()
    commit(tmp_path / "empty")
    assert "it was not generated from a template" in mlops_build(tmp_path, "update", "empty", expect=3).stderr


def test_a_git_that_is_too_old(service: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    put(tmp_path, {"bin/git": Run("#!/bin/sh\necho git version 2.30.2\n")})
    old = {"PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = mlops_build(service, "update", expect=1, environment=old)
    assert done.stderr == "mlops-build update: git 2.30 cannot merge without a checkout\n    install git ≥ 2.38\n"


def test_versions(service: Path, template: Path) -> None:
    assert "the template has no version 9.9.9" in mlops_build(service, "update", "--to", "9.9.9", expect=3).stderr
    assert "the template has no version -x" in mlops_build(service, "update", "--to=-x", expect=3).stderr
    # HEAD is what comes after the newest release; it is reported, and used on demand only.
    put(template, {"template/later.txt": "later\n"})
    commit(template)
    done = mlops_build(service, "update", "--commit")
    assert "1 later commits of the template are not released yet" in done.stderr
    assert not (service / "later.txt").exists()
    done = mlops_build(service, "update", "--to", "HEAD", "--commit")
    assert "0.2.0 → 0.2.0-1-g" in done.stdout
    assert (service / "later.txt").read_text() == "later\n"
    # From there the newest release would be a step back.
    done = mlops_build(service, "update")
    assert done.stdout.startswith("nothing to do")
    assert "--to HEAD" in done.stderr
    assert "is newer than 0.1.0" in mlops_build(service, "update", "--to", "0.1.0", expect=4).stderr


NEW_QUESTIONS = "size: {type: int}\ncolour: {type: str}\nwhy: {type: str, default: because}\n"


def test_answers_that_the_new_version_does_not_take(make_template: MakeTemplate, make_service: MakeService) -> None:
    changed = COPIER_YML.replace("[one, two]", "[one, three]").replace("---\n", f"{NEW_QUESTIONS}---\n", 1)
    second = {**SECOND, "copier.yml": changed, "template/named.txt.jinja": "{{ name }} {{ kind }} {{ size }} {{ colour }}\n"}
    service = make_service(make_template({"0.1.0": FIRST, "0.2.0": second}), kind="two")
    before = taken(service)
    done = mlops_build(service, "update", expect=4)
    assert "    kind: 'two': 'two' is not in ['one', 'three']\n" in done.stderr
    assert "    size: this question is new and has no default\n" in done.stderr
    assert "    colour: this question is new and has no default\n" in done.stderr
    assert "--data kind=VALUE --data size=VALUE --data colour=VALUE" in done.stderr
    assert taken(service) == before
    done = mlops_build(service, "update", "--data=kind=three", "--data=size=many", "--data=colour=red", expect=4)
    assert "size: " in done.stderr
    done = mlops_build(service, "update", "--data=kind=three", "--data=size=3", "--data=colour=red")
    assert (service / "named.txt").read_text() == "points three 3 red\n"
    assert "size: 3\n" in (service / ".copier-answers.yml").read_text()


def test_an_answer_can_change_alone(service: Path) -> None:
    document(service, "--commit")
    done = document(service, "--data", "kind=two")
    assert {one["path"] for one in done["changes"]} == {".copier-answers.yml", "named.txt"}
    assert (service / "named.txt").read_text() == "points two\n"
    git(service, "reset", "--quiet", "--hard")
    assert "the template has no such question" in mlops_build(service, "update", "--data", "nonsense=1", expect=2).stderr
    assert "not of the form NAME=VALUE" in mlops_build(service, "update", "--data", "nonsense", expect=2).stderr


def test_a_question_that_is_gone_is_told(make_template: MakeTemplate, make_service: MakeService) -> None:
    second = {**SECOND, "copier.yml": COPIER_YML.replace("kind: ", "other: "), "template/named.txt.jinja": "{{ name }}\n"}
    service = make_service(make_template({"0.1.0": FIRST, "0.2.0": second}), kind="two")
    done = mlops_build(service, "update")
    assert "note: kind: no longer asked; the answer 'two' is dropped\n" in done.stderr
    assert "kind" not in (service / ".copier-answers.yml").read_text()


def test_a_record_that_was_edited_by_hand_is_refused(service: Path) -> None:
    edit(service, ".copier-answers.yml", "kind: one", "kind: two")
    commit(service)
    done = mlops_build(service, "update", expect=4)
    assert ".copier-answers.yml was edited by hand: it has kind: two, but named.txt were rendered with kind: one\n" in done.stderr
    assert "mlops-build update --data kind=two\n" in done.stderr
    # An edit that was carried into the files as well is none.
    edit(service, "named.txt", "one", "two")
    commit(service)
    assert document(service)["status"] == "merged"


def test_a_record_that_no_version_took_is_refused(service: Path) -> None:
    edit(service, ".copier-answers.yml", "kind: one", "kind: five")
    commit(service)
    done = mlops_build(service, "update", "--data", "kind=one", expect=4)
    assert "has answers that 0.1.0 refuses: kind: 'five'" in done.stderr
    for content, said in (
        ("- a\n", "does not name the template"),
        ("_src_path: [\n", "is not valid YAML"),
        ("_src_path: /x\n", "does not name a version"),
    ):
        (service / ".copier-answers.yml").write_text(content)
        commit(service)
        assert said in mlops_build(service, "update", expect=4).stderr


def test_what_service_yaml_says_otherwise_is_refused_where_it_matters(make_template: MakeTemplate, make_service: MakeService) -> None:
    def files(extra: str) -> dict[str, str]:
        return {
            **FIRST,
            "copier.yml": COPIER_YML.replace("---\n", "team: {default: ml}\ngpu: {default: none}\n---\n", 1),
            "template/service.yaml.jinja": "team: {{ team }}\ngpu: {mode: {{ gpu }}}\n",
            "template/OWNERS.jinja": "{{ team }}\n",
            "template/kept.txt": TEN + extra,
        }

    service = make_service(make_template({"0.1.0": files(""), "0.2.0": files("more\n")}))
    (service / "service.yaml").write_text("team: others\ngpu: {mode: shared}\n")
    commit(service)
    done = mlops_build(service, "update", expect=4)
    assert (
        "service.yaml has team: others, gpu: shared, the answers have team: ml, gpu: none; OWNERS are rendered from the answers"
        in done.stderr
    )
    assert "mlops-build update --data team=others --data gpu=shared\n" in done.stderr
    # gpu alone only seeded service.yaml: that is the team's to change.
    kept = document(service, "--dry-run", "--data", "team=ml")
    assert (kept["status"], kept["notes"]) == ("merged", ["service.yaml has team: others; change it there if you want the new answer"])
    assert document(service, "--data", "team=others")["status"] == "merged"
    assert (service / "OWNERS").read_text() == "others\n"


def test_where_the_template_is(service: Path, template: Path, tmp_path: Path) -> None:
    moved = template.rename(tmp_path / "elsewhere")
    done = mlops_build(service, "update", expect=3)
    assert f"the template's address {template} does not exist" in done.stderr
    done = mlops_build(service, "update", "--template", str(moved))
    assert f"_src_path: {moved}\n" in (service / ".copier-answers.yml").read_text()
    pin = (service / "requirements-mlops-build.txt").read_text()
    assert pin == f"git+file://{moved}@{git(moved, 'rev-parse', '0.2.0')}#egg=mlops-build\n"
    git(service, "reset", "--quiet", "--hard")
    edit(service, ".copier-answers.yml", f"_src_path: {template}", "_src_path: ../template")
    commit(service)
    assert "which is a relative path" in mlops_build(service, "update", expect=3).stderr


def test_the_address_of_a_host_stays_in_the_record(template: Path, make_service: MakeService, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template is fetched once, by git as the user has set it up; rendering finds the copy under the same address."""
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", f"url.{template.as_uri()}.insteadOf")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "https://github.com/somebody/points.git")
    script = (
        "import sys; from copier import run_copy; run_copy('gh:somebody/points', sys.argv[1], vcs_ref='0.1.0', defaults=True, quiet=True)"
    )
    service = template.parent / "service"
    subprocess.run([sys.executable, "-c", script, str(service)], check=True)
    commit(service)
    done = document(service)
    assert done["template"] == "gh:somebody/points"
    assert "_src_path: gh:somebody/points\n" in (service / ".copier-answers.yml").read_text()
    assert (service / "renamed.txt").is_file()


def test_line_ends_of_the_repository(template: Path, make_service: MakeService) -> None:
    """A checkout with other line ends than Git keeps, and files that the team committed with other ones."""
    service = make_service(template)
    put(service, {".gitattributes": "*.txt text eol=crlf\n", "src/code.py": "x\n"})
    git(service, "add", "--renormalize", ".")
    commit(service)
    shutil.rmtree(service / "run")
    git(service, "checkout", "--quiet", ".")
    (service / "kept.txt").unlink()
    git(service, "checkout", "--quiet", "kept.txt")
    assert b"line 1\r\n" in (service / "kept.txt").read_bytes()
    edit(service, "kept.txt", "line 1\n", "mine\n")
    commit(service)
    assert document(service)["status"] == "merged"
    assert (service / "kept.txt").read_bytes() == TEN.replace("line 1\n", "mine\n").replace("line 8\n", "line eight\n").replace(
        "\n", "\r\n"
    ).encode()
    assert git(service, "show", ":kept.txt") == TEN.replace("line 1\n", "mine\n").replace("line 8\n", "line eight\n").strip("\n")


def test_settings_of_the_person_do_not_enter(make_template: MakeTemplate, make_service: MakeService, tmp_path: Path) -> None:
    second = {
        **SECOND,
        "copier.yml": COPIER_YML.replace("---\n", "late: {default: ours}\n---\n", 1),
        "template/late.txt.jinja": "{{ late }}\n",
    }
    service = make_service(make_template({"0.1.0": FIRST, "0.2.0": second}))
    put(tmp_path, {"mine.yml": "defaults: {late: mine}\n"})
    mlops_build(service, "update", environment={"COPIER_SETTINGS_PATH": str(tmp_path / "mine.yml")})
    assert (service / "late.txt").read_text() == "ours\n"


# A git that is killed before or after the command $KILL, its $NTH time, with the program that called it.
KILLED = """#!/bin/sh
case "$*" in
*" $KILL "*)
    echo >> "$COUNT"
    if [ "$(wc -l < "$COUNT")" = "$NTH" ]; then
        [ "$WHEN" = before ] || real "$@"
        kill -9 $PPID
        kill -9 $$
    fi;;
esac
exec real "$@"
"""
STEPS = [(step, when) for step in (("read-tree -m", 1), ("checkout-index", 1), ("update-index -q", 1), ("update-ref", 1))
         for when in ("before", "after")]  # fmt: skip
IN_CONFLICT = [*STEPS[:4], *[(("core.hooksPath=/dev/null update-index -z", 1), when) for when in ("before", "after")],
               *[(("checkout-index", 2), when) for when in ("before", "after")]]  # fmt: skip


def kill(service: Path, step: tuple[str, int], when: str, *arguments: str) -> None:
    """Run an update that is killed at a step."""
    git_itself = shutil.which("git")
    assert git_itself
    folder = service.parent
    put(folder, {"bin/git": Run(KILLED.replace("real", git_itself))})
    environment = {"PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "KILL": step[0], "NTH": str(step[1])}
    environment |= {"WHEN": when, "COUNT": str(folder / "count")}
    mlops_build(service, "update", *arguments, expect=-9, environment=environment)


def follow_the_remedy(service: Path) -> None:
    """Run the Git command that the next update names, if there is anything to undo."""
    if not git(service, "status", "--porcelain"):
        return
    stderr = mlops_build(service, "update", expect=4).stderr
    command = re.findall(r"git (?:diff .*git restore|reset) .*", stderr)[0]
    subprocess.run(["sh", "-c", command], cwd=service, check=True, timeout=60)


@pytest.mark.parametrize(("step", "when"), STEPS)
def test_after_a_kill_git_restores_the_old_files(service: Path, step: tuple[str, int], when: str) -> None:
    put(service, {"marked.txt": "1\n"})
    commit(service)
    git(service, "update-index", "--assume-unchanged", "marked.txt")
    (service / "marked.txt").write_text("2\n")
    before = taken(service)
    kill(service, step, when, "--commit")
    if git(service, "rev-list", "--count", "HEAD") == "3":
        assert (step[0], when) == ("update-ref", "after")
        assert not git(service, "status", "--porcelain")
        return
    follow_the_remedy(service)
    assert (taken(service), git(service, "status", "--porcelain")) == (before, "")
    assert document(service)["status"] == "merged"


@pytest.mark.parametrize(("step", "when"), IN_CONFLICT)
def test_after_a_kill_git_aborts_the_conflict(service: Path, step: tuple[str, int], when: str) -> None:
    edit(service, "kept.txt", "line 8\n", "mine\n")
    commit(service)
    before = taken(service)
    kill(service, step, when, "--write-conflicts")
    follow_the_remedy(service)
    assert (taken(service), git(service, "status", "--porcelain")) == (before, "")
    mlops_build(service, "update", "--write-conflicts", expect=4)
    assert "UU kept.txt" in git(service, "status", "--porcelain")
    follow_the_remedy(service)
    assert (taken(service), git(service, "status", "--porcelain")) == (before, "")


def test_the_lock_of_another_git_process_stays(service: Path) -> None:
    before = taken(service)
    (service / ".git/index.lock").touch()
    done = mlops_build(service, "update", expect=4)
    assert "another git process is using the repository" in done.stderr
    assert (taken(service), (service / ".git/index.lock").exists()) == (before, True)


@pytest.mark.parametrize("mark", ["skip-worktree", "assume-unchanged"])
def test_an_edit_that_git_does_not_show_is_kept(service: Path, mark: str) -> None:
    git(service, "update-index", f"--{mark}", "kept.txt")
    (service / "kept.txt").write_text("mine\n")
    before = taken(service)
    done = mlops_build(service, "update", expect=4)
    assert "kept.txt was edited, and is marked so that git status does not show it" in done.stderr
    assert taken(service) == before
    for part in done.stderr.split("\n    ")[1].partition(", then")[0].split(" && "):
        subprocess.run(part.split(), cwd=service, check=True)
    assert git(service, "status", "--porcelain").strip() == "M kept.txt"


def test_a_repository_with_sha256(service: Path) -> None:
    shutil.rmtree(service / ".git")
    git(service, "init", "--quiet", "--object-format=sha256", "--initial-branch=main")
    edit(service, "kept.txt", "line 8\n", "mine\n")
    commit(service)
    assert document(service, "--write-conflicts", expect=4)["written"]
    assert "UU kept.txt" in git(service, "status", "--porcelain")
    git(service, "reset", "--quiet", "--merge")
    edit(service, "kept.txt", "mine\n", "line 8\n")
    commit(service)
    assert document(service, "--commit")["status"] == "merged"
    assert (service / "renamed.txt").is_file()


def test_two_at_once(service: Path) -> None:
    command = [sys.executable, "-m", "mlops_build", "update", "--commit"]
    both = [subprocess.Popen(command, cwd=service, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert not git(service, "status", "--porcelain")
    assert git(service, "rev-list", "--count", "HEAD") == "2"


def test_in_a_linked_worktree_and_a_shallow_clone(service: Path, tmp_path: Path) -> None:
    git(service, "worktree", "add", "--quiet", str(tmp_path / "linked"), "-b", "update")
    assert update(tmp_path / "linked", commit=True).status == "merged"
    git(service, "merge", "--quiet", "update")
    put(service, {"later.txt": "x\n"})
    commit(service)
    git(tmp_path, "clone", "--quiet", "--depth=1", service.as_uri(), "shallow")
    assert update(tmp_path / "shallow").status == "nothing"


def test_a_tag_that_names_another_commit_now(service: Path, template: Path) -> None:
    """The service was made from the commit in its pin; comparing it with another would take the difference for the team's edits."""
    made = git(template, "rev-parse", "0.1.0")
    git(template, "checkout", "--quiet", "-b", "again", "0.1.0")
    only(template, {**FIRST, "template/kept.txt": TEN.replace("line 8\n", "line 8 again\n")})
    git(template, "tag", "--force", "0.1.0", commit(template))
    git(template, "checkout", "--quiet", "main")
    done = mlops_build(service, "update")
    assert f"0.1.0 is another commit now; the service was generated from {made[:12]}" in done.stderr
    assert (service / "kept.txt").read_text() == TEN.replace("line 8\n", "line eight\n")


def test_a_newest_tag_that_moved_after_the_update_is_taken_again(service: Path, template: Path) -> None:
    document(service, "--commit")
    former = git(template, "rev-parse", "0.2.0")
    put(template, {"template/kept.txt": TEN.replace("line 8\n", "line eight\n").replace("line 2\n", "line two\n")})
    commit(template)
    git(template, "tag", "--force", "0.2.0")
    done = document(service)
    assert (done["status"], done["from"]["commit"]) == ("merged", former)
    assert "line two\n" in (service / "kept.txt").read_text()
    # A version that was only written into the record is not believed either.
    git(service, "reset", "--quiet", "--hard", "HEAD~")
    edit(service, ".copier-answers.yml", "_commit: 0.1.0", "_commit: 0.2.0")
    commit(service)
    done = document(service)
    assert (done["status"], done["from"]["commit"]) == ("merged", git(template, "rev-parse", "0.1.0"))
    assert (service / "renamed.txt").is_file()


def test_a_commit_that_looks_like_a_number(service: Path) -> None:
    """12e4567 is a number for some readers of YAML, and copier writes it without quotes."""
    assert parse("_src_path: /x\n_commit: 12e4567\nname: '0012'\n", "x") == Answers("/x", "12e4567", {"name": "0012"})


def test_a_host_that_does_not_answer(service: Path, template: Path) -> None:
    edit(service, ".copier-answers.yml", f"_src_path: {template}", "_src_path: http://127.0.0.1:9/template.git")
    commit(service)
    assert "the Git remote cannot be used" in mlops_build(service, "update", expect=5).stderr
    edit(service, ".copier-answers.yml", "http://127", "http://me:secret@127")
    commit(service)
    done = mlops_build(service, "update", expect=2)
    assert "must not contain a password" in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_a_merge_that_is_not_finished(service: Path) -> None:
    (service / ".git/MERGE_HEAD").write_text(git(service, "rev-parse", "HEAD") + "\n")
    assert "a merge is not finished" in mlops_build(service, "update", expect=4).stderr


def test_a_plan_needs_no_checkout(service: Path, tmp_path: Path) -> None:
    """What many services are updated by: a bare clone, a commit, and nothing else."""
    git(tmp_path, "clone", "--quiet", "--bare", str(service), "bare.git")
    made = plan(tmp_path / "bare.git", "main")
    assert made.status == "merged"
    assert made.tree
    update(service)
    git(service, "add", "--all")
    assert git(service, "write-tree") == made.tree


def test_requirements_that_changed_and_the_lock_that_did_not(make_template: MakeTemplate, make_service: MakeService) -> None:
    def pyproject(package: str, version: str) -> dict[str, str]:
        text = f'[project]\nname = "x"\ndependencies = ["{package}"]\n\n\n\n[dependency-groups]\ndev = ["mlops-build~={version}"]\n'
        return {**FIRST, "template/pyproject.toml": text}

    extra = pyproject("a", "0.2.0")
    extra["template/pyproject.toml"] = extra["template/pyproject.toml"].replace("mlops-build~", "mlops-build[serve]~")
    releases = {"0.1.0": pyproject("a", "0.1.0"), "0.2.0": pyproject("a", "0.2.0"), "0.3.0": pyproject("b", "0.3.0"), "0.4.0": extra}
    service = make_service(make_template(releases))
    put(service, {"requirements.lock": "a==1\n"})
    commit(service)
    assert document(service, "--to", "0.2.0", "--commit")["notes"] == []
    for to in ("0.3.0", "0.4.0"):
        notes = document(service, "--to", to, "--dry-run")["notes"]
        assert notes == ["the requirements in pyproject.toml have changed: make lock updates requirements.lock"]


def test_a_clone_of_the_template_without_tags(service: Path, template: Path) -> None:
    git(template, "tag", "--delete", "0.1.0", "0.2.0")
    done = document(service)
    assert done["to"]["name"] == git(template, "rev-parse", "--short", "HEAD")
    assert (service / "kept.txt").read_text() == TEN.replace("line 8\n", "line eight\n")
    commit(service)
    assert document(service)["status"] == "nothing"


def test_a_version_that_nobody_has(service: Path, template: Path, tmp_path: Path) -> None:
    shutil.rmtree(template)
    template.mkdir()
    only(template, SECOND)
    commit(template)
    done = mlops_build(service, "update", expect=3)
    assert "does not have the version 0.1.0 (commit " in done.stderr
    assert "Traceback" not in done.stderr
    # The table of releases is enough: it travels with every copy.
    (service / "requirements-mlops-build.txt").unlink()
    git(service, "commit", "--quiet", "--all", "--amend", "--message", "Without a pin")
    assert "does not have the version 0.1.0 of" in mlops_build(service, "update", expect=3).stderr
    put(template, {"CHANGELOG.md": f"| 0.1.0 | 2026-01-01 | {git(template, 'rev-parse', 'HEAD')} | first |\n", "template/x": "x\n"})
    commit(template)
    assert document(service)["from"]["name"] == "0.1.0"
    assert (service / "x").read_text() == "x\n"


def test_a_template_whose_head_names_no_branch(service: Path, template: Path) -> None:
    git(template, "symbolic-ref", "HEAD", "refs/heads/gone")
    assert document(service, "--dry-run")["to"]["name"] == "0.2.0"
    git(template, "tag", "--delete", "0.2.0", "0.1.0")
    done = mlops_build(service, "update", "--to", "HEAD", expect=3)
    assert f"the HEAD of the template at {template} names a branch that does not exist" in done.stderr
    git(template, "symbolic-ref", "HEAD", "refs/heads/main")  # as the message says
    assert document(service)["status"] == "merged"


def test_a_service_of_a_template_with_uncommitted_changes(make_service: MakeService, template: Path) -> None:
    (template / "template/kept.txt").write_text("not committed\n")
    service = make_service(template, "HEAD")
    assert (service / "kept.txt").read_text() == "not committed\n"
    stderr = mlops_build(service, "update", expect=3).stderr
    assert "if the template had uncommitted changes, commit them there, then run in the service:\n" in stderr
    commit(template)
    subprocess.run(stderr.splitlines()[-1].split(), cwd=service, check=True, capture_output=True, timeout=60)
    assert git(service, "diff", "--name-only").splitlines() == [".copier-answers.yml", "requirements-mlops-build.txt"]
    commit(service)
    put(template, {"template/kept.txt": "a later version\n"})
    commit(template)
    assert document(service, "--to", "HEAD")["status"] == "merged"
    assert (service / "kept.txt").read_text() == "a later version\n"
