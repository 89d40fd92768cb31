"""Explain why a body does not match the model's signature: the row, the column, the expected type and the value.

MLflow's own messages contain all the data and numpy's type names, and rarely the row. After it has refused a body, `explain` looks for the
first value that certainly does not match; if there is none, MLflow's message is used. Integers and dates out of the range of their type are
refused before MLflow converts the body, since it would wrap them silently.
"""

import base64
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mlops_build.serving.input.text import SHOWN

LISTED = 12
SPARSE = 1_000_000  # cells
# Limits for columns that are not in the signature, and for rows that MLflow validates one by one.
WIDE, SLOW_ROWS = 1000, 1000
# The rows of a table from CSV or Parquet that are looked at for a message: as Python objects, all would take much more memory and time.
FRAME_ROWS = 10_000
# Least and largest integer, by the name of a numpy type or MLflow's.
INTEGERS = {np.dtype(code).name: (int(np.iinfo(code).min), int(np.iinfo(code).max)) for code in np.typecodes["AllInteger"]}
INTEGERS.update(integer=INTEGERS["int32"], long=INTEGERS["int64"])
EXPECTED = {
    "binary": "base64 text",
    "datetime": "a date and time (ISO 8601, without a time zone, in the years 1678 to 2261)",
}
Columns = Mapping[Any, Sequence[Any]]


def short(value: object, limit: int = SHOWN) -> str:
    """A value for a message, in JSON's spelling, or the text of an exception; cut at `limit` characters."""
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    text = " ".join((str(value) if isinstance(value, Exception) else repr(value)).split())
    return text if len(text) <= limit else f"{text[:limit]}…"


def specs(schema: Any) -> dict[Any, Any]:
    """The columns or tensors of MLflow's schema, by name, or by position if they have no names."""
    return dict(schema.input_dict()) if schema.has_input_names() else dict(enumerate(schema.inputs))


def type_of(spec: Any) -> str:
    """The name of MLflow's type of a column; empty for a nested type."""
    return getattr(getattr(spec, "type", None), "name", "")


def shape(sizes: Sequence[int]) -> str:
    return f"({', '.join('any' if size == -1 else str(size) for size in sizes)})"


def fits(actual: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether a tensor has the expected shape, in which -1 is any size."""
    return len(actual) == len(sizes) and all(size in (-1, actual_size) for size, actual_size in zip(sizes, actual, strict=True))


# -- values that would wrap silently --


def overflow(name: Any, kind: str, values: Sequence[Any]) -> str | None:
    """The message for the first number of a column, also inside lists, that is out of range. None if there is none."""
    least, most = INTEGERS[kind]
    for row, value in enumerate(values):
        if (number := _outside(value, least, most)) is not None:
            return f"row {row}, column {name!r}: {short(number)} does not fit into {kind} ({least} to {most})"
    return None


def overflow_of_frame(frame: Any, schema: Any) -> str | None:
    """`overflow` for all integer columns of a pandas.DataFrame that MLflow has not converted yet."""
    known = specs(schema)
    for position, label in enumerate(frame.columns):
        kind = type_of(known.get(label if schema.has_input_names() else 0 if schema.is_tensor_spec() else position))
        if kind not in INTEGERS:
            continue
        least, most = INTEGERS[kind]
        column = frame.iloc[:, position].to_numpy()
        if column.dtype.kind in "iuf":
            # A float64 cannot represent `most`, but it can represent most + 1.
            wrong = np.flatnonzero((column >= most + 1) | (column < least))
            if not wrong.size:
                continue
        elif column.dtype.kind != "O":
            continue
        if message := overflow(label, kind, column.tolist()):
            return message
    return None


def lost_dates(form: str, sent: Any, schema: Any) -> str | None:
    """The message for the first date of an `inputs` or `instances` body that numpy would convert to a date in another century."""
    dates = [name for name, spec in specs(schema).items() if type_of(spec) == "datetime"]
    sent_columns = (columns(form, sent, dates) if dates else None) or {}
    for name in dates:
        for row, value in enumerate(sent_columns.get(name, ())):
            if isinstance(value, str) and _is_lost(value):
                return f"row {row}, column {name!r}: expected {EXPECTED['datetime']}, got {short(value)}"
    return None


# -- reasons of MLflow's refusals --


def ragged(rows: Sequence[Mapping[str, Any]], required: Sequence[Any] | None) -> str | None:
    """The message for the first row that lacks a column which other rows have. required: the columns to check; None: all."""
    for name in dict.fromkeys(key for row in rows for key in row) if required is None else required:
        present = [name in row for row in rows]
        if any(present) and not all(present):
            return f"row {present.index(False)} has no column {short(name)}, which other rows have"
    return None


def uneven(widths: Iterable[int], width: int | None) -> str | None:
    """The message for the first row with another number of values than there are columns.

    widths: values per row. width: the number of columns; None: the length of the first row.
    """
    for row, actual in enumerate(widths):
        width = actual if width is None else width
        if actual != width:
            return f"row {row} has {_values(actual)}; expected {width}, one for each column"
    return None


def too_wide(form: str, sent: Any, most: int) -> str | None:
    """The message for a table that would be too large: rows may have different columns, and pandas creates a cell for every row and column.

    most: the limit for the number of columns.
    """
    rows, width = sent, 0
    if form == "dataframe_split":
        if not isinstance(sent, dict):
            return None
        for key in ("columns", "index"):
            labels = sent.get(key)
            if isinstance(labels, list) and any(isinstance(label, list | dict) for label in labels):
                return f"{key!r} must be a list of names or numbers"  # for lists, pandas takes seconds per KiB
        rows = sent.get("data")
        width = len(sent["columns"]) if isinstance(sent.get("columns"), list) else 0
    if isinstance(rows, dict):
        width = max(width, len(rows))
    rows = rows if isinstance(rows, list) else []
    sizes = [len(row) for row in rows if isinstance(row, list | dict)]
    names = {key for row in rows if isinstance(row, dict) for key in row}
    width = max(width, len(names), *sizes)
    if form.startswith("dataframe") and width > most:
        return f"{width} columns were sent; this service reads at most {most}"
    if len(rows) * width > 10 * sum(sizes) + SPARSE:
        return f"{len(rows)} rows of {width} different columns, nearly all of them empty, are too many"
    return None


def explain(form: str, sent: Any, schema: Any) -> str | None:
    """Why a refused body does not match the schema; None if no value certainly does not match.

    form: one of the four JSON forms; `frame` for a DataFrame from Parquet, `text` for a DataFrame from CSV whose cells are all text.
    """
    sent_columns = None if schema is None else columns(form, sent, schema.input_names() if schema.has_input_names() else None)
    if sent_columns is None:
        return None
    if schema.has_input_names():
        if message := _missing(sent_columns, schema):
            return message
        labels = Counter(sent["columns"]) if form == "dataframe_split" and isinstance(sent.get("columns"), list) else {}
        if twice := [name for name in schema.input_names() if labels.get(name, 0) > 1]:
            return f"column {short(twice[0])} was sent twice"
    elif not schema.is_tensor_spec() and (width := len(sent_columns)) < len(schema.inputs):
        return f"the rows have {_values(width)}; expected {len(schema.inputs)}, one for each column"
    if schema.is_tensor_spec():
        return _tensors(form, sent_columns, schema)
    known = specs(schema) if schema.has_input_names() else dict(zip(sent_columns, schema.inputs, strict=False))
    for name, spec in known.items():
        cells = sent_columns.get(name, ())
        for row, value in enumerate(cells if hasattr(spec.type, "name") else cells[:SLOW_ROWS]):
            if why := _mismatch(form, value, spec):
                return f"row {row}, column {name!r}: {why}"
    return None


def first_bad(data: Any, dtype: "np.dtype[Any]", sizes: Sequence[int]) -> str | None:
    """The message for the first element of a nested list that is not a number of this type, or has another length than its siblings."""
    path: list[int] = []
    part = data
    while isinstance(part, list):
        first: tuple[int, ...] | None = None
        for index, element in enumerate(part):
            try:
                element_shape = np.array(element, dtype=dtype).shape
            except (ValueError, TypeError, OverflowError):
                path.append(index)
                part = element
                break
            first = element_shape if first is None else first
            if element_shape != first:
                return (
                    f"the tensor is ragged: element {_at([*path, index])} has the shape {shape(element_shape)}, "
                    f"and {_at([*path, 0])} has {shape(first)}; expected {shape(sizes)}"
                )
        else:
            return None
    if dtype.kind in "iu":
        least, most = INTEGERS[dtype.name]
        if _outside(part, least, most) is not None:
            return f"element {_at(path)}: {short(part)} does not fit into {dtype} ({least} to {most})"
    return f"element {_at(path)}: expected {dtype}, got {short(part)}"


def columns(form: str, sent: Any, wanted: Collection[Any] | None = None) -> Columns | None:
    """The cells of each column in a body, by name, or by position if there are no names; None if the body is not a table.

    wanted: the names or positions of the columns whose cells are needed. Other columns have no cells, since a body may contain very many.
    """
    if form in ("frame", "text"):
        return {label: sent.iloc[:FRAME_ROWS, position].tolist() for position, label in enumerate(sent.columns)}
    names: Any = None
    if form == "dataframe_split":
        if not isinstance(sent, dict):
            return None
        sent, names = sent.get("data"), sent.get("columns")
    if isinstance(sent, dict):
        return {name: cells if isinstance(cells, list) else [cells] for name, cells in sent.items()}
    if not isinstance(sent, list):
        return None
    if sent and all(isinstance(row, dict) for row in sent):
        keys = list(dict.fromkeys(key for row in sent for key in row))
        needed = set(keys[:WIDE] if wanted is None else wanted)
        return {name: [row.get(name) for row in sent] if name in needed else () for name in keys}
    rows = [row if isinstance(row, list) else [row] for row in sent]
    width = max((len(row) for row in rows), default=0)
    labels = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else range(width)
    needed = set(labels[:WIDE] if wanted is None else wanted)
    return {
        label: [row[position] if position < len(row) else None for row in rows] if label in needed else ()
        for position, label in enumerate(labels)
    }


def _missing(sent: Columns, schema: Any) -> str | None:
    missing = [name for name in schema.required_input_names() if name not in sent]
    if not missing:
        return None
    return f"missing {'inputs' if schema.is_tensor_spec() else 'columns'}: {listed(missing)}; sent were: {listed(list(sent))}"


def _values(number: int) -> str:
    return "1 value" if number == 1 else f"{number} values"


def listed(names: Sequence[Any]) -> str:
    """The first names for a message, and the number of others."""
    more = len(names) - LISTED
    return ", ".join(short(name, 40) for name in names[:LISTED]) + (f" and {more} more" if more > 0 else "") or "none"


def _mismatch(form: str, value: Any, spec: Any) -> str | None:
    kind = type_of(spec)
    if value is None and not spec.required:
        return None
    if kind in INTEGERS:
        least, most = INTEGERS[kind]
        valid = _accepts(int, value)
        if valid and not least <= int(value) <= most:
            return f"{short(value)} does not fit into {kind} ({least} to {most})"
        valid &= form != "text" or not isinstance(value, float)
    elif kind in ("float", "double"):
        valid = value is None or _accepts(float, value)
    elif kind == "boolean":
        valid = str(value).lower() in ("true", "false") if form == "text" else not isinstance(value, list | dict)
    elif kind == "binary":
        valid = _accepts(lambda text: base64.decodebytes(bytes(text, "utf8")), value)
    elif kind == "datetime":
        valid = value is None or _accepts(_numpy_date if form in ("inputs", "instances") else _pandas_date, value)
    elif kind == "string":
        valid = True
    else:
        from mlflow.models.utils import _enforce_type

        valid = _accepts(lambda nested: _enforce_type(nested, spec.type, spec.required), value)
    if valid:
        return None
    got = "nothing" if isinstance(value, float) and math.isnan(value) and form == "text" else short(value)
    return f"expected {EXPECTED.get(kind) or kind or spec.type}, got {got}"


def _tensors(form: str, sent: Columns, schema: Any) -> str | None:
    if not schema.has_input_names():
        return None
    for name, spec in schema.input_dict().items():
        cells, dtype, sizes = list(sent[name]), np.dtype(spec.type), tuple(spec.shape)
        if dtype.kind not in "fiub":
            continue
        if form in ("inputs", "instances"):
            try:
                with np.errstate(over="ignore"):
                    actual = np.array(cells, dtype=dtype).shape
            except (ValueError, TypeError, OverflowError):
                return f"input {name!r}: {first_bad(cells, dtype, sizes) or f'cannot be read as {dtype}'}"
            if not fits(actual, sizes):
                return f"input {name!r}: the tensor has the shape {shape(actual)}; expected {shape(sizes)}"
            continue
        for row, cell in enumerate(cells):
            values = np.ravel(np.array(cell, dtype=object)).tolist()
            wrong = next((value for value in values if not _accepts(float, value)), values)
            if wrong is not values:
                return f"row {row}, column {name!r}: expected {dtype}, got {short(wrong)}"
            if -1 not in sizes[1:] and len(values) != math.prod(sizes[1:]):
                return f"row {row}, column {name!r}: {len(values)} values; expected {math.prod(sizes[1:])}"
    return None


def _outside(value: Any, least: int, most: int) -> Any:
    """The first number of a value, also inside lists, that is out of range; None if there is none."""
    if isinstance(value, list | np.ndarray):
        return next((number for element in value if (number := _outside(element, least, most)) is not None), None)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if value > most or value < least else None


def _accepts(convert: Callable[[Any], Any], value: Any) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        convert(value)
    except (MlflowException, TypeError, ValueError, OverflowError):
        return False
    return True


def _is_lost(value: str) -> bool:
    """Whether numpy would wrap this date silently: nanoseconds in 64 bits reach from 1678 to 2261."""
    try:
        date = np.datetime64(value)
    except ValueError:
        return False  # numpy refuses it
    return bool(not np.isnat(date) and not 1678 <= int(date.astype("datetime64[Y]").astype(int)) + 1970 <= 2261)


def _numpy_date(value: Any) -> None:
    np.array([value], dtype="datetime64[ns]")


def _pandas_date(value: Any) -> None:
    import pandas as pd

    if getattr(pd.to_datetime(value), "tzinfo", None) is not None:
        raise ValueError("MLflow refuses dates with a time zone")


def _at(path: Sequence[int]) -> str:
    return "".join(f"[{index}]" for index in path)
