"""promote, rollback, release and bridge as a person or a script calls them: text, JSON, exit codes."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlops_build.__main__ import main
from mlops_build.adapters.registry import Registry
from mlops_build.model import identity
from mlops_build.training import pipeline
from mlops_build.training.pipeline import Outcome, Trained
from tests.conftest import git
from tests.release.world import alone, change_service, checkout, empty_database, make_repository, register, registry, remote

__all__ = ["alone", "checkout", "empty_database", "make_repository", "register", "registry", "remote"]

Register = Callable[..., Any]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """run("promote", …) is (exit code, stdout, stderr); in this process, since mlflow takes seconds to import."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def inside(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(checkout)
    return checkout


def test_promote_says_what_changed(run: Run, inside: Path, registry: Registry, register: Register) -> None:
    register(), register()
    code, out, err = run("promote", "digits", "1", "--to", "production")
    assert (code, out) == (0, "digits live: none → 1\n")
    assert "MLflow has no promotion of digits 1 to staging" in err
    assert run("promote", "digits", "2", "--to", "staging") == (0, "digits staging: none → 2\n", "")
    code, out, err = run("promote", "digits", "2", "--to", "production", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert len(document.pop("promotion")) == 16
    assert document == {
        "model": "digits",
        "environment": "production",
        "alias": "live",
        "before": 1,
        "after": 2,
        "dirty": False,
        "hold": None,
        "callers": [],
        "skipped": [],
        "changed": True,
    }
    assert run("promote", "digits", "2", "--to", "production")[:2] == (0, "digits live is version 2 already; the new promotion is stored\n")
    assert run("rollback", "digits", "--env", "production") == (0, "digits live: 2 → 1\n", "")
    code, out, err = run("rollback", "digits", "--env", "production")
    assert (code, out) == (4, "")
    assert "--to VERSION" in err


def test_train_names_a_next_step_that_will_work(
    run: Run, inside: Path, registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = [{"inputs": json.dumps([{"type": "double", "name": name, "required": True}])} for name in "aab"]
    trained = [
        Trained(version.uri, "digits", version.version, True, "c" * 40, version.run_id, {}, False)
        for version in (register(signature=one) for one in columns)
    ]
    run("promote", "digits", "1", "--to", "staging")
    for number in (2, 3):
        monkeypatch.setattr(pipeline, "train", lambda *_, number=number, **__: Outcome((trained[number - 1],), ()))
        code, out, _ = run("train")
        lines = out.splitlines()
        assert (code, lines[0]) == (0, f"models:/digits/{number}  commit {'c' * 12}")
        if number == 2:
            assert lines[1:] == ["next: mlops-build promote digits 2 --to staging"]
        else:
            assert lines[1].startswith("digits 3 cannot be promoted to staging: digits 3 in the place of 1 breaks its callers")
            assert "next: " not in out
    code, _, err = run("promote", "digits", "3", "--to", "staging")
    assert code == 4
    assert "breaks its callers" in err


@pytest.mark.parametrize("words", [["digits", "models:/digits/1"], ["digits=models:/digits@staging"], ["models:/digits/1"]])
def test_a_version_is_a_number_or_an_alias(words: list[str], run: Run, registry: Registry) -> None:
    code, out, err = run("promote", *words, "--to", "staging")
    assert (code, out) == (2, "")
    assert "MODEL VERSION" in err


def test_a_hold_and_dirt_are_said_on_stderr(run: Run, inside: Path, registry: Registry, register: Register) -> None:
    register(tags={identity.DIRTY: "true"})
    change_service(inside, "hold: {}", "hold: {staging: black friday}")
    code, out, err = run("promote", "digits", "1", "--to", "staging")
    assert (code, out) == (0, "digits staging: none → 1\n")
    assert "uncommitted changes" in err
    assert "staging is held, so nothing is released: black friday" in err
    code, _, err = run("promote", "digits", "1", "--to", "production")
    assert code == 4
    assert "--force-dirty" in err
    assert run("promote", "digits", "1", "--to", "production", "--force-dirty")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["promote", "nope", "1", "--to", "staging"], 3, "registered models: digits"),
        (["promote", "digits", "7", "--to", "staging"], 3, "versions: 1"),
        (["promote", "digits", "nope", "--to", "staging"], 3, "aliases: none"),
        (["promote", "digits", "1", "--to", "nowhere"], 3, "staging, production"),
        (["rollback", "digits", "--env", "staging"], 3, "no alias 'staging'"),
        (["rollback", "--env", "staging"], 2, "MODEL is missing"),
        (["bridge", "once"], 2, "no repository"),
        (["rollback", "digits"], 2, "--env ENV"),
        (["rollback", "--from-git"], 2, "--from-git ENV"),
        (["rollback", "--from-git", "staging", "--env", "production"], 2, "differ"),
        (["rollback", "digits", "--from-git", "--env", "staging"], 2, "no MODEL"),
        (["rollback", "--from-git", "--env", "nowhere"], 3, "staging, production"),
        (["rollback", "--from-git", "--env", "staging"], 4, "no earlier release"),
        (["rollback", "--from-git", "--env", "staging", "--repo", "ext::sh"], 2, "is not a valid repository address"),
        (["release", "staging"], 3, "promote digits VERSION --to staging"),
        (["release", "nowhere"], 3, "staging, production"),
    ],
)
def test_what_is_wrong_and_what_to_do(
    run: Run, inside: Path, registry: Registry, register: Register, arguments: list[str], code: int, message: str
) -> None:
    register()
    exit_code, out, err = run(*arguments)
    assert (exit_code, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [["promote", "digits", "1"], ["promote", "digits"], ["bridge", "twice"], ["release"]],
)
def test_missing_arguments_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["promote", "digits", "1", "--to", "staging"],
        pytest.param(["rollback", "digits", "--env", "staging"], marks=pytest.mark.slow),
        pytest.param(["release", "staging"], marks=pytest.mark.slow),
    ],
)
def test_a_dead_registry_is_exit_code_5_within_seconds(
    run: Run, inside: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    began = time.monotonic()
    code, out, err = run(*arguments)
    assert (code, out) == (5, "")
    assert "http://127.0.0.1:9 does not answer" in err
    assert time.monotonic() - began < 20


def test_outside_of_a_service_without_an_address(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    code, _, err = run("promote", "digits", "1", "--to", "staging")
    assert code == 2
    assert "MLFLOW_TRACKING_URI" in err


def test_release_and_rollback_from_git(run: Run, inside: Path, remote: Path, registry: Registry, register: Register) -> None:
    for number in ("1", "2"):
        register()
        run("promote", "digits", number, "--to", "staging")
        code, out, _ = run("release", "staging")
        assert code == 0
    assert out == f"staging: digits 1 → digits 2  commit {git(inside, 'rev-parse', 'HEAD')[:12]}\n"
    assert run("release", "staging")[:2] == (0, "nothing to do: staging is released with digits 2 already\n")
    code, out, err = run("rollback", "--from-git", "--env", "staging", "--reason", "wrong answers", "--json")
    assert code == 0
    document = json.loads(out)
    assert document == {
        "environment": "staging",
        "before": "digits 2",
        "after": "digits 1",
        "hold": "wrong answers",
        "commit": git(remote, "rev-parse", "main"),
        "pushed": True,
        "request": None,
    }
    assert "mlops-build hold staging --remove" in err
    code, out, err = run("release", "staging")
    assert (code, out) == (4, "")
    assert "staging is held: wrong answers" in err
    assert "--despite-hold" in err
    assert run("release", "staging", "--despite-hold")[0] == 0


def test_rollback_from_git_needs_neither_mlflow_nor_a_checkout(
    run: Run, inside: Path, remote: Path, registry: Registry, register: Register, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in ("1", "2"):
        register()
        run("promote", "digits", number, "--to", "staging")
        run("bridge", "once", "--repo", f"file://{remote}")
    monkeypatch.chdir(tmp_path)
    script = (
        "import sys; from mlops_build.__main__ import main; code = main(sys.argv[1:]); assert 'mlflow' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "rollback", "--from-git", "--env", "staging", "--repo", f"file://{remote}"],
        env={**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"staging: digits 2 → digits 1  commit {git(remote, 'rev-parse', 'main')[:12]}\n"
    # MLflow is back: the alias still says 2, and the hold keeps 1.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)
    code, out, _ = run("bridge", "once", "--repo", f"file://{remote}")
    assert code == 0
    assert "staging  held  rolled back from Git to digits 1 (was digits 2)" in out


def test_bridge_prints_a_line_for_each_environment(
    run: Run, checkout: Path, registry: Registry, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register()
    run("promote", "digits", "1", "--to", "staging")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    repo, known = f"file://{checkout}.git", ("--tracking-uri", registry.uri)
    code, out, err = run("bridge", "once", "--repo", repo, "--dry-run", *known)
    assert code == 0
    assert err == "" or "kubectl is not installed, so its objects were not checked" in err
    assert out.splitlines() == [f"{repo} staging  would release  nothing → digits 1", f"{repo} production  nothing promoted yet"]
    code, out, err = run("bridge", "once", "--repo", repo, "--repo", "file:///nothing.git", "--json", *known)
    assert code == 5
    assert "file:///nothing.git: the Git remote cannot be used" in err
    outcomes = json.loads(out)["outcomes"]
    assert [outcome["state"] for outcome in outcomes] == ["released", "nothing promoted yet", "failed"]
    assert outcomes[2]["error"]["exit_code"] == 5


def test_a_password_in_an_address_is_refused_and_not_repeated(run: Run, registry: Registry) -> None:
    code, out, err = run("bridge", "once", "--repo", "https://bot:hunter2@git.example.com/x.git")
    assert code == 2
    assert "MLOPS_GIT_TOKEN" in err
    assert "hunter2" not in out + err


def test_the_commands_import_nothing_heavy_until_they_run() -> None:
    from mlops_build.cli import bridge, promote, release, rollback

    for module in (promote, rollback, release, bridge):
        module.add_arguments(argparse.ArgumentParser())
        assert module.EXAMPLE.startswith("  mlops-build ")
