"""Decode bodies that are not tables: an image, a text, and a form with files as browsers and `curl -F` send it.

Only for models whose columns have names and plain types. docs/reference/http-contract.md says which models take which bodies.
"""

import io
import math
import re
from collections.abc import Sequence
from typing import Any, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from mlops_build.serving.input.decode import Decoder
from mlops_build.serving.input.json_text import INLINE_BYTES, Reserve, parse
from mlops_build.serving.input.mismatch import INTEGERS
from mlops_build.serving.input.quick import typed
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.refusal import Refusal

PARTS = 10_000  # parsing a part takes microseconds, and a part may be only 60 bytes long
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,5})?")
WHOLE = re.compile(r"[+-]?[0-9]{1,20}")
FORM = "multipart/form-data"


class Raw:
    """Decodes such bodies for one model."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.columns = decoder.quick.columns
        self.required = decoder.required
        kinds = list(self.columns.values())
        self._only_type = kinds[0] if len(kinds) == 1 else ""

    @property
    def kinds(self) -> list[str]:
        """The media types that `read` accepts, in OpenAPI's form."""
        alone = {"binary": ["image/*"], "string": ["text/plain"]}.get(self._only_type, [])
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
        converted = {
            name: typed([_value(value, self.columns[name], name, row) for row, value in enumerate(values)], self.columns[name])
            for name, values in columns.items()
        }
        return self._decoder.typed(converted, counts.pop(), params)


def _parts(body: bytes, boundary: bytes) -> list[tuple[str, bool, bytes]]:
    """The parts of a form: name, whether it is a file, and content. Raises Refusal."""
    parts: list[tuple[str, bool, bytes]] = []
    ended: list[bool] = []

    def add(name: bytes | None, is_file: bool, content: bytes | None) -> None:
        if len(parts) >= PARTS:
            raise Refusal(f"the form has more than {PARTS} parts", status=413)
        parts.append(((name or b"").decode("utf-8", "replace"), is_file, content or b""))

    parser = FormParser(
        FORM,
        lambda field: add(field.field_name, False, field.value),
        lambda file: add(file.field_name, True, cast(io.BytesIO, file.file_object).getvalue()),
        lambda: ended.append(True),
        boundary,
        config={"MAX_MEMORY_FILE_SIZE": math.inf, "UPLOAD_ERROR_ON_BAD_CTE": True},
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise Refusal(f"the form cannot be read: {error}") from None
    if not ended:
        raise Refusal("the form ends before its last boundary")
    return parts


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
