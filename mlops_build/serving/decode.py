"""What a caller sends to /invocations, as the model wants it.

Two roads. What nearly everybody sends (JSON; columns of plain types, or one tensor) goes through code that knows the signature: straight
numpy, tens of microseconds for a row. It says yes only where it is certain what MLflow would have made of the body. All else (CSV, Parquet,
dates, nested types, strings in columns of numbers, what is missing) goes through MLflow's own parsing and enforcement, so that the verdict
is MLflow's. Where ours differs on purpose: docs/reference/http-contract.md.
"""

import base64
import contextlib
import csv
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

import numpy as np
import orjson

from mlops_build.serving import misfit
from mlops_build.serving.misfit import INTEGERS, SHOWN, shape, short
from mlops_build.serving.pack import packed
from mlops_build.serving.refusal import BAD_REQUEST, INVALID, Refusal

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")
# Whole numbers up to here are exact in a float64.
EXACT = 2.0**53
NUMBERS = frozenset((float, int, bool, type(None)))
PLAIN = frozenset(("float", "double", "integer", "long", "boolean", "string", "binary"))


UNREADABLE = "the body cannot be read; the service's log has the trace"

log = logging.getLogger("mlops_build.serving")


@dataclass(slots=True)
class Rows:
    """What one request brings, checked and converted.

    kind: `block`, a 2-d array (rows, columns), where all columns are of one type of float; `columns`, an array or a list for each column of
    the signature; `tensor`, an array whose first axis counts rows; `whole`, what MLflow's enforcement made; `unchecked`, for a model that
    checks by itself. count: rows. params: checked, with defaults; None where none were sent and none are known.
    """

    kind: Literal["block", "columns", "tensor", "whole", "unchecked"]
    data: Any
    count: int
    params: dict[str, Any] | None = None
    bare: bool = False  # the answer goes without {"predictions": …} around it, as MLflow has it for chat


def media_type(header: str | None) -> str:
    """JSON, CSV or PARQUET, of a Content-Type header. Raises Refusal (415)."""
    if header == JSON:
        return JSON
    kind, *parameters = (part.strip() for part in (header or "").split(";"))
    kind = kind.lower()
    values = {name.lower(): value for name, _, value in (one.partition("=") for one in parameters)}
    if values.get("charset", "utf-8").strip('"').lower() != "utf-8":
        raise Refusal("only UTF-8 is read here", status=415)
    if unknown := sorted(set(values) - {"charset"}):
        raise Refusal(f"Content-Type has parameters that are not known here: {', '.join(unknown)[:SHOWN]}", status=415)
    if kind not in (JSON, CSV, PARQUET):
        said = f"{kind[:SHOWN]!r}" if kind else "none"
        raise Refusal(f"Content-Type is {said}; this service reads {JSON}, {CSV} and {PARQUET}", status=415)
    return kind


class Decoder:
    """Reads bodies for one model. Made once, from the model's signature.

    model: mlflow.pyfunc.PyFuncModel. ragged: `pad` fills short rows with NaN as MLflow does, `refuse` names the row.
    """

    def __init__(self, model: Any, ragged: Literal["refuse", "pad"] = "refuse") -> None:
        self._metadata = model.metadata
        self._flavor = model.loader_module
        self._schema = model.metadata.get_input_schema()
        self._params_schema = model.metadata.get_params_schema()
        self._hinted = (
            bool(model.metadata._is_signature_from_type_hint()) if hasattr(model.metadata, "_is_signature_from_type_hint") else False
        )
        self._ragged = ragged
        self._expected: int | None = None  # columns
        self._names: list[str] = []
        self._types: list[str] = []
        self._tensor: tuple[np.dtype[Any], tuple[int, ...]] | None = None
        self._block: np.dtype[Any] | None = None
        self._row: Callable[[Any], Any] = tuple
        schema = self._schema
        if schema is None or self._hinted:
            return
        self._expected = len(schema.inputs)
        if schema.is_tensor_spec():
            self._expected = max(1, *schema.inputs[0].shape[1:2]) if not schema.has_input_names() else len(schema.inputs)
            if not schema.has_input_names() and np.dtype(schema.inputs[0].type).kind in "fiub":
                self._tensor = (np.dtype(schema.inputs[0].type), tuple(schema.inputs[0].shape))
        elif schema.has_input_names() and all(getattr(one.type, "name", "") in PLAIN for one in schema.inputs):
            self._names = list(schema.input_names())
            self._types = [one.type.name for one in schema.inputs]
            self._row = itemgetter(*self._names) if len(self._names) > 1 else lambda one: (one[self._names[0]],)
        floats: dict[str, np.dtype[Any]] = {"float": np.dtype("float32"), "double": np.dtype("float64")}
        self._block = floats.get(self._types[0]) if len(set(self._types)) == 1 else None

    def decode(self, body: bytes, content_type: str | None) -> Rows:
        """Raises Refusal, and nothing else for whatever the body is."""
        kind = media_type(content_type)
        try:
            if kind == JSON:
                return self._json(body)
            return self._csv(body) if kind == CSV else self._parquet(body)
        except RecursionError:
            raise Refusal("the body is nested too deeply") from None
        except MemoryError:
            raise Refusal("the body is too large once it is read", status=413) from None
        except Refusal:
            raise
        except Exception:  # of pandas or MLflow, at something that was not thought of: the caller's, since it is his body
            log.warning("a body cannot be read", exc_info=True)
            raise Refusal(UNREADABLE) from None

    # -- for doors that read their bodies themselves (v2.py, images.py) --

    @property
    def columns(self) -> dict[str, str]:
        """Name and MLflow's type of each column, where all are named and plain."""
        return dict(zip(self._names, self._types, strict=True))

    @property
    def block(self) -> "np.dtype[Any] | None":
        """The columns' type, where all are of one type of float."""
        return self._block

    @property
    def tensor(self) -> "tuple[np.dtype[Any], tuple[int, ...]] | None":
        """Type and shape, where the model takes one tensor without a name."""
        return self._tensor

    @property
    def hinted(self) -> bool:
        """Whether the model checks by itself, by type hints."""
        return self._hinted

    @property
    def required(self) -> list[str]:
        return list(self._schema.required_input_names()) if self._schema is not None else []

    @property
    def parameters(self) -> list[str]:
        """The names of those that the model knows."""
        return [one.name for one in self._params_schema.params] if self._params_schema is not None else []

    def document(self, document: dict[str, Any]) -> Rows:
        """What a JSON body of this content means to MLflow. Raises Refusal."""
        return self._rest(document, [key for key in document if key in FORMS])

    def enforced(self, data: Any, params: Any) -> Rows:
        """What a table or arrays by name mean to MLflow. Raises Refusal."""
        return self._framed(data, params)

    # -- JSON --

    def _json(self, body: bytes) -> Rows:
        document = _parsed(body)
        forms = [key for key in document if key in FORMS]
        if len(forms) != 1 or self._hinted or self._schema is None:
            return self._rest(document, forms)
        form = forms[0]
        data = document[form]
        found = (
            self._quick_tensor(data)
            if self._tensor and form in ("inputs", "instances")
            else self._quick(form, data)
            if self._names
            else None
        )
        if found is None:
            return self._rest(document, forms)
        found.params = self.params(document.get("params"))
        return found

    def _quick_tensor(self, data: Any) -> Rows | None:
        if not isinstance(data, list) or not data or isinstance(data[0], dict) or self._tensor is None:
            return None
        dtype, sizes = self._tensor
        quick = packed(data, dtype, sizes)
        if quick is not None:
            return Rows("tensor", quick, len(quick))
        try:
            with np.errstate(over="ignore"):
                array = np.array(data, dtype=dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise Refusal(misfit.first_bad(data, dtype, sizes) or f"the tensor cannot be read as {dtype}: {error}") from None
        if len(array.shape) != len(sizes) or any(want not in (-1, got) for want, got in zip(sizes, array.shape, strict=True)):
            raise Refusal(f"the tensor has the shape {shape(array.shape)}; expected {shape(sizes)}", code=INVALID)
        return Rows("tensor", array, len(array)) if array.ndim else None

    def _quick(self, form: str, data: Any) -> Rows | None:
        """Rows of plain columns; None where MLflow has to say."""
        rows: Sequence[Sequence[Any]]
        if form == "dataframe_split":
            found = self._split(data)
            if found is None:
                return None
            rows = found
        elif form == "inputs":
            if not isinstance(data, dict) or not all(name in data for name in self._names):
                return None
            lists = [data[name] for name in self._names]
            if all(type(one) in NUMBERS for one in lists):
                rows = [lists]
            elif all(type(one) is list and len(one) == len(lists[0]) for one in lists):
                rows = list(zip(*lists, strict=True))
            else:
                return None
        else:
            if not isinstance(data, list) or not data or not all(type(one) is dict for one in data):
                return None
            try:
                rows = list(map(self._row, data))
            except KeyError:
                self._look_for_ragged(form, data)
                return None
        if self._block is not None:
            return self._as_block(rows, self._block)
        return self._as_columns(rows, numbers_only=form in ("inputs", "instances"))

    def _split(self, data: Any) -> Sequence[Sequence[Any]] | None:
        if type(data) is not dict or set(data) != {"columns", "data"}:
            return None
        columns, rows = data["columns"], data["data"]
        if type(columns) is not list or type(rows) is not list:
            return None
        width = len(columns)
        if any(type(row) is not list or len(row) != width for row in rows):
            return None
        if columns == self._names:
            return rows
        places = {name: place for place, name in enumerate(columns) if type(name) is str}
        if len(places) != width or not all(name in places for name in self._names):
            return None
        order = [places[name] for name in self._names]
        return [[row[place] for place in order] for row in rows]

    def _as_block(self, rows: Sequence[Sequence[Any]], dtype: "np.dtype[Any]") -> Rows | None:
        quick = packed(rows, dtype, (-1, len(self._names)))
        if quick is not None and _is_exact(quick):
            return Rows("block", quick, len(rows))
        kinds: set[type] = set()
        for row in rows:
            kinds.update(map(type, row))
        # pandas makes NaN of null among numbers, and refuses it among booleans.
        if not kinds <= NUMBERS or {bool, type(None)} <= kinds:
            return None
        try:
            with np.errstate(over="ignore"):
                block = np.array(rows, dtype=dtype).reshape(len(rows), len(self._names))
        except OverflowError:
            return None
        if int in kinds and not _is_exact(block):
            return None  # an int64 becomes a float32 in one step there
        return Rows("block", block, len(rows))

    def _as_columns(self, rows: Sequence[Sequence[Any]], *, numbers_only: bool) -> Rows | None:
        if not rows:
            return None
        columns: list[Any] = []
        for place, (name, kind) in enumerate(zip(self._names, self._types, strict=True)):
            values = [row[place] for row in rows]
            types = set(map(type, values))
            if kind in INTEGERS:
                if types != {int} or max(values) > INTEGERS[kind][1] or min(values) < INTEGERS[kind][0]:
                    return None
                columns.append(np.array(values, dtype="int32" if kind == "integer" else "int64"))
            elif kind in ("float", "double"):
                if not types <= {float, int} or any(type(value) is int and abs(value) >= EXACT for value in values):
                    return None
                with np.errstate(over="ignore"):
                    columns.append(np.array(values, dtype="float32" if kind == "float" else "float64"))
            elif kind == "boolean":
                if types != {bool}:
                    return None
                columns.append(np.array(values))
            elif numbers_only or types != {str}:
                return None
            else:
                columns.append(values if kind == "string" else [_base64(value, name, row) for row, value in enumerate(values)])
        return Rows("columns", columns, len(rows))

    def params(self, params: Any) -> dict[str, Any] | None:
        """Checked, with defaults. Raises Refusal."""
        if self._params_schema is None:
            return None if params is None else {}
        from mlflow.exceptions import MlflowException
        from mlflow.models.utils import _enforce_params_schema

        try:
            checked: dict[str, Any] = _enforce_params_schema(dict(params) if isinstance(params, dict) else params, self._params_schema)
        except MlflowException as error:
            raise Refusal(error.message, code=INVALID) from None
        return checked

    # -- MLflow's road --

    def _rest(self, document: dict[str, Any], forms: Sequence[str]) -> Rows:
        from mlflow.exceptions import MlflowException
        from mlflow.utils.proto_json_utils import (
            cast_df_types_according_to_schema,
            dataframe_from_parsed_json,
            parse_tf_serving_input,
        )

        if _is_chat(document):
            known = {one.name for one in self._params_schema.params} if self._params_schema else set()
            params = {key: value for key, value in document.items() if key in known}
            return self._framed({key: value for key, value in document.items() if key not in known}, params, bare=True)
        if self._hinted:
            if "inputs" not in document:
                raise Refusal("this model reads the key 'inputs' only", code=INVALID)
            return Rows("unchecked", document["inputs"], _count(document["inputs"]), document.get("params"))
        if len(forms) != 1:
            have = ", ".join(repr(key) for key in list(document)[:5]) or "nothing"
            raise Refusal(f"the object must hold exactly one of {', '.join(FORMS)}; it holds {have[:SHOWN]}")
        form = forms[0]
        sent = document[form]
        self._look_for_ragged(form, sent)
        known = self._known_only(form, sent)
        _refuse(misfit.too_wide(form, known, self._expected))
        try:
            if form in ("dataframe_split", "dataframe_records"):
                data = dataframe_from_parsed_json(known, pandas_orient=form.removeprefix("dataframe_"))
                if self._schema is not None:
                    # MLflow's conversion wraps.
                    _refuse(misfit.overflow_of_frame(data, self._schema))
                    data = cast_df_types_according_to_schema(data, self._schema)
            else:
                if self._schema is not None:
                    _refuse(misfit.lost_dates(form, sent, self._schema))
                data = parse_tf_serving_input({form: known}, schema=self._schema)
        except (RecursionError, Refusal):
            raise
        except MlflowException as error:
            raise self._refusal(error, form, sent) from None
        except Exception as error:
            raise Refusal(misfit.explain(form, sent, self._schema) or f"{form} cannot be read: {short(error)}") from None
        return self._framed(data, document.get("params"), form=form, sent=sent)

    def _known_only(self, form: str, sent: Any) -> Any:
        """Without the columns that the signature does not name: MLflow drops them too, but only once it has made a table of them."""
        if self._schema is None or not self._schema.has_input_names():
            return sent
        known = frozenset(self._schema.input_names())
        if form != "dataframe_split" or not isinstance(sent, dict):
            return _only(sent, known)
        names, data = sent.get("columns"), sent.get("data")
        if not isinstance(names, list):
            return {**sent, "data": _only(data, known)} if "data" in sent else sent
        places = [place for place, name in enumerate(names) if isinstance(name, str) and name in known]
        kept = [names[place] for place in places]
        if twice := [name for name, often in Counter(kept).items() if often > 1]:
            raise Refusal(f"column {short(twice[0])} was sent twice", code=INVALID)
        if isinstance(data, list) and all(isinstance(row, list) and len(row) == len(names) for row in data):
            return {**sent, "columns": kept, "data": [[row[place] for place in places] for row in data]}
        return {**sent, "columns": kept, "data": _only(data, known)} if isinstance(data, dict) or _are_records(data) else sent

    def _framed(self, data: Any, params: Any, *, bare: bool = False, form: str = "", sent: Any = None) -> Rows:
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc import _validate_prediction_input

        if self._hinted:
            return Rows("unchecked", data, _count(data), params, bare)
        try:
            checked, params = _validate_prediction_input(data, params, self._schema, self._params_schema, self._flavor)
        except MlflowException as error:
            raise self._refusal(error, form, sent) from None
        except RecursionError:
            raise
        except Exception as error:
            said = misfit.explain(form, sent, self._schema)
            raise Refusal(said or f"the input does not fit the model's signature: {short(error)}", code=INVALID) from None
        return Rows("whole", checked, _count(checked), params, bare)

    def _csv(self, body: bytes) -> Rows:
        import pandas as pd

        try:
            text = body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refusal(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
        types: dict[str, Any] = {}
        if self._schema is not None:
            if self._schema.is_tensor_spec():
                raise Refusal("this model takes a tensor, which is not read from CSV: send JSON with 'inputs'")
            named = self._schema.has_input_names()
            for name, one in self._schema.input_dict().items() if named else enumerate(self._schema.inputs):
                kind = getattr(one.type, "name", "")
                if kind in ("", "datetime"):
                    raise Refusal(
                        f"column {name!r} holds {'dates' if kind else one.type}, which is not read from CSV: send JSON or Parquet"
                    )
            types = dict(zip(self._schema.input_names(), self._schema.pandas_types(), strict=False))
        if self._ragged == "refuse":
            _refuse(_ragged_csv(text))
        try:
            frame = pd.read_csv(io.StringIO(text), dtype=types or None)
        except Exception as error:
            said = None
            with contextlib.suppress(Exception):
                said = misfit.explain("text", pd.read_csv(io.StringIO(text), dtype=str), self._schema)
            raise Refusal(said or f"the body cannot be read as CSV with a header line: {short(error)}") from None
        return self._framed(frame, None, form="frame", sent=frame)

    def _parquet(self, body: bytes) -> Rows:
        import pandas as pd

        try:
            frame = pd.read_parquet(io.BytesIO(body))
        except ImportError:
            raise Refusal("this image reads no Parquet: add pyarrow to the service's dependencies", status=415) from None
        except Exception as error:
            raise Refusal(f"the body cannot be read as Parquet: {short(error)}") from None
        if self._schema is not None and self._schema.is_tensor_spec():
            _refuse(misfit.overflow_of_frame(frame, self._schema))  # MLflow itself refuses it for columns
        return self._framed(frame, None, form="frame", sent=frame)

    # -- saying what is wrong --

    def _look_for_ragged(self, form: str, data: Any) -> None:
        if self._ragged != "refuse":
            return
        rows, width = data, None
        if form == "dataframe_split":
            if not isinstance(data, dict):
                return
            rows, names = data.get("data"), data.get("columns")
            width = len(names) if isinstance(names, list) else None
            _refuse(misfit.unlike_widths(rows, width))
        if self._schema is not None:
            named = self._schema.has_input_names()
            _refuse(misfit.ragged(rows, self._schema.required_input_names() if named else None))

    def _refusal(self, error: Any, form: str, sent: Any) -> Refusal:
        """MLflow's verdict; its message without the data and the trace in it, and only where nothing better is found."""
        code, status = str(getattr(error, "error_code", BAD_REQUEST)), error.get_http_status_code()
        status = status if 400 <= status < 500 else 400
        if form and (said := misfit.explain(form, sent, self._schema)):
            return Refusal(said, status=status, code=code)
        message = re.sub(r"(?s)^Failed to enforce schema of data '.*' with schema '.*?'\. Error: ", "", str(error.message))
        message = message.removeprefix("Invalid input. ").removeprefix("Data is not compatible with model signature. ")
        return Refusal(short(Exception(message), 500), status=status, code=code)


def _is_exact(numbers: "np.ndarray[Any, Any]") -> bool:
    """Whether none is so large that a whole number would not be exact.

    A sum of squares is no smaller than the square of the largest: nearly always it says yes, in a fifth of the time of comparing each.
    """
    return bool(np.vdot(numbers, numbers) < EXACT**2) or bool((np.abs(numbers) < EXACT).all())


def _only(data: Any, known: Collection[str]) -> Any:
    if isinstance(data, dict):
        return {name: value for name, value in data.items() if name in known}
    return [{name: value for name, value in row.items() if name in known} for row in data] if _are_records(data) else data


def _are_records(data: Any) -> bool:
    return isinstance(data, list) and all(isinstance(row, dict) for row in data)


def _refuse(said: str | None) -> None:
    if said:
        raise Refusal(said)


def _ragged_csv(text: str) -> str | None:
    """Which row has not as many values as the header. pandas fills up short ones, and takes what long ones begin with for an index."""
    width = None
    with contextlib.suppress(csv.Error):  # pandas has to say
        for row, values in enumerate((values for values in csv.reader(io.StringIO(text)) if values), start=-1):
            width = len(values) if width is None else width
            if len(values) != width:
                return f"row {row} has {len(values)} {'value' if len(values) == 1 else 'values'}; expected {width}, one for each column"
    return None


def _parsed(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            document = json.loads(body)  # NaN, Infinity, a byte order mark, lone surrogates: not JSON, but MLflow reads them
        except UnicodeDecodeError as error:
            raise Refusal(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
        except ValueError as error:
            said = f"{error.msg} at line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
            raise Refusal(f"the body is not valid JSON: {said}") from None
    if not isinstance(document, dict):
        kinds = {list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
        raise Refusal(f"the body must be a JSON object with exactly one of {', '.join(FORMS)}; got {kinds.get(type(document), 'a number')}")
    return document


def _is_chat(document: Mapping[str, Any]) -> bool:
    from mlflow.pyfunc.utils.serving_data_parser import is_unified_llm_input

    return bool(is_unified_llm_input(document))


def _base64(value: str, name: str, row: int) -> bytes:
    try:
        return base64.decodebytes(value.encode())
    except ValueError as error:
        raise Refusal(f"row {row}, column {name!r}: expected base64, {error}") from None


def _count(data: Any) -> int:
    try:
        return max(1, len(next(iter(data.values()))) if isinstance(data, dict) and data else len(data))
    except TypeError:
        return 1
