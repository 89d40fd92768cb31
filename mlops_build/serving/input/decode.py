"""Decode the bodies of /invocations into the model's input.

There are two paths. The fast path (quick.py) handles the common bodies (JSON with columns of plain types, or one tensor): it uses the
signature and numpy, and takes tens of microseconds per row. It accepts a body only if MLflow would certainly convert it to the same values.
All other bodies (CSV, Parquet, dates, nested types, text in columns of numbers, missing columns) go through MLflow's own parsing and
enforcement, so that MLflow decides. docs/reference/http-contract.md lists the deliberate differences.
"""

import base64
import contextlib
import csv
import io
import logging
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mlops_build.serving.input import mismatch, parquet
from mlops_build.serving.input.json_text import CONVERSION, INLINE_BYTES, TABLE_CONVERSION, Reserve, parse, size
from mlops_build.serving.input.mismatch import SHOWN, short
from mlops_build.serving.input.quick import Quick
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.refusal import BAD_REQUEST, INVALID, Refusal, Unanswered, no_memory

JSON, CSV, PARQUET = "application/json", "text/csv", "application/vnd.apache.parquet"
# The memory to read CSV: for a character, and for a value. tests/serving/test_memory.py measures it.
CSV_CHARACTER, CSV_VALUE = 5, 24
FORMS = ("dataframe_split", "dataframe_records", "instances", "inputs")

UNREADABLE = "the body cannot be read; the service's log has the traceback"

log = logging.getLogger("mlops_build.serving")


def media_type(header: str | None) -> str:
    """JSON, CSV or PARQUET, from a Content-Type header. Raises Refusal (415)."""
    kind, *parameters = (part.strip() for part in (header or "").split(";"))
    kind = kind.lower()
    values = {name.lower(): value for name, _, value in (parameter.partition("=") for parameter in parameters)}
    if values.get("charset", "utf-8").strip('"').lower() != "utf-8":
        raise Refusal("the charset must be UTF-8", status=415)
    if unknown := sorted(set(values) - {"charset"}):
        raise Refusal(f"Content-Type has unknown parameters: {', '.join(unknown)[:SHOWN]}", status=415)
    if kind not in (JSON, CSV, PARQUET):
        sent = f"{kind[:SHOWN]!r}" if kind else "none"
        raise Refusal(f"Content-Type is {sent}; this service reads {JSON}, {CSV} and {PARQUET}", status=415)
    return kind


class Decoder:
    """Decodes bodies for one model, by its signature.

    model: mlflow.pyfunc.PyFuncModel. ragged: `pad` fills short rows with NaN, as MLflow does; `refuse` refuses them and names the row.
    hinted: whether the model validates its input itself, by type hints.
    """

    def __init__(self, model: Any, ragged: Literal["refuse", "pad"] = "refuse") -> None:
        self._metadata = model.metadata
        self._flavor = model.loader_module
        self._schema = model.metadata.get_input_schema()
        self._params_schema = model.metadata.get_params_schema()
        self.hinted = bool(model.metadata._is_signature_from_type_hint())
        self._ragged = ragged
        self._most = 10 * mismatch.WIDE  # columns of a table
        self.quick = Quick(None if self.hinted else self._schema)
        # Floats represent integers beyond 64 bits as well as MLflow's conversion of them.
        of_floats = self.quick.block is not None or (self.quick.tensor is not None and self.quick.tensor[0].kind == "f")
        self._exact = not of_floats or self._params_schema is not None
        schema = self._schema
        if schema is None or self.hinted:
            return
        expected = len(schema.inputs)
        if schema.is_tensor_spec() and not schema.has_input_names():
            expected = max([1, *schema.inputs[0].shape[1:2]])
        self._most = 2 * expected + mismatch.WIDE

    def decode(self, body: bytes, content_type: str | None, reserve: Reserve = lambda _: None) -> Rows:
        """Decode a body. Raises Refusal and what `reserve` raises, and no other exception for any body."""
        read = {JSON: self._json, CSV: self._csv, PARQUET: self._parquet}[media_type(content_type)]
        try:
            return read(body, reserve)
        except RecursionError:
            raise Refusal("the body is nested too deeply") from None
        except MemoryError:
            raise no_memory(body) from None
        except Unanswered:
            raise
        except Exception:  # pandas and MLflow raise unexpected exceptions for some bodies: an error of the caller
            log.warning("a body cannot be read", exc_info=True)
            raise Refusal(UNREADABLE) from None

    # -- for modules that parse bodies of other kinds (serving/v2, images.py) --

    @property
    def required(self) -> list[str]:
        return list(self._schema.required_input_names()) if self._schema is not None else []

    @property
    def parameters(self) -> list[str]:
        """The names of the model's params."""
        return [param.name for param in self._params_schema.params] if self._params_schema is not None else []

    def typed(self, columns: Mapping[str, Any], count: int, params: Any) -> Rows:
        """Rows from columns by name: arrays of the signature's types, lists otherwise. MLflow adds missing ones. Raises Refusal."""
        names = self.quick.names
        if names and count and set(names) <= set(columns):
            ordered = [columns[name] for name in names]
            if self.quick.block is not None:
                return Rows("block", np.column_stack(ordered), count, self.params(params))
            return Rows("columns", ordered, count, self.params(params))
        cells = [values.tolist() if isinstance(values, np.ndarray) else map(_as_json, values) for values in columns.values()]
        rows = [list(row) for row in zip(*cells, strict=True)]
        return self.document({"dataframe_split": {"columns": list(columns), "data": rows}, "params": params})

    # -- JSON --

    def _json(self, body: bytes, reserve: Reserve) -> Rows:
        document = parse(body, reserve, exact=self._exact)
        if not isinstance(document, dict):
            raise Refusal(f"the body must be a JSON object with exactly one of {', '.join(FORMS)}")
        forms = [key for key in document if key in FORMS]
        if len(forms) == 1 and (rows := self.quick.rows(forms[0], document[forms[0]])) is not None:
            rows.params = self.params(document.get("params"))
            return rows
        if len(body) > INLINE_BYTES:
            reserve(int((TABLE_CONVERSION if forms and forms[0].startswith("dataframe") else CONVERSION) * size(body)))
        return self.document(document)

    def params(self, params: Any) -> dict[str, Any] | None:
        """Validate params and fill in defaults. Raises Refusal."""
        if self._params_schema is None:
            return None if params is None else {}
        from mlflow.exceptions import MlflowException
        from mlflow.models.utils import _enforce_params_schema

        try:
            checked: dict[str, Any] = _enforce_params_schema(dict(params) if isinstance(params, dict) else params, self._params_schema)
        except MlflowException as error:
            raise Refusal(error.message, code=INVALID) from None
        return checked

    # -- the path through MLflow --

    def document(self, document: dict[str, Any]) -> Rows:
        """Decode a parsed JSON body with MLflow. Raises Refusal."""
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc.utils.serving_data_parser import is_unified_llm_input
        from mlflow.utils.proto_json_utils import (
            cast_df_types_according_to_schema,
            dataframe_from_parsed_json,
            parse_tf_serving_input,
        )

        if is_unified_llm_input(document):
            params = {key: document.pop(key) for key in self.parameters if key in document}
            return self.enforced(document, params, bare=True)
        if self.hinted:
            if "inputs" not in document:
                raise Refusal("this model reads the key 'inputs' only", code=INVALID)
            return Rows("unchecked", document["inputs"], _count(document["inputs"]), document.get("params"))
        forms = [key for key in document if key in FORMS]
        if len(forms) != 1:
            keys = ", ".join(repr(key) for key in list(document)[:5]) or "nothing"
            raise Refusal(f"the object must contain exactly one of {', '.join(FORMS)}; it contains {keys[:SHOWN]}")
        form = forms[0]
        sent = document[form]
        self._look_for_ragged(form, sent)
        _refuse(mismatch.too_wide(form, sent, self._most))
        try:
            if form in ("dataframe_split", "dataframe_records"):
                data = dataframe_from_parsed_json(sent, pandas_orient=form.removeprefix("dataframe_"))
                if self._schema is not None:
                    # MLflow's conversion wraps silently.
                    _refuse(mismatch.overflow_of_frame(data, self._schema))
                    data = cast_df_types_according_to_schema(data, self._schema)
            else:
                if self._schema is not None:
                    _refuse(mismatch.lost_dates(form, sent, self._schema))
                data = parse_tf_serving_input({form: sent}, schema=self._schema)
        except (RecursionError, Refusal):
            raise
        except MlflowException as error:
            raise self._refusal(error, form, sent) from None
        except Exception as error:
            raise Refusal(mismatch.explain(form, sent, self._schema) or f"{form} cannot be read: {short(error)}") from None
        return self.enforced(data, document.get("params"), form=form, sent=sent)

    def enforced(self, data: Any, params: Any, *, bare: bool = False, form: str = "", sent: Any = None) -> Rows:
        """Validate a table, or arrays by name, with MLflow. form, sent: the body for messages. Raises Refusal."""
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc import _validate_prediction_input

        if self.hinted:
            return Rows("unchecked", data, _count(data), params, bare)
        try:
            checked, params = _validate_prediction_input(data, params, self._schema, self._params_schema, self._flavor)
        except MlflowException as error:
            raise self._refusal(error, form, sent) from None
        except RecursionError:
            raise
        except Exception as error:
            why = mismatch.explain(form, sent, self._schema)
            raise Refusal(why or f"the input does not match the model's signature: {short(error)}", code=INVALID) from None
        return Rows("whole", checked, _count(checked), params, bare)

    def _csv(self, body: bytes, reserve: Reserve) -> Rows:
        import pandas as pd

        if len(body) > INLINE_BYTES:
            reserve(CSV_CHARACTER * len(body) + CSV_VALUE * (body.count(b",") + body.count(b"\n")))
        try:
            body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise Refusal(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
        types: dict[str, Any] = {}
        if self._schema is not None:
            if self._schema.is_tensor_spec():
                raise Refusal("this model takes a tensor, which CSV cannot contain: send JSON with 'inputs'")
            named = self._schema.has_input_names()
            for name, column in self._schema.input_dict().items() if named else enumerate(self._schema.inputs):
                kind = getattr(column.type, "name", "")
                if kind in ("", "datetime"):
                    raise Refusal(
                        f"column {name!r} contains {'dates' if kind else column.type}, which CSV cannot contain: send JSON or Parquet"
                    )
            types = dict(zip(self._schema.input_names(), self._schema.pandas_types(), strict=False))
        _refuse(self._csv_problem(body))
        try:
            frame = pd.read_csv(io.BytesIO(body), dtype=types or None)
        except Exception as error:
            why = None
            with contextlib.suppress(Exception):
                why = mismatch.explain("text", pd.read_csv(io.BytesIO(body), dtype=str, nrows=mismatch.FRAME_ROWS), self._schema)
            raise Refusal(why or f"the body cannot be read as CSV with a header line: {short(error)}") from None
        return self.enforced(frame, None, form="frame", sent=frame)

    def _parquet(self, body: bytes, reserve: Reserve) -> Rows:
        try:
            frame = parquet.read(body, reserve, self._most)
        except ImportError:
            raise Refusal("this image cannot read Parquet: add pyarrow to the service's dependencies", status=415) from None
        except Unanswered:
            raise
        except Exception as error:
            raise Refusal(f"the body cannot be read as Parquet: {short(error)}") from None
        if self._schema is not None and self._schema.is_tensor_spec():
            _refuse(mismatch.overflow_of_frame(frame, self._schema))  # MLflow refuses such values in columns itself
        return self.enforced(frame, None, form="frame", sent=frame)

    # -- error messages --

    def _csv_problem(self, body: bytes) -> str | None:
        """Too many columns, or the first row with another number of values than the header.

        pandas pads short rows and reads the start of long rows as an index.
        """
        # csv and pandas would first make an object of each of millions of columns.
        lines = io.BytesIO(body)
        if len(next(lines, b"")) > 1 << 20 or any(line.count(b",") > 4 * self._most for line in lines):
            return f"a line has more than {self._most} columns, or the first has more than 1 MiB"
        with contextlib.suppress(csv.Error):  # pandas reports the error
            rows = (values for values in csv.reader(io.TextIOWrapper(io.BytesIO(body), "utf-8", newline="")) if values)
            width = len(next(rows, ()))
            if width > self._most:
                return f"{width} columns were sent; this service reads at most {self._most}"
            if self._ragged == "refuse":
                return mismatch.uneven(map(len, rows), width)
        return None

    def _look_for_ragged(self, form: str, data: Any) -> None:
        split = form == "dataframe_split" and isinstance(data, dict)
        rows = data.get("data") if split else data
        if self._ragged != "refuse" or not isinstance(rows, list):
            return
        if split and all(isinstance(row, list) for row in rows):
            names = data.get("columns")
            _refuse(mismatch.uneven(map(len, rows), len(names) if isinstance(names, list) else None))
        if self._schema is not None and _are_records(rows):
            _refuse(mismatch.ragged(rows, self._schema.required_input_names() if self._schema.has_input_names() else None))

    def _refusal(self, error: Any, form: str, sent: Any) -> Refusal:
        """A refusal with MLflow's status and code. Its message is used if `explain` has none, without the data and the traceback in it."""
        code, status = str(getattr(error, "error_code", BAD_REQUEST)), error.get_http_status_code()
        status = status if 400 <= status < 500 else 400
        if form and (why := mismatch.explain(form, sent, self._schema)):
            return Refusal(why, status=status, code=code)
        message = re.sub(r"(?s)^Failed to enforce schema of data '.*' with schema '.*?'\. Error: ", "", str(error.message))
        message = message.removeprefix("Invalid input. ").removeprefix("Data is not compatible with model signature. ")
        return Refusal(short(Exception(message), 500), status=status, code=code)


def _are_records(data: Any) -> bool:
    return isinstance(data, list) and all(isinstance(row, dict) for row in data)


def _refuse(why: str | None) -> None:
    """Raise Refusal if there is a reason."""
    if why:
        raise Refusal(why)


def _as_json(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.tolist() if isinstance(value, np.ndarray) else value


def _count(data: Any) -> int:
    try:
        return max(1, len(next(iter(data.values()))) if isinstance(data, dict) and data else len(data))
    except TypeError:
        return 1
