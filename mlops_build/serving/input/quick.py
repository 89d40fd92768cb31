"""The fast path of signature.py: JSON with columns of plain types, or one tensor, by the signature and numpy."""

import base64
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from mlops_build.serving.input import mismatch
from mlops_build.serving.input.mismatch import INTEGERS, shape
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.refusal import INVALID, Refusal

# Integers below this are exact in a float64.
EXACT = 2.0**53
NUMBERS = frozenset((float, int, bool, type(None)))
# MLflow's types of columns that are arrays.
DTYPES: dict[str, "np.dtype[Any]"] = {
    "float": np.dtype("float32"),
    "double": np.dtype("float64"),
    "integer": np.dtype("int32"),
    "long": np.dtype("int64"),
    "boolean": np.dtype("bool"),
}
PLAIN = {*DTYPES, "string", "binary"}


class Quick:
    """The fast path for one signature.

    columns: MLflow's type by name; empty unless all have names and plain types. names: of the columns. block: the type of the columns, if
    all have the same float type. tensor: type and shape, if the model takes one tensor without a name.
    """

    def __init__(self, schema: Any) -> None:
        """schema: mlflow.types.Schema; None if MLflow must decide for every body."""
        self.columns: dict[str, str] = {}
        self.names: list[str] = []
        self.block: np.dtype[Any] | None = None
        self.tensor: tuple[np.dtype[Any], tuple[int, ...]] | None = None
        self._row: Callable[[Any], Any] = tuple
        if schema is None:
            return
        if schema.is_tensor_spec():
            if not schema.has_input_names() and np.dtype(schema.inputs[0].type).kind in "fiub":
                self.tensor = (np.dtype(schema.inputs[0].type), tuple(schema.inputs[0].shape))
        elif schema.has_input_names() and all(mismatch.type_of(column) in PLAIN for column in schema.inputs):
            self.columns = {column.name: column.type.name for column in schema.inputs}
            self.names = list(self.columns)
            self._row = itemgetter(*self.names) if len(self.names) > 1 else lambda record: (record[self.names[0]],)
            kinds = set(self.columns.values())
            self.block = DTYPES[min(kinds)] if kinds in ({"float"}, {"double"}) else None

    def rows(self, form: str, data: Any) -> Rows | None:
        """The data of a form without params; None if MLflow must decide. Raises Refusal."""
        if self.names:
            return self._of_columns(form, data)
        return self._of_tensor(data) if self.tensor and form in ("inputs", "instances") else None

    def _of_tensor(self, data: Any) -> Rows | None:
        if not isinstance(data, list) or not data or isinstance(data[0], dict) or self.tensor is None:
            return None
        dtype, sizes = self.tensor
        try:
            with np.errstate(over="ignore"):
                array = np.array(data, dtype=dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise Refusal(mismatch.first_bad(data, dtype, sizes) or f"the tensor cannot be read as {dtype}: {error}") from None
        if not mismatch.fits(array.shape, sizes):
            raise Refusal(f"the tensor has the shape {shape(array.shape)}; expected {shape(sizes)}", code=INVALID)
        return Rows("tensor", array, len(array)) if array.ndim else None

    def _of_columns(self, form: str, data: Any) -> Rows | None:
        lists: Sequence[Sequence[Any]] | None  # of rows; of columns for `inputs`
        if form == "dataframe_split":
            lists = self._split(data)
        elif form == "inputs":
            if not isinstance(data, dict) or not all(name in data for name in self.names):
                return None
            lists = [data[name] for name in self.names]
            if all(type(cells) in NUMBERS for cells in lists):
                lists = [[cell] for cell in lists]
            elif not all(type(cells) is list and len(cells) == len(lists[0]) for cells in lists):
                return None
        elif isinstance(data, list) and data and all(type(record) is dict for record in data):
            try:
                lists = list(map(self._row, data))
            except KeyError:
                return None
        else:
            return None
        if lists is None:
            return None
        if self.block is not None:
            return self._as_block(lists, self.block, by_column=form == "inputs")
        return self._as_columns(lists, by_column=form == "inputs", numbers_only=form in ("inputs", "instances"))

    def _split(self, data: Any) -> Sequence[Sequence[Any]] | None:
        if type(data) is not dict or set(data) != {"columns", "data"}:
            return None
        columns, rows = data["columns"], data["data"]
        if type(columns) is not list or type(rows) is not list:
            return None
        width = len(columns)
        if any(type(row) is not list or len(row) != width for row in rows):
            return None
        if columns == self.names:
            return rows
        positions = {name: position for position, name in enumerate(columns) if type(name) is str}
        if len(positions) != width or not all(name in positions for name in self.names):
            return None
        order = [positions[name] for name in self.names]
        return [[row[position] for position in order] for row in rows]

    def _as_block(self, lists: Sequence[Sequence[Any]], dtype: "np.dtype[Any]", *, by_column: bool) -> Rows | None:
        kinds: set[type] = set()
        for part in lists:
            kinds.update(map(type, part))
        # pandas converts null to NaN among numbers, and refuses it among booleans.
        if not kinds <= NUMBERS or {bool, type(None)} <= kinds:
            return None
        try:
            with np.errstate(over="ignore"):
                block = np.array(lists, dtype=dtype)
        except OverflowError:
            return None
        if int in kinds and not _is_exact(block):
            return None  # MLflow converts int64 to float32 in one step, which rounds differently
        block = np.ascontiguousarray(block.T) if by_column else block.reshape(len(lists), len(self.names))
        return Rows("block", block, len(block))

    def _as_columns(self, lists: Sequence[Sequence[Any]], *, by_column: bool, numbers_only: bool) -> Rows | None:
        count = len(lists[0]) if by_column else len(lists)
        if not count:
            return None
        columns: list[Any] = []
        for position, (name, kind) in enumerate(self.columns.items()):
            values = lists[position] if by_column else [row[position] for row in lists]
            types = set(map(type, values))
            if kind in INTEGERS:
                if types != {int} or max(values) > INTEGERS[kind][1] or min(values) < INTEGERS[kind][0]:
                    return None
            elif kind in ("float", "double"):
                if not types <= {float, int} or any(type(value) is int and abs(value) >= EXACT for value in values):
                    return None
            elif kind == "boolean":
                if types != {bool}:
                    return None
            elif numbers_only or types != {str}:
                return None
            elif kind == "binary":
                values = [_base64(value, name, row) for row, value in enumerate(values)]
            columns.append(typed(values, kind))
        return Rows("columns", columns, count)


def typed(values: Sequence[Any], kind: str) -> Any:
    """The values of a column of this type: an array, or the list itself for text and bytes."""
    with np.errstate(over="ignore"):
        return np.array(values, dtype=DTYPES[kind]) if kind in DTYPES else values


def _is_exact(numbers: "np.ndarray[Any, Any]") -> bool:
    """Whether all numbers are small enough that integers of this size are exact.

    The sum of squares is at least the square of the largest number. It nearly always suffices, in a fifth of the time of comparing each.
    """
    return bool(np.vdot(numbers, numbers) < EXACT**2) or bool((np.abs(numbers) < EXACT).all())


def _base64(value: str, name: str, row: int) -> bytes:
    try:
        return base64.decodebytes(value.encode())
    except ValueError as error:
        raise Refusal(f"row {row}, column {name!r}: expected base64, {error}") from None
