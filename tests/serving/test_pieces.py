"""Large outputs are converted in pieces, to the same bytes as in one, while the event loop answers other requests."""

import datetime
import http.client
import json
import math
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
import torch

from mlops_build.serving import encode as encoding
from mlops_build.serving import pieces
from mlops_build.serving.encode import Unencodable, encode, plain
from mlops_build.serving.v2.output import as_tensor
from tests.serving import models
from tests.serving.conftest import serving
from tests.serving.test_http import address, ask, body

RANDOM = np.random.default_rng(1)
FLOATS = RANDOM.normal(size=3000)
DAY = datetime.date(2026, 1, 2)
OUTPUTS: dict[str, Any] = {
    "floats": FLOATS.tolist(),
    "float32 of one dimension": FLOATS.astype("float32"),
    "small rows": FLOATS.reshape(1000, 3),
    "large rows": FLOATS.reshape(2, 1500),
    "images": FLOATS.astype("float32").reshape(2, 3, 10, 50),
    "integers": np.arange(3000).reshape(3, 1000),
    "unsigned integers": np.arange(3000, dtype="uint64") + 2**63,
    "booleans": FLOATS > 0,
    "half": FLOATS.astype("float16").reshape(2, -1),
    "dates": np.arange(3000).astype("datetime64[s]"),
    "strings": np.array(["é" * (n % 7) for n in range(3000)]),
    "NaN": np.where(FLOATS > 0, FLOATS, np.nan),
    "no rows": np.empty((0, 3000)),
    "empty rows": np.empty((3000, 0)),
    "tensor": torch.tensor(FLOATS).reshape(3, 1000),
    "bfloat16": torch.tensor(FLOATS).bfloat16().reshape(3, 1000),
    "table": pd.DataFrame({"x": FLOATS, "n": range(3000), "s": ["a"] * 3000, "d": [DAY] * 3000}),
    "records": [{"x": x, "é\"": [x, None], "t": {"u": True}} for x in FLOATS.tolist()],
    "named": {"mask": FLOATS.reshape(30, 100), "label": "x", "scores": FLOATS.tolist(), 3: [1], "none": {}},
    "nested": [[FLOATS.tolist(), "x", []], [], {"a": [[[1.0]] * 900] * 2}],
    "long strings": ["x" * 100_000, "é" * 10_000, {"key" * 1000: "y" * 50_000}],
    "not finite": [math.nan, math.inf, -math.inf, *FLOATS.tolist()],
    "large integers": [2**70, *range(3000)],
    "surrogates": ["\ud800", *map(str, range(3000))],
    "tuples": (tuple(FLOATS.tolist()), (1, 2)),
    "bytes": [b"\x00\xff" * 2000, b""],
    "mixed": [1.0, [2.0] * 700, "x", None, *([[1, 2]] * 500)],
    "arrays of different lengths": [FLOATS, FLOATS[:3], FLOATS[:0]],
}  # fmt: skip


def in_one(output: Any, nan: str) -> bytes:
    """The encoding without pieces."""
    document = {"predictions": output.tolist() if hasattr(output, "tolist") else plain(output)}
    if nan == "null":
        try:
            return orjson.dumps(document, default=encoding._default, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_PASSTHROUGH_DATETIME)
        except orjson.JSONEncodeError:
            document = encoding._without_nan(document)
    return json.dumps(document, default=encoding._default).encode()


@pytest.mark.parametrize("nan", ["null", "literal"])
@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("size", [7, 1024])
def test_the_pieces_are_the_bytes_of_the_whole(monkeypatch: pytest.MonkeyPatch, name: str, size: int, nan: Any) -> None:
    expected = in_one(OUTPUTS[name], nan)
    monkeypatch.setattr(pieces, "PIECE", size)
    monkeypatch.setattr(pieces, "COPIED_BYTES", 1000)
    assert bytes(encode(plain(OUTPUTS[name]), nan=nan)) == expected


def test_a_large_array_is_copied_since_the_model_may_use_it_again() -> None:
    for array in (np.zeros(20_000), np.zeros((2, 10_000)), np.zeros((10_000, 2))):
        output, named = plain(array), plain({"x": array})
        array[:] = 1
        assert not np.any(output)
        assert not np.any(named["x"])


def test_tensors_of_the_inference_protocol_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, output in OUTPUTS.items():
        for declared in (None, np.dtype("float32")):
            for binary in (False, True):
                monkeypatch.setattr(pieces, "PIECE", 10**9)
                expected, octets = as_tensor(name, plain(output), declared, binary=binary)
                monkeypatch.setattr(pieces, "PIECE", 7)
                tensor, same = as_tensor(name, plain(output), declared, binary=binary)
                assert (encode(tensor, bare=True), same) == (encode(expected, bare=True), octets), name


def test_a_piece_has_few_values() -> None:
    counted: list[int] = []

    def dumps(value: Any) -> bytes:
        counted.append(pieces.size(value, 10**9))
        return encoding._fast(value)

    for output in ([FLOATS.tolist()] * 30, RANDOM.normal(size=(2, 3, 100, 100)), [{"a": 1.0, "b": "x" * 640}] * 9000):
        counted.clear()
        pieces.together(pieces.pieces({"predictions": output}, dumps, b","))
        assert max(counted) <= 1.1 * pieces.PIECE
        assert len(counted) < 100


# A model whose answer has as many values as the first column says.
MODEL = """
    def predict(self, context, data, params=None):
        import numpy as np

        count = int(data["a"].iloc[0])
        return np.arange(count, dtype="float32").reshape(1, count) if count > 0 else [list(range(-count))]
"""
VALUES = 14_000_000


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/invocations", "/v2/models/model/infer"])
def test_health_is_answered_while_a_large_response_is_written(tmp_path: Path, path: str) -> None:
    models.save(tmp_path / "saved", models.FLOATS, MODEL)
    if path == "/invocations":
        request = body(VALUES)
    else:
        inputs = [{"name": name, "datatype": "FP32", "shape": [1], "data": [VALUES]} for name in "abc"]
        request = json.dumps({"inputs": inputs}).encode()
    with serving(tmp_path, str(tmp_path / "saved/model"), "--deadline", "60") as server:
        assert ask(server, body(1.0))[0] == 200
        first_byte, sizes = threading.Event(), []

        def large() -> None:
            with closing(http.client.HTTPConnection(*address(server), timeout=60)) as connection:
                connection.request("POST", path, request, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                first_byte.set()
                content = answer.read()
                sizes.append((answer.status, content.count(b",") >= VALUES - 1, content[-20:]))

        thread = threading.Thread(target=large)
        thread.start()
        health = 0
        with closing(http.client.HTTPConnection(*address(server), timeout=60)) as connection:
            while not first_byte.is_set():
                connection.request("GET", "/health")
                assert connection.getresponse().read() == b"\n"
                health += 1
                time.sleep(0.01)
        thread.join()
        assert sizes[0][:2] == (200, True)
        assert health >= 30


def test_a_list_that_contains_itself_is_an_error_of_the_model() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(Unencodable):
        as_tensor("output", endless, None, binary=False)
    endless += FLOATS.tolist()
    with pytest.raises(Unencodable):
        encode(endless)
