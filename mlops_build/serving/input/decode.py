"""Decode bodies into the model's input, by their media type. docs/reference/http-contract.md says which models take which bodies."""

import logging
from typing import Any, Literal

from mlops_build.serving.input import csv_body, form, image, json_body, parquet, plain_text
from mlops_build.serving.input.json_text import Reserve
from mlops_build.serving.input.reader import Reader
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.input.signature import Signature
from mlops_build.serving.input.text import SHOWN, check_parameters, media_type
from mlops_build.serving.refusal import Refusal, Unanswered, no_memory

# A new media type is a module with a reader, and a line here.
READERS = (json_body.READER, csv_body.READER, parquet.READER, image.READER, plain_text.READER, form.READER)
JSON = json_body.JSON
UNREADABLE = "the body cannot be read; the service's log has the traceback"

_by_kind = {reader.kind: reader for reader in READERS}
log = logging.getLogger("mlops_build.serving")


def reader_of(content_type: str | None) -> Reader | None:
    """The reader of a media type; None if there is none."""
    kind = media_type(content_type)
    return _by_kind.get(kind) or _by_kind.get(f"{kind.partition('/')[0]}/*")


class Decoder:
    """Decodes bodies for one model. model, ragged: see Signature. readers: of the media types that the model takes."""

    def __init__(self, model: Any, ragged: Literal["refuse", "pad"] = "refuse") -> None:
        self.signature = Signature(model, ragged)
        self.readers = [reader for reader in READERS if reader.takes(self.signature)]

    def decode(self, body: bytes, content_type: str | None, reserve: Reserve = lambda _: None) -> Rows:
        """Decode a body. Raises Refusal and what `reserve` raises, and no other exception for any body."""
        reader = reader_of(content_type)
        if reader not in self.readers:
            raise _not_read(content_type, reader)
        try:
            if not reader.only:
                check_parameters(content_type)
            return reader.read(self.signature, body, content_type or "", reserve)
        except Unanswered:
            raise
        except (RecursionError, MemoryError) as error:
            raise beyond(error, body) from None
        except Exception:  # pandas and MLflow raise unexpected exceptions for some bodies: an error of the caller
            log.warning("a body cannot be read", exc_info=True)
            raise Refusal(UNREADABLE) from None


def beyond(error: RecursionError | MemoryError, body: bytes) -> Refusal:
    """The refusal of a body that is nested too deeply, or for which the system has no memory."""
    return no_memory(body) if isinstance(error, MemoryError) else Refusal("the body is nested too deeply")


def _not_read(content_type: str | None, reader: Reader | None) -> Refusal:
    kind = media_type(content_type)
    if reader is not None:
        return Refusal(f"Content-Type is {kind[:SHOWN]!r}, which only {reader.only} accepts", status=415)
    check_parameters(content_type)
    *others, last = [reader.kind for reader in READERS if not reader.only]
    sent = f"{kind[:SHOWN]!r}" if kind else "none"
    return Refusal(f"Content-Type is {sent}; this service reads {', '.join(others)} and {last}", status=415)
