"""The decoder decodes or refuses any bytes, within a short time."""

import os
import time
from itertools import cycle, islice

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlops_build.serving.input.decode import UNREADABLE, Decoder
from mlops_build.serving.input.rows import Rows
from mlops_build.serving.refusal import Refusal
from tests.serving.forms import JSON, Request, requests
from tests.serving.kinds import KINDS_OF_MODELS

SOAK = int(os.environ.get("SOAK_EXAMPLES", "400"))
# Fragments of valid bodies, and values that are often read wrongly.
PIECES = [
    *b'{}[]",:-.0123456789eE\\\n\r\t\x00\xff ', b"null", b"true", b"NaN", b"-Infinity", b"1e999", b"9223372036854775808", b'"\\ud800"',
    b"[[[[", b'{"inputs":', b'"dataframe_split":', b'"columns":[]', b'"data":', b'"params":', b"\xef\xbb\xbf", b'"2024-02-30"', b"1" * 400,
    b",,,",
]  # fmt: skip
CHANGE = st.tuples(st.floats(0, 1), st.integers(0, 12), st.sampled_from(PIECES) | st.binary(max_size=6))
MODELS = ("floats", "mixed", "dates", "unnamed", "nested", "tensors", "matrix", "no-signature")
REQUESTS = [request for model in MODELS for request in islice(requests(KINDS_OF_MODELS[model]), 0, None, 50) if len(request.body) < 2000]
CASE = st.tuples(st.integers(0, len(MODELS) - 1), st.sampled_from(REQUESTS), st.lists(CHANGE, max_size=6))


@pytest.fixture(scope="module")
def all_decoders(tmp_path_factory: pytest.TempPathFactory) -> list[Decoder]:
    folder = tmp_path_factory.mktemp("fuzz")
    return [Decoder(KINDS_OF_MODELS[model].save(folder / model), ragged) for model, ragged in zip(MODELS, cycle(("refuse", "pad")))]


def changed(body: bytes, changes: list[tuple[float, int, int | bytes]]) -> bytes:
    for where, dropped, piece in changes:
        place = int(where * len(body))
        body = body[:place] + (bytes([piece]) if isinstance(piece, int) else piece) + body[place + dropped :]
    return body


def verdict(decoder: Decoder, body: bytes, kind: str | None = JSON) -> Rows | Refusal:
    try:
        return decoder.decode(body, kind)
    except Refusal as refused:
        return refused


def fuzz(all_decoders: list[Decoder], examples: int) -> None:
    seen: list[bool] = []

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(CASE)
    def check_case(case: tuple[int, Request, list[tuple[float, int, int | bytes]]]) -> None:
        number, request, changes = case
        began = time.monotonic()
        result = verdict(all_decoders[number], changed(request.body, changes), request.kind)
        if isinstance(result, Refusal):
            assert 400 <= result.status < 500
            assert 0 < len(result.message) < 1000
            assert result.message != UNREADABLE, "an unexpected exception that the catch-all converted into a refusal"
        else:
            assert result.count >= 0
        seen.append(isinstance(result, Rows))
        assert time.monotonic() - began < 20, "it hangs"

    check_case()
    assert any(seen)
    assert not all(seen)


def test_changed_bodies_are_decoded_or_refused(all_decoders: list[Decoder]) -> None:
    fuzz(all_decoders, 400)


@pytest.mark.soak
def test_many_changed_bodies_are_decoded_or_refused(all_decoders: list[Decoder]) -> None:
    fuzz(all_decoders, 50 * SOAK)


@pytest.mark.parametrize(
    "body",
    [
        b'{"inputs":' + b"[" * 100_000,
        b'{"inputs":[' + b"[]," * 5_000 + b"[]]}",
        b'{"inputs":[' + b"1," * 50_000 + b'"x"]}',
        b'{"dataframe_split":{"columns":["a"],"data":[' + b"[1]," * 5_000 + b"[[]]]}}",
        b'{"dataframe_records":[' + b'{"i":"x"},' * 5_000 + b"{}]}",
        b'{"dataframe_split":{"columns":[' + b'"a",' * 20_000 + b'"b"],"data":[]}}',
        b'{"inputs":' + b"9" * 200_000 + b"}",
        b'{"inputs":"' + b"\\ud800" * 20_000 + b'"}',
        b"{" + b",".join(b'"%d":1' % number for number in range(20_000)) + b"}",
    ],
    ids=["deep", "empty lists", "a late text", "a late list", "many texts", "one name", "a long number", "surrogates", "many keys"],
)
def test_large_invalid_bodies_are_refused_quickly(all_decoders: list[Decoder], body: bytes) -> None:
    for decoder in all_decoders:
        began = time.monotonic()
        result = verdict(decoder, body)
        assert isinstance(result, Rows) or result.message != UNREADABLE
        assert time.monotonic() - began < 30, "it hangs"
