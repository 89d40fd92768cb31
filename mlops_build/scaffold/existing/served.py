"""predictor.py and log_model.py of a service generated from a script: filled in from the code, the rest marked TODO."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlops_build.scaffold.existing.artifacts import Artifact
from mlops_build.scaffold.existing.modules import Module
from mlops_build.scaffold.existing.script import Script, Written, assigned, constants, dotted, value_at

PREDICTOR = '''\
"""The served model: the network that {script} trains, its input and its answers."""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import torch
{imports}
WEIGHTS = Path({weights})
MODEL = Path("models/{model}")
{artifacts}

def device() -> torch.device:
    """The GPU that `mlops-build` selected for this process (the only visible one), else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def example() -> pd.DataFrame:
    """A few rows as a caller sends them. Each version stores them with its answers; a deployment is checked with them."""
    # TODO {rows}: two or three rows, with one column for each value that a caller sends.
    raise NotImplementedError("TODO {rows}, see TODO.md")


class Predictor(mlflow.pyfunc.PythonModel):
    """The served model: it returns one answer for each row."""

    def load_context(self, context: Any) -> None:
        weights = torch.load(context.artifacts["weights"], map_location="cpu", weights_only=True)
{network}
        self.network.load_state_dict(weights{key})
        self.network.to(device()).eval()
{reads}
    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        # TODO {answer}: build the input tensor, and return the output columns.
        raise NotImplementedError("TODO {answer}, see TODO.md")
'''

LOGGER = '''\
"""Log the model that {script} trained, and measure it: the stage `model` of dvc.yaml.

python -m {package}.{logger}
"""

import json
from pathlib import Path
from typing import Any

import mlflow
from mlops_build import training

from {package}.{predictor} import {constants}, Predictor, example

METRICS = Path("{metrics}")


def measure(model: Any) -> dict[str, float]:
    """Measure the served model on data that was not used for training. params.yaml has the thresholds."""
    # TODO {number}: read rows, `answers = model.predict(rows)`, compare.
    raise NotImplementedError("TODO {number}, see TODO.md")


def main() -> None:
    with training.resume_run(WEIGHTS):
        training.log_model(Predictor, weights=WEIGHTS, {artifacts}example=example(), folder=MODEL)
        metrics = measure(mlflow.pyfunc.load_model(str(MODEL), suppress_warnings=True))
        mlflow.log_metrics(metrics)
        METRICS.parent.mkdir(exist_ok=True)
        METRICS.write_text(json.dumps(metrics, indent=1) + "\\n")


if __name__ == "__main__":
    main()
'''

TEST = '''\
"""The example input of the service is valid."""

import pytest

from {package} import {predictor}


def test_the_example_is_a_few_rows_with_named_columns() -> None:
    try:
        rows = {predictor}.example()
    except (FileNotFoundError, NotImplementedError) as missing:
        pytest.skip(f"not available yet: {{missing}}")
    assert 1 <= len(rows) <= 100
    assert all(isinstance(column, str) for column in rows.columns)
'''


@dataclass(frozen=True)
class Network:
    """The saved network. name: of its class or of the function that creates it; module: where that is defined, None if it is not local.
    call: its source. arguments: the same with known values filled in; is_known: all are known. follows: some come from options.
    key: the index of the weights in the saved object, such as `["model"]`. whole: the saved object does not look like a state_dict.
    """

    name: str = ""
    module: Module | None = None
    call: str = ""
    line: int = 0
    arguments: str = ""
    is_known: bool = False
    follows: bool = False
    key: str = ""
    whole: bool = False


def network(saves: Written | None, modules: Sequence[Module], arguments: Mapping[str, object]) -> Network:
    """Derive the network from the call that saves the weights. arguments: dest → default of the script's options."""
    if saves is None or saves.what is None:
        return Network()
    script = saves.script
    saved, key = _state(script, saves.what)
    whole = saved is None
    made = assigned(script, saved or _base(saves.what) or "")
    if not isinstance(made, ast.Call):
        return Network(key=key, whole=whole)
    name = dotted(made.func).rpartition(".")[2]
    home = next((module for module in modules if name in _definitions(module.script)), None)
    known = constants(script, arguments)
    values: list[str] = []
    is_known, follows = True, False
    for label, given in [("", argument) for argument in made.args] + [
        (f"{keyword.arg}=" if keyword.arg else "**", keyword.value) for keyword in made.keywords
    ]:
        value = known.value(given)
        if label == "**" or isinstance(given, ast.Starred) or (value is None and not isinstance(given, ast.Constant)):
            is_known = False
            values.append(f"{label}{script.source(given)}")
            continue
        follows = follows or not isinstance(given, ast.Constant)
        values.append(label + (_text(value) if isinstance(value, str) else repr(value)))
    return Network(name, home, script.source(made), made.lineno, ", ".join(values), is_known, follows, key, whole)


def predictor(
    package: str,
    script: str,
    weights: str,
    model: str,
    made: Network,
    artifacts: Sequence[tuple[Artifact, int]],
    numbers: Mapping[str, int],
) -> str:
    """The text of predictor.py. artifacts: each with the number of its TODO. numbers: of the TODOs rows, network (if any) and answer."""
    imports = f"\nfrom {package}.{made.module.name} import {made.name}\n" if made.module and made.is_known else ""
    lines = []
    if "network" in numbers:
        lines.append(f"        # TODO {numbers['network']}: create it as {script} does" + (f": {made.call}" if made.call else "."))
    if made.module and made.is_known:
        lines.append(f"        self.network = {made.name}({made.arguments})")
    else:
        lines.append(f'        raise NotImplementedError("TODO {numbers["network"]}, see TODO.md")')
    return PREDICTOR.format(
        script=script,
        imports=imports,
        weights=_text(weights),
        model=model,
        network="\n".join(lines),
        key=made.key,
        artifacts=_constant(artifacts, script),
        reads="".join(
            f"        # TODO {number}: load it in the format that {script} writes.\n"
            f'        self.{artifact.name} = Path(context.artifacts["{artifact.name}"])\n'
            for artifact, number in artifacts
        ),
        rows=numbers["rows"],
        answer=numbers["answer"],
    )


def logger(package: str, script: str, module: str, predictor: str, metrics: str, artifacts: Sequence[Artifact], number: int) -> str:
    """The text of log_model.py, named `module`. number: of the TODO in `measure`."""
    return LOGGER.format(
        package=package,
        script=script,
        logger=module,
        predictor=predictor,
        metrics=metrics,
        constants="ARTIFACTS, MODEL, WEIGHTS" if artifacts else "MODEL, WEIGHTS",
        artifacts="artifacts=ARTIFACTS, " if artifacts else "",
        number=number,
    )


def _constant(artifacts: Sequence[tuple[Artifact, int]], script: str) -> str:
    if not artifacts:
        return ""
    lines = "".join(f'    "{artifact.name}": Path({_text(artifact.path)}),\n' for artifact, _ in artifacts)
    return f"# Further parts of the model: name -> the file or folder that {script} writes.\nARTIFACTS = {{\n{lines}}}\n"


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _state(script: Script, node: ast.expr) -> tuple[str | None, str]:
    """The name of the object whose `….state_dict()` is saved, and its index in the saved object."""
    if isinstance(node, ast.Name):
        value = value_at(script, node.id, node.lineno)
        return _state(script, value) if value is not None and not isinstance(value, ast.Name) else (None, "")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "state_dict":
        return _base(node.func.value), ""
    if isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            name, _ = _state(script, value) if isinstance(value, ast.Call) else (None, "")
            if isinstance(key, ast.Constant) and isinstance(key.value, str) and name and "optim" not in f"{key.value} {name}".lower():
                return name, f"[{_text(key.value)}]"
    return None, ""


def _base(node: ast.expr) -> str | None:
    """`model` of `model.module` or `model.cpu()`."""
    while isinstance(node, ast.Attribute | ast.Call):
        node = node.value if isinstance(node, ast.Attribute) else node.func
    return node.id if isinstance(node, ast.Name) else None


def _definitions(script: Script) -> set[str]:
    return {node.name for node in script.tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
