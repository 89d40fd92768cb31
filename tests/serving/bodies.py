"""Initial bodies for the fuzzers, and decoders for several signatures."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd

from mlops_build.serving.input.decode import Decoder
from tests.serving import models

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
RECORD = {"d": 1.5, "i": 2, "l": 3, "o": True, "s": "x", "x": 0.25}
DOCUMENTS: list[Any] = [
    {"dataframe_split": {"columns": ["a", "b", "c"], "data": [[1.0, 2, None], [-1e3, "4", True]]}},
    {"dataframe_split": {"index": [1], "data": [[1, 2, 3]]}},
    {"dataframe_records": [RECORD], "params": {"depth": 5, "name": "n"}},
    {"inputs": {name: [value] for name, value in RECORD.items()}},
    {"instances": [RECORD, RECORD]},
    {"inputs": [[1.0, 2.5, 3]]},
    {"dataframe_records": [{"i": 1, "t": "2024-02-29T12:00:00", "s": "é"}]},
    {"inputs": [{"a": [1, 2], "o": {"p": 1.5}, "i": 3}]},
    {"inputs": {"x": [[1, 2]], "y": [3]}},
    {"messages": [{"role": "user", "content": "x"}]},
]
BODIES: list[tuple[bytes, str]] = [
    *((json.dumps(document).encode(), JSON) for document in DOCUMENTS),
    (b"a,b,c\n1,2,3\n4,,x\n", CSV),
    (b'd,i,l,o,s,x\n1.5,2,3,true,"a,b",0.5\n', CSV),
    (pd.DataFrame({"a": [1.0], "b": [2.0], "c": [3.0]}).to_parquet(), PARQUET),
]


def decoders(folder: Path | None = None) -> list[Decoder]:
    folder = folder or Path(tempfile.mkdtemp(prefix="mlops-fuzz-"))
    signatures = [
        models.FLOATS, models.MIXED, models.DATES, models.UNNAMED, models.NESTED, models.TENSORS, models.tensor("float32", (-1, 3)), None,
    ]  # fmt: skip
    return [
        Decoder(models.save(folder / str(number), signature), "pad" if number % 2 else "refuse")
        for number, signature in enumerate(signatures)
    ]
