"""`mlops-build scaffold`: what a service around somebody's script holds, what is left to do, and what is refused without a trace."""

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from mlops_build.__main__ import main
from mlops_build.errors import MlopsBuildError
from mlops_build.scaffold.existing import around, generated, script
from mlops_build.scaffold.existing.around import Made
from mlops_build.scaffold.existing.copied import copy
from mlops_build.scaffold.existing.imports import collect
from tests.conftest import git

TRAIN = """\
import argparse
import cv2
import numpy as np
import nobody_knows_this
import torch
from torchish import nothing
import layers.conv
from net import Net

p = argparse.ArgumentParser()
p.add_argument("--rows", required=True)
p.add_argument("--epochs", type=int, default=3)
p.add_argument("--depth", type=int, required=True)
args = p.parse_args()
print(open("labels.txt").read(), np.load("rows/first.npy"))
model = Net(args.epochs, wide=args.depth)
torch.save(model, "model.pt")
open(f"{args.rows}-log.txt", "w").write("x")
"""
WORK = {
    "train.py": TRAIN,
    "net.py": "import yaml\nfrom torch import nn\nclass Net(nn.Module):\n    pass\n",
    "layers/conv.py": "import mlflow\nmlflow.set_tracking_uri('http://elsewhere')\nHERE = __file__\n",
    "labels.txt": "a\nb\n",
    "rows/first.npy": "1",
    "rows/more/second.npy": "2",
}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return written(tmp_path / "work", WORK)


def written(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def make(
    template: Path, destination: Path, script: Path, *data: Path | str, answers: Mapping[str, object] | None = None, **more: Any
) -> Made:
    return around.scaffold(
        destination, script, [str(one) for one in data], answers or {}, template=str(template), say=lambda _: None, **more
    )


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything in a folder: its time and content."""
    return {
        path.relative_to(folder).as_posix(): (
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in folder.rglob("*")
    }


def test_everything_that_is_known_is_filled_in_and_the_rest_is_listed_with_its_line(
    template: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(work)
    ran: list[str] = []
    monkeypatch.setattr(sys, "path", [str(work), *sys.path])
    sys.addaudithook(lambda event, details: ran.append(str(details)) if event == "exec" and str(work) in str(details) else None)
    made = make(template, tmp_path / "reader", work / "train.py", work / "rows", answers={"team": "vision"})
    assert tree(work) == before
    assert ran == []  # nothing of theirs was run or imported
    root = tmp_path / "reader"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reader", "work"]

    # The data, with everything in it, under DVC; what leads to it is changed, and nothing else but imports.
    assert (root / "data/rows/more/second.npy").read_text() == "2"
    assert YAML(typ="safe").load((root / "data/rows.dvc").read_text())["outs"][0]["path"] == "rows"
    changed = [line for one in made.copied for line in one.diff.splitlines() if re.match(r"\+[^+]", line)]
    assert changed == [
        "+import reader.layers.conv",
        "+from reader import layers",
        "+from reader.net import Net",
        '+print(open("labels.txt").read(), np.load("data/rows/first.npy"))',
    ]

    pipeline = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]
    words = "python -m mlops_build.training.script model.pt -m reader.train --rows data/rows ${train}"
    assert made.command == pipeline["train"]["cmd"] == words
    assert pipeline["train"]["deps"] == ["data/rows", "src/reader/layers/conv.py", "src/reader/net.py", "src/reader/train.py"]
    assert pipeline["train"]["outs"] == ["model.pt"]
    assert pipeline["model"]["outs"] == ["models/reader"]
    params = YAML(typ="safe").load((root / "params.yaml").read_text())
    assert params == {"seed": generated.SEED, "train": {"epochs": 3}, "evaluate": {"thresholds": {"accuracy": {"min": 0.9}}}}
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert [line.partition(">")[0] for line in project["dependencies"]] == ["pyyaml", "numpy", "pandas", "torch"]
    assert "opencv-python-headless" in project["optional-dependencies"]["train"]
    assert "vision" in (root / "service.yaml").read_text()
    assert "/model.pt" in (root / ".gitignore").read_text().splitlines()

    # The list: each with a file that is there and the line that it speaks of.
    for one in made.left:
        lines = (root / one.file).read_text().splitlines()
        assert 1 <= one.line <= len(lines)
    said = {f"{one.file}:{one.line}": one.what for one in made.left}
    here = {place: what for place, what in said.items() if place.startswith("src/reader/train.py")}
    assert "imports nobody_knows_this" in here["src/reader/train.py:4"]
    assert "imports torchish" in here["src/reader/train.py:6"]
    assert "reads labels.txt" in here["src/reader/train.py:16"]  # 15 in the original: an import became two lines
    assert "does not appear to save a state_dict" in here["src/reader/train.py:18"]
    assert "writes a file with a path that is not known" in here["src/reader/train.py:19"]
    assert "requires --depth" in said["dvc.yaml:4"]
    assert "set_tracking_uri" in said["src/reader/layers/conv.py:2"]
    assert "__file__" in said["src/reader/layers/conv.py:3"]
    network = next(one for one in made.left if "create the network" in one.what)
    assert network.example == "from reader.net import Net\n\nself.network = Net(3, wide=args.depth)"
    todo = (root / "TODO.md").read_text()
    assert all(f"{one.number}. [ ] `{one.file}:{one.line}`" in todo for one in made.left)

    # A repository without a commit; the example of the template is gone, and what took its place parses.
    assert git(root, "status", "--porcelain", "--branch").splitlines()[0] == "## No commits yet on main"
    assert "data/rows/first.npy" not in git(root, "ls-files", "--others", "--exclude-standard")
    assert {path.name for path in (root / "src/reader").glob("*.py")} == {
        "__init__.py",
        "log_model.py",
        "net.py",
        "predictor.py",
        "train.py",
    }
    for path in root.rglob("*.py"):
        ast.parse(path.read_text())
    assert not list(root.rglob("*arcs*"))
    assert "CHANGE 1/4" not in "".join(path.read_text() for path in root.rglob("*.md"))
    assert "data fetch" not in (root / "Makefile").read_text()
    assert_clean(root)


def assert_clean(service: Path) -> None:
    """The generated modules pass ruff before the first edit."""
    for check in (["check"], ["format", "--check"]):
        command = [
            sys.executable,
            "-m",
            "ruff",
            *check,
            "tests",
            *service.glob("src/*/*predictor.py"),
            *service.glob("src/*/*log_model.py"),
        ]
        done = subprocess.run(command, cwd=service, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout


def test_modules_with_the_names_of_ours_keep_theirs(template: Path, tmp_path: Path) -> None:
    files = {"train.py": "import predictor, log_model, data\n", "predictor.py": "A = 1\n", "log_model.py": "", "data.py": "B = 1\n"}
    work = written(tmp_path / "work", files)
    made = make(template, tmp_path / "names", work / "train.py")
    source = tmp_path / "names/src/names"
    assert (source / "predictor.py").read_text() == "A = 1\n"
    assert (source / "data.py").read_text() == "B = 1\n"
    assert "from names.service_predictor import MODEL" in (source / "service_log_model.py").read_text()
    assert any("no data was given" in one.what for one in made.left)


def test_a_script_that_runs_at_its_top_is_told_where_serving_would_import_it(template: Path, tmp_path: Path) -> None:
    start = "import torch\nclass Net(torch.nn.Module):\n    pass\n"
    work = written(tmp_path / "work", {"my-train.py": start + "net = Net()\nprint(net)\ntorch.save(net.state_dict(), 'm.pt')\n"})
    made = make(template, tmp_path / "flat", work / "my-train.py")
    assert made.command == "python -m mlops_build.training.script m.pt -m flat.my_train"
    assert any("which runs the training" in one.what and one.file == "src/flat/my_train.py" for one in made.left)
    assert "self.network = Net()" in (tmp_path / "flat/src/flat/predictor.py").read_text()
    (work / "my-train.py").write_text(start + "if __name__ == '__main__':\n    net = Net()\n    torch.save(net.state_dict(), 'm.pt')\n")
    made = make(template, tmp_path / "guarded", work / "my-train.py")
    assert not any("which runs the training" in one.what for one in made.left)


@pytest.mark.parametrize(
    ("start", "encoding", "line_end"),
    [("# -*- coding: latin-1 -*-\n", "latin-1", "\n"), ("", "utf-8-sig", "\r\n"), ("", "utf-8", "\r\n")],
)
def test_a_changed_file_keeps_its_encoding_and_line_ends(tmp_path: Path, start: str, encoding: str, line_end: str) -> None:
    text = f"{start}# Zoë\nfrom net import Net\nprint('é')\n"
    work = written(tmp_path / "work", {"net.py": "Net = 1\n"})
    (work / "train.py").write_bytes(text.replace("\n", line_end).encode(encoding))
    modules = collect(script.read(work / "train.py"))
    done = copy(modules, [], tmp_path / "service", "reader")
    made = (tmp_path / "service/src/reader/train.py").read_bytes()
    assert made == text.replace("\n", line_end).replace("from net", "from reader.net").encode(encoding)
    assert done[work / "train.py"].changed_lines == 1
    compile(made, "train.py", "exec")


CHECKPOINT = """\
import argparse, os, torch
from net import Net
parser = argparse.ArgumentParser()
parser.add_argument("--wide", type=int, default=8)
parser.add_argument("--save-model", action="store_true")
args = parser.parse_args()
os.environ["CUDA_VISIBLE_DEVICES"] = "1"
device = torch.device("cuda:0")
def save(net, optimizer):
    state = {"epoch": 3, "optimizer": optimizer.state_dict(), "net": net.module.state_dict()}
    if args.save_model:
        torch.save(state, "best.pt")
    torch.save(state, "../elsewhere/last.pt")
def main():
    net = Net(args.wide, deep=True, name="a").to(device)
    state = torch.load("old.pt")
    save(net, None)
if __name__ == "__main__":
    main()
"""


def test_a_checkpoint_is_opened_by_its_key_and_what_chooses_a_card_is_told(template: Path, work: Path, tmp_path: Path) -> None:
    (work / "train.py").write_text(CHECKPOINT)
    made = make(template, tmp_path / "reader", work / "train.py", work / "rows")
    assert made.command == "python -m mlops_build.training.script best.pt -m reader.train ${train}"
    params = YAML(typ="safe").load((tmp_path / "reader/params.yaml").read_text())
    assert params["train"] == {"wide": 8, "save-model": True}  # without it nothing would be saved
    predictor = (tmp_path / "reader/src/reader/predictor.py").read_text()
    assert 'self.network = Net(8, deep=True, name="a")' in predictor
    assert 'self.network.load_state_dict(weights["net"])' in predictor
    said = {(one.line, one.what.partition(":")[0]) for one in made.left if one.file.endswith("/train.py")}
    assert {
        (7, "selects a GPU, which mlops-build does"),
        (8, "selects a GPU"),
        (13, "writes outside the service"),
    } <= said
    assert not any(what == "is a path outside the service" for _, what in said)


SAVING = """\
import torch
from net import Net
net = Net()
torch.save(net.state_dict(), "out/net.pt")
json.dump(vocab, open("out/vocab.json", "w"))
json.dump(vocab, open(f"{when}.json", "w"))
pickle.dump(scaler, open("out/scaler.pkl", "wb"))
json.dump(things, open("out/things.json", "w"))
json.dump(metrics, open("out/metrics.json", "w"))
"""


def test_files_that_serving_reads_are_given_to_the_model(template: Path, work: Path, tmp_path: Path) -> None:
    (work / "train.py").write_text(SAVING)
    made = make(template, tmp_path / "reader", work / "train.py", work / "rows")
    root = tmp_path / "reader"
    assert 'ARTIFACTS = {\n    "vocab": Path("out/vocab.json"),\n}\n' in (root / "src/reader/predictor.py").read_text()
    logger = (root / "src/reader/log_model.py").read_text()
    assert "training.log_model(Predictor, weights=WEIGHTS, artifacts=ARTIFACTS, example=example(), folder=MODEL)" in logger
    stages = YAML(typ="safe").load((root / "dvc.yaml").read_text())["stages"]
    assert "out/vocab.json" in stages["train"]["outs"]
    assert "out/vocab.json" in stages["model"]["deps"]
    (example,) = [one.example for one in made.left if "out/vocab.json, which is part of the model" in one.what]
    assert "self.vocab = json.loads(" in example
    said = {one.line: one.what for one in made.left if one.file == "src/reader/train.py"}
    assert "if serving reads it, also pass it to log_model" in said[6]
    assert "saves a pickle, out/scaler.pkl" in said[7]
    assert "saves out/things.json: if serving reads it" in said[8]
    assert 9 not in said
    assert_clean(root)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["full", "--from", "work/train.py"], 4, "full is not empty"),
        (["file", "--from", "work/train.py"], 4, "file is not empty"),
        (["a/b", "--from", "work/train.py"], 3, "mkdir --parents"),
        (["n" * 300, "--from", "work/train.py"], 1, "choose a folder with a shorter name"),
        (["new", "--from", "work/none.py"], 3, "none.py does not exist"),
        (["new", "--from", "work/labels.txt"], 2, "not a Python file"),
        (["new", "--from", "work/train.py", "--data", "work/none"], 3, "the data work/none does not exist"),
        (["new", "--from", "work/train.py", "--data", "work"], 2, "contains the script itself"),
        (["new", "--from", "work/train.py", "--data", "gs://bucket/x"], 2, "is not a valid address of data"),
        (["new", "--from", "work/train.py", "--data", "s3://b;id/x"], 2, "is not a valid address of data"),
        (["new", "--from", "work/train.py", "--data", "work/rows", "--data", "other/rows"], 2, "would both become data/rows"),
        (["new", "--from", "work/train.py", "--answer", "team"], 2, "there is no ="),
        (["new", "--from", "work/train.py", "--answer", "gpu=some"], 4, "gpu"),
        (["new", "--from", "work/train.py", "--answer", "nobody=asks"], 4, "nobody"),
        (["new", "--from", "work/train.py", "--answer", "example=image"], 2, "remove this answer"),
        (["1-2", "--from", "work/train.py", "--answer", "project_name=1-2"], 4, "project_name"),
        (["new", "--from", "work/train.py", "--version", "9.9.9"], 3, "9.9.9"),
        (["new", "--from", "work/train.py", "--data", "unreadable"], 1, "cannot be copied"),
    ],
)
def test_a_refusal_says_why_and_leaves_nothing_behind(
    template: Path, work: Path, tmp_path: Path, arguments: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    written(tmp_path, {"full/mine": "", "file": "", "other/rows": "x", "unreadable/a": ""})
    (tmp_path / "unreadable/link").symlink_to(tmp_path / "gone")
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["scaffold", *arguments, "--template", str(template)]) == code
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.out == ""
    assert "Traceback" not in printed.err
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["прогноз", "123model", "v2.1", "my_service.v2", "json", "x" * 41, "n" * 255, "MLOps_Build"])
def test_a_folder_whose_name_is_not_valid_for_a_service_is_refused_with_a_name_that_is(
    template: Path, work: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["scaffold", name, "--from", "work/train.py", "--template", str(template)]
    assert main(command) == 4
    printed = capsys.readouterr().err
    assert f"{name!r} is not a valid name" in printed
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    (suggested,) = re.findall(r"--answer (project_name=\S+)", printed)
    assert main([*command, "--answer", suggested]) == 0
    document = YAML(typ="safe").load((tmp_path / name / "service.yaml").read_text())
    assert document["name"] == suggested.partition("=")[2]


def test_the_printed_commands_work_in_a_folder_with_a_space(
    template: Path, work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["scaffold", "My Service", "--from", "work/train.py", "--template", str(template)]) == 0
    enter, commit, train = (line.strip() for line in capsys.readouterr().out.splitlines()[-3:])
    assert (enter.split()[0], train) == ("cd", "mlops-build train")
    subprocess.run(["sh", "-euc", f"{enter}\n{commit}"], cwd="/", capture_output=True, check=True)
    assert git(tmp_path / "My Service", "status", "--porcelain") == ""
    assert git(tmp_path / "My Service", "log", "--format=%s") == "Generate the service from the script"


def test_a_failure_in_the_middle_leaves_nothing_behind(template: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mlops_build.adapters.dvc.add", full)
    with pytest.raises(MlopsBuildError, match="No space left on device"):
        make(template, tmp_path / "new", work / "train.py", work / "rows")
    assert [path.name for path in tmp_path.iterdir()] == ["work"]


def test_an_empty_folder_will_do_and_json_has_all_of_it(
    template: Path, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    monkeypatch.setenv("MLOPS_BUILD_TEMPLATE", str(template))
    assert main(["scaffold", ".", "--from", "../work/train.py", "--data", "../work/rows", "--json"]) == 0
    assert Path("service.yaml").is_file()  # where one stands
    document = json.loads(capsys.readouterr().out)
    assert Path(document["service"]).resolve() == (tmp_path / "new").resolve()
    assert document["data"] == [{"from": str(work / "rows"), "path": "data/rows", "by_reference": False}]
    assert {"number", "file", "line", "what", "needed", "example"} == set(document["left"][0])
    assert document["files"][0]["path"] == "src/new/train.py"
    assert os.access(tmp_path / "new/.git", os.R_OK)
