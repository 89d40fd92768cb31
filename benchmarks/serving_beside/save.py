"""Save the three models that MLflow's server and ours load: `python save.py FOLDER`; and the requests, MODEL-ROWS.json.

tab: 32 named columns, answered with a table. tabt: the same network, one tensor. img: the conv net, one tensor.
"""

import json
import logging
import sys
import warnings
from pathlib import Path

import mlflow
import networks
import numpy as np
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec

HERE = Path(__file__).parent


def main(folder: Path) -> None:
    warnings.filterwarnings("ignore")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    signatures = {
        "tab": Schema([ColSpec(DataType.double, name) for name in networks.COLUMNS]),
        "tabt": Schema([TensorSpec(np.dtype("float32"), (-1, len(networks.COLUMNS)))]),
        "img": Schema([TensorSpec(np.dtype("float32"), (-1, 3, networks.SIDE, networks.SIDE))]),
    }
    for name, schema in signatures.items():
        mlflow.pyfunc.save_model(
            str(folder / name),
            python_model=str(HERE / "predictor.py"),
            code_paths=[str(HERE / "networks.py")],
            model_config={"model": name},
            signature=ModelSignature(inputs=schema),
            pip_requirements=["mlflow"],
        )
        sent = json.loads(body(name, 2))
        form, data = next(iter(sent.items()))
        numbers = np.array(data["data"] if form == "dataframe_split" else data, np.float32)
        answer = networks.network(name)(networks.torch.from_numpy(numbers)).tolist()
        predictions = [dict(zip("abc", row, strict=True)) for row in answer] if name == "tab" else answer
        (folder / name / "examples").mkdir()
        recorded = {"schema": 1, "input": sent, "predictions": predictions}
        (folder / name / "examples/recorded.json").write_text(json.dumps(recorded))
        for rows in (1, 32):
            (folder / f"{name}-{rows}.json").write_bytes(body(name, rows))


def body(model: str, rows: int) -> bytes:
    """A request, of random numbers that are the same each time."""
    dice = np.random.default_rng(rows)
    shape = (rows, 3, networks.SIDE, networks.SIDE) if model == "img" else (rows, len(networks.COLUMNS))
    numbers = dice.random(shape).round(4).tolist()
    document = {"dataframe_split": {"columns": networks.COLUMNS, "data": numbers}} if model == "tab" else {"inputs": numbers}
    return json.dumps(document).encode()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
