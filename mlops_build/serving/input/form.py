"""A form with fields and files, as browsers and `curl -F` send it, for a model whose columns have names and plain types."""

import io
import math
import re
from collections.abc import Sequence
from typing import Any, cast

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import FormParser, parse_options_header

from mlops_build.serving.input.json_text import INLINE_BYTES, Reserve, parse
from mlops_build.serving.input.mismatch import INTEGERS
from mlops_build.serving.input.quick import typed
from mlops_build.serving.input.reader import FILE, Reader, only_type
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.signature import Signature
from mlops_build.serving.input.text import decoded
from mlops_build.serving.refusal import Refusal

KIND = "multipart/form-data"
PARTS = 10_000  # parsing a part takes microseconds, and a part may be only 60 bytes long
NUMBER = re.compile(r"[+-]?(?:[0-9]{1,400}\.?[0-9]{0,400}|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,5})?")
WHOLE = re.compile(r"[+-]?[0-9]{1,20}")


def _read(signature: Signature, body: bytes, content_type: str, reserve: Reserve) -> Rows:
    boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
    if not 1 <= len(boundary) <= 70:
        raise Refusal(f"Content-Type {KIND} needs a boundary of 1 to 70 characters", status=415)
    if len(body) > INLINE_BYTES:  # each line may be a header; a value is collected, copied and converted
        reserve(4 * len(body) + 300 * body.count(b"\n"))
    return _rows(signature, _parts(body, boundary), reserve)


def _schema(signature: Signature) -> dict[str, Any]:
    """Each field has one value per row, text or a file."""
    known = signature.quick.columns
    values = {name: FILE if kind == "binary" else {"type": "string"} for name, kind in known.items()}
    fields = {name: {"type": "array", "items": value, "minItems": 1} for name, value in values.items()}
    return {"type": "object", "properties": fields, "required": signature.required}


def _rows(signature: Signature, parts: Sequence[tuple[str, bool, bytes]], reserve: Reserve) -> Rows:
    known, columns = signature.quick.columns, dict[str, list[bytes]]()
    params = None
    for name, is_file, value in parts:
        if only_type(signature) == "binary" and is_file:
            name = next(iter(known))  # every file is a row, whatever its field's name
        if name in known:
            columns.setdefault(name, []).append(value)
        elif name == "params":
            params = parse(value, reserve, what="the field 'params'")
    for name in signature.required:
        if name not in columns:
            raise Refusal(f"the form has no field {name!r}; the model takes {', '.join(known)[:200]}")
    counts = {len(values) for values in columns.values()}
    if len(counts) != 1:
        sent = ", ".join(f"{len(values)} of {name!r}" for name, values in list(columns.items())[:5])
        raise Refusal(f"each field must occur once per row; sent were {sent or 'no fields'}")
    converted = {
        name: typed([_value(value, known[name], name, row) for row, value in enumerate(values)], known[name])
        for name, values in columns.items()
    }
    return signature.typed(converted, counts.pop(), params)


def _parts(body: bytes, boundary: bytes) -> list[tuple[str, bool, bytes]]:
    """The parts of a form: name, whether it is a file, and content. Raises Refusal."""
    parts: list[tuple[str, bool, bytes]] = []
    ended: list[bool] = []

    def add(name: bytes | None, is_file: bool, content: bytes | None) -> None:
        if len(parts) >= PARTS:
            raise Refusal(f"the form has more than {PARTS} parts", status=413)
        parts.append(((name or b"").decode("utf-8", "replace"), is_file, content or b""))

    parser = FormParser(
        KIND,
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
    text = decoded(value, f"row {row}, field {name!r}")
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


READER = Reader(
    KIND,
    _read,
    lambda signature: bool(signature.quick.columns),
    "a model whose columns have names and plain types",
    _schema,
    slow=True,
)
