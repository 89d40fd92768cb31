"""Rendering behind one door: the same tree as `copier copy`, each failure in a sentence, and nothing left behind."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_build import __version__
from mlops_build.errors import Failed, MlopsBuildError, UsageError
from mlops_build.scaffold.render import BadTemplate, ScaffoldError, TemplateUnreachable, copy, recordable
from tests.conftest import Render, git


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its mode and bytes."""
    return {path.relative_to(root).as_posix(): (path.stat().st_mode, path.read_bytes()) for path in root.rglob("*") if path.is_file()}


def refusal(kind: type[MlopsBuildError], source: str | Path, destination: Path, version: str | None = None, **answers: object) -> str:
    """What the error says, with its remedy; nothing may be left behind or changed."""
    parent = next(path for path in destination.parents if path.exists())
    before = {path: path.read_bytes() if path.is_file() else b"" for path in parent.rglob("*")}
    where = Path.cwd()
    with pytest.raises(kind) as caught:
        copy(str(source), destination, answers, version=version)
    assert type(caught.value) is kind
    assert {path: path.read_bytes() if path.is_file() else b"" for path in parent.rglob("*")} == before
    assert Path.cwd() == where
    return f"{caught.value.message} → {caught.value.remedy}"


def small_template(folder: Path, **files: str) -> Path:
    """A template of its own, in Git: what ours must never be."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_yml", ".yml").replace("_jinja", ".jinja")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=A template")
    return folder


def test_it_is_the_tree_that_copier_copies(template: Path, render: Render, tmp_path: Path) -> None:
    answers = {"project_name": "Points", "example": "none", "gpu": "shared", "gpu_memory": "2GiB"}
    copy(str(template), tmp_path / "a" / "service", answers)
    assert tree(tmp_path / "a" / "service") == tree(render(**answers))
    assert f"_commit: {__version__}\n" in (tmp_path / "a" / "service" / ".copier-answers.yml").read_text()


def test_a_version_is_a_tag_a_branch_or_a_commit(template: Path, commit_after: str, tmp_path: Path) -> None:
    expected = {
        None: __version__,
        __version__: __version__,
        "later": f"{__version__}-1-g{commit_after[:7]}",
        commit_after: f"{__version__}-1-g{commit_after[:7]}",
    }
    for number, (version, recorded) in enumerate(expected.items()):
        copy(str(template), tmp_path / str(number), {"example": "none"}, version=version)
        assert f"_commit: {recorded}\n" in (tmp_path / str(number) / ".copier-answers.yml").read_text()


@pytest.fixture
def commit_after(template: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A commit after the tag, on the branch `later`; the template's own branch stays."""
    git(template, "branch", "--force", "later", __version__)
    with_later = tmp_path_factory.mktemp("later") / "checkout"
    git(template, "worktree", "add", "--quiet", str(with_later), "later")
    git(with_later, "commit", "--quiet", "--allow-empty", "--message=Later")
    git(template, "worktree", "remove", "--force", str(with_later))
    return git(template, "rev-parse", "later")


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ({"team": "a b"}, "team: allowed are 1 to 63 ASCII letters, digits and . _ - that start and end with a letter or digit"),
        ({"project_name": "torch"}, 'project_name: "torch" is the name of a Python keyword or module'),
        ({"gpu": "everything"}, "gpu: 'everything' is not in ['none', 'shared', 'exclusive']"),
        ({"team": None}, "team"),
        ({"teem": "ml"}, "teem: the template has no such question → did you mean team?"),
        ({"project_slug": "xyz"}, "project_slug is computed from other answers → remove this answer"),
        ({"gpu_memory": "2GiB"}, "gpu_memory is not asked with these answers → it is asked when {{ gpu != 'none' }}"),
    ],
)
def test_a_wrong_answer_is_refused_in_the_validators_words(
    template: Path, tmp_path: Path, answers: dict[str, object], expected: str
) -> None:
    message = refusal(ScaffoldError, template, tmp_path / "parent" / "service", **answers)
    assert expected in message
    assert "Validation error" not in message


# copier notices the first before it renders, the second is noticed afterwards.
@pytest.mark.parametrize("answers", [{"team": "a b"}, {"teem": "ml"}])
@pytest.mark.parametrize("files", [[], ["Makefile"]])
def test_a_wrong_answer_changes_nothing_in_a_folder_that_exists(
    template: Path, tmp_path: Path, answers: dict[str, object], files: list[str]
) -> None:
    destination = tmp_path / "service"
    destination.mkdir()
    for name in files:
        (destination / name).write_text("mine\n")
    refusal(ScaffoldError, template, destination, **answers)


def test_a_template_that_is_not_there(template: Path, tmp_path: Path) -> None:
    destination = tmp_path / "service"
    assert "there is no such template" in refusal(BadTemplate, tmp_path / "nowhere", destination)
    assert "there is no such template" in refusal(BadTemplate, "mlops-build", destination)
    assert "'': there is no such template" in refusal(BadTemplate, "", destination)
    assert "there is no such template" in refusal(BadTemplate, "ext::sh -c touch% ran", destination)
    assert f"{template} has no version v9" in refusal(BadTemplate, template, destination, "v9")
    assert "has no version --upload-pack=x" in refusal(BadTemplate, template, destination, "--upload-pack=x")
    gone = f"git+file://{tmp_path}/gone"
    assert f"{gone}: fatal: '{tmp_path}/gone' does not appear to be a git repository" in refusal(BadTemplate, gone, destination)
    assert "has no version v9" in refusal(BadTemplate, f"git+file://{template}", destination, "v9")
    git(tmp_path, "init", "--quiet", "empty")
    assert "it has no commit to render" in refusal(BadTemplate, tmp_path / "empty", destination)
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "x").write_text("x\n")
    assert "is not a template" in refusal(BadTemplate, tmp_path / "plain", destination)
    (tmp_path / "plain" / "copier.yml").write_text("a: [\n")
    assert "its copier.yml cannot be read" in refusal(BadTemplate, tmp_path / "plain", destination)


def test_a_host_that_does_not_answer(tmp_path: Path) -> None:
    message = refusal(TemplateUnreachable, "https://127.0.0.1:9/mlops-build", tmp_path / "service")
    assert "127.0.0.1" in message
    assert message.endswith("git ls-remote https://127.0.0.1:9/mlops-build")
    if shutil.which("ssh"):
        message = refusal(TemplateUnreachable, "ssh://nobody@127.0.0.1:9/x.git", tmp_path / "service")
        assert "ssh: connect to host 127.0.0.1 port 9: Connection refused" in message


def test_a_template_that_wants_trust_or_breaks_while_it_renders(tmp_path: Path) -> None:
    trusting = small_template(tmp_path / "tasks", copier_yml="a: 1\n_tasks: ['touch ran']\n")
    assert "potentially unsafe feature: tasks. → mlops-build does not run code of a template" in refusal(
        ScaffoldError, trusting, tmp_path / "service"
    )
    broken = small_template(
        tmp_path / "broken",
        copier_yml="a: 1\n_subdirectory: t\n_envops: {undefined: jinja2.StrictUndefined}\n",
        t__a="first\n",
        t__z_jinja="{{ nobody }}\n",
    )
    full = tmp_path / "full"
    full.mkdir()
    (full / "mine").write_text("mine\n")
    for destination in (tmp_path / "service", full):
        assert f"{broken}: z.jinja, line 1: 'nobody' is undefined" in refusal(ScaffoldError, broken, destination)


def test_where_it_may_not_write(template: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine\n")
    assert "is not a folder" in refusal(ScaffoldError, template, tmp_path / "file")
    if os.getuid() == 0:  # nothing is forbidden to root but what the kernel itself holds
        with pytest.raises(Failed, match="/proc/service"):
            copy(str(template), Path("/proc/service"), {})
    else:
        tmp_path.chmod(0o500)
        assert "check that you have permission to write there" in refusal(Failed, template, tmp_path / "service")
        tmp_path.chmod(0o700)


def test_settings_of_the_person_stay_out(template: Path, render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tree(render(example="none"))
    settings = tmp_path / "settings.yml"
    settings.write_text("defaults: {team: mine, k8s_namespace: mine}\n")
    monkeypatch.setenv("COPIER_SETTINGS_PATH", str(settings))
    copy(str(template), tmp_path / "service", {"example": "none"})
    assert tree(tmp_path / "service") == expected
    assert os.environ["COPIER_SETTINGS_PATH"] == str(settings)
    monkeypatch.delenv("COPIER_SETTINGS_PATH")
    trusted = small_template(tmp_path / "tasks", copier_yml="a: 1\n_tasks: ['touch ran']\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "copier").mkdir(parents=True)
    (tmp_path / "config" / "copier" / "settings.yml").write_text(f"trust: [{trusted}]\n")
    refusal(ScaffoldError, trusted, tmp_path / "never")
    assert "COPIER_SETTINGS_PATH" not in os.environ


def test_what_is_there_is_kept_or_replaced_by_its_owner(template: Path, render: Render, tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("mine\n")
    (tmp_path / "params.yaml").write_text("mine\n")
    copy(str(template), tmp_path, {"example": "none"})
    assert tree(tmp_path) == tree(render(example="none")) | {"params.yaml": ((tmp_path / "params.yaml").stat().st_mode, b"mine\n")}


def test_an_answers_file_seeds_the_answers(template: Path, render: Render, tmp_path: Path) -> None:
    (tmp_path / ".copier-answers.yml").write_text("team: another\nexample: none\nlong_gone: x\n")
    copy(str(template), tmp_path, {"k8s_namespace": "prod"})
    assert tree(tmp_path) == tree(render(example="none", team="another", k8s_namespace="prod"))


@pytest.mark.parametrize("how", ["import", "interrupt"])
def test_it_ends_in_one_piece(template: Path, tmp_path: Path, how: str) -> None:
    """Without copier, and with Ctrl-C in the middle: in a process of its own, since the one of the tests has copier."""
    hook = {
        "import": "sys.modules['copier'] = None",
        "interrupt": "import copier._main as m\ndef stop(*a, **k): raise KeyboardInterrupt\nm.Worker._execute_tasks = stop",
    }[how]
    script = f"""
import sys
from pathlib import Path
from mlops_build.errors import MlopsBuildError
from mlops_build.scaffold.render import copy
{hook}
try:
    copy({str(template)!r}, Path("service"), {{"example": "none"}})
except MlopsBuildError as error:
    print(error.exit_code, error.message, error.remedy)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    expected = {"import": "1 copier is not installed pip install 'mlops-build[template]'\n", "interrupt": "interrupted\n"}
    assert done.stdout == expected[how]
    assert list(tmp_path.iterdir()) == []


def test_what_is_recorded_is_found_from_anywhere(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(template)
    monkeypatch.chdir(tmp_path / "a")
    monkeypatch.setenv("HOME", str(tmp_path))
    recorded = {
        "b": f"{tmp_path}/a/b",
        "../a/./b": f"{tmp_path}/a/b",
        "~/a": f"{tmp_path}/a",
        f"{tmp_path}/link": f"{tmp_path}/link",
        "gh:team/mlops-build": "gh:team/mlops-build",
        "https://github.com/team/mlops-build": "https://github.com/team/mlops-build",
        "https://git.example.com/scm/ml/mlops-build.git": "https://git.example.com/scm/ml/mlops-build.git",
        "https://git.example.com/scm/ml/mlops-build": "git+https://git.example.com/scm/ml/mlops-build",
        "ssh://git@git.example.com/ml/mlops-build": "git+ssh://git@git.example.com/ml/mlops-build",
        "git@git.example.com:ml/mlops-build": "git@git.example.com:ml/mlops-build",
        "me@git.example.com:ml/mlops-build": "git+me@git.example.com:ml/mlops-build",
        "file:///srv/mlops-build": "git+file:///srv/mlops-build",
    }
    assert {source: recordable(source) for source in recorded} == recorded
    for secret in ("https://me:secret@host/x.git", "https://secret@host/x.git", "git+https://secret@host/x", "ssh://me:secret@host/x"):
        with pytest.raises(UsageError) as caught:
            recordable(secret)
        assert "secret" not in caught.value.message
    copy("../link", tmp_path / "service", {"example": "none"})
    assert f"_src_path: {template}\n" in (tmp_path / "service" / ".copier-answers.yml").read_text()
    copy(f"file://{template}", tmp_path / "second", {"example": "none"})
    pin = (tmp_path / "second" / "requirements-mlops-build.txt").read_text()
    assert f"\ngit+file://{template}@{git(template, 'rev-parse', __version__)}#egg=mlops-build\n" in pin
