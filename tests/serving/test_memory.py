"""The memory that is reserved for a body is an upper bound of what is used, and the budget follows the limit of the process."""

import gc
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mlops_build.serving import memory, pieces
from mlops_build.serving.encode import encode, plain
from mlops_build.serving.http.body import Budget, MemoryFull, Reservation, held
from mlops_build.serving.input.decode import Decoder
from mlops_build.serving.refusal import PIECE, Refusal, inflated
from tests.serving import models, peaks
from tests.serving.forms import CSV, JSON, PARQUET

# Constant amounts: modules and caches of pandas and MLflow, and the values of one batch of Parquet.
SLACK = 2 << 20


@pytest.fixture(scope="module", autouse=True)
def frozen() -> Iterator[None]:
    """Collections skip the objects of MLflow and torch, which take half a second each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def decoders(tmp_path_factory: pytest.TempPathFactory) -> list[Decoder]:
    folder = tmp_path_factory.mktemp("memory")
    signatures = [models.FLOATS, models.columns(("a", "string")), models.tensor("float32", (-1, 1)), None]
    return [Decoder(models.save(folder / str(number), signature)) for number, signature in enumerate(signatures)]


def used(decoder: Decoder, body: bytes, kind: str) -> tuple[int, int]:
    """The peak of the memory to decode a body, and what was reserved for it."""
    reserved: list[int] = []
    gc.collect()
    tracemalloc.start(1)
    try:
        decoder.decode(body, kind, reserved.append)
    except Refusal:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    return peak, sum(reserved)


def repeated(form: str, unit: str, size: int) -> bytes:
    return form.replace("%s", ",".join([unit] * (size // (len(unit.encode()) + 1)))).encode()


def check(decoder: Decoder, body: bytes, kind: str) -> None:
    peak, reserved = used(decoder, body, kind)
    assert peak <= reserved + SLACK, (body[:100], kind, peak / len(body), reserved / len(body))


@pytest.mark.soak
@pytest.mark.real_python
def test_reservations_are_upper_bounds_of_the_resident_memory() -> None:
    """For valid and hostile bodies; those for valid bodies are about twice what they need, at most."""
    done = subprocess.run([sys.executable, "-m", "tests.serving.peaks"], capture_output=True, text=True, timeout=1200, check=True)
    shapes = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(shapes) == len(peaks.VALID) + len(peaks.HOSTILE), done.stderr
    for shape in shapes:
        assert shape["needed"] <= shape["reserved"] + SLACK / peaks.SIZE, shape
        assert not shape["valid"] or shape["reserved"] <= 2.2 * shape["needed"], shape  # small integers need nothing


@pytest.mark.slow
def test_reservations_for_parquet_are_upper_bounds(decoders: list[Decoder]) -> None:
    frames: list[Any] = [
        {"a": ["x" * 1000] * 20_000}, {"a": [1.0] * 200_000}, {"a": [[1.0] * 1000] * 200}, {"a": [b"x" * 100] * 10_000, "b": range(10_000)},
    ]  # fmt: skip
    for frame in frames:
        for decoder in decoders:
            check(decoder, pd.DataFrame(frame).to_parquet(), PARQUET)


def test_reservations(decoders: list[Decoder]) -> None:
    for form, unit in ((peaks.INPUTS, "[]"), (peaks.RECORDS, '{"a":1.5,"b":2.5,"c":3.5}'), (peaks.ROWS, "[1.5,2.5,3.5]")):
        check(decoders[0], repeated(form, unit, 70_000), JSON)


@pytest.mark.parametrize("body", [b"a," * 1_000_000, b"x" * 4_000_000 + b"\n1", b"a,b,c\n" + b"1," * 2_000_000])
def test_a_wide_line_of_csv_is_refused_before_it_is_read(decoders: list[Decoder], body: bytes) -> None:
    check(decoders[0], body, CSV)
    with pytest.raises(Refusal, match="a line has more than 1006 columns, or the first has more than 1 MiB"):
        decoders[0].decode(body, CSV)


def test_a_wide_parquet_body_is_refused_before_it_is_read(decoders: list[Decoder]) -> None:
    body = pd.DataFrame({f"c{number}": [1.0] for number in range(3_000)}).to_parquet()
    reserved: list[int] = []
    with pytest.raises(Refusal, match="3000 columns were sent; this service reads at most 1006"):
        decoders[0].decode(body, PARQUET, reserved.append)
    assert sum(reserved) < 20 * len(body)


def test_the_texts_of_nested_parquet_columns_are_reserved(decoders: list[Decoder]) -> None:
    texts = ["x" * 1000] * 3
    body = pa.table(
        {"a": [texts] * 500, "b": [{"c": texts[0]}] * 500, "d": pa.array([[("k", texts[0])]] * 500, pa.map_(pa.string(), pa.string()))}
    )
    file = io.BytesIO()
    pq.write_table(body, file, compression="zstd")
    reserved: list[int] = []
    decoders[-1].decode(file.getvalue(), PARQUET, reserved.append)
    assert sum(reserved) > 3 * 500 * 5000


def test_a_row_reserves_little(decoders: list[Decoder]) -> None:
    body = b'{"dataframe_split":{"columns":["a","b","c"],"data":[[1,2,3]]}}'
    reserved: list[int] = []
    rows = decoders[0].decode(body, JSON, reserved.append)
    assert reserved == []
    assert held(rows, len(body)) == 12


def test_a_body_for_which_the_system_has_no_memory_is_refused(decoders: list[Decoder]) -> None:
    def nothing_left(_: int) -> None:
        raise MemoryError

    body = b'{"inputs":[' + b"[]," * 70_000 + b"[]]}"
    with pytest.raises(Refusal, match=rf"this body of {len(body)} bytes: send fewer rows .* environments\.NAME\.memory") as refused:
        decoders[0].decode(body, JSON, nothing_left)
    assert refused.value.status == 413


def test_a_budget_is_never_exceeded() -> None:
    budget = Budget(8 << 20)
    with closing(Reservation(budget)) as first, closing(Reservation(budget)) as second:
        first.add(4 << 20)
        second.add(2 << 20)
        with pytest.raises(MemoryFull, match=r"8\.0 MiB"):
            second.add(2 << 20)
        assert budget.used == 6 << 20
        with pytest.raises(Refusal, match=r"needs about 13\.0 MiB of memory, and the service has 7\.0 MiB for a request") as refused:
            first.keep(13 << 20)
        assert refused.value.status == 413
        assert "send fewer rows per request, or raise environments.NAME.memory in service.yaml" in refused.value.message
        second.keep(3 << 20)
        budget.change(0, 1000)  # an eighth is left for small requests
        budget.change(1000, 0)
    assert budget.used == 0


def test_the_limit_of_the_cgroup(tmp_path: Path) -> None:
    own, nested = tmp_path / "own", tmp_path / "pods" / "one"
    own.write_text("0::/pods/one/inner\n")
    (nested / "inner").mkdir(parents=True)
    assert memory.cgroup_limit(tmp_path, own) is None
    (nested / "inner" / "memory.max").write_text("max\n")
    (nested / "memory.max").write_text("1000\n")
    (nested.parent / "memory.max").write_text("2000\n")
    assert memory.cgroup_limit(tmp_path, own) == 1000
    own.write_text("4:memory:/docker/of/the/host\n0::/\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("500\n")
    assert memory.cgroup_limit(tmp_path, own) == 500
    assert memory.cgroup_limit(tmp_path, tmp_path / "missing") is None


def test_memory_is_reserved_before_a_piece_is_decompressed() -> None:
    taken = 0

    def reserve(size: int) -> None:
        nonlocal taken
        taken += size
        if taken > 1 << 20:
            raise MemoryFull

    bomb = gzip.compress(bytes(64 << 20))
    tracemalloc.start(1)
    with pytest.raises(MemoryFull):
        inflated(bomb, b"gzip", 1 << 30, reserve)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (1 << 20) + 4 * PIECE


def test_trimming_is_safe_everywhere() -> None:
    memory.trim()
    assert memory.resident() > 1 << 20
    assert memory.budget(1 << 20) >= memory.LEAST


OUTPUTS: dict[str, Callable[[], Any]] = {
    "array": lambda: np.arange(300_000) / 7,
    "rows": lambda: np.arange(300_000, dtype="float32").reshape(-1, 3) / 7,
    "long rows": lambda: np.arange(300_000, dtype="float32").reshape(3, -1) / 7,
    "numbers": lambda: (np.arange(300_000) / 7).tolist(),
    "integers": lambda: [2**62 + number for number in range(300_000)],
    "text": lambda: ["x" * 1000 + str(number) for number in range(3_000)],
    "control characters": lambda: ["\x01" * 1000 + str(number) for number in range(3_000)],
    "unicode": lambda: ["é😀" * 500 + str(number) for number in range(3_000)],
    "lone surrogates": lambda: ["\ud800" + "é" * 1000 for number in range(1_000)],
    "bytes": lambda: [b"x" * 1000 + str(number).encode() for number in range(3_000)],
    "table": lambda: pd.DataFrame({"total": np.arange(10_000) / 7, "sign": [str(number) for number in range(10_000)]}),
    "dates": lambda: pd.DataFrame({"at": pd.date_range("2026-01-01", periods=10_000)}),
    "objects": lambda: [{"a": [number / 7], "b": None, str(number): (number,)} for number in range(10_000)],
}


@pytest.mark.parametrize("output", OUTPUTS)
def test_the_size_of_an_output_is_an_upper_bound_with_its_json(output: str) -> None:
    encode(pd.Timestamp(0).to_pydatetime())
    gc.collect()
    tracemalloc.start(1)
    answer = plain(OUTPUTS[output]())
    gc.collect()
    tracemalloc.reset_peak()
    encode(answer)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    bound = pieces.memory(answer)
    assert peak <= bound + SLACK
    assert bound <= 8 * peak, bound / peak
