"""The tasks of a generated service: their texts, and examples that can be pasted."""

import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from mlops_build.scaffold.existing import around
from mlops_build.scaffold.existing.around import Made


def make(template: Path, folder: Path, code: str, *data: Path) -> Made:
    (folder / "train.py").write_text(code)
    return around.scaffold(
        folder / "service", folder / "train.py", [str(path) for path in data], {}, template=str(template), say=lambda _: None
    )


def test_the_ruff_commands_format_code_that_ruff_cannot_fix(template: Path, tmp_path: Path) -> None:
    made = make(template, tmp_path, "import torch\nnames = open('names.txt', 'w')\nprint( names,torch )\n")
    (command,) = [item.example.removeprefix("$ ") for item in made.left if "passes ruff" in item.what]
    done = subprocess.run(
        ["sh", "-c", f"{command}\nruff format --check src"],
        cwd=tmp_path / "service",
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "SIM115" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("code", "place"),
    [
        ("import torch\ntorch.manual_seed(0)\n", "src/service/train.py:2"),
        ("import torch\nSEED = 7\ntorch.manual_seed(SEED)\n", "src/service/train.py:3"),
        ("p.add_argument('--seed', type=int, default=1)\ntorch.manual_seed(args.seed)\nsplit = torch.Generator().manual_seed(0)\n", None),
        ("def set_seed(seed):\n    torch.manual_seed(seed)\nset_seed(seed=3)\n", "src/service/train.py:3"),
        ("import torch\n", None),
    ],
)
def test_a_fixed_seed_is_listed(template: Path, tmp_path: Path, code: str, place: str | None) -> None:
    made = make(template, tmp_path, code)
    fixed = [f"{item.file}:{item.line}" for item in made.left if "the seed in params.yaml has no effect" in item.what]
    assert fixed == ([place] if place else [])
    assert any("sets no seed" in item.what for item in made.left) is ("seed" not in code)


def pasted(code: str, parameters: str, **names: Any) -> Any:
    """A function with an example as its body."""
    names |= {"pd": pd, "torch": torch, "device": lambda: "cpu"}
    exec(f"def pasted({parameters}):\n{textwrap.indent(code, '    ')}", names)  # noqa: S102  (code that a user pastes)
    return names["pasted"]


def test_the_examples_can_be_pasted(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame({"x": [0.0, 1.0, 2.0] * 3, "y": 0.0, "target": [0, 1, 1] * 3})
    table.to_csv(tmp_path / "table.csv", index=False)
    made = make(template, tmp_path, "import torch\n", tmp_path / "table.csv")
    monkeypatch.chdir(tmp_path / "service")
    rows, answer, measure = (
        item.example for item in made.left if item.file.endswith(("predictor.py", "log_model.py")) and "network" not in item.what
    )
    assert list(pasted(rows, "")().columns) == ["x", "y"]
    service = SimpleNamespace(network=torch.nn.Linear(2, 3))
    regression = ["\n".join(line for line in code.splitlines() if "label" not in line) for code in (answer, measure)]
    for codes, outputs, metric in (((answer, measure), 3, "accuracy"), (regression, 1, "mean_absolute_error")):
        service = SimpleNamespace(network=torch.nn.Linear(2, outputs))
        predict = pasted(codes[0], "self, model_input")
        model = SimpleNamespace(predict=partial(predict, service))
        assert set(pasted(codes[1], "model")(model)) == {metric}


def test_the_example_for_a_pickled_scaler_saves_an_artifact(template: Path, tmp_path: Path) -> None:
    saved = "import joblib, torch\ntorch.save(net.state_dict(), 'out/net.pt')\n"
    made = make(template, tmp_path, f"{saved}joblib.dump(scaler, 'out/scaler.joblib')\n")
    (example,) = [item.example for item in made.left if "saves a pickle" in item.what]
    assert example == 'np.savez("out/scaler.npz", mean=scaler.mean_, scale=scaler.scale_)'
    again = tmp_path / "again"
    again.mkdir()
    make(template, again, f"{saved}import numpy as np\n{example}\n")
    assert '"scaler": Path("out/scaler.npz")' in (again / "service/src/service/predictor.py").read_text()
