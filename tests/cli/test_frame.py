"""The frame of the command line: help, versions, exit codes, --json, start-up imports, completion."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_build import __version__
from mlops_build.__main__ import main
from mlops_build.cli.table import COMMANDS

HEAVY = {"mlflow", "torch", "dvc", "copier", "pydantic", "yaml", "ruamel", "jinja2", "numpy", "pandas"}


def cli(*arguments: str, cwd: Path | None = None, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mlops_build", *arguments]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False)


def test_help_imports_nothing_heavy() -> None:
    """One process for all commands: no help may import what another one needs."""
    script = f"""
import sys
from mlops_build.__main__ import main
for arguments in {[["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]!r}:
    try:
        main(arguments)
    except SystemExit as end:
        assert not end.code, (arguments, end.code)
    assert not {HEAVY!r} & set(sys.modules), arguments
"""
    subprocess.run([sys.executable, "-c", script], stdout=subprocess.DEVNULL, timeout=60, check=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main([name, "--help"])
    printed = capsys.readouterr().out
    assert f"example:\n  mlops-build {name}" in printed
    assert "--json" in printed


def test_version() -> None:
    assert cli("--version").stdout == f"mlops-build {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["nope"], ["train", "--nope"], ["promote"]])
def test_bad_usage_is_exit_code_2(arguments: list[str]) -> None:
    done = cli(*arguments)
    assert done.returncode == 2
    assert "usage: mlops-build" in done.stderr
    assert done.stdout == ""


def test_an_unknown_command_is_answered_with_the_known_ones() -> None:
    assert "promote" in cli("promot").stderr


def test_a_foreseen_error_is_no_traceback(tmp_path: Path) -> None:
    done = cli("train", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("mlops-build train: no service.yaml in")
    assert "copier copy" in done.stderr
    assert "Traceback" not in done.stderr


def test_json_prints_one_document_after_an_error(tmp_path: Path) -> None:
    done = cli("train", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"]) == (3, 3)
    assert document["error"].startswith("no service.yaml in")
    assert "copier copy" in document["remedy"]
    assert document["error"] in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["gpu", "run", "--json", "--memory", "4GiB", "--strategy", "x", "--", "true"],
        ["gpu", "pick", "--count", "0", "--json"],
        ["gpu", "release", "--json"],
        ["train", "--json", "--nope"],
    ],
)
def test_json_prints_one_document_after_a_usage_error(arguments: list[str]) -> None:
    done = cli(*arguments)
    document = json.loads(done.stdout)
    assert (done.returncode, document["exit_code"]) == (2, 2)
    assert document["error"] in done.stderr
    assert document["remedy"] == f"mlops-build {' '.join(arguments[: arguments.index('--json')][:2])} --help"
    assert done.stderr.startswith("usage: mlops-build")


def test_an_option_of_the_program_is_not_ours() -> None:
    done = cli("gpu", "run", "--strategy", "x", "--", "program", "--json")
    assert (done.returncode, done.stdout) == (2, "")


def test_windows_is_refused_clearly(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert main(["doctor"]) == 1
    assert "WSL" in capsys.readouterr().err


def test_doctor_says_what_is_there_and_what_is_wrong(tmp_path: Path) -> None:
    done = cli("doctor", "--json", cwd=tmp_path)
    document = json.loads(done.stdout)
    assert {check["name"] for check in document["checks"]} >= {"system", "extras", "git", "disk", "gpu"}
    assert done.returncode == (4 if document["findings"] else 0)
    (tmp_path / "service.yaml").write_text("schema: 1\nnme: x\n")
    broken = cli("doctor", "--json", cwd=tmp_path)
    assert broken.returncode == 4
    findings = {finding["rule"]: finding for finding in json.loads(broken.stdout)["findings"]}
    assert "did you mean 'name'?" in findings["service-yaml"]["why"]
    assert all(finding["remedy"] for finding in findings.values())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_a_script_that_its_shell_accepts(shell: str) -> None:
    script = cli("completion", shell).stdout
    assert "promote" in script
    assert "force-dirty" in script
    program = shutil.which(shell)
    if program:
        subprocess.run([program, "-n"], input=script, text=True, check=True, timeout=20)


def test_bash_completes_commands_and_options() -> None:
    script = cli("completion", "bash").stdout
    program = f'{script}\nCOMP_WORDS=(mlops-build train --f); COMP_CWORD=2; _mlops_build; echo "${{COMPREPLY[@]}}"\n'
    program += 'COMP_WORDS=(mlops-build pro); COMP_CWORD=1; _mlops_build; echo "${COMPREPLY[@]}"\n'
    done = subprocess.run(["bash"], input=program, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.splitlines() == ["--force", "promote"]


def test_bash_completes_subcommands_and_their_options() -> None:
    script = cli("completion", "bash").stdout
    for words, cursor in (
        ("mlops-build ci d", 2),
        ("mlops-build ci deploy --time", 3),
        ("mlops-build gpu pick --mem", 3),
        ("mlops-build ci deploy", 2),
    ):
        script += f'\nCOMP_WORDS=({words}); COMP_CWORD={cursor}; _mlops_build; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout.splitlines() == ["deploy", "--timeout", "--memory", "deploy"]
