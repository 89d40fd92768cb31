"""Tables in CSV, with a header line."""

import contextlib
import csv
import io
from typing import Any

from mlops_build.serving.input import mismatch
from mlops_build.serving.input.json_text import INLINE_BYTES, Reserve
from mlops_build.serving.input.mismatch import short
from mlops_build.serving.input.reader import Reader
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.signature import Signature, refuse_if
from mlops_build.serving.input.text import decoded
from mlops_build.serving.refusal import Refusal

# The memory to read CSV: for a character, and for a value. tests/serving/test_memory.py measures it.
CSV_CHARACTER, CSV_VALUE = 5, 24


def _read(signature: Signature, body: bytes, _: str, reserve: Reserve) -> Rows:
    import pandas as pd

    if len(body) > INLINE_BYTES:
        reserve(CSV_CHARACTER * len(body) + CSV_VALUE * (body.count(b",") + body.count(b"\n")))
    decoded(body, "the body")
    types: dict[str, Any] = {}
    if signature.schema is not None:
        if signature.schema.is_tensor_spec():
            raise Refusal("this model takes a tensor, which CSV cannot contain: send JSON with 'inputs'")
        for name, column in mismatch.specs(signature.schema).items():
            kind = mismatch.type_of(column)
            if kind in ("", "datetime"):
                raise Refusal(
                    f"column {name!r} contains {'dates' if kind else column.type}, which CSV cannot contain: send JSON or Parquet"
                )
        types = dict(zip(signature.schema.input_names(), signature.schema.pandas_types(), strict=False))
    refuse_if(_problem(signature, body))
    try:
        frame = pd.read_csv(io.BytesIO(body), dtype=types or None)
    except Exception as error:
        why = None
        with contextlib.suppress(Exception):
            why = mismatch.explain("text", pd.read_csv(io.BytesIO(body), dtype=str, nrows=mismatch.FRAME_ROWS), signature.schema)
        raise Refusal(why or f"the body cannot be read as CSV with a header line: {short(error)}") from None
    return signature.enforced(frame, None, form="frame", sent=frame)


def _problem(signature: Signature, body: bytes) -> str | None:
    """Too many columns, or the first row with another number of values than the header.

    pandas pads short rows and reads the start of long rows as an index.
    """
    # csv and pandas would first make an object of each of millions of columns.
    lines = io.BytesIO(body)
    if len(next(lines, b"")) > 1 << 20 or any(line.count(b",") > 4 * signature.most for line in lines):
        return f"a line has more than {signature.most} columns, or the first has more than 1 MiB"
    with contextlib.suppress(csv.Error):  # pandas reports the error
        rows = (values for values in csv.reader(io.TextIOWrapper(io.BytesIO(body), "utf-8", newline="")) if values)
        width = len(next(rows, ()))
        if width > signature.most:
            return f"{width} columns were sent; this service reads at most {signature.most}"
        if signature.ragged == "refuse":
            return mismatch.uneven(map(len, rows), width)
    return None


READER = Reader("text/csv", _read)
