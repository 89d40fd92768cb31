"""Decode bodies that are not tables: an image, a text, and a form with files as browsers and `curl -F` send it.

Only for models whose columns have names and plain types. docs/reference/http-contract.md says which models take which bodies.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from mlops_build.serving.decode import Decoder
from mlops_build.serving.json_text import INLINE_BYTES, Reserve, parse
from mlops_build.serving.mismatch import INTEGERS
from mlops_build.serving.refusal import Refusal
from mlops_build.serving.rows import Rows

PARTS = 10_000  # parsing a part takes microseconds, and a part may be only 60 bytes long
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,5})?")
WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
DTYPES = {"float": "float32", "double": "float64", "integer": "int32", "long": "int64", "boolean": "bool"}
FORM = "multipart/form-data"


class Raw:
    """Decodes such bodies for one model."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.columns = decoder.columns
        self.required = decoder.required
        kinds = list(self.columns.values())
        self._only_type = kinds[0] if len(kinds) == 1 else None

    @property
    def kinds(self) -> list[str]:
        """The media types that `read` accepts, in OpenAPI's form."""
        alone = {"binary": ["image/*"], "string": ["text/plain"]}.get(self._only_type or "", [])
        return [*alone, *([FORM] if self.columns else [])]

    def read(self, body: bytes, content_type: str, reserve: Reserve = lambda _: None) -> Rows | None:
        """Decode a body. Returns None for another Content-Type. Raises Refusal."""
        kind = content_type.partition(";")[0].strip().lower()
        if kind.startswith("image/") and self._only_type == "binary":
            if not body:
                raise Refusal("the body is empty; expected an image")
            return Rows("columns", [[body]], 1, self._decoder.params(None))
        if kind == "text/plain" and self._only_type == "string":
            charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8").lower()
            if charset not in (b"utf-8", b"us-ascii"):
                raise Refusal("the charset must be UTF-8", status=415)
            return Rows("columns", [[_text(body, "the body")]], 1, self._decoder.params(None))
        if kind == FORM and self.columns:
            boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
            if not 1 <= len(boundary) <= 70:
                raise Refusal(f"Content-Type {FORM} needs a boundary of 1 to 70 characters", status=415)
            if len(body) > INLINE_BYTES:  # each line may be a header; a value is collected, copied and converted
                reserve(4 * len(body) + 300 * body.count(b"\n"))
            return self._form(_parts(body, boundary), reserve)
        if kind == FORM or kind.startswith("image/"):
            takes = "a model whose columns have names and plain types" if kind == FORM else "a model with one binary column"
            raise Refusal(f"Content-Type is {kind[:80]!r}, which only {takes} accepts", status=415)
        return None

    def _form(self, parts: Sequence[tuple[str, bool, bytes]], reserve: Reserve) -> Rows:
        columns: dict[str, list[bytes]] = {}
        params = None
        for name, is_file, value in parts:
            if self._only_type == "binary" and is_file:
                name = next(iter(self.columns))  # every file is a row, whatever its field's name
            if name in self.columns:
                columns.setdefault(name, []).append(value)
            elif name == "params":
                params = _params(value, reserve)
        for name in self.required:
            if name not in columns:
                raise Refusal(f"the form has no field {name!r}; the model takes {', '.join(self.columns)[:200]}")
        counts = {len(values) for values in columns.values()}
        if len(counts) != 1:
            sent = ", ".join(f"{len(values)} of {name!r}" for name, values in list(columns.items())[:5])
            raise Refusal(f"each field must occur once per row; sent were {sent or 'no fields'}")
        typed = {name: [_value(value, kind, name, row) for row, value in enumerate(columns[name])] for name, kind in self._known(columns)}
        return self._rows(typed, counts.pop(), params)

    def _known(self, columns: Mapping[str, Any]) -> list[tuple[str, str]]:
        return [(name, kind) for name, kind in self.columns.items() if name in columns]

    def _rows(self, typed: Mapping[str, list[Any]], count: int, params: Any) -> Rows:
        if len(typed) < len(self.columns):  # optional columns are missing: MLflow fills them
            cells = [[base64.b64encode(cell).decode() if isinstance(cell, bytes) else cell for cell in values] for values in typed.values()]
            split = {"columns": list(typed), "data": [list(row) for row in zip(*cells, strict=True)]}
            return self._decoder.document({"dataframe_split": split, **({} if params is None else {"params": params})})
        checked = self._decoder.params(params)
        with np.errstate(over="ignore"):
            if self._decoder.block is not None:
                return Rows("block", np.array(list(typed.values()), dtype=self._decoder.block).T.copy(), count, checked)
            arrays = [
                np.array(values, dtype=DTYPES[kind]) if (kind := self.columns[name]) in DTYPES else values for name, values in typed.items()
            ]
        return Rows("columns", arrays, count, checked)


def _parts(body: bytes, boundary: bytes) -> list[tuple[str, bool, bytes]]:
    """The parts of a form: name, whether it is a file, and content. Raises Refusal."""
    parts: list[tuple[str, bool, bytes]] = []
    headers: dict[bytes, bytes] = {}
    field, value, content = bytearray(), bytearray(), bytearray()
    ended = False

    def begin() -> None:
        headers.clear()
        content.clear()
        if len(parts) >= PARTS:
            raise Refusal(f"the form has more than {PARTS} parts", status=413)

    def header_end() -> None:
        headers[bytes(field).lower()] = bytes(value)
        field.clear()
        value.clear()

    def end() -> None:
        parts.append((*_disposition(headers), bytes(content)))

    def done() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": lambda data, at, to: field.extend(data[at:to]),
            "on_header_value": lambda data, at, to: value.extend(data[at:to]),
            "on_header_end": header_end,
            "on_part_data": lambda data, at, to: content.extend(data[at:to]),
            "on_part_end": end,
            "on_end": done,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(f"the form cannot be read: {error}") from None
    if not ended:
        raise Refusal("the form ends before its last boundary")
    return parts


def _disposition(headers: Mapping[bytes, bytes]) -> tuple[str, bool]:
    kind, options = parse_options_header(headers.get(b"content-disposition"))
    if kind != b"form-data" or b"name" not in options:
        raise Refusal("each part of the form must have the header Content-Disposition: form-data; name=…")
    if headers.get(b"content-transfer-encoding", b"binary").strip().lower() not in (b"binary", b"8bit", b"7bit"):
        raise Refusal("parts of a form are not decoded: Content-Transfer-Encoding must be binary")
    return options[b"name"].decode("utf-8", "replace"), b"filename" in options


def _value(value: bytes, kind: str, name: str, row: int) -> Any:
    if kind == "binary":
        return value
    text = _text(value, f"row {row}, field {name!r}")
    if kind == "string":
        return text
    number = text.strip()
    if kind == "boolean" and number.lower() in ("true", "false"):
        return number.lower() == "true"
    if kind in INTEGERS and WHOLE.fullmatch(number):
        least, most = INTEGERS[kind]
        if not least <= int(number) <= most:
            raise Refusal(f"row {row}, field {name!r}: {number} does not fit into {kind} ({least} to {most})")
        return int(number)
    if kind in ("float", "double") and NUMBER.fullmatch(number):
        return float(number)
    raise Refusal(f"row {row}, field {name!r}: expected {kind}, got {number[:80]!r}")


def _text(value: bytes, what: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise Refusal(f"{what} is not UTF-8: {error.reason} at byte {error.start}") from None


def _params(value: bytes, reserve: Reserve) -> Any:
    try:
        return parse(value, reserve, what="the field 'params'")
    except RecursionError:
        raise Refusal("the field 'params' must be a JSON object") from None
