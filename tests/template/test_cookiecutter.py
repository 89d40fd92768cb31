"""The other front door: `cookiecutter REPOSITORY` gives the very tree that `copier copy` gives, and `copier update` goes on from there."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlops_build import __version__
from mlops_build.adapters import installer
from mlops_build.errors import Failed, Refused, UsageError
from mlops_build.scaffold import cookiecutter as door
from mlops_build.scaffold import render as rendering
from tests.conftest import Render, git
from tests.template.test_rendered import MATRIX

ROOT = Path(__file__).parents[2]
SMALL = {"example": "none"}
Door = Callable[..., "subprocess.CompletedProcess[str]"]


def tree(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file and folder with its mode, and each file's bytes; Git's own aside."""
    return {
        path.relative_to(root).as_posix(): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in sorted(root.rglob("*"))
        if ".git" not in path.relative_to(root).parts
    }


@pytest.fixture
def cookiecutter(tmp_path: Path) -> Door:
    """cookiecutter("ADDRESS", "--no-input", example="none"): as a process of its own, for somebody without settings."""
    home = tmp_path / "home"
    home.mkdir()

    def run(
        *arguments: str, where: Path = tmp_path, python: str | Path = sys.executable, stdin: str = "", expect: int = 0, **answers: str
    ) -> "subprocess.CompletedProcess[str]":
        # Nothing of ours is importable there: neither this checkout nor what a developer installed.
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PWD") and not name.startswith("COPIER_")}
        command = [str(python), "-m", "cookiecutter", *arguments, *(f"{name}={value}" for name, value in answers.items())]
        done = subprocess.run(
            command,
            cwd=where,
            env={**kept, "HOME": str(home), "XDG_CACHE_HOME": str(home)},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == expect, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def repository(template: Path, tmp_path: Path) -> Path:
    """A clone of the template that a test may change; its newest commit is the tagged one."""
    folder = tmp_path / "origin" / "mlops-build.git"
    git(template, "clone", "--quiet", str(template), str(folder))
    return folder


def what_is_there(where: Path) -> list[str]:
    return sorted(path.name for path in where.iterdir() if path.name not in ("home", "origin"))


# ── the questions ──


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    return dict(json.loads((ROOT / "cookiecutter.json").read_text()))


@pytest.mark.parametrize("name", ["Digits", "Fraud score_v2", "a-b C_d", "X" * 40])
@pytest.mark.parametrize("gpu", ["none", "exclusive"])
def test_both_doors_compute_the_same_defaults(asked: dict[str, Any], render: Render, name: str, gpu: str) -> None:
    from cookiecutter.generate import apply_overwrites_to_context
    from cookiecutter.prompt import prompt_for_config

    context = json.loads(json.dumps(asked))
    apply_overwrites_to_context(context, {"project_name": name, "gpu": gpu})
    given = prompt_for_config({"cookiecutter": context}, no_input=True)
    root = render(project_name=name, gpu=gpu, example="none")
    by_copier = YAML(typ="safe").load((root / ".copier-answers.yml").read_text())
    del by_copier["_commit"], by_copier["_src_path"]
    assert door.answers({**given, "example": "none"}) == by_copier
    assert (root / "src" / given["__package_name"]).is_dir()
    assert given["__k8s_host_staging"] in (root / "service.yaml").read_text()


def test_nothing_of_the_door_can_run_or_ask_for_more(asked: dict[str, Any]) -> None:
    """What cookiecutter runs is one file, short enough to be read by who is asked to trust it."""
    assert {name for name in asked if name.startswith("_") and not name.startswith("__")} == set(), "no extensions, no settings"
    assert [path.name for path in (ROOT / "hooks").iterdir()] == ["post_gen_project.py"]
    assert len((ROOT / "hooks" / "post_gen_project.py").read_text().splitlines()) <= 24
    assert [path.name for path in (ROOT / "{{cookiecutter.__folder}}").iterdir()] == [door.NOT_RENDERED]


# ── the tree ──


# Each value of each choice once in the fast tests.
FAST = [MATRIX[0], MATRIX[3], MATRIX[7], MATRIX[11]]


@pytest.mark.parametrize(
    "answers",
    [answers if answers in FAST else pytest.param(answers, marks=pytest.mark.slow) for answers in MATRIX],
    ids=lambda answers: "-".join(answers[name] for name in ("example", "gpu", "monitoring")),
)
def test_it_is_the_tree_that_copier_copies(
    cookiecutter: Door, template: Path, render: Render, tmp_path: Path, answers: dict[str, str]
) -> None:
    cookiecutter(str(template), "--no-input", **answers)
    (made,) = what_is_there(tmp_path)
    assert made == answers.get("project_name", "Digits").lower().replace(" ", "-")
    assert tree(tmp_path / made) == tree(render(**answers))


def test_what_is_typed_counts_and_what_does_not_apply_is_left_out(
    cookiecutter: Door, template: Path, render: Render, tmp_path: Path
) -> None:
    typed = ["Fraud score", "", "", "", "4", "2", "2", "2GiB", *[""] * 11, "3", ""]
    printed = cookiecutter(str(template), stdin="\n".join(typed) + "\n").stdout
    assert "HOST[:PORT][/PATH]" in printed
    assert "none: a tiny synthetic problem with the places to change marked" in printed
    answers = {"project_name": "Fraud score", "example": "none", "python_version": "3.12", "gpu": "shared", "gpu_memory": "2GiB"}
    assert tree(tmp_path / "fraud-score") == tree(render(**answers, monitoring="none"))
    # Without a GPU, the answer for its memory is left out: copier would not have asked for it.
    cookiecutter(str(template), "--no-input", **SMALL, gpu_memory="nonsense")
    assert tree(tmp_path / "digits") == tree(render(**SMALL))


@pytest.mark.real_python  # the hook reads the folder of the process that started it
def test_a_relative_folder_is_recorded_as_absolute(cookiecutter: Door, template: Path, render: Render, tmp_path: Path) -> None:
    work = tmp_path / "a" / "work"
    work.mkdir(parents=True)
    relative = os.path.relpath(template, work)
    cookiecutter(relative, "--no-input", "--output-dir", "out/here", where=work, **SMALL)
    assert tree(work / "out" / "here" / "digits") == tree(render(**SMALL))


def test_an_absolute_folder_is_recorded_as_typed(cookiecutter: Door, template: Path, tmp_path: Path, copier_copy: Door) -> None:
    """A link that is moved to another checkout is meant to be followed."""
    link = tmp_path / "origin"
    link.symlink_to(template)
    cookiecutter(str(link), "--no-input", **SMALL)
    copier_copy(str(link), str(tmp_path / "copied"), **SMALL)
    assert tree(tmp_path / "digits") == tree(tmp_path / "copied")
    assert f"_src_path: {link}\n" in (tmp_path / "digits" / ".copier-answers.yml").read_text()


def rendered_hook(folder: Path, **context: str) -> Path:
    """The hook as cookiecutter renders it."""
    from cookiecutter.utils import create_env_with_context

    hook = (ROOT / "hooks" / "post_gen_project.py").read_text()
    given = {"cookiecutter": context}
    (folder / "hook.py").write_text(create_env_with_context(given).from_string(hook).render(**given))
    return folder / "hook.py"


@pytest.mark.real_python
def test_a_relative_folder_is_found_where_a_process_tells_nobody_its_folder(template: Path, tmp_path: Path) -> None:
    """As on macOS, without /proc: the hook is started by a process in another folder."""
    here = tmp_path / "digits"
    here.mkdir()
    hook = rendered_hook(tmp_path, _repo_dir="template", _template="template", __message="made", example="none")
    (tmp_path / "template").symlink_to(template)
    started = f"subprocess.run([{sys.executable!r}, {str(hook)!r}], cwd={str(here)!r})"
    script = f"import os, subprocess; os.chdir('/'); exit({started}.returncode)"

    def run(pwd: Path) -> "subprocess.CompletedProcess[str]":
        shutil.rmtree(here)
        here.mkdir()
        environment = {**os.environ, "PWD": str(pwd)}
        return subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=False)

    found = run(tmp_path)
    assert (found.returncode, found.stderr) == (0, "made\n")
    assert f"_src_path: {template}\n" in (here / ".copier-answers.yml").read_text()
    lost = run(here)
    assert lost.returncode == 1
    assert lost.stderr == "mlops-build: cannot find the template folder template; give cookiecutter its absolute path\n"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("answer", ["../up", "a/b/c", "/etc/x", "torch", "a{{ 1 }}"])
def test_no_answer_leads_out_of_the_output_folder(template: Path, tmp_path: Path, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """cookiecutter makes the folder before anything of ours can look at the name."""
    from cookiecutter.main import cookiecutter

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "out").mkdir()
    made = cookiecutter(
        str(template),
        no_input=True,
        output_dir=str(tmp_path / "out"),
        accept_hooks=False,
        default_config=True,
        extra_context={"project_name": answer},
    )
    assert Path(made).parent == tmp_path / "out"
    assert what_is_there(tmp_path) == ["out"]


@pytest.mark.parametrize("answer", ["../up", "..", ""])
def test_a_name_that_is_no_name_is_refused_and_leaves_nothing(cookiecutter: Door, template: Path, tmp_path: Path, answer: str) -> None:
    (tmp_path / "out").mkdir()
    done = cookiecutter(str(template), "--no-input", "--overwrite-if-exists", "--output-dir", "out", expect=1, project_name=answer)
    assert done.stderr.startswith("mlops-build: project_name: allowed are ASCII letters and digits in words")
    assert what_is_there(tmp_path) == ["out"]
    assert list((tmp_path / "out").iterdir()) == []


# ── versions ──


def later(repository: Path, tag: str | None = None) -> None:
    """One more commit in the template: a file of the template's and a file of the team's change."""
    for name in ("template/Makefile.jinja", "template/params.yaml.jinja"):
        with (repository / name).open("a") as file:
            file.write("\n# later\n")
    git(repository, "commit", "--quiet", "--all", "--message=Later")
    if tag:
        git(repository, "tag", tag)


def test_an_address_is_recorded_as_typed_with_the_commit_that_was_cloned(
    cookiecutter: Door, repository: Path, tmp_path: Path, copier_copy: Door
) -> None:
    later(repository)
    address = f"file://{repository}"
    said = cookiecutter(address, "--no-input", **SMALL).stderr
    recorded = YAML(typ="safe").load((tmp_path / "digits" / ".copier-answers.yml").read_text())
    short = git(repository, "rev-parse", "--short", "HEAD")
    assert (recorded["_src_path"], recorded["_commit"]) == (address, f"{__version__}-1-g{short}")
    assert f"note: rendered from {__version__}-1-g{short}, which is not a release; use cookiecutter --checkout TAG for a release\n" in said
    copier_copy("--vcs-ref=HEAD", address, str(tmp_path / "copied"), **SMALL)
    assert tree(tmp_path / "digits") == tree(tmp_path / "copied")


def test_checkout_takes_a_release_and_copier_takes_the_newest(
    cookiecutter: Door, repository: Path, tmp_path: Path, copier_copy: Door
) -> None:
    later(repository)
    address = f"file://{repository}"
    said = cookiecutter(address, "--no-input", "--checkout", __version__, **SMALL).stderr
    assert "note:" not in said
    copier_copy(address, str(tmp_path / "copied"), **SMALL)
    assert tree(tmp_path / "digits") == tree(tmp_path / "copied")
    # The clone that cookiecutter keeps goes by its short name, too; the service must not be told of it.
    cookiecutter("mlops-build", "--no-input", "--output-dir", "again", **SMALL)
    assert tree(tmp_path / "again" / "digits") == tree(tmp_path / "copied")


@pytest.mark.real_python  # as above
def test_a_service_in_the_templates_own_folder_is_no_change_of_the_template(
    cookiecutter: Door, repository: Path, copier_copy: Door, tmp_path: Path
) -> None:
    folder = Path(shutil.move(repository, tmp_path / "origin" / "with ' and ü"))
    said = cookiecutter(".", "--no-input", where=folder, **SMALL).stderr
    assert "note:" not in said
    copier_copy(str(folder), str(tmp_path / "copied"), **SMALL)
    assert tree(folder / "digits") == tree(tmp_path / "copied")


@pytest.fixture
def copier_copy() -> Door:
    """copier_copy("ADDRESS", "FOLDER", example="none"): the front door that the other is compared with."""

    def run(*arguments: str, **answers: str) -> "subprocess.CompletedProcess[str]":
        data = [f"--data={name}={value}" for name, value in answers.items()]
        command = [sys.executable, "-m", "copier", "copy", "--quiet", "--defaults", *data, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_what_is_not_committed_is_not_rendered_and_is_said(cookiecutter: Door, repository: Path, tmp_path: Path, copier_copy: Door) -> None:
    (repository / "template" / "Makefile.jinja").write_text("uncommitted\n")
    said = cookiecutter(str(repository), "--no-input", **SMALL).stderr
    assert f"note: uncommitted changes in {repository} were not rendered\n" in said
    git(repository, "checkout", "--quiet", ".")
    copier_copy(str(repository), str(tmp_path / "copied"), **SMALL)
    assert tree(tmp_path / "digits") == tree(tmp_path / "copied")


def test_a_folder_without_git_works_once_and_says_so(cookiecutter: Door, repository: Path, tmp_path: Path, copier_copy: Door) -> None:
    repository = Path(shutil.copytree(repository, tmp_path / "origin" / "folder", ignore=shutil.ignore_patterns(".git")))
    said = cookiecutter(str(repository), "--no-input", **SMALL).stderr
    assert "is not a Git repository, so the service cannot be updated from it" in said
    copier_copy(str(repository), str(tmp_path / "copied"), **SMALL)
    assert tree(tmp_path / "digits") == tree(tmp_path / "copied")


def test_addresses_that_cookiecutter_alone_knows(repository: Path) -> None:
    git(repository, "remote", "set-url", "origin", "https://git.example.com/ml/mlops-build.git")
    recorded = {
        "gh:team/mlops-build": "gh:team/mlops-build",
        "https://git.example.com/scm/ml/mlops-build": "https://git.example.com/scm/ml/mlops-build",
        "git@git.example.com:ml/mlops-build.git": "git@git.example.com:ml/mlops-build.git",
        "bb:ml/mlops-build": "https://git.example.com/ml/mlops-build.git",
        "ours": "https://git.example.com/ml/mlops-build.git",
    }
    assert {typed: door.recorded({"_template": typed, "_repo_dir": "clone"}, repository) for typed in recorded} == recorded
    with pytest.raises(Refused, match="a service cannot be updated from a zip file"):
        door.recorded({"_template": "https://git.example.com/x.zip", "_repo_dir": "clone"}, repository)
    with pytest.raises(UsageError):
        rendering.recordable("https://token@git.example.com/x.git")


# ── what goes wrong ──


def test_a_wrong_answer_is_refused_in_the_validators_words_and_leaves_nothing(cookiecutter: Door, template: Path, tmp_path: Path) -> None:
    done = cookiecutter(str(template), "--no-input", expect=1, team="a b", **SMALL)
    assert done.stderr.splitlines()[0].startswith(
        "mlops-build: team: allowed are 1 to 63 ASCII letters, digits and . _ - that start and end"
    )
    assert "Traceback" not in done.stderr
    done = cookiecutter(str(template), "--no-input", expect=1, gpu="all")
    assert "the choices are ['none', 'shared', 'exclusive']" in done.stderr
    assert what_is_there(tmp_path) == []


def test_a_folder_that_is_there_is_written_over_only_when_told_and_right(
    cookiecutter: Door, template: Path, render: Render, tmp_path: Path
) -> None:
    cookiecutter(str(template), "--no-input", **SMALL)
    service = tmp_path / "digits"
    for name in ("Makefile", "params.yaml", "README.md"):
        (service / name).write_text("mine\n")
    mine = tree(service)
    assert "directory already exists" in cookiecutter(str(template), "--no-input", expect=1, **SMALL).stdout
    assert tree(service) == mine
    cookiecutter(str(template), "--no-input", "-f", expect=1, team="a b", **SMALL)
    assert tree(service) == mine
    cookiecutter(str(template), "--no-input", "-f", team="another", **SMALL)
    expected = tree(render(**SMALL, team="another"))
    # As `copier copy --overwrite` does: what is the team's stays.
    assert tree(service) == expected | {name: tree(service)[name] for name in ("params.yaml", "service.yaml")}
    assert (service / "params.yaml").read_text() == "mine\n"


def test_who_runs_no_hooks_is_told_what_is_missing(cookiecutter: Door, template: Path, tmp_path: Path) -> None:
    cookiecutter(str(template), "--no-input", "--accept-hooks", "no", project_name="No hooks")
    assert [path.name for path in (tmp_path / "no-hooks").iterdir()] == [door.NOT_RENDERED]
    assert f"copier copy {template} no-hooks\n" in (tmp_path / "no-hooks" / door.NOT_RENDERED).read_text()


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """bare("cookiecutter"): the Python of a fresh environment with these packages and what they need, at our lock's versions."""

    def install(*packages: str) -> Path:
        folder = tmp_path_factory.mktemp("bare")
        lines = (ROOT / "requirements.lock").read_text().splitlines()
        pinned = tuple(f"{package.partition('==')[0]}==" for package in packages if "==" in package)
        locked = [line.rstrip(" \\\n") for line in lines if "==" in line and line[0].isalpha() and not line.startswith(pinned)]
        (folder / "constraints.txt").write_text("\n".join(locked) + "\n")
        uv = [sys.executable, "-m", "uv"]
        python = folder / "venv" / "bin" / "python"
        subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder / "venv")], check=True, timeout=60)
        command = [*uv, "pip", "install", "--quiet", "--python", str(python), f"--constraint={folder}/constraints.txt", *packages]
        done = subprocess.run(command, env=installer.uv_environment(), capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return python

    return install


def oldest() -> list[str]:
    """cookiecutter and copier in the oldest versions that pyproject.toml and copier.yml name."""
    needs = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["template"]
    (cookiecutter,) = [need.partition(">=")[2] for need in needs if need.startswith("cookiecutter>=")]
    (copier,) = re.findall(r'^_min_copier_version: "(.+?)"', (ROOT / "copier.yml").read_text(), re.MULTILINE)
    return [f"cookiecutter=={cookiecutter}", f"copier=={copier}"]


@pytest.mark.slow  # the packages are installed
@pytest.mark.parametrize("packages", [["cookiecutter", "copier"], oldest()], ids=["locked", "oldest"])
def test_it_needs_cookiecutter_and_copier_and_nothing_else(
    cookiecutter: Door, bare: Callable[..., Path], template: Path, render: Render, tmp_path: Path, packages: list[str]
) -> None:
    python = bare(*packages)
    cookiecutter(str(template), "--no-input", python=python, **SMALL)
    assert tree(tmp_path / "digits") == tree(render(**SMALL))
    done = cookiecutter(str(template), "--no-input", "-f", python=python, expect=1, **SMALL, team="a b")
    assert "mlops-build: team: allowed are 1 to 63 ASCII letters" in done.stderr
    assert tree(tmp_path / "digits") == tree(render(**SMALL))


def test_without_copier_it_says_how_to_get_it_and_leaves_nothing(
    cookiecutter: Door, bare: Callable[..., Path], template: Path, tmp_path: Path
) -> None:
    python = bare("cookiecutter")
    done = cookiecutter(str(template), "--no-input", python=python, expect=1, **SMALL)
    assert done.stderr.splitlines()[:2] == [
        "mlops-build: copier, which renders the service, is not installed in cookiecutter's environment",
        f"    pipx inject cookiecutter copier, or: {python} -m pip install copier",
    ]
    assert "Traceback" not in done.stderr
    assert what_is_there(tmp_path) == []


@pytest.mark.real_python
@pytest.mark.parametrize(
    ("version", "message"),
    [
        ((3, 10), "the template needs Python 3.11 or newer; cookiecutter runs on 3.10.4\n"),
        ((3, 11), "the template needs cookiecutter 2.6 or newer; run: "),
    ],
    ids=["Python 3.10", "cookiecutter 2.1"],
)
def test_old_versions_get_one_line(tmp_path: Path, version: tuple[int, int], message: str) -> None:
    """cookiecutter 1.7 and 2.1 have no _repo_dir. No older Python is at hand: the hook runs on this one, with another version."""
    numbers = ".".join(map(str, version))
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.version_info, sys.version = (*{version}, 4), '{numbers}.4 (main)'\n")
    done = subprocess.run(
        [sys.executable, str(rendered_hook(tmp_path, example="none"))],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"mlops-build: {message}")
    assert done.stderr.count("\n") == 1


def test_a_copier_that_needs_a_newer_git_gets_one_line(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "9.19.0")
    monkeypatch.setattr(rendering.command, "version", lambda: (2, 42))
    with pytest.raises(Failed, match=re.escape("copier 9.19.0 does not work with git 2.42")):
        rendering.copy(str(template), tmp_path / "new", SMALL)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(rendering.command, "version", lambda: (2, 43))
    rendering.copy(str(template), tmp_path / "new", SMALL)
