"""A model's signature, and the conversion of parsed values to rows by it.

There are two paths. The fast path (quick.py) handles the common bodies (JSON with columns of plain types, or one tensor): it uses the
signature and numpy, and takes tens of microseconds per row. It accepts a body only if MLflow would certainly convert it to the same values.
All other bodies (CSV, Parquet, dates, nested types, text in columns of numbers, missing columns) go through MLflow's own parsing and
enforcement, so that MLflow decides. docs/reference/http-contract.md lists the deliberate differences.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np

from mlops_build.serving.input import mismatch
from mlops_build.serving.input.mismatch import short
from mlops_build.serving.input.quick import Quick
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.text import FORMS, SHOWN
from mlops_build.serving.refusal import BAD_REQUEST, INVALID, Refusal


class Signature:
    """Converts values to rows for one model.

    model: mlflow.pyfunc.PyFuncModel. ragged: `pad` fills short rows with NaN, as MLflow does; `refuse` refuses them and names the row.
    hinted: whether the model validates its input itself, by type hints. schema: MLflow's, of the input; None without one. most: the limit
    for the columns of a table. exact: whether integers beyond 64 bits must be integers.
    """

    def __init__(self, model: Any, ragged: Literal["refuse", "pad"] = "refuse") -> None:
        self._flavor = model.loader_module
        self.schema = model.metadata.get_input_schema()
        self._params_schema = model.metadata.get_params_schema()
        self.hinted = bool(model.metadata._is_signature_from_type_hint())
        self.ragged = ragged
        self.most = 10 * mismatch.WIDE  # columns of a table
        self.quick = Quick(None if self.hinted else self.schema)
        # Floats represent integers beyond 64 bits as well as MLflow's conversion of them.
        of_floats = self.quick.block is not None or (self.quick.tensor is not None and self.quick.tensor[0].kind == "f")
        self.exact = not of_floats or self._params_schema is not None
        schema = self.schema
        if schema is None or self.hinted:
            return
        expected = len(schema.inputs)
        if schema.is_tensor_spec() and not schema.has_input_names():
            expected = max([1, *schema.inputs[0].shape[1:2]])
        self.most = 2 * expected + mismatch.WIDE

    @property
    def required(self) -> list[str]:
        return list(self.schema.required_input_names()) if self.schema is not None else []

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
        refuse_if(mismatch.too_wide(form, sent, self.most))
        try:
            if form in ("dataframe_split", "dataframe_records"):
                data = dataframe_from_parsed_json(sent, pandas_orient=form.removeprefix("dataframe_"))
                if self.schema is not None:
                    # MLflow's conversion wraps silently.
                    refuse_if(mismatch.overflow_of_frame(data, self.schema))
                    data = cast_df_types_according_to_schema(data, self.schema)
            else:
                if self.schema is not None:
                    refuse_if(mismatch.lost_dates(form, sent, self.schema))
                data = parse_tf_serving_input({form: sent}, schema=self.schema)
        except (RecursionError, Refusal):
            raise
        except MlflowException as error:
            raise self._refusal(error, form, sent) from None
        except Exception as error:
            raise Refusal(mismatch.explain(form, sent, self.schema) or f"{form} cannot be read: {short(error)}") from None
        return self.enforced(data, document.get("params"), form=form, sent=sent)

    def enforced(self, data: Any, params: Any, *, bare: bool = False, form: str = "", sent: Any = None) -> Rows:
        """Validate a table, or arrays by name, with MLflow. form, sent: the body for messages. Raises Refusal."""
        from mlflow.exceptions import MlflowException
        from mlflow.pyfunc import _validate_prediction_input

        if self.hinted:
            return Rows("unchecked", data, _count(data), params, bare)
        try:
            checked, params = _validate_prediction_input(data, params, self.schema, self._params_schema, self._flavor)
        except MlflowException as error:
            raise self._refusal(error, form, sent) from None
        except RecursionError:
            raise
        except Exception as error:
            why = mismatch.explain(form, sent, self.schema)
            raise Refusal(why or f"the input does not match the model's signature: {short(error)}", code=INVALID) from None
        return Rows("whole", checked, _count(checked), params, bare)

    # -- error messages --

    def _look_for_ragged(self, form: str, data: Any) -> None:
        split = form == "dataframe_split" and isinstance(data, dict)
        rows = data.get("data") if split else data
        if self.ragged != "refuse" or not isinstance(rows, list):
            return
        if split and all(isinstance(row, list) for row in rows):
            names = data.get("columns")
            refuse_if(mismatch.uneven(map(len, rows), len(names) if isinstance(names, list) else None))
        if self.schema is not None and _are_records(rows):
            refuse_if(mismatch.ragged(rows, self.schema.required_input_names() if self.schema.has_input_names() else None))

    def _refusal(self, error: Any, form: str, sent: Any) -> Refusal:
        """A refusal with MLflow's status and code. Its message is used if `explain` has none, without the data and the traceback in it."""
        code, status = str(getattr(error, "error_code", BAD_REQUEST)), error.get_http_status_code()
        status = status if 400 <= status < 500 else 400
        if form and (why := mismatch.explain(form, sent, self.schema)):
            return Refusal(why, status=status, code=code)
        message = re.sub(r"(?s)^Failed to enforce schema of data '.*' with schema '.*?'\. Error: ", "", str(error.message))
        message = message.removeprefix("Invalid input. ").removeprefix("Data is not compatible with model signature. ")
        return Refusal(short(Exception(message), 500), status=status, code=code)


def _are_records(data: Any) -> bool:
    return isinstance(data, list) and all(isinstance(row, dict) for row in data)


def refuse_if(why: str | None) -> None:
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
