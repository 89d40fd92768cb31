"""What log_model says about an example: whether its rows show that requests may be predicted in batches."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlops_build.training import model

ROWS = pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": ["x", "y", "z"]})


class Model:
    """predict: as of mlflow.pyfunc.PyFuncModel."""

    def __init__(self, predict: Any) -> None:
        self.predict = predict


@pytest.mark.parametrize(
    ("predict", "example", "says"),
    [
        (lambda rows: pd.DataFrame({"double": rows["a"] * 2}), ROWS, "requests are predicted in batches, since 3 rows of the example"),
        (lambda rows: rows["a"] * 2, ROWS, "requests are predicted in batches"),
        (lambda rows: rows * 2, np.array([[1.0], [3.0]]), "requests are predicted in batches, since 2 rows"),
        (lambda rows: rows["a"] - rows["a"].mean(), ROWS, "not predicted in batches, since the model's output for a row changes with"),
        (lambda rows: rows["a"] * 2, ROWS.head(1), "pass two or three different rows, such as example=rows.head(3)"),
        (lambda rows: rows["a"] * 2, pd.concat([ROWS.head(1)] * 3), "the example has only one different row"),
        (lambda rows: [1] * len(rows), ROWS, "not predicted in batches until the service has seen other rows, since the answers to the"),
        (lambda rows: rows, {"a": 1}, "neither a table nor an array"),
    ],
)
def test_the_line_about_an_example(predict: Any, example: Any, says: str) -> None:
    assert says in model._batching(Model(predict), example)
