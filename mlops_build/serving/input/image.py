"""An image as the body, for a model with one binary column."""

from mlops_build.serving.input.json_text import Reserve
from mlops_build.serving.input.reader import FILE, Reader, only_type
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.signature import Signature
from mlops_build.serving.refusal import Refusal


def _read(signature: Signature, body: bytes, _: str, __: Reserve) -> Rows:
    if not body:
        raise Refusal("the body is empty; expected an image")
    return Rows("columns", [[body]], 1, signature.params(None))


READER = Reader("image/*", _read, lambda signature: only_type(signature) == "binary", "a model with one binary column", lambda _: FILE)
