"""JSON bodies, as MLflow's scoring protocol defines them."""

from mlops_build.serving.input.json_text import CONVERSION, INLINE_BYTES, TABLE_CONVERSION, Reserve, parse, size
from mlops_build.serving.input.reader import Reader
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.signature import Signature
from mlops_build.serving.input.text import FORMS
from mlops_build.serving.refusal import Refusal

JSON = "application/json"


def _read(signature: Signature, body: bytes, _: str, reserve: Reserve) -> Rows:
    document = parse(body, reserve, exact=signature.exact)
    if not isinstance(document, dict):
        raise Refusal(f"the body must be a JSON object with exactly one of {', '.join(FORMS)}")
    forms = [key for key in document if key in FORMS]
    if len(forms) == 1 and (rows := signature.quick.rows(forms[0], document[forms[0]])) is not None:
        rows.params = signature.params(document.get("params"))
        return rows
    if len(body) > INLINE_BYTES:
        reserve(int((TABLE_CONVERSION if forms and forms[0].startswith("dataframe") else CONVERSION) * size(body)))
    return signature.document(document)


READER = Reader(JSON, _read)
