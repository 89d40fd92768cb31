"""The recorded rows and answers of an adopted model: what its service logs the model with, and is measured by."""

import json
import sys
from pathlib import Path
from typing import Any

from mlops_build.model.answers import differences
from mlops_build.training.model import EXAMPLES


def recorded_example(recorded: Path) -> Any:
    """The rows of a file examples/recorded.json, as log_model takes them: a pandas.DataFrame, or an array."""
    body = json.loads(recorded.read_text(encoding="utf-8"))["input"]
    if "dataframe_split" in body:
        import pandas as pd

        return pd.DataFrame(body["dataframe_split"]["data"], columns=body["dataframe_split"]["columns"])
    import numpy as np

    return np.array(body["inputs"])


def recorded_answers(recorded: Path, folder: Path) -> float:
    """The share of the recorded answers that log_model recorded again in `folder`, from 0 to 1. Each difference is written to stderr.

    Numbers may differ by 0.0001, absolute or relative: other processors round differently.
    """
    before, after = (json.loads(path.read_text(encoding="utf-8"))["predictions"] for path in (recorded, folder / EXAMPLES))
    pairs = list(zip(before, after, strict=True)) if isinstance(before, list) and len(before) == len(after) else [(before, after)]
    changed = [differences(first, second, f"predictions[{row}]") for row, (first, second) in enumerate(pairs)]
    for line in (line for lines in changed for line in lines):
        sys.stderr.write(f"another answer than the recorded one: {line}\n")
    return sum(not lines for lines in changed) / len(pairs)
