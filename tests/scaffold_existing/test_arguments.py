"""A script gets the same arguments as a stage as it got from a shell: run both ways, and compared."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlops_build.adapters import dvc
from mlops_build.scaffold.existing import around

ARGPARSE = """\
import argparse, json
parser = argparse.ArgumentParser()
parser.add_argument("table", nargs="?", default="rows.csv"){short}
parser.add_argument("--epochs", type=int, default=20)
parser.add_argument("--lr", type=float, default=1e-05)
parser.add_argument("--layers", nargs="+", type=int, default=[64, 32])
parser.add_argument("--name", default="it's \\"mine\\"; $(touch ran) `touch ran` & | * ?")
parser.add_argument("--resume", default="")
parser.add_argument("--amp", action="store_true")
parser.add_argument("--no-cuda", dest="cuda", action="store_false")
parser.add_argument("--shuffle", type=lambda text: text == "True", default=True)
parser.add_argument("--skip", nargs="*", default=[])
parser.add_argument("--momentum", type=float, default=0)
parser.add_argument("--note", default="yes")
parser.add_argument("--warm-up", type=str, default="1e3")
parser.add_argument("--seed", type=int, default=11)
parser.add_argument("--out", default="made/args.json")
def main():
    import os
    args = parser.parse_args()
    os.makedirs("made", exist_ok=True)
    open(args.out, "w").write(json.dumps(vars(args), sort_keys=True))
if __name__ == "__main__":
    main()
"""

CLICK = """\
import json, os
import click
@click.command()
@click.argument("table", default="rows.csv")
@click.option("--epochs", "-e", default=5)
@click.option("--hidden-size", "width", default=16)
@click.option("--shuffle/--no-shuffle", default=True)
@click.option("--amp", is_flag=True)
@click.option("--name", default="two words")
@click.option("--out", default="made/args.json")
def main(**options):
    os.makedirs("made", exist_ok=True)
    open("made/args.json", "w").write(json.dumps(options, sort_keys=True))
main()
"""
SHORT = """
parser.add_argument("-b", type=int, default=32)
parser.add_argument("-t", default="a b")
parser.add_argument("-s", nargs="+", default=["a", "b c"])"""


@pytest.mark.parametrize(
    "text", [ARGPARSE.replace("{short}", ""), ARGPARSE.replace("{short}", SHORT), CLICK], ids=["argparse", "argparse, short", "click"]
)
def test_a_stage_hands_a_script_what_a_shell_did(template: Path, tmp_path: Path, text: str) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "train.py").write_text(text)
    (work / "rows.csv").write_text("x\n1\n")
    subprocess.run([sys.executable, "train.py"], cwd=work, check=True, timeout=60)
    by_shell = json.loads((work / "made/args.json").read_text())
    service = tmp_path / "service"
    around.scaffold(service, work / "train.py", [str(work / "rows.csv")], {}, template=str(template), say=lambda _: None)
    # Here it is about the arguments: neither an MLflow run, nor the stage that logs a model.
    pipeline = (service / "dvc.yaml").read_text()
    pipeline = pipeline[: pipeline.index("  model:")].replace("mlops_build.training.script models/weights.pt -m ", "")
    (service / "dvc.yaml").write_text(pipeline.replace("      - models/weights.pt\n", ""))
    dvc.repro(service)
    by_stage = json.loads((service / "made/args.json").read_text())
    assert by_stage == {**by_shell, "table": "data/rows.csv"}
    assert not (service / "ran").exists()
