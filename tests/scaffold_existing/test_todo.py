"""The tasks of a generated service: their texts, and examples that can be pasted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
        ("import torch\np.add_argument('--seed', type=int, default=1)\ntorch.manual_seed(args.seed)\n", None),
        ("p.add_argument('--seed', type=int, default=1)\ntorch.manual_seed(args.seed)\nsplit = torch.Generator().manual_seed(0)\n", None),
        ("def set_seed(seed):\n    torch.manual_seed(seed)\nset_seed(seed=3)\n", "src/service/train.py:3"),
        ("def set_seed(seed):\n    torch.manual_seed(seed)\nset_seed(args.seed)\n", None),
        ("import torch\n", None),
    ],
)
def test_a_fixed_seed_is_listed(template: Path, tmp_path: Path, code: str, place: str | None) -> None:
    made = make(template, tmp_path, code)
    fixed = [f"{item.file}:{item.line}" for item in made.left if "the seed in params.yaml has no effect" in item.what]
    assert fixed == ([place] if place else [])
    assert any("sets no seed" in item.what for item in made.left) is ("seed" not in code)
