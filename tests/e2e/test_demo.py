"""The script of `make demo`: the whole pipeline in the folder of an earlier demo, and the folders that it refuses."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STEPS = ["scaffold", "track data", "train", "promote", "bridge", "package", "serve", "second version", "promote it", "roll back"]


def demo(folder: Path, *, repository: Path = ROOT) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = [sys.executable, str(repository / "scripts/demo.py"), str(folder)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)


def processes(folder: Path) -> list[str]:
    """The command lines of running processes that name a folder."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in line and entry.parent.name != str(os.getpid()):
            lines.append(line)
    return lines


@pytest.mark.soak  # `.ci/run` runs the demo in a new folder
def test_the_demo_works_in_the_folder_of_an_earlier_one_and_ends_its_processes(tmp_path: Path) -> None:
    """`.ci/run` runs it in a new folder; here the folder has files of an unfinished demo."""
    folder = tmp_path / "demo"
    (folder / ".git").mkdir(parents=True)
    (folder / ".mlops-demo").touch()
    (folder / "service.yaml").write_text("left by an earlier demo\n")
    done = demo(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((folder / "demo-report.json").read_text())
    assert [step["name"] for step in report["steps"]] == STEPS
    assert all(step["ok"] for step in report["steps"])
    assert report["model_uri"] == "models:/digits/2"
    assert report["metrics"]["accuracy"] > 0.93
    assert [row["label"] for row in report["prediction"]] == [0, 1, 2]
    assert report["lineage"]["code"]["dirty"] is False
    assert "Everything worked" in done.stdout
    assert processes(folder) == []


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    done = demo(tmp_path)
    assert done.returncode == 4
    assert "not empty" in done.stderr
    assert "DEMO_DIR=" in done.stderr
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository with the script alone."""
    (tmp_path / "clone/scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/demo.py", tmp_path / "clone/scripts")
    return tmp_path / "clone"


def test_a_folder_inside_the_repository_must_be_ignored(clone: Path) -> None:
    (clone / ".gitignore").write_text("/demo-service/\n")
    subprocess.run(["git", "init", "--quiet", str(clone)], check=True)
    done = demo(clone / "elsewhere", repository=clone)
    assert done.returncode == 4
    assert "not ignored by Git" in done.stderr
    assert "/elsewhere/ to .gitignore" in done.stderr
    assert not (clone / "elsewhere").exists()


def test_a_failing_step_is_named_and_ends_the_demo(clone: Path, tmp_path: Path) -> None:
    """There is no template, so there is no data."""
    done = demo(tmp_path / "demo", repository=clone)
    assert done.returncode == 1
    assert "FAILED at track data" in done.stdout
    report = json.loads((tmp_path / "demo/demo-report.json").read_text())
    assert report["steps"][-1]["ok"] is False
