"""Packed lists give the same array as numpy, or None."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlops_build.serving.decode import JSON, Decoder
from mlops_build.serving.pack import packed
from tests.serving import models

NUMBERS = st.floats(width=32) | st.floats() | st.integers(-(2**70), 2**70) | st.booleans()
ANYTHING = (
    NUMBERS
    | st.none()
    | st.text(max_size=3)
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(max_size=1), st.integers(), max_size=2)
)


def lists(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    row = st.integers(0, 3).flatmap(lambda width: st.lists(st.lists(elements, min_size=width, max_size=width), max_size=3))
    plane = st.integers(0, 2).flatmap(
        lambda height: st.lists(st.lists(st.lists(elements, max_size=2), min_size=height, max_size=height), max_size=3)
    )
    return row | plane | st.lists(elements, max_size=3)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@given(data=lists(NUMBERS) | lists(ANYTHING), rank=st.integers(1, 3))
def test_the_result_is_numpys_array_or_none(kind: str, data: Any, rank: int) -> None:
    array = packed(data, np.dtype(kind), (-1,) * rank)
    if array is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(array, np.array(data, dtype=kind), strict=True)
        assert array.flags.writeable


@pytest.mark.parametrize("kind", ["float32", "float64"])
def test_plain_numbers_are_packed(kind: str) -> None:
    data = [[[0.1, 2, True], [-1e-40, 3.5, 0]]]
    np.testing.assert_array_equal(packed(data, np.dtype(kind), (-1, 2, 3)), np.array(data, dtype=kind), strict=True)


@pytest.mark.parametrize(
    "data",
    [
        [[1.0, 2.0], [1.0]],
        [[1.0, None]],
        [[1.0, "2"]],
        [[1e39, 1.0]],
        [[2**1100, 1]],
        [[[1.0], [1.0]]],
        [[1.0, 2.0, 3.0]],
        [1.0, 2.0],
        [],
        [{"x": 1, "y": 2}],
    ],
)
def test_other_data_is_left_to_numpy(data: Any) -> None:
    assert packed(data, np.dtype("float32"), (-1, 2)) is None


def test_many_large_numbers_are_decoded_without_pandas(tmp_path: Path) -> None:
    """Microseconds since 1970: each number is an exact integer, but the sum of their squares exceeds the exact range."""
    decoder = Decoder(models.save(tmp_path / "saved", models.FLOATS))
    rows = [[1_795_906_000_000_000 + row, 1, 2] for row in range(100)]
    read = decoder.decode(json.dumps({"dataframe_split": {"columns": ["a", "b", "c"], "data": rows}}).encode(), JSON)
    assert (read.kind, read.data[99, 0]) == ("block", 1_795_906_000_000_099)
