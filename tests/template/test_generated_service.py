"""A service made from the template does what it promises, before anybody has edited it: its own checks, data, training, measuring."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import GIT_CONFIG, PERSON

EXAMPLES = ["image", "tabular", "text", "none"]
RAW = {"image": "digits.csv", "tabular": "breast_cancer.csv", "text": "phrases.csv", "none": "arcs.csv"}


def environment(root: Path) -> dict[str, str]:
    """As on a laptop where nothing is configured; Git knows who commits."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "DVC_", "AWS_", "GIT_", "MLOPS_"))}
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DVC_NO_ANALYTICS": "1", "GIT_CONFIG_GLOBAL": GIT_CONFIG}
    return {**kept, **PERSON, **quiet, "PYTHONPATH": str(root / "src"), "PYTHONWARNINGS": "ignore"}


def run(root: Path, *command: str, expect: int = 0) -> str:
    """The command's output, stdout and stderr together."""
    done = subprocess.run(
        command, cwd=root, env=environment(root), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300, check=False
    )
    assert done.returncode == expect, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def python(root: Path, *arguments: str, expect: int = 0) -> str:
    return run(root, sys.executable, *arguments, expect=expect)


def package(root: Path) -> str:
    return next((root / "src").iterdir()).name


@pytest.mark.parametrize(
    "example",
    [
        "none",
        pytest.param("image", marks=pytest.mark.slow),
        *(pytest.param(example, marks=pytest.mark.soak) for example in ("tabular", "text")),
    ],
)
def test_its_own_lint_and_tests_are_green_at_once(service: Any, example: str) -> None:
    root = service(example=example)
    output = run(root, "make", "lint", "test", f"VENV={Path(sys.executable).parents[1]}")
    assert "All checks passed!" in output
    assert " passed" in output
    assert "skipped" not in output
    assert not (root / ".venv").exists(), "an environment that was given is used as it is"


# `none` is trained twice in tests/training; `tabular` differs from it in its data.
@pytest.mark.parametrize(
    "example", ["image", pytest.param("text", marks=pytest.mark.slow), pytest.param("tabular", marks=pytest.mark.slow)]
)
def test_it_trains_the_same_bits_twice_and_meets_its_thresholds(service: Any, example: str) -> None:
    root = service(example=example)
    name = package(root)
    python(root, "-m", f"{name}.data", "fetch")
    python(root, "-m", f"{name}.data", "prepare")
    python(root, "-m", f"{name}.train")
    first = (root / "models" / "weights.pt").read_bytes()
    shutil.rmtree(root / "models")
    # In another process; one for both stages, since it spends its time on imports.
    python(root, "-c", f"from {name} import evaluate, train; train.main(); evaluate.main()")
    assert (root / "models" / "weights.pt").read_bytes() == first

    metrics = json.loads((root / "metrics.json").read_text())
    thresholds = YAML(typ="safe").load((root / "params.yaml").read_text())["evaluate"]["thresholds"]
    # Comfortably, so that another CPU's rounding does not close the gate.
    assert set(metrics) == {"accuracy", "worst_recall"}
    assert metrics["accuracy"] >= thresholds["accuracy"]["min"] + 0.01
    history = (root / "reports" / "history.csv").read_text().splitlines()
    assert history[0] == "epoch,train_loss,validation_loss,validation_accuracy"
    assert len(history) > 10
    assert (root / "reports" / "confusion.csv").read_text().startswith("actual,predicted\n")
    assert logged(root) == {"learning_curve.png", "confusion_matrix.png", "metrics per epoch", "parameters", "test metrics"}

    recorded = json.loads((root / "models" / name / "examples" / "recorded.json").read_text())
    columns = recorded["input"]["dataframe_split"]["columns"]
    assert len(columns) == 30 if example == "tabular" else columns == [example]
    assert [set(answer) for answer in recorded["predictions"]] == [{"label", "probability"}] * 3


def logged(root: Path) -> set[str]:
    """What the last run holds in MLflow."""
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    (experiment,) = [found for found in client.search_experiments() if found.name == "digits"]
    last = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])[0]
    found = {item.path for item in client.list_artifacts(last.info.run_id)} & {"learning_curve.png", "confusion_matrix.png"}
    if len(client.get_metric_history(last.info.run_id, "validation_loss")) == int(last.data.params["train.epochs"]):
        found.add("metrics per epoch")
    if {"seed", "prepare.test_share", "train.learning_rate"} <= set(last.data.params):
        found.add("parameters")
    if {"accuracy", "worst_recall"} <= set(last.data.metrics):
        found.add("test metrics")
    return found


@pytest.mark.parametrize("example", EXAMPLES)
def test_wrong_data_stops_the_pipeline_with_file_row_and_column(service: Any, example: str) -> None:
    root = service(example=example)
    name, file = package(root), root / "data" / "raw" / RAW[example]
    python(root, "-m", f"{name}.data", "fetch")
    with file.open(newline="") as text:
        header, *rows = csv.reader(text)
    place_of_column = 0 if example == "text" else 1
    column, expected = header[place_of_column], "text of 1 to 200 characters" if example == "text" else "a number from "

    def refusal(lines: list[list[str]]) -> str:
        with file.open("w", newline="") as text:
            csv.writer(text).writerows(lines)
        output = python(root, "-m", f"{name}.data", "prepare", expect=1)
        assert "Traceback" not in output
        assert not (root / "data" / "prepared").exists()
        return output.strip()

    def with_cell(value: str) -> list[list[str]]:
        cells = list(rows[4])
        cells[place_of_column] = value
        return [header, *rows[:4], cells, *rows[5:]]

    place = f"error: data/raw/{RAW[example]}: row"
    dropped = [[*line[:place_of_column], *line[place_of_column + 1 :]] for line in [header, *rows]]
    assert refusal(dropped).startswith(f"{place} 1, column '{column}': expected a column of this name")
    for value in ("", " ") if example == "text" else ("NaN", "", "99999"):
        message = refusal(with_cell(value))
        assert message.startswith(f"{place} 6, column '{column}': expected {expected}")
        assert message.endswith(f"got '{value}'")
    file.unlink()
    assert "is missing: run `make data`" in python(root, "-m", f"{name}.data", "prepare", expect=1)
    assert "usage: python -m" in python(root, "-m", f"{name}.data", "everything", expect=1)


def test_make_data_puts_the_data_under_dvc_and_nothing_of_it_into_git(service: Any) -> None:
    root = service(example="none")
    run(root, "git", "init", "--quiet", "--initial-branch=main")
    run(root, "git", "add", "--all")
    run(root, "git", "commit", "--quiet", "--message=Start")
    run(root, "make", "data", f"VENV={sys.prefix}")
    assert run(root, "git", "status", "--porcelain", "--untracked-files=all").split() == ["??", "data/raw.dvc"]
    # DVC reads the pipeline and knows what it makes.
    stages = python(root, "-m", "dvc", "stage", "list")
    assert [line.split()[0] for line in stages.splitlines()] == ["prepare", "train", "evaluate"]
    assert "models/digits" in stages
    assert "data/prepared" in stages
    for ignored in (
        "data/prepared/train.csv",
        "models/digits/MLmodel",
        "models/weights.pt",
        "mlflow.db",
        "dvc-remote/files",
        ".dvc/cache/x",
        ".dvc/tmp/x",
    ):
        run(root, "git", "check-ignore", ignored)
    for tracked in ("dvc.lock", "metrics.json", "reports/history.csv", "data/raw.dvc", "requirements.lock"):
        run(root, "git", "check-ignore", tracked, expect=1)


def test_the_wrapper_calls_the_mlops_build_it_is_given(service: Any, tmp_path: Path) -> None:
    root = service(example="none")
    given = tmp_path / "given"
    given.write_text('#!/bin/sh\npwd\nprintf "<%s>" "$@"\nexit 4\n')
    given.chmod(0o755)
    done = subprocess.run(
        [root / "ci" / "mlops-build", "ci", "deploy", "a b"],
        cwd=tmp_path,
        env={**environment(root), "MLOPS_BUILD": str(given)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (4, f"{root}\n<ci><deploy><a b>")
    assert not (root / ".venv").exists()


def test_a_bare_agent_installs_once_and_keeps_stdout_clean(service: Any, tmp_path: Path) -> None:
    """ci/install stands in here for the network; what it does itself is tried by hand (docs/explanation/installing.md)."""
    root = service(example="none")
    (root / "ci" / "install").write_text(
        '#!/bin/sh\nset -eu\necho installing\n[ "${1:-}" != lock ] || { touch requirements.lock; exit; }\n'
        "mkdir -p .venv/bin && printf '#!/bin/sh\\necho \"{}\"\\n' > .venv/bin/mlops-build && chmod +x .venv/bin/mlops-build\n"
    )
    outputs = []
    for _ in range(2):
        done = subprocess.run(
            ["ci/mlops-build", "doctor", "--json"], cwd=root, env=environment(root), capture_output=True, text=True, check=True
        )
        assert done.stdout == "{}\n"
        outputs.append(done.stderr.count("installing"))
    assert outputs == [2, 0]  # the lock, then the environment; then nothing
