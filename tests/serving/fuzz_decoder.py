"""A target for atheris, run by test_soak.py: the decoder must decode or refuse any bytes."""

import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mlops_build.serving"]):
    from mlops_build.serving.input.decode import UNREADABLE
    from mlops_build.serving.refusal import Refusal
    from tests.serving.bodies import BODIES, CSV, JSON, decoders

DECODERS = decoders()


def target(data: bytes) -> None:
    if len(data) < 2:
        return
    # Not Parquet: errors in its reader are not errors of the decoder.
    decoder, kind = DECODERS[data[0] % len(DECODERS)], CSV if data[1] % 4 == 0 else JSON
    try:
        decoder.decode(data[2:], kind)
    except Refusal as refused:
        assert refused.message != UNREADABLE, "an unexpected exception that the catch-all converted into a refusal"  # noqa: PT017


if __name__ == "__main__":
    corpus = Path(next(word for word in sys.argv[1:] if not word.startswith("-")))
    for number in range(len(DECODERS)):
        for position, (body, kind) in enumerate(BODIES):
            if kind in (JSON, CSV):
                (corpus / f"{number}-{position}").write_bytes(bytes([number, 0 if kind == CSV else 1]) + body)
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()
