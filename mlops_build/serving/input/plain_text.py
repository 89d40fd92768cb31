"""A text as the body, for a model with one column of text."""

from python_multipart.multipart import parse_options_header

from mlops_build.serving.input.json_text import Reserve
from mlops_build.serving.input.reader import Reader, only_type
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.signature import Signature
from mlops_build.serving.input.text import decoded
from mlops_build.serving.refusal import Refusal


def _read(signature: Signature, body: bytes, content_type: str, _: Reserve) -> Rows:
    charset = parse_options_header(content_type)[1].get(b"charset", b"utf-8").lower()
    if charset not in (b"utf-8", b"us-ascii"):
        raise Refusal("the charset must be UTF-8", status=415)
    return Rows("columns", [[decoded(body, "the body")]], 1, signature.params(None))


READER = Reader(
    "text/plain",
    _read,
    lambda signature: only_type(signature) == "string",
    "a model with one column of text",
    lambda _: {"type": "string"},
)
